//! What the leading controller knows of a log: so that a fault hits where it hurts.

use uruk_base::commit_log::LogId;
use uruk_dfs_sim::controller::state::{ControllerState, Log, LogRecord, SegmentState};

use crate::world::World;

fn log<R>(world: &World, id: LogId, f: impl Fn(&ControllerState, &Log) -> R) -> Option<R> {
    let controllers = world.setting.registry.controllers();
    let leader = controllers.iter().find(|(_, one)| one.consensus().leadership().borrow().is_leader);
    let (_, leader) = leader?;
    leader.consensus().read(|state| match state.log(id)? {
        LogRecord::Kept(log) => Some(f(state, log)),
        LogRecord::Deleted => None,
    })
}

/// Machines that hold the segment to which the log's writer appends, in their order; none if there is no such.
pub(super) fn members_of_open_segment(world: &World, id: LogId) -> Vec<String> {
    let members = log(world, id, |state, log| {
        let last = log.segments.values().next_back().filter(|segment| segment.state == SegmentState::Open)?;
        let servers = last.members.iter().filter_map(|id| state.servers().get(id));
        Some(servers.filter_map(|server| Some(server.address.split_once(':')?.0.to_owned())).collect())
    });
    members.flatten().unwrap_or_default()
}

/// Whether its end is final.
pub(super) fn is_sealed(world: &World, id: LogId) -> bool {
    log(world, id, |_, log| log.is_sealed()).unwrap_or(false)
}

/// Bytes of its sealed segments that are not trimmed yet.
pub(super) fn kept_bytes(world: &World, id: LogId) -> u64 {
    log(world, id, |_, log| {
        let (first, last) = (log.segments.values().next(), log.segments.values().next_back());
        first.zip(last).map_or(0, |(first, last)| last.base - first.base)
    })
    .unwrap_or(0)
}
