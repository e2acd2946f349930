//! Registration with the controller's leader, and reports to it.
//!
//! A report that may not have arrived is followed by a full one; so is a change of leader, which the
//! leader asks for.

use std::sync::Arc;
use std::time::Duration;

use uruk_base::rpc;
use uruk_proto::dfs::controller_client::ControllerClient;
use uruk_proto::dfs::{
    ChunkReport, ChunkServerHeartbeatRequest, ChunkServerHeartbeatResponse, RegisterChunkServerRequest, SegmentReport,
};
use uruk_proto::{ErrorCode, RpcError};

use super::Core;
use super::chunk_store::ChunkState;
use super::orders::Orders;
use super::replica::Replica;

/// Pause before the next controller is tried, with jitter.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// Bounds on the interval that the controller asks for.
const INTERVAL_MIN: Duration = Duration::from_millis(20);
const INTERVAL_MAX: Duration = Duration::from_secs(10);

/// Runs for as long as the server.
pub(super) async fn run(core: Arc<Core>, address: String) {
    let mut leader = Leader { core: core.clone(), current: None, next: 0 };
    let mut orders = Orders::new(core.clone());
    loop {
        let interval = register(&core, &mut leader, &address).await;
        report_until_refused(&core, &mut leader, &mut orders, interval).await;
    }
}

/// Which controller to talk to: the leader when known, else each in turn.
struct Leader {
    core: Arc<Core>,
    current: Option<String>,
    next: usize,
}

impl Leader {
    fn client(&self) -> ControllerClient<tonic::transport::Channel> {
        let controllers = &self.core.host.config.controllers;
        let address = self.current.as_ref().unwrap_or(&controllers[self.next % controllers.len()]);
        ControllerClient::new(self.core.channels.get(address))
            .max_decoding_message_size(rpc::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(rpc::MESSAGE_BYTES_MAX)
    }

    /// After a failed call: follows the leader that the error names, else tries the next one.
    fn learn(&mut self, error: &RpcError) {
        let named = error.leader.clone().filter(|leader| self.current.as_ref() != Some(leader));
        if named.is_none() {
            self.next += 1;
        }
        self.current = named;
    }
}

async fn register(core: &Core, leader: &mut Leader, address: &str) -> Duration {
    let host = &core.host;
    loop {
        let request = RegisterChunkServerRequest {
            folder_identity: core.folder.identity(),
            address: address.to_owned(),
            zone: host.config.zone.clone(),
            incarnation: core.incarnation,
            boot_id: host.boot_id.clone(),
        };
        let mut client = leader.client();
        let answer = host.env.clock.timeout(host.config.rpc_timeout(), client.register_chunk_server(request)).await;
        let error = match answer {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                match core.adopt_server_id(answer.server_id).await {
                    Ok(()) => {
                        tracing::info!(server = answer.server_id, "registered with the controller");
                        let interval = Duration::from_millis(u64::from(answer.heartbeat_ms));
                        return interval.clamp(INTERVAL_MIN, INTERVAL_MAX);
                    }
                    Err(error) => RpcError::from(error),
                }
            }
            Ok(Err(status)) => RpcError::from(status),
            Err(elapsed) => RpcError::new(ErrorCode::DeadlineExceeded, elapsed.to_string()),
        };
        tracing::debug!(%error, "cannot register yet");
        leader.learn(&error);
        host.env.clock.sleep(host.env.random.jitter(RETRY_DELAY)).await;
    }
}

