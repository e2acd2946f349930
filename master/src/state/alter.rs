//! Alterations of a table's schema: the version rises at once, and every live owner has to confirm it.
//!
//! Whoever gets a tablet later gets the schema with the order to open it, so that only those who have one now
//! are waited for, whatever its state. A server that dies is not waited for: its lease is over.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use uruk_proto::schema::{Family, LocalityGroup, TableSchema};
use uruk_proto::{ServerId, TableId};

use super::row::MetaRow;
use super::tables::TableState;
use super::{Applied, State};
use crate::command::{FamilyChange, Reason, Refusal, Reply};

/// Requests of alterations that are remembered, to answer repeats.
const ALTERATIONS_KEPT: usize = 1_000;

/// Who has not confirmed a table's newest schema yet: never empty.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Alteration {
    pub waiting: BTreeSet<ServerId>,
}

impl State {
    pub(super) fn start_alter(
        &mut self,
        request: u64,
        name: &str,
        changes: Vec<FamilyChange>,
        groups: Vec<LocalityGroup>,
    ) -> Applied {
        let repeated = |altered: &&(u64, TableId, u64)| request != 0 && altered.0 == request;
        if let Some((_, table, version)) = self.tables.altered.iter().find(repeated) {
            return Ok(Reply::Altered(*table, *version));
        }
        let Some(table) = self.tables.by_name(name) else {
            return Err(Refusal::new(Reason::NotFound, format!("table {name} does not exist")));
        };
        if table.state != TableState::Ready {
            return Err(Refusal::new(Reason::FailedPrecondition, format!("table {name} is not ready")));
        }
        let id = table.schema.id;
        let mut schema = altered(table.schema.clone(), changes, groups)?;
        // The ids are issued last, so that what is refused changes nothing.
        for family in schema.families.iter_mut().filter(|family| family.id.0 == 0) {
            family.id = self.ids.family();
        }
        let version = schema.version;
        let waiting: BTreeSet<ServerId> = self.meta.rows_of(id).filter_map(MetaRow::owner).collect();
        let table = self.tables.by_id.get_mut(&id).expect("it was found");
        table.schema = schema;
        table.alteration = (!waiting.is_empty()).then_some(Alteration { waiting });
        remember(&mut self.tables.altered, (request, id, version));
        Ok(Reply::Altered(id, version))
    }

    pub(super) fn confirm_schema(&mut self, server: ServerId, table: TableId, version: u64) -> Applied {
        if let Some(table) = self.tables.by_id.get_mut(&table)
            && table.schema.version == version
        {
            table.confirm(server);
        }
        Ok(Reply::Done)
    }

    /// Nobody waits for the dead.
    pub(super) fn confirm_all_schemas(&mut self, server: ServerId) {
        self.tables.by_id.values_mut().for_each(|table| table.confirm(server));
    }
}

impl super::tables::Table {
    fn confirm(&mut self, server: ServerId) {
        if let Some(alteration) = &mut self.alteration {
            alteration.waiting.remove(&server);
            if alteration.waiting.is_empty() {
                self.alteration = None;
            }
        }
    }
}

fn remember(altered: &mut VecDeque<(u64, TableId, u64)>, one: (u64, TableId, u64)) {
    if one.0 != 0 {
        altered.push_back(one);
    }
    if altered.len() > ALTERATIONS_KEPT {
        altered.pop_front();
    }
}

/// The schema after the changes, in their order; new families have id 0.
fn altered(
    mut schema: TableSchema,
    changes: Vec<FamilyChange>,
    groups: Vec<LocalityGroup>,
) -> Result<TableSchema, Refusal> {
    let refuse = |reason, message: String| Err(Refusal::new(reason, message));
    for change in changes {
        let place = |families: &[Family], name: &str| families.iter().position(|family| family.name == name);
        match change {
            FamilyChange::Create(family) => {
                if place(&schema.families, &family.name).is_some() {
                    return refuse(Reason::AlreadyExists, format!("family {} exists", family.name));
                }
                schema.families.push(Family { id: Default::default(), ..family });
            }
            FamilyChange::Update(family) => {
                let Some(place) = place(&schema.families, &family.name) else {
                    return refuse(Reason::NotFound, format!("family {} does not exist", family.name));
                };
                let old = &mut schema.families[place];
                // Files move with compactions: until then reads look in both groups.
                (old.gc, old.locality_group) = (family.gc, family.locality_group);
            }
            FamilyChange::Drop(name) => {
                let Some(place) = place(&schema.families, &name) else {
                    return refuse(Reason::NotFound, format!("family {name} does not exist"));
                };
                schema.families.remove(place);
            }
        }
    }
    for group in groups {
        schema.groups.retain(|old| old.number != group.number);
        schema.groups.push(group);
    }
    schema.groups.sort_by_key(|group| group.number);
    schema.version += 1;
    schema.validate()?;
    Ok(schema)
}
