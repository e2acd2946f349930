//! What the tests of this crate's chunk server share: a machine with a simulated disk, on which
//! processes start, crash and start again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use uruk_base::clock::{Clock, SimulatedClock};
use uruk_base::disk::SimDisk;
use uruk_base::transport::TcpTransport;
use uruk_base::{Env, Metrics, Random, Tasks};

use super::chunk_store::ChunkStore;
use super::config::ChunkServerConfig;
use super::host::Host;
use super::map_cache::MapCache;
use super::replica::{OpenAppend, Replica};
use super::segment_store::SegmentStore;
use crate::format::replica_file::Mode;
use crate::format::{SegmentKey, encode_frame};

pub(super) const LOG: u64 = 77;
pub(super) const SEGMENT: u64 = 5;

/// One machine. Clones mean the same one.
#[derive(Clone)]
pub(super) struct Machine {
    pub(super) disk: SimDisk,
    pub(super) random: Random,
}

/// One process on it, without its network part.
pub(super) struct Process {
    pub(super) env: Env,
    pub(super) host: Arc<Host>,
    pub(super) chunks: Arc<ChunkStore>,
    pub(super) segments: Arc<SegmentStore>,
}

impl Machine {
    pub(super) fn new(seed: u64) -> Machine {
        Machine { disk: SimDisk::new(seed), random: Random::from_seed(seed ^ 0xc0ffee) }
    }

    pub(super) async fn start(&self) -> Process {
        self.start_with(ChunkServerConfig { disk_reserve_bytes: 0, ..ChunkServerConfig::default() }).await
    }

    pub(super) async fn start_with(&self, config: ChunkServerConfig) -> Process {
        let clock = Clock::from_source(Arc::new(SimulatedClock::new(1.0, 0)));
        let env = Env {
            random: self.random.clone(),
            transport: Arc::new(TcpTransport),
            disk: self.disk.mount(clock.clone()),
            clock,
            tasks: Tasks::simulated(),
            metrics: Metrics::new(),
        };
        env.disk.create_dir_all(Path::new("/data")).await.expect("creates");
        let host = Arc::new(Host::new(&env, ChunkServerConfig { folder: "/data".into(), ..config }));
        host.space.refresh(&host).await;
        let maps = Arc::new(MapCache::new(4));
        let chunks = Arc::new(ChunkStore::open(host.clone(), maps.clone()).await.expect("opens chunks"));
        let segments = Arc::new(SegmentStore::open(host.clone(), maps).await.expect("opens segments"));
        Process { env, host, chunks, segments }
    }
}

impl Process {
    /// Ends the process; `power` takes the machine down with it.
    pub(super) async fn crash(self, machine: &Machine, power: bool) {
        // The disk first: what the tasks still do has no effect any more.
        if power {
            machine.disk.power_loss()
        } else {
            machine.disk.process_crash()
        }
        self.env.tasks.shutdown().await.expect("no task panics");
    }

    pub(super) async fn open(&self, mode: Mode) -> Arc<Replica> {
        let open = OpenAppend { log_id: LOG, mode, create: true };
        self.segments.open_for_append(SEGMENT, open).await.expect("opens")
    }

    pub(super) async fn sleep_micros(&self, micros: u64) {
        self.env.clock.sleep(Duration::from_micros(micros)).await;
    }
}

/// A frame for `offset` of the test's segment, its payload drawn from `random`.
pub(super) fn random_frame(random: &Random, offset: u64, payload_bytes_max: u64) -> Bytes {
    let mut payload = vec![0; random.range(1..payload_bytes_max) as usize];
    random.fill(&mut payload);
    frame(offset, &payload)
}

pub(super) fn frame(offset: u64, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    encode_frame(SegmentKey { log_id: LOG, segment_id: SEGMENT }, offset, payload, &mut out);
    out.freeze()
}

/// Appends `data` as an honest writer does.
pub(super) async fn append(replica: &Replica, offset: u64, data: &Bytes) {
    let crc = crc32fast::hash(data);
    replica.append(offset, data.clone(), crc, 0).await.expect("appends");
}

/// Waits until `length` may be acknowledged.
pub(super) async fn held(replica: &Replica, length: u64) {
    replica.acked().wait_for(|acked| *acked >= length).await.expect("the replica lives");
}

/// All bytes that the replica lets a reader with `recovery` see.
pub(super) async fn content(replica: &Replica, recovery: u64) -> Bytes {
    let (reader, limit) = replica.reader(recovery).await.expect("readable");
    reader.read(0, limit).await.expect("sound")
}
