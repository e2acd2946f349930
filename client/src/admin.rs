//! Tables: made, listed, described, deleted; and the cluster's status.

use bytes::Bytes;
use uruk_proto::ErrorCode;
use uruk_proto::master::{
    CreateTableRequest, DeleteTableRequest, FamilySchema, GetTableRequest, ListTablesRequest, StatusRequest,
    TableInfo as TableInfoMessage,
};
use uruk_proto::schema::{Family, GcRule, TableSchema, validate_table_name};
use uruk_proto::{FamilyId, TableId};

use crate::client::Client;
use crate::error::{Error, Outcome, Result, from_check};
use crate::masters::Deadlines;
use crate::mutation::check_row_key;
use crate::retry::Effect;

/// A table as the master sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableInfo {
    /// Name, id, families.
    pub schema: TableSchema,
    /// Tablets in all.
    pub tablets: u32,
    /// Tablets that are served now.
    pub tablets_open: u32,
    /// Bytes in files, as last reported.
    pub bytes: u64,
}

/// A column family to be made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FamilySpec {
    /// Its name.
    pub name: String,
    /// Which of its cells may go.
    pub gc: GcRule,
    /// Families of one group share their files.
    pub locality_group: u32,
}

impl FamilySpec {
    /// A family that keeps everything, in locality group 0.
    pub fn new(name: impl Into<String>) -> FamilySpec {
        FamilySpec { name: name.into(), ..FamilySpec::default() }
    }

    /// The same, with a garbage-collection rule.
    pub fn with_gc(self, gc: GcRule) -> FamilySpec {
        FamilySpec { gc, ..self }
    }

    /// The same, in another locality group.
    pub fn in_locality_group(self, locality_group: u32) -> FamilySpec {
        FamilySpec { locality_group, ..self }
    }
}

impl Client {
    /// Makes a table with a tablet up to each of `splits` and one beyond; answers when all of them are
    /// served.
    ///
    /// # Errors
    /// Bad names or splits; a table of this name exists ([`ErrorCode::AlreadyExists`]).
    pub async fn create_table(&self, name: &str, families: &[FamilySpec], splits: &[Bytes]) -> Result<TableInfo> {
        let family = |spec: &FamilySpec| Family {
            name: spec.name.clone(),
            id: FamilyId(0),
            gc: spec.gc.clone(),
            locality_group: spec.locality_group,
        };
        let families = families.iter().map(family).collect();
        let schema =
            TableSchema { id: TableId(0), name: name.to_owned(), version: 0, families, ..TableSchema::default() };
        schema.validate().map_err(from_check)?;
        let mut splits = splits.to_vec();
        splits.sort_unstable();
        for split in &splits {
            check_row_key(split)?;
        }
        if let Some(pair) = splits.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::invalid(format!("split \"{}\" is given twice", pair[0].escape_ascii())));
        }
        let request = CreateTableRequest {
            name: name.to_owned(),
            families: schema.families.iter().map(FamilySchema::from).collect(),
            splits,
            request: self.core.env.random.u64(),
            ..Default::default()
        };
        self.core.tables.lock().remove(name);
        let info = self
            .core
            .masters
            .call(Effect::Command, self.admin_deadlines(), |mut master| {
                let request = request.clone();
                async move { master.create_table(request).await }
            })
            .await?;
        table_info(info).map_err(|error| error.with_outcome(Outcome::Unknown))
    }

    /// All tables, by name.
    pub async fn list_tables(&self) -> Result<Vec<TableInfo>> {
        let answer = self
            .core
            .masters
            .call(Effect::Read, self.read_deadlines(), |mut master| async move {
                master.list_tables(ListTablesRequest {}).await
            })
            .await?;
        let mut tables = answer.tables.into_iter().map(table_info).collect::<Result<Vec<_>>>()?;
        tables.sort_by(|a, b| a.schema.name.cmp(&b.schema.name));
        Ok(tables)
    }

    /// The table of this name.
    ///
    /// # Errors
    /// [`Error::UnknownTable`].
    pub async fn get_table(&self, name: &str) -> Result<TableInfo> {
        validate_table_name(name).map_err(from_check)?;
        let request = GetTableRequest { name: name.to_owned(), table_id: 0 };
        let info = self
            .core
            .masters
            .call(Effect::Read, self.read_deadlines(), |mut master| {
                let request = request.clone();
                async move { master.get_table(request).await }
            })
            .await;
        table_info(info.map_err(|error| unknown_table(error, name))?)
    }

    /// Deletes the table of this name; answers when no server serves it any more.
    ///
    /// # Errors
    /// [`Error::UnknownTable`].
    pub async fn delete_table(&self, name: &str) -> Result<()> {
        validate_table_name(name).map_err(from_check)?;
        let request = DeleteTableRequest { name: name.to_owned(), request: self.core.env.random.u64() };
        self.core.tables.lock().remove(name);
        let deleted = self
            .core
            .masters
            .call(Effect::Command, self.admin_deadlines(), |mut master| {
                let request = request.clone();
                async move { master.delete_table(request).await }
            })
            .await;
        deleted.map(|_| ()).map_err(|error| unknown_table(error, name))
    }

    /// The status page's data as JSON; `path` as in `/api/v1/<path>`.
    pub async fn status(&self, path: &str) -> Result<Bytes> {
        let request = StatusRequest { path: path.to_owned() };
        let answer = self
            .core
            .masters
            .call(Effect::Read, self.read_deadlines(), |mut master| {
                let request = request.clone();
                async move { master.status(request).await }
            })
            .await?;
        Ok(answer.json)
    }

    fn read_deadlines(&self) -> Deadlines {
        let config = &self.core.config;
        Deadlines { call: config.call_deadline(), attempt: config.master_attempt_deadline() }
    }

    /// Commands answer when their work is done, so one attempt may take as long as the call.
    fn admin_deadlines(&self) -> Deadlines {
        let call = self.core.config.admin_deadline();
        Deadlines { call, attempt: call }
    }
}

fn unknown_table(error: Error, name: &str) -> Error {
    match error {
        Error::Refused { code: ErrorCode::NotFound, outcome: Outcome::NotDone, .. } => {
            Error::UnknownTable { table: name.to_owned() }
        }
        other => other,
    }
}

fn table_info(message: TableInfoMessage) -> Result<TableInfo> {
    let schema = message.schema.ok_or_else(|| Error::bad_response("a table comes without schema"))?;
    let schema = TableSchema::try_from(&schema).map_err(|error| Error::bad_response(error.to_string()))?;
    Ok(TableInfo { schema, tablets: message.tablets, tablets_open: message.tablets_open, bytes: message.bytes })
}
