//! Filling the master, by the RPCs that clients and tablet servers use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tonic::Request;
use uruk_base::process::own_memory_peak_bytes;
use uruk_proto::master::master_control_server::MasterControl;
use uruk_proto::master::{
    CommitFilesRequest, CreateTableRequest, FamilySchema, FileRef, LocalityGroupFiles, TabletKey,
};
use uruk_proto::{Epoch, RpcError, SeqNo, TabletId};

use super::fleet::Member;
use super::{Bench, BenchError};
use crate::service::control::ControlService;
use crate::tables;

/// Tables created at a time.
const TABLES_AT_A_TIME: usize = 2;
/// Commits under way at a time.
const COMMITS_AT_A_TIME: usize = 512;
/// Progress is told after so many.
const TOLD_EVERY: u64 = 50_000;
/// Size of each file.
const FILE_BYTES: u64 = 8 << 20;

/// The first row of a table's tablet.
pub fn row_key(tablet: u64) -> Bytes {
    Bytes::from(format!("user{tablet:010}"))
}

impl Bench<'_> {
    /// Tables, opened by the planner; then the files of each tablet.
    pub(super) async fn fill(&mut self) -> Result<(), BenchError> {
        let began = self.env.clock.now();
        self.create_tables().await?;
        self.figures.open_ms = self.ms_since(began) as u64;
        let began = self.env.clock.now();
        if self.options.files > 0 {
            self.commit_files().await?;
        }
        self.figures.files_ms = self.ms_since(began) as u64;
        self.figures.fill_peak_bytes = own_memory_peak_bytes();
        Ok(())
    }

    async fn create_tables(&self) -> Result<(), BenchError> {
        let (tablets, of_table) = (self.options.tablets, self.options.table_tablets);
        let shared = &self.master().shared;
        let tables = 0..tablets.div_ceil(of_table);
        let creations = futures::stream::iter(tables).map(|table| async move {
            let count = of_table.min(tablets - table * of_table);
            let request = CreateTableRequest {
                name: format!("bench_{table:06}"),
                families: vec![FamilySchema { name: "f".into(), ..FamilySchema::default() }],
                splits: (1..count).map(row_key).collect(),
                request: table + 1,
                ..CreateTableRequest::default()
            };
            tables::create(shared, request).await?;
            let all = shared.consensus.read(|state| state.index.tablets());
            self.tell(format!("opened the tablets of table {table}; {all} in all"));
            Ok::<(), RpcError>(())
        });
        creations.buffer_unordered(TABLES_AT_A_TIME).try_collect::<()>().await?;
        // The last answers to the servers may be on their way.
        self.until("the servers know their tablets", |bench| {
            bench.fleet.all().iter().map(|member| member.tablets() as u64).sum::<u64>() == tablets
        })
        .await
    }

    async fn commit_files(&self) -> Result<(), BenchError> {
        let service = Arc::new(ControlService(self.master().shared.clone()));
        let told = AtomicU64::new(0);
        let commits = self.fleet.all().into_iter().flat_map(|member| {
            let keys = member.keys();
            keys.into_iter().enumerate().map(move |(number, key)| (member.clone(), number as u64 + 1, key))
        });
        let commits = futures::stream::iter(commits).map(|(member, number, key)| {
            let (service, told) = (service.clone(), &told);
            async move {
                let request = self.commit(&member, number, key);
                service.commit_files(Request::new(request)).await.map_err(RpcError::from)?;
                let done = told.fetch_add(1, Ordering::Relaxed) + 1;
                if done.is_multiple_of(TOLD_EVERY) {
                    self.tell(format!("{done} tablets have their files"));
                }
                Ok::<(), RpcError>(())
            }
        });
        commits.buffer_unordered(COMMITS_AT_A_TIME).try_collect::<()>().await?;
        Ok(())
    }

    fn commit(&self, member: &Member, number: u64, key: TabletKey) -> CommitFilesRequest {
        let table =
            self.master().shared.consensus.read(|state| state.row(TabletId(key.tablet_id)).map(|row| row.table));
        let table = table.unwrap_or_default().0;
        let seq = SeqNo::new(Epoch(key.epoch), number).unwrap_or(SeqNo::ZERO).0;
        let file = |n: u32| FileRef {
            path: format!("tables/{table}/{}/{}-{}.sst", key.tablet_id, member.id, number * 100 + u64::from(n)),
            bytes: FILE_BYTES,
            cells: 100_000,
            min_seq: seq,
            max_seq: seq,
            ..FileRef::default()
        };
        CommitFilesRequest {
            server_id: member.id,
            tablet: Some(key),
            schema_version: 1,
            command: number,
            flushed_seq: seq,
            add: vec![LocalityGroupFiles { locality_group: 0, files: (0..self.options.files).map(file).collect() }],
            ..CommitFilesRequest::default()
        }
    }
}
