//! Steps 3 to 5: fences the members until enough of them have answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use uruk_base::Moment;
use uruk_base::commit_log::{LogError, LogId};
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::RpcError;
use uruk_proto::dfs::{FenceRequest, FenceResponse, LogInfo, Member, SegmentInfo};

use super::super::super::connection::{Lane, Shared};
use super::super::get_log;
use super::super::window::MemberIndex;
use super::decide::{Decision, MemberAnswer, Plan, decide};
use super::{State, corrupt, is_overtaken, state_under};

/// Members that did not answer are asked again after about this long.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// When the members that answered are enough to know the length but too few to hold it, the others
/// are waited for this long: they may spare a copy.
const SPARE_COPY_WAIT: Duration = Duration::from_millis(50);

/// How fencing ended.
pub enum Fenced {
    Enough(SegmentInfo, Plan),
    /// Another recoverer finished first.
    Sealed(LogInfo),
    /// A member, or the controller, knows a larger fence.
    Overtaken,
}

/// What one member said.
enum Said {
    Answer(FenceResponse),
    Refused(RpcError),
    Silent(String),
}

/// Fences `segment` with `recovery` and decides where it ends. Waits while too few members answer,
/// until `deadline`.
pub async fn fence(
    shared: &Arc<Shared>,
    id: LogId,
    mut segment: SegmentInfo,
    recovery: u64,
    deadline: Moment,
) -> Result<Fenced, LogError> {
    let clock = &shared.env.clock;
    let mut answers: BTreeMap<MemberIndex, MemberAnswer> = BTreeMap::new();
    let mut silent: BTreeMap<MemberIndex, String> = BTreeMap::new();
    loop {
        let mut asked: FuturesUnordered<_> = segment
            .members
            .iter()
            .enumerate()
            .filter(|(index, _)| !answers.contains_key(index))
            .map(|(index, member)| ask(shared, segment.segment_id, index, member, recovery))
            .collect();
        let (members, quorum) = (segment.members.len(), segment.ack_quorum as usize);
        let mut decision = Decision::Wait;
        let started = clock.now();
        loop {
            let next = match &decision {
                Decision::Wait | Decision::Doubt { .. } => Ok(asked.next().await),
                Decision::Seal(plan) if plan.copies_needed == 0 => Ok(None),
                Decision::Seal(_) => {
                    let left = SPARE_COPY_WAIT.saturating_sub(clock.since(started));
                    clock.timeout(left, asked.next()).await
                }
            };
            let Ok(Some((index, said))) = next else { break };
            match said {
                Said::Answer(FenceResponse { known: true, length, committed, crc, .. }) => {
                    answers.insert(index, MemberAnswer { member: index, length, committed, crc });
                    silent.remove(&index);
                }
                Said::Answer(unknown) => drop(silent.insert(index, format!("cannot vouch: {}", unknown.reason))),
                Said::Refused(error) if is_overtaken(error.code) => return Ok(Fenced::Overtaken),
                Said::Refused(error) => drop(silent.insert(index, error.to_string())),
                Said::Silent(why) => drop(silent.insert(index, why)),
            }
            let so_far: Vec<MemberAnswer> = answers.values().copied().collect();
            decision = decide(members, quorum, &so_far);
        }
        drop(asked);
        let doubt = match decision {
            Decision::Seal(plan) => {
                ask_silent_ones_last(shared, &segment, &answers);
                return Ok(Fenced::Enough(segment, plan));
            }
            Decision::Doubt { at, what } => Some((at, what)),
            Decision::Wait => None,
        };
        // A contradiction that no further member can explain, or that none explained in time.
        if let Some((at, what)) = doubt
            && (answers.len() == members || clock.now() >= deadline)
        {
            return Err(corrupt(id, &segment, at, what));
        }
        if clock.now() >= deadline {
            return Err(LogError::Unavailable(id, too_few(&segment, answers.len(), &silent)));
        }
        clock.sleep(shared.env.random.jitter(ASK_AGAIN)).await;
        // Another recoverer may have finished; a member may be back under another address.
        if let Ok(log) = get_log(shared, id).await {
            match state_under(&log, segment.index, recovery) {
                State::Ours(now) => segment = now,
                State::Sealed => return Ok(Fenced::Sealed(log)),
                State::Other => return Ok(Fenced::Overtaken),
            }
        }
    }
}

/// The log is read right after: better first from members that answer.
fn ask_silent_ones_last(shared: &Shared, segment: &SegmentInfo, answers: &BTreeMap<MemberIndex, MemberAnswer>) {
    for (index, member) in segment.members.iter().enumerate() {
        match answers.contains_key(&index) {
            true => shared.suspects.clear(&member.address),
            false => shared.suspects.add(&member.address),
        }
    }
}

async fn ask(
    shared: &Shared,
    segment_id: u64,
    index: MemberIndex,
    member: &Member,
    recovery: u64,
) -> (MemberIndex, Said) {
    let recovery = if index > 0 && is_planted(Planted::UnfencedReplica) { 0 } else { recovery };
    let request = FenceRequest { segment_id, server_id: member.server_id, recovery };
    let mut server = shared.chunk_server(&member.address, Lane::Log);
    let limit = Duration::from_millis(shared.config.seal_attempt_ms);
    let said = match shared.env.clock.timeout(limit, server.fence(request)).await {
        Ok(Ok(response)) => Said::Answer(response.into_inner()),
        Ok(Err(status)) => Said::Refused(status.into()),
        Err(elapsed) => Said::Silent(elapsed.to_string()),
    };
    (index, said)
}

fn too_few(segment: &SegmentInfo, answers: usize, silent: &BTreeMap<MemberIndex, String>) -> String {
    let needed = segment.members.len() - segment.ack_quorum as usize + 1;
    let reasons: Vec<String> = silent
        .iter()
        .map(|(i, why)| format!("{} (server {}): {why}", segment.members[*i].address, segment.members[*i].server_id))
        .collect();
    format!("segment {}: {answers} of {needed} members answer; {}", segment.segment_id, reasons.join("; "))
}
