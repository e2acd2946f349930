//! The newest schema of each table that this server was told of.
//!
//! Invariant: once `SetSchema` has answered, every tablet of the table goes by that version or a newer
//! one, also those that are being opened by an older order. Tablets come into [`Tablets`] before they
//! look here, and a new schema comes here before it looks for tablets: one of both sees the other.
//!
//! [`Tablets`]: super::tablets::Tablets

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use uruk_proto::schema::TableSchema;
use uruk_proto::tablet::SetSchemaRequest;
use uruk_proto::{ErrorCode, RpcError, TableId};

use super::Server;
use super::tablet::Tablet;

/// By table; tables that the server has no tablet of are kept too: an order to open one may come late.
#[derive(Debug, Default)]
pub struct Schemas(Mutex<BTreeMap<TableId, Arc<TableSchema>>>);

impl Schemas {
    /// Takes note of a schema; the newest of its table.
    pub fn learn(&self, schema: Arc<TableSchema>) -> Arc<TableSchema> {
        let mut newest = self.0.lock();
        let known = newest.entry(schema.id).or_insert_with(|| schema.clone());
        if schema.version > known.version {
            *known = schema;
        }
        known.clone()
    }

    /// Has the tablet go by the newest schema of its table.
    pub fn apply(&self, tablet: &Tablet) {
        let newest = self.0.lock().get(&tablet.table).cloned();
        if let Some(schema) = newest {
            tablet.store.set_schema(schema);
        }
    }
}

impl Server {
    /// A table has a new schema; older versions are ignored.
    pub fn set_schema(&self, request: SetSchemaRequest) -> Result<(), RpcError> {
        let missing = || RpcError::new(ErrorCode::InvalidArgument, "no schema");
        let schema = TableSchema::try_from(&request.schema.ok_or_else(missing)?)?;
        let schema = self.schemas.learn(Arc::new(schema));
        tracing::info!(table = %schema.id, version = schema.version, "schema is set");
        for tablet in self.tablets.loaded().into_iter().filter(|tablet| tablet.table == schema.id) {
            tablet.store.set_schema(schema.clone());
        }
        // A refused flush or compaction may go through now.
        self.budget.wake_flusher.notify_one();
        self.wake_compactor.notify_one();
        Ok(())
    }
}
