//! Commit logs: creating, rolling, the controller's steps of sealing, trimming, deleting.

use std::collections::BTreeSet;

use uruk_base::commit_log::LogId;
use uruk_proto::dfs::*;
use uruk_proto::{ErrorCode, RpcError};

use super::{invalid, too_few_servers};
use crate::controller::command::{self, Command, LogDurability, Refusal, SegmentPlan};
use crate::controller::core::Core;
use crate::controller::fleet::Fleet;
use crate::controller::id::{ChunkServerId, PieceId};
use crate::controller::placement::{ACK_QUORUM, choose_members};
use crate::controller::state::{ControllerState, Log, LogRecord, Segment, SegmentState};
use crate::format::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, SEGMENT_BYTES_MAX};

/// No segment is longer: the last frame may cross the mark.
const SEGMENT_LENGTH_MAX: u64 = SEGMENT_BYTES_MAX + (FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX) as u64;

impl Core {
    pub(super) async fn create_log(&self, request: CreateLogRequest) -> Result<LogInfo, RpcError> {
        let log = LogId(request.log_id);
        let durability = match request.durability() {
            Durability::Fsync | Durability::Unspecified => LogDurability::Fsync,
            Durability::Replicated => LogDurability::Replicated,
        };
        let plan = self.plan_segment(&[])?;
        let command = Command::CreateLog { log, writer: request.writer, durability, first: plan.segment.clone() };
        self.propose_planned(command, plan).await?;
        after_commit(self.log_info(log))
    }

    pub(super) async fn roll_segment(&self, request: RollSegmentRequest) -> Result<LogInfo, RpcError> {
        let log = LogId(request.log_id);
        check_length(request.length)?;
        let plan = self.plan_segment(&request.avoid)?;
        let roll = command::RollSegment {
            log,
            writer: request.writer,
            index: request.index,
            length: request.length,
            crc: request.crc,
            next: plan.segment.clone(),
        };
        self.propose_planned(Command::RollSegment(roll), plan).await?;
        after_commit(self.log_info(log))
    }

    /// Proposes also a plan with too few members: the command may be a repeat that needs none.
    async fn propose_planned(&self, command: Command, plan: Plan) -> Result<(), RpcError> {
        match (self.propose(command).await, plan.too_few) {
            (Err(error), Some(too_few)) if error.code == ErrorCode::Unavailable => Err(too_few),
            (result, _) => result.map(|_| ()),
        }
    }

    fn plan_segment(&self, avoid: &[u64]) -> Result<Plan, RpcError> {
        let avoid: BTreeSet<u64> = avoid.iter().copied().collect();
        self.with_fleet(|state, fleet, now| {
            let candidates = fleet.candidates(state, SEGMENT_BYTES_MAX, |id| avoid.contains(&id.0));
            let replicas = usize::from(self.config.replicas);
            let chosen = match fleet.is_warming_up(now, candidates.len()) {
                true => None,
                false => choose_members(&candidates, replicas, self.is_single_allowed(state)),
            };
            let (members, ack_quorum, too_few) = match chosen {
                Some((members, ack_quorum)) => (members, ack_quorum, None),
                None => (Vec::new(), 0, Some(too_few_servers(candidates.len(), ACK_QUORUM, fleet.refusal()))),
            };
            fleet.assign(&members, SEGMENT_BYTES_MAX);
            let segment = SegmentPlan {
                members,
                ack_quorum: ack_quorum as u8,
                replicas: self.config.replicas,
                allow_single_replica: self.config.allow_single_replica,
            };
            Plan { segment, too_few }
        })
    }

    pub(super) async fn get_log(&self, request: GetLogRequest) -> Result<LogInfo, RpcError> {
        self.catch_up().await?;
        self.log_info(LogId(request.log_id))
    }

    pub(super) async fn close_log(&self, request: CloseLogRequest) -> Result<LogInfo, RpcError> {
        let log = LogId(request.log_id);
        self.propose(Command::CloseLog { log }).await?;
        after_commit(self.log_info(log))
    }

    pub(super) async fn begin_recovery(&self, request: BeginRecoveryRequest) -> Result<LogInfo, RpcError> {
        let BeginRecoveryRequest { log_id, index, recovery } = request;
        if recovery == 0 {
            return Err(invalid("a recovery is numbered from 1"));
        }
        self.propose(Command::BeginRecovery { log: LogId(log_id), index, recovery }).await?;
        after_commit(self.log_info(LogId(log_id)))
    }

    pub(super) async fn seal_segment(&self, request: SealSegmentRequest) -> Result<LogInfo, RpcError> {
        let SealSegmentRequest { log_id, index, recovery, length, crc } = request;
        check_length(length)?;
        self.propose(Command::SealSegment { log: LogId(log_id), index, recovery, length, crc }).await?;
        after_commit(self.log_info(LogId(log_id)))
    }

