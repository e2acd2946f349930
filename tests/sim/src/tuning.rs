//! Settings for simulation, drawn from the seed: everything is small, so that much happens in a minute.

use std::path::PathBuf;
use std::time::Duration;

use uruk_base::Random;
use uruk_dfs_sim::chunkserver::ChunkServerConfig;
use uruk_dfs_sim::client::DfsClientConfig;
use uruk_dfs_sim::controller::ControllerConfig;
use uruk_master::MasterConfig;
use uruk_tabletserver::server::TabletServerConfig;

use crate::scenario::Scenario;

/// Bound on the error of any machine's clock rate that the masters are told, in parts per million.
pub const CLOCK_RATE_ERROR_PPM: u32 = 10_000;
/// Room that a chunk server keeps for fences and metadata, in bytes.
pub const DISK_RESERVE_BYTES: u64 = 64 << 10;
/// Files that nothing names are looked for this often.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(4);
/// A put that nobody ends is forgotten after this, and its chunks with it.
pub const PUT_LIFETIME: Duration = Duration::from_secs(12);

/// The sizes of one run.
#[derive(Clone, Debug)]
pub struct Tuning {
    memtable_bytes: u64,
    unflushed_log_bytes: u64,
    segment_bytes: u64,
    chunk_bytes: u64,
    block_bytes: usize,
    scan_batch_bytes: usize,
    compaction_files_min: usize,
    meta_tablet_rows_max: usize,
    frames_in_flight: usize,
    /// So many of them may be small.
    small_frames_in_flight: usize,
    snapshot_every_entries: u64,
    renewal_ms: u32,
    sweep_every: Duration,
    open_patience_ms: u64,
    /// A log's replica is given up after this.
    stalled_replica_ms: u64,
    /// When tablets split, merge and move by themselves; None: never.
    shape: Option<Shape>,
}

/// When tablets change their shape by themselves: soon.
#[derive(Clone, Debug)]
struct Shape {
    split_bytes: u64,
    hot_requests_per_s: u64,
    merge_age_ms: u64,
    balance_every_ms: u64,
    tolerance_permille: u64,
}

fn pick<T: Copy>(random: &Random, from: &[T]) -> T {
    from[random.range(0..from.len() as u64) as usize]
}

impl Tuning {
    /// Draws the sizes.
    pub fn draw(random: &Random, scenario: Scenario) -> Tuning {
        let mut tuning = Tuning {
            memtable_bytes: pick(random, &[4 << 10, 16 << 10, 64 << 10]),
            unflushed_log_bytes: pick(random, &[16 << 10, 64 << 10, 256 << 10]),
            segment_bytes: pick(random, &[4 << 10, 16 << 10, 64 << 10]),
            chunk_bytes: pick(random, &[2 << 10, 8 << 10, 64 << 10]),
            block_bytes: pick(random, &[256, 1 << 10, 4 << 10]),
            scan_batch_bytes: pick(random, &[1, 512, 4 << 10]),
            compaction_files_min: pick(random, &[2, 3]),
            meta_tablet_rows_max: pick(random, &[2, 4, 100]),
            frames_in_flight: pick(random, &[1, 2, 4]),
            small_frames_in_flight: pick(random, &[1, 4]),
            snapshot_every_entries: pick(random, &[10, 40, 200]),
            renewal_ms: 1_000,
            sweep_every: SWEEP_INTERVAL,
            open_patience_ms: pick(random, &[2_500, 30_000]),
            stalled_replica_ms: 1_000,
            shape: None,
        };
        tuning.suit(scenario);
        tuning
    }

    /// Tablets split, merge and move by themselves.
    pub fn change_shape(&mut self, random: &Random) {
        self.shape = Some(Shape {
            split_bytes: pick(random, &[8 << 10, 24 << 10, 64 << 10]),
            hot_requests_per_s: pick(random, &[5, 20, 1_000]),
            merge_age_ms: pick(random, &[500, 4_000]),
            balance_every_ms: pick(random, &[300, 1_000]),
            tolerance_permille: pick(random, &[50, 300]),
        });
    }

    /// What a scenario needs in order to come about often.
    fn suit(&mut self, scenario: Scenario) {
        match scenario {
            Scenario::Fence | Scenario::FenceRestarts => {
                // Between a slow holder's clock and a fast grantor's.
                self.renewal_ms = 300;
                // The writer, which cannot have files named, must not run out of memory.
                self.memtable_bytes = 1 << 20;
                self.unflushed_log_bytes = 4 << 20;
                self.stalled_replica_ms = 4_000;
                // A frame that waits behind the fence ends the stream before an earlier one's late answer.
                self.frames_in_flight = if self.frames_in_flight == 4 { 1 } else { self.frames_in_flight };
                let is_small = scenario == Scenario::FenceRestarts || self.segment_bytes <= 4 << 10;
                self.segment_bytes = if is_small { 2 << 10 } else { 64 << 10 };
            }
            Scenario::SlowCommits => {
                self.sweep_every = Duration::from_millis(200);
                self.memtable_bytes = 4 << 10;
            }
            Scenario::Unreadable => self.open_patience_ms = 1_500,
            // What is not flushed is what a recovery must bring back.
            Scenario::Lag | Scenario::LonelyLeader => {
                (self.memtable_bytes, self.unflushed_log_bytes) = (64 << 10, 256 << 10)
            }
            Scenario::LateReports => self.memtable_bytes = 4 << 10,
            // A half that compacts by itself, soon.
            Scenario::Shape => self.compaction_files_min = 2,
            _ => {}
        }
    }

