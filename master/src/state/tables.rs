//! Tables: creation and deletion as persistent procedures.
//!
//! | state | left when |
//! |---|---|
//! | Creating | every tablet is open at once |
//! | Ready | the table is deleted |
//! | Deleting | the last owner released its tablet, or died: the table is gone |

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uruk_proto::schema::{TableSchema, validate_row_key};
use uruk_proto::{RowRange, TableId};

use super::alter::Alteration;
use super::row::{CloseKind, MetaRow, TabletState};
use super::{Applied, State};
use crate::command::{Reason, Refusal, Reply};

/// Requests of finished deletions that are remembered, to answer repeats.
const DELETIONS_KEPT: usize = 1_000;

/// Where a table is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TableState {
    Creating,
    Ready,
    /// By this request.
    Deleting(u64),
}

/// A table.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Table {
    pub schema: TableSchema,
    pub state: TableState,
    /// Who asked for it: a repeated request finds its own table. 0: nobody in particular.
    pub request: u64,
    pub created_micros: i64,
    /// Who has not confirmed the newest schema yet.
    pub alteration: Option<Alteration>,
}

/// All tables.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Tables {
    pub(super) by_id: BTreeMap<TableId, Table>,
    /// A name is free again once the table's last tablet is gone.
    by_name: BTreeMap<String, TableId>,
    /// Requests of finished deletions, oldest first.
    deleted: VecDeque<u64>,
    /// Requests of alterations with what they made, oldest first.
    pub(super) altered: VecDeque<(u64, TableId, u64)>,
}

impl Tables {
    pub fn get(&self, id: TableId) -> Option<&Table> {
        self.by_id.get(&id)
    }

    pub fn by_name(&self, name: &str) -> Option<&Table> {
        self.by_id.get(self.by_name.get(name)?)
    }

    /// By id.
    pub fn all(&self) -> impl Iterator<Item = &Table> {
        self.by_id.values()
    }
}

impl Table {
    pub fn is_deleting(&self) -> bool {
        matches!(self.state, TableState::Deleting(_))
    }
}

impl State {
    pub(super) fn create_table(
        &mut self,
        request: u64,
        mut schema: TableSchema,
        mut splits: Vec<Bytes>,
        micros: i64,
    ) -> Applied {
        if let Some(table) = self.tables.by_name(&schema.name) {
            let name = &schema.name;
            return match table.state {
                TableState::Deleting(_) => {
                    Err(Refusal::new(Reason::FailedPrecondition, format!("table {name} is being deleted")))
                }
                TableState::Creating | TableState::Ready if request != 0 && table.request == request => {
                    Ok(Reply::Table(table.schema.id))
                }
                TableState::Creating | TableState::Ready => {
                    Err(Refusal::new(Reason::AlreadyExists, format!("table {name} exists")))
                }
            };
        }
        schema.validate()?;
        splits.sort();
        splits.iter().try_for_each(|key| validate_row_key(key))?;
        if let Some(twice) = splits.windows(2).find(|pair| pair[0] == pair[1]) {
            let message = format!("split key \"{}\" is given twice", twice[0].escape_ascii());
            return Err(Refusal::new(Reason::InvalidArgument, message));
        }
        let id = self.ids.table();
        (schema.id, schema.version) = (id, 1);
        schema.families.iter_mut().for_each(|family| family.id = self.ids.family());
        self.tables.by_name.insert(schema.name.clone(), id);
        self.tables.by_id.insert(
            id,
            Table { schema, state: TableState::Creating, request, created_micros: micros, alteration: None },
        );
        let starts = std::iter::once(Bytes::new()).chain(splits.iter().cloned());
        let ends = splits.iter().cloned().chain(std::iter::once(Bytes::new()));
        for (start, end) in starts.zip(ends) {
            let tablet = self.ids.tablet();
            self.put_row(MetaRow { born_micros: micros, ..MetaRow::new(tablet, id, RowRange { start, end }) });
        }
        Ok(Reply::Table(id))
    }

    /// The table is complete once all of its tablets are open.
    pub(super) fn finish_creation(&mut self, table: TableId) {
        let counts = self.index.counts(table);
        let table = self.tables.by_id.get_mut(&table).expect("every row's table exists");
        if table.state == TableState::Creating && counts.open == counts.tablets {
            table.state = TableState::Ready;
        }
    }

    pub(super) fn delete_table(&mut self, request: u64, name: &str) -> Applied {
        // A repeated request that was carried out must not touch a new table of the same name.
        if request != 0 && self.tables.deleted.contains(&request) {
            return Ok(Reply::Done);
        }
        let Some(id) = self.tables.by_name.get(name).copied() else {
            return Err(Refusal::new(Reason::NotFound, format!("table {name} does not exist")));
        };
        let table = self.tables.by_id.get_mut(&id).expect("a name leads to a table");
        if table.is_deleting() {
            return Ok(Reply::Table(id));
        }
        table.state = TableState::Deleting(request);
        table.alteration = None;
        let rows: Vec<MetaRow> = self.meta.rows_of(id).cloned().collect();
        for mut row in rows {
            self.lose_ground(row.tablet, || "its table is deleted".to_owned(), None);
            row.procedure = None;
            match row.state {
                TabletState::Unassigned | TabletState::Failed => self.remove_row(row.tablet),
                TabletState::Opening(server) | TabletState::Open(server) | TabletState::Closing(server, _) => {
                    row.state = TabletState::Closing(server, CloseKind::Discard);
                    self.put_row(row);
                }
            }
        }
        Ok(Reply::Table(id))
    }

    /// The table is gone once its last row is.
    pub(super) fn finish_deletion(&mut self, id: TableId) {
        let table = self.tables.by_id.get(&id).expect("every row's table exists");
        let TableState::Deleting(request) = table.state else { return };
        if self.index.counts(id).tablets > 0 {
            return;
        }
        self.tables.by_name.remove(&table.schema.name);
        self.tables.by_id.remove(&id);
        if request != 0 {
            self.tables.deleted.push_back(request);
        }
        while self.tables.deleted.len() > DELETIONS_KEPT {
            self.tables.deleted.pop_front();
        }
    }
}
