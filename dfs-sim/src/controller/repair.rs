//! The leader's loop: expires puts, watches the chunk servers, repairs and deletes.
//!
//! Deletion is ordered only by a leader whose leadership was confirmed after the report it acts on:
//! `mark` is taken first, leadership confirmed second, the state read third, plans made last.
//! An idle store costs one look at the fleet per tick, and no RPC.

use std::sync::Arc;

use uruk_base::metrics::Gauge;
use uruk_base::{Env, Metrics};

use super::command::{Command, Outcome};
use super::core::Core;

/// What `/metrics` shows of the store, as this leader sees it.
#[derive(Debug, Clone)]
struct Gauges {
    copies_known: Gauge,
    under_replicated: Gauge,
    unavailable: Gauge,
    copies_in_flight: Gauge,
    damaged_found: Gauge,
    repaired: Gauge,
}

impl Gauges {
    fn register(metrics: &Metrics) -> Gauges {
        let gauge = |name: &str, help: &str| metrics.register(name, help, Gauge::default());
        Gauges {
            copies_known: gauge(
                "uruk_dfs_copies_known",
                "1 once this leader has looked at every piece; before that the numbers of copies mean nothing.",
            ),
            under_replicated: gauge("uruk_dfs_under_replicated_pieces", "Pieces with fewer copies than wanted."),
            unavailable: gauge("uruk_dfs_unavailable_pieces", "Pieces without any copy."),
            copies_in_flight: gauge("uruk_dfs_copies_in_flight", "Copies being made."),
            damaged_found: gauge("uruk_dfs_damaged_found_copies", "Damaged copies found in this term."),
            repaired: gauge("uruk_dfs_repaired_copies", "Copies made in this term."),
        }
    }
}

/// What the last sweep saw: nothing new, nothing to sweep.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    applied: u64,
    reports: u64,
}

/// Runs until the task ends.
pub async fn run(env: Env, core: Arc<Core>) {
    let gauges = Gauges::register(&env.metrics);
    let mut swept = Seen::default();
    loop {
        core.clock.sleep(core.config.repair_tick).await;
        if core.leading().is_err() {
            continue;
        }
        if let Err(error) = expire_puts(&core).await {
            tracing::warn!(%error, "cannot expire puts");
        }
        sweep(&core, &mut swept);
        if let Err(error) = repair(&core).await {
            tracing::warn!(%error, "cannot repair");
        }
        show(&core, &gauges);
    }
}

async fn expire_puts(core: &Core) -> Result<(), uruk_proto::RpcError> {
    let expired = core.with_allotment(|state, allotment, now| {
        allotment.sync(now, state.blocks());
        allotment.expired(now)
    })?;
    for block in expired {
        let outcome = core.propose(Command::ExpirePuts { block }).await?;
        if let Outcome::Ids(ids) = outcome {
            tracing::debug!(first = ids.start, end = ids.end, "expired the puts of a block");
            core.with_fleet(|_, fleet, _| fleet.touch_chunks(ids))?;
        }
    }
    Ok(())
}

/// Looks at some pieces again while anything has changed since the last round.
fn sweep(core: &Core, swept: &mut Seen) {
    let applied = *core.consensus.applied().borrow();
    let _ = core.with_fleet(|_, fleet, _| {
        let seen = Seen { applied, reports: fleet.changes() };
        if fleet.is_sweep_done() {
            if *swept == seen {
                return;
            }
            *swept = seen;
        }
        fleet.sweep();
    });
}

async fn repair(core: &Core) -> Result<(), uruk_proto::RpcError> {
    let (mark, term) = core.with_fleet(|_, fleet, now| {
        fleet.pulse(now);
        (fleet.has_work(now).then(|| fleet.mark()), fleet.term())
    })?;
    let Some(mark) = mark else { return Ok(()) };
    let not_leader = |error: uruk_consensus::NotLeader| uruk_proto::RpcError::not_leader(error.leader);
    let confirmed = core.consensus.confirm_leadership().await.map_err(not_leader)?;
    core.catch_up().await?;
    core.with_fleet(|state, fleet, now| {
        // Elected again meanwhile: the reports before the mark were another term's.
        if confirmed.0 == term && fleet.term() == term {
            fleet.plan(state, now, mark);
        }
    })
}

fn show(core: &Core, gauges: &Gauges) {
    let Ok((health, known)) = core.with_fleet(|_, fleet, _| (fleet.copy_health(), fleet.is_counted())) else { return };
    gauges.copies_known.set(i64::from(known));
    gauges.under_replicated.set(health.under_replicated as i64);
    gauges.unavailable.set(health.unavailable as i64);
    gauges.copies_in_flight.set(health.copies_in_flight as i64);
    gauges.damaged_found.set(health.damaged_found as i64);
    gauges.repaired.set(health.repaired as i64);
}