/// Returns when the server has to register again.
async fn report_until_refused(core: &Arc<Core>, leader: &mut Leader, orders: &mut Orders, interval: Duration) {
    let host = &core.host;
    let mut full = true;
    loop {
        let request = report(core, full, orders.term_seen());
        let mut client = leader.client();
        let answer = host.env.clock.timeout(host.config.rpc_timeout(), client.chunk_server_heartbeat(request)).await;
        match answer {
            Ok(Ok(answer)) => {
                let answer: ChunkServerHeartbeatResponse = answer.into_inner();
                full = answer.report_all;
                orders.carry_out(answer).await;
                host.env.clock.sleep(interval).await;
            }
            Ok(Err(status)) => {
                let error = RpcError::from(status);
                tracing::debug!(%error, "a heartbeat fails");
                // Unknown server or incarnation, or a controller that forgot us.
                if matches!(error.code, ErrorCode::NotFound | ErrorCode::FailedPrecondition | ErrorCode::Fenced) {
                    host.env.clock.sleep(host.env.random.jitter(RETRY_DELAY)).await;
                    return;
                }
                leader.learn(&error);
                full = true;
                host.env.clock.sleep(host.env.random.jitter(RETRY_DELAY)).await;
            }
            Err(_) => {
                leader.learn(&RpcError::new(ErrorCode::DeadlineExceeded, "no answer"));
                full = true;
            }
        }
    }
}

/// What goes into a heartbeat. The changes are taken first: what happens while the report is made is
/// reported again next time.
fn report(core: &Core, full: bool, term_seen: u64) -> ChunkServerHeartbeatRequest {
    let host = &core.host;
    let changed = host.changes.take();
    let present = core.segments.present();
    let (chunks, segments) = if full {
        let chunks = core.chunks.states().into_iter().map(|(id, chunk)| chunk_report(id, Some(chunk))).collect();
        (chunks, present.iter().map(|(id, replica)| segment_report(*id, replica)).collect())
    } else {
        let chunks = changed.chunks.into_iter().map(|id| chunk_report(id, core.chunks.state(id))).collect();
        let segments = changed.segments.into_iter().map(|id| match core.segments.get(id) {
            Ok(replica) if replica.glance().present => segment_report(id, &replica),
            Ok(_) | Err(_) => SegmentReport { segment_id: id, deleted: true, ..SegmentReport::default() },
        });
        (chunks, segments.collect())
    };
    ChunkServerHeartbeatRequest {
        server_id: core.server_id(),
        incarnation: core.incarnation,
        full,
        chunks,
        segments,
        free_bytes: host.space.free_bytes(),
        used_bytes: core.chunks.used_bytes() + core.segments.used_bytes(),
        refusing_writes: host.space.refusing(),
        term_seen,
        open_segments: present.iter().filter(|(_, replica)| replica.glance().open).count() as u32,
    }
}

fn chunk_report(id: u64, state: Option<ChunkState>) -> ChunkReport {
    match state {
        Some(chunk) => {
            ChunkReport { chunk_id: id, bytes: chunk.bytes, damaged: chunk.damaged.is_some(), deleted: false }
        }
        None => ChunkReport { chunk_id: id, bytes: 0, damaged: false, deleted: true },
    }
}

fn segment_report(id: u64, replica: &Replica) -> SegmentReport {
    let glance = replica.glance();
    SegmentReport {
        segment_id: id,
        length: replica.length(),
        sealed: glance.sealed.is_some(),
        // A sealed copy that its own server does not vouch for must not count as a good one.
        damaged: glance.damaged.is_some() || (glance.sealed.is_some() && glance.unvouched.is_some()),
        deleted: false,
        behind: glance.behind,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::format::replica_file::Mode;

    #[tokio::test(start_paused = true)]
    async fn a_sealed_copy_that_is_not_vouched_for_is_reported_as_damaged() {
        let machine = Machine::new(1);
        let process = machine.start().await;
        let replica = process.open(Mode::Fsync).await;
        let data = frame(0, &[1; 100]);
        append(&replica, 0, &data).await;
        held(&replica, data.len() as u64).await;
        replica.finish(data.len() as u64, crc32fast::hash(&data)).await.expect("seals");
        assert!(!segment_report(SEGMENT, &replica).damaged);
        replica.distrust("a sync failed".into()).await;
        process.crash(&machine, false).await;
        let process = machine.start().await;
        let replica = process.segments.get(SEGMENT).expect("there");
        assert!(replica.glance().damaged.is_none(), "its bytes were not looked at");
        let report = segment_report(SEGMENT, &replica);
        assert!(report.sealed && report.damaged, "{report:?}");
    }
}