    pub(super) async fn trim_log(&self, request: TrimLogRequest) -> Result<LogInfo, RpcError> {
        let TrimLogRequest { log_id, upto } = request;
        self.propose(Command::TrimLog { log: LogId(log_id), upto }).await?;
        after_commit(self.log_info(LogId(log_id)))
    }

    pub(super) async fn delete_log(&self, request: DeleteLogRequest) -> Result<LogInfo, RpcError> {
        let log = LogId(request.log_id);
        self.propose(Command::DeleteLog { log }).await?;
        after_commit(self.log_info(log))
    }

    /// The log as it is now: at least as new as what the caller just committed or caught up with.
    fn log_info(&self, id: LogId) -> Result<LogInfo, RpcError> {
        self.with_fleet(|state, fleet, now| match state.log(id) {
            None => Err(Refusal::NoSuchLog(id).into()),
            Some(LogRecord::Deleted) => Ok(LogInfo { log_id: id.0, closed: true, deleted: true, ..LogInfo::default() }),
            Some(LogRecord::Kept(log)) => Ok(LogInfo {
                log_id: id.0,
                closed: log.closed,
                trimmed_to: log.trimmed_to,
                segments: segments(state, fleet, now, log),
                deleted: false,
                durability: match log.durability {
                    LogDurability::Fsync => Durability::Fsync,
                    LogDurability::Replicated => Durability::Replicated,
                }
                .into(),
            }),
        })?
    }
}

/// The answer to a command that has committed. To be no longer the leader says "not done" about a
/// request; about this one the caller must learn that it may be.
fn after_commit<T>(answer: Result<T, RpcError>) -> Result<T, RpcError> {
    answer.map_err(|error| match error.code {
        ErrorCode::NotLeader => RpcError {
            leader: error.leader.clone(),
            ..RpcError::new(ErrorCode::Unknown, format!("committed, but the answer cannot be read: {error}"))
        },
        _ => error,
    })
}

struct Plan {
    segment: SegmentPlan,
    /// Why `segment` has no members.
    too_few: Option<RpcError>,
}

fn check_length(length: u64) -> Result<(), RpcError> {
    match length <= SEGMENT_LENGTH_MAX {
        true => Ok(()),
        false => Err(invalid(format!("a segment of {length} bytes is longer than {SEGMENT_LENGTH_MAX}"))),
    }
}

fn segments(state: &ControllerState, fleet: &Fleet, now: uruk_base::Moment, log: &Log) -> Vec<SegmentInfo> {
    let info = |(index, segment): (&u32, &Segment)| {
        let (wire_state, addresses) = match segment.state {
            SegmentState::Open => (segment_info::State::Open(SegmentOpen {}), Vec::new()),
            SegmentState::Recovering { recovery } => {
                (segment_info::State::Recovering(SegmentRecovering { recovery }), Vec::new())
            }
            SegmentState::Sealed { length, crc } => {
                (segment_info::State::Sealed(SegmentSealed { length, crc }), readable_at(state, fleet, now, segment))
            }
        };
        SegmentInfo {
            index: *index,
            segment_id: segment.id.0,
            base: segment.base,
            members: segment.members.iter().map(|id| member(state, *id)).collect(),
            write_quorum: segment.members.len() as u32,
            ack_quorum: u32::from(segment.ack_quorum),
            addresses,
            state: Some(wire_state),
        }
    };
    log.segments.iter().map(info).collect()
}

/// Reported copies first; then the other members, which may have finished since, or not report yet.
fn readable_at(state: &ControllerState, fleet: &Fleet, now: uruk_base::Moment, segment: &Segment) -> Vec<String> {
    let mut addresses = fleet.addresses(state, PieceId::Segment(segment.id), now);
    for id in &segment.members {
        let address = &state.servers()[id].address;
        if !addresses.contains(address) {
            addresses.push(address.clone());
        }
    }
    addresses
}

fn member(state: &ControllerState, id: ChunkServerId) -> Member {
    Member { server_id: id.0, address: state.servers()[&id].address.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_deposed_between_commit_and_answer_does_not_say_that_nothing_was_done() {
        let deposed: Result<(), RpcError> = Err(RpcError::not_leader(Some("b:1".into())));
        let error = after_commit(deposed).expect_err("no answer");
        assert!(!error.code.is_not_done(), "{error}");
        assert_eq!((error.code, error.leader), (ErrorCode::Unknown, Some("b:1".into())));
        let refused: Result<(), RpcError> = Err(Refusal::NoSuchLog(LogId(1)).into());
        assert_eq!(after_commit(refused).expect_err("refused").code, ErrorCode::NotFound);
        assert_eq!(after_commit(Ok(7)), Ok(7));
    }
}