    /// Of a controller.
    pub fn controller(&self, listen: &str, node: u64, members: &[String]) -> ControllerConfig {
        let ms = Duration::from_millis;
        ControllerConfig {
            node,
            members: numbered(members),
            heartbeat: ms(300),
            silent_after: ms(1_200),
            repair_grace: ms(4_000),
            warm_up: ms(1_000),
            put_lifetime: PUT_LIFETIME,
            repair_tick: ms(300),
            copy_timeout: ms(4_000),
            ids_per_block: 16,
            snapshot_every_entries: self.snapshot_every_entries,
            ..ControllerConfig::new("/data", listen)
        }
    }

    /// Of a chunk server.
    pub fn chunk_server(&self, listen: String, zone: String, controllers: &[String]) -> ChunkServerConfig {
        ChunkServerConfig {
            folder: PathBuf::from("/data"),
            listen,
            controllers: controllers.to_vec(),
            zone,
            scrub_bytes_per_s: 4 << 20,
            scrub_pause_ms: 3_000,
            disk_reserve_bytes: DISK_RESERVE_BYTES,
            maps_max: 16,
            rpc_timeout_ms: 1_000,
            idle_timeout_ms: 5_000,
            ..ChunkServerConfig::default()
        }
    }

    /// Of everybody who uses the chunk store.
    pub fn dfs(&self, controllers: &[String]) -> DfsClientConfig {
        DfsClientConfig {
            controller_attempt_ms: 1_000,
            controller_deadline_ms: 6_000,
            suspect_ms: 1_500,
            read_attempt_ms: 600,
            read_deadline_ms: 6_000,
            chunk_write_ms: 3_000,
            put_deadline_ms: 10_000,
            chunk_bytes: self.chunk_bytes,
            log_frames_in_flight: self.frames_in_flight,
            log_segment_bytes: self.segment_bytes,
            log_write_deadline_ms: 8_000,
            log_slow_replica_ms: self.stalled_replica_ms * 3 / 10,
            log_stalled_replica_ms: self.stalled_replica_ms,
            seal_attempt_ms: 600,
            seal_deadline_ms: 8_000,
            ..DfsClientConfig::new(controllers.to_vec())
        }
    }

    /// Of a master.
    pub fn master(&self, listen: &str, node: u64, members: &[String]) -> MasterConfig {
        let mut config = MasterConfig::new("/data", listen);
        config.node = node;
        config.members = numbered(members);
        let tuning = &mut config.tuning;
        tuning.clock_rate_error_ppm = CLOCK_RATE_ERROR_PPM;
        tuning.meta_tablet_rows_max = self.meta_tablet_rows_max;
        tuning.sort_patience_ms = 1_500;
        tuning.sort_deadline_ms = 10_000;
        tuning.order_deadline_ms = 2_000;
        tuning.order_repeat_ms = 3_000;
        tuning.procedure_patience_ms = 10_000;
        tuning.sweep_every_ms = self.sweep_every.as_millis() as u64;
        tuning.open_patience_ms = self.open_patience_ms;
        tuning.renewal_ms = self.renewal_ms;
        tuning.snapshot_every_entries = self.snapshot_every_entries;
        (tuning.auto_split, tuning.auto_merge, tuning.auto_balance) = (false, false, false);
        if let Some(shape) = &self.shape {
            (tuning.auto_split, tuning.auto_merge, tuning.auto_balance) = (true, true, true);
            tuning.balance_every_ms = shape.balance_every_ms;
            tuning.split_bytes = shape.split_bytes;
            tuning.split_bytes_min = shape.split_bytes / 4;
            tuning.hot_requests_per_s = shape.hot_requests_per_s;
            tuning.hot_for_ms = 2_000;
            tuning.split_rest_ms = 3_000;
            tuning.merge_bytes_permille = 300;
            tuning.merge_age_ms = shape.merge_age_ms;
            tuning.merge_requests_per_s = shape.hot_requests_per_s / 2;
            tuning.balance_tolerance_permille = shape.tolerance_permille;
            tuning.move_rest_ms = 2_000;
        }
        config
    }

    /// Of a tablet server.
    pub fn tablet_server(&self, listen: String, zone: String, nonce: u64, masters: &[String]) -> TabletServerConfig {
        let mut config = TabletServerConfig {
            listen,
            masters: masters.to_vec(),
            zone,
            nonce,
            memtable_bytes_soft: self.memtable_bytes,
            memtable_bytes_hard: self.memtable_bytes * 4,
            unflushed_log_bytes_max: self.unflushed_log_bytes,
            record_bytes_max: 8 << 10,
            frame_bytes: 2 << 10,
            log_queue_bytes_max: 128 << 10,
            frames_in_flight_max: self.frames_in_flight,
            small_frames_in_flight_max: self.small_frames_in_flight.min(self.frames_in_flight),
            large_frame_bytes: 1 << 10,
            master_call_ms: 1_000,
            ..TabletServerConfig::default()
        };
        let engine = &mut config.engine;
        engine.block_bytes = self.block_bytes;
        engine.block_restart_interval = 3;
        engine.block_cache_bytes = 32 << 10;
        engine.readahead_bytes_max = 4 << 10;
        engine.scan_batch_bytes = self.scan_batch_bytes;
        engine.scan_step_bytes = 2 << 10;
        engine.scan_steps_before_seek = 2;
        engine.merge_piece_bytes = 2 << 10;
        engine.compaction_files_min = self.compaction_files_min;
        engine.compaction_files_max = 4;
        engine.compaction_files_stuck = 6;
        engine.compaction_ratio_exempt_bytes = 2 << 10;
        config
    }
}

/// Members of a Raft group, numbered from 1 on.
fn numbered(members: &[String]) -> std::collections::BTreeMap<u64, String> {
    (1..).zip(members.iter().cloned()).collect()
}
