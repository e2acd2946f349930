//! The storage's health. The master sees storage only through interfaces, so it is told.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uruk_proto::dfs;

/// Tells how the storage is.
#[async_trait]
pub trait StorageHealth: Send + Sync {
    /// A [`StorageReport`] as JSON (shown as tables), any other JSON (shown as it is), or null.
    async fn health(&self) -> serde_json::Value;
}

/// For storage that tells nothing about itself.
#[derive(Clone, Copy, Debug)]
pub struct NoHealth;

#[async_trait]
impl StorageHealth for NoHealth {
    async fn health(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// The state of a chunk store.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageReport {
    /// What kind of storage it is.
    pub kind: String,
    /// Why nothing else is known; empty when all is.
    pub error: String,
    /// Its servers.
    pub servers: Vec<StorageServer>,
    /// Files.
    pub files: u64,
    /// Their bytes, each file counted once.
    pub file_bytes: u64,
    /// Commit logs that have data.
    pub logs: u64,
    /// Segments of them that are written to.
    pub open_segments: u64,
    /// Chunks with fewer copies than wanted.
    pub under_replicated: u64,
    /// Chunks without any live copy.
    pub unavailable: u64,
    /// Whether copies are counted: not yet in the first seconds of a chunk store's controller, which then
    /// tells 0 for `under_replicated` and `unavailable`.
    pub copies_known: bool,
    /// Copies being made.
    pub copies_in_flight: u64,
    /// Damaged copies found so far.
    pub damaged_found: u64,
    /// ... and repaired.
    pub repaired: u64,
}

/// One chunk server.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageServer {
    /// Its id.
    pub server_id: u64,
    /// Where it serves.
    pub address: String,
    /// Where it stands.
    pub zone: String,
    /// Whether it is heard from.
    pub live: bool,
    /// Since its last heartbeat, in milliseconds.
    pub heartbeat_age_ms: u64,
    /// Chunks that it holds.
    pub chunks: u64,
    /// Log segments that it holds.
    pub segments: u64,
    /// Bytes that it holds.
    pub used_bytes: u64,
    /// Bytes that fit in besides.
    pub free_bytes: u64,
    /// Why it takes no more data; empty when it does.
    pub refusing_writes: String,
}

impl StorageReport {
    /// Nothing is known, for this reason.
    pub fn failed(kind: &str, error: impl Into<String>) -> StorageReport {
        StorageReport { kind: kind.to_owned(), error: error.into(), ..StorageReport::default() }
    }

    /// For [`StorageHealth::health`].
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("plain data becomes JSON")
    }

    /// What a [`StorageHealth`] told, if it is one of these.
    pub fn from_json(value: &serde_json::Value) -> Option<StorageReport> {
        value.get("servers")?;
        serde_json::from_value(value.clone()).ok()
    }

    /// Chunk servers that are heard from.
    pub fn live(&self) -> usize {
        self.servers.iter().filter(|server| server.live).count()
    }
}

impl From<dfs::HealthResponse> for StorageReport {
    fn from(health: dfs::HealthResponse) -> StorageReport {
        let server = |server: dfs::ChunkServerHealth| StorageServer {
            server_id: server.server_id,
            address: server.address,
            zone: server.zone,
            live: server.live,
            heartbeat_age_ms: server.last_heartbeat_ms_ago,
            chunks: server.chunks,
            segments: server.segments,
            used_bytes: server.used_bytes,
            free_bytes: server.free_bytes,
            refusing_writes: server.refusing_writes,
        };
        StorageReport {
            kind: "dfs-sim".to_owned(),
            error: String::new(),
            servers: health.servers.into_iter().map(server).collect(),
            files: health.files,
            file_bytes: health.file_bytes,
            logs: health.logs,
            open_segments: health.open_segments,
            under_replicated: health.under_replicated,
            unavailable: health.unavailable,
            copies_known: health.copies_known,
            copies_in_flight: health.copies_in_flight,
            damaged_found: health.damaged_found,
            repaired: health.repaired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_json_and_other_json_is_none() {
        let health = dfs::HealthResponse {
            servers: vec![dfs::ChunkServerHealth { server_id: 3, live: true, ..Default::default() }],
            files: 7,
            ..Default::default()
        };
        let report = StorageReport::from(health);
        assert_eq!(report.live(), 1);
        assert_eq!(StorageReport::from_json(&report.to_json()), Some(report));
        assert_eq!(StorageReport::from_json(&serde_json::json!({"bucket": "b"})), None);
        assert_eq!(StorageReport::from_json(&serde_json::Value::Null), None);
    }
}
