//! Tables: made, altered, listed, described, deleted; and the cluster's status.

use bytes::Bytes;
use uruk_proto::ErrorCode;
use uruk_proto::FamilyId;
use uruk_proto::master::{
    AlterTableRequest, CreateTableRequest, DeleteTableRequest, FamilyChange as FamilyChangeMessage, FamilySchema,
    GetTableRequest, ListTablesRequest, LocalityGroupSchema, StatusRequest, TableInfo as TableInfoMessage,
    family_change,
};
use uruk_proto::schema::{Family, GcRule, LocalityGroup, TableSchema, validate_family_name, validate_table_name};

use crate::client::Client;
use crate::error::{Error, Outcome, Result, from_check};
use crate::masters::Deadlines;
use crate::retry::Effect;
use crate::salt::Salt;

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

/// A table to be made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TableSpec {
    /// Its name.
    pub name: String,
    /// Its families.
    pub families: Vec<FamilySpec>,
    /// Row keys at which tablets start; in a salted table, behind each prefix.
    pub splits: Vec<Bytes>,
    /// Locality groups that are kept otherwise than by default; in any order.
    pub groups: Vec<LocalityGroup>,
    /// Spreads rows over so many ranges by a hash of their keys (2 to 256): for keys that only grow. It
    /// costs scans: each reads all ranges side by side. 0 and 1: none.
    pub salt: u32,
    /// A tablet above it is split; 0: the cluster's default.
    pub split_bytes: u64,
}

/// A change of a table's families.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FamilyChange {
    /// Makes one.
    Create(FamilySpec),
    /// Gives the family of this name this rule and this locality group.
    Update(FamilySpec),
    /// Drops the family of this name with all of its cells.
    Drop(String),
}

impl From<&FamilySpec> for Family {
    fn from(spec: &FamilySpec) -> Family {
        let FamilySpec { name, gc, locality_group } = spec.clone();
        Family { name, id: FamilyId(0), gc, locality_group }
    }
}

impl Client {
    /// Makes a table with a tablet up to each of `splits` and one beyond; answers when all of them are
    /// served.
    ///
    /// # Errors
    /// Bad names or splits; a table of this name exists ([`ErrorCode::AlreadyExists`]).
    pub async fn create_table(&self, name: &str, families: &[FamilySpec], splits: &[Bytes]) -> Result<TableInfo> {
        let (families, splits) = (families.to_vec(), splits.to_vec());
        self.create_table_with(&TableSpec { name: name.to_owned(), families, splits, ..TableSpec::default() }).await
    }

    /// Makes a table; answers when all of its tablets are served.
    ///
    /// # Errors
    /// As [`Client::create_table`]; a bad salt or locality group.
    pub async fn create_table_with(&self, spec: &TableSpec) -> Result<TableInfo> {
        let mut groups = spec.groups.clone();
        groups.sort_unstable_by_key(|group| group.number);
        let schema = TableSchema {
            name: spec.name.clone(),
            families: spec.families.iter().map(Family::from).collect(),
            groups,
            salt: spec.salt,
            split_bytes: spec.split_bytes,
            ..TableSchema::default()
        };
        schema.validate().map_err(from_check)?;
        let mut splits = spec.splits.clone();
        splits.sort_unstable();
        for split in &splits {
            Salt::of(&schema).row(split)?;
        }
        if let Some(pair) = splits.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::invalid(format!("split \"{}\" is given twice", pair[0].escape_ascii())));
        }
        let request = CreateTableRequest {
            name: schema.name.clone(),
            families: schema.families.iter().map(FamilySchema::from).collect(),
            splits: Salt::of(&schema).splits(&splits),
            request: self.core.env.random.u64(),
            groups: schema.groups.iter().map(LocalityGroupSchema::from).collect(),
            salt: schema.salt,
            split_bytes: schema.split_bytes,
        };
        self.core.tables.lock().remove(&schema.name);
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

    /// Changes families and locality groups, in order, all at once; answers when every server goes by it.
    /// Groups replace those with the same numbers.
    ///
    /// # Errors
    /// [`Error::UnknownTable`]; an unknown family ([`ErrorCode::NotFound`]) or one that is there already.
    pub async fn alter_table(
        &self,
        name: &str,
        changes: &[FamilyChange],
        groups: &[LocalityGroup],
    ) -> Result<TableInfo> {
        validate_table_name(name).map_err(from_check)?;
        let families: Vec<&str> = changes.iter().map(FamilyChange::family).collect();
        families.into_iter().try_for_each(validate_family_name).map_err(from_check)?;
        let request = AlterTableRequest {
            name: name.to_owned(),
            request: self.core.env.random.u64(),
            changes: changes.iter().map(change_message).collect(),
            groups: groups.iter().map(LocalityGroupSchema::from).collect(),
        };
        self.core.tables.lock().remove(name);
        let info = self
            .core
            .masters
            .call(Effect::Command, self.admin_deadlines(), |mut master| {
                let request = request.clone();
                async move { master.alter_table(request).await }
            })
            .await?;
        // Somebody may have fetched the old one meanwhile.
        self.core.tables.lock().remove(name);
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

    pub(crate) fn read_deadlines(&self) -> Deadlines {
        let config = &self.core.config;
        Deadlines { call: config.call_deadline(), attempt: config.master_attempt_deadline() }
    }

    /// Commands answer when their work is done, so one attempt may take as long as the call.
    pub(crate) fn admin_deadlines(&self) -> Deadlines {
        let call = self.core.config.admin_deadline();
        Deadlines { call, attempt: call }
    }
}

impl FamilyChange {
    fn family(&self) -> &str {
        match self {
            FamilyChange::Create(spec) | FamilyChange::Update(spec) => &spec.name,
            FamilyChange::Drop(name) => name,
        }
    }
}

fn change_message(change: &FamilyChange) -> FamilyChangeMessage {
    let change = match change {
        FamilyChange::Create(spec) => family_change::Change::Create(FamilySchema::from(&Family::from(spec))),
        FamilyChange::Update(spec) => family_change::Change::Update(FamilySchema::from(&Family::from(spec))),
        FamilyChange::Drop(name) => family_change::Change::Drop(name.clone()),
    };
    FamilyChangeMessage { change: Some(change) }
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
