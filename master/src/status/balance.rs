//! What the balancer and the check have seen, as people see it.

use serde::Serialize;

use crate::volatile::Volatile;

/// The leader's last decision.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct BalanceView {
    /// Why there are no (more) moves.
    pub verdict: String,
    /// How far servers are from being equal; 0: they are.
    pub cost: f64,
    /// After the planned moves.
    pub cost_after: f64,
    /// Servers that take part.
    pub servers: Vec<BalancedServerView>,
    /// Planned, and not begun yet.
    pub moves: Vec<PlannedMoveView>,
    /// Tablets that are hot, and that no split helps.
    pub hot_rows: Vec<HotRowView>,
}

/// A server before and after the planned moves.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct BalancedServerView {
    /// Which server.
    pub server_id: u64,
    /// 1 = the mean.
    pub load: f64,
    /// See `load`.
    pub load_after: f64,
    /// Tablets.
    pub tablets: usize,
    /// See `tablets`.
    pub tablets_after: usize,
}

/// A planned move.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct PlannedMoveView {
    /// Which tablet.
    pub tablet_id: u64,
    /// Its owner.
    pub from_server_id: u64,
    /// Where it goes.
    pub to_server_id: u64,
    /// Why.
    pub reason: String,
    /// Of the cost.
    pub gain: f64,
}

/// A tablet that is hot, and that no split helps.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct HotRowView {
    /// Which tablet.
    pub tablet_id: u64,
    /// Its busiest row, escaped as people read it; empty: unknown.
    pub row: String,
    /// That row's share of its requests, in percent.
    pub percent: f64,
    /// Of the tablet.
    pub requests_per_s: f64,
    /// Why it is not split.
    pub why: String,
}

/// What the last check found; the leader checks from time to time.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct CheckView {
    /// Wall time, in microseconds since 1970; null: not since the election.
    pub checked_micros: Option<i64>,
    /// Errors first.
    pub findings: Vec<FindingView>,
}

/// Something that does not fit.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct FindingView {
    /// `hole`, `overlap`, `no-owner`, `two-owners`, `missing-file`, `unnamed-file` or `needless-log`.
    pub kind: String,
    /// What and where.
    pub what: String,
    /// What to do.
    pub remedy: String,
    /// Else it passes by itself.
    pub is_error: bool,
}

pub fn view(volatile: &Volatile) -> BalanceView {
    let decision = &volatile.decision;
    let plan = &decision.plan;
    let servers = plan.servers.iter().map(|server| BalancedServerView {
        server_id: server.server.0,
        load: server.load,
        load_after: server.load_after,
        tablets: server.tablets,
        tablets_after: server.tablets_after,
    });
    let moves = volatile.moves.iter().map(|planned| PlannedMoveView {
        tablet_id: planned.key.tablet.0,
        from_server_id: planned.from.0,
        to_server_id: planned.to.0,
        reason: planned.reason.clone(),
        gain: planned.gain,
    });
    let hot_rows = decision.hot_rows.iter().map(|hot| HotRowView {
        tablet_id: hot.tablet.0,
        row: hot.row.escape_ascii().to_string(),
        percent: f64::from(hot.permille) / 10.0,
        requests_per_s: hot.requests_per_s,
        why: hot.why.clone(),
    });
    BalanceView {
        verdict: plan.verdict.clone(),
        cost: plan.cost,
        cost_after: plan.cost_after,
        servers: servers.collect(),
        moves: moves.collect(),
        hot_rows: hot_rows.collect(),
    }
}

pub fn check(volatile: &Volatile) -> CheckView {
    let Some((micros, found)) = &volatile.findings else {
        return CheckView { checked_micros: None, findings: Vec::new() };
    };
    let mut findings: Vec<FindingView> = found
        .findings
        .iter()
        .map(|finding| FindingView {
            kind: finding.kind.clone(),
            what: finding.what.clone(),
            remedy: finding.remedy.clone(),
            is_error: finding.is_error,
        })
        .collect();
    findings.sort_by_key(|finding| !finding.is_error);
    CheckView { checked_micros: Some(*micros), findings }
}
