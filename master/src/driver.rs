//! The loop that performs what the planner decides.
//!
//! It runs on every master and does something only on the leader. It wakes when a command was
//! applied, an action ended, leadership changed, or a lease may lapse; each time it plans anew from
//! what is (level-triggered), and begins whatever is not under way already.

use std::sync::Arc;
use std::time::Duration;

use uruk_base::Moment;
use uruk_consensus::Term;

use crate::assign::{Action, ActionKey, plan};
use crate::command::{Command, Reply};
use crate::shared::Shared;
use crate::state::State;
use crate::volatile::Volatile;
use crate::{check, files, orders, recovery};

/// The loop looks around at least this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A look that takes no longer than this is followed by the next one as soon as anything changes.
const LOOK_SHORT: Duration = Duration::from_millis(1);
/// A look that took long is followed by a rest so many times as long: what came meanwhile is looked at together,
/// and the services have their turn ...
const REST_AFTER_LOOK: u32 = 4;
/// ... up to this.
const REST_AFTER_LOOK_MAX: Duration = Duration::from_millis(100);
/// A failed action rests this long, doubled with each failure in a row ...
const REST_MIN: Duration = Duration::from_millis(25);
/// ... up to this.
const REST_MAX: Duration = Duration::from_secs(2);

/// How an action ends; the error is for people.
pub type Outcome = Result<(), String>;

/// Runs until the process ends.
pub async fn run(shared: Arc<Shared>) {
    let mut leadership = shared.consensus.leadership();
    let mut applied = shared.consensus.applied();
    loop {
        leadership.borrow_and_update();
        applied.borrow_and_update();
        follow_leadership(&shared);
        let term = shared.volatile.lock().leases.term();
        let began = shared.env.clock.now();
        let rest = term.map_or(LOOK_EVERY, |term| step(&shared, term));
        let took = shared.env.clock.since(began);
        if took > LOOK_SHORT {
            tokio::select! {
                biased;
                // A new leader does not rest, nor does a deposed one go on.
                changed = leadership.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                () = shared.env.clock.sleep((took * REST_AFTER_LOOK).min(REST_AFTER_LOOK_MAX)) => {}
            }
        }
        tokio::select! {
            biased;
            changed = leadership.changed() => if changed.is_err() { return },
            changed = applied.changed() => if changed.is_err() { return },
            () = shared.wake.notified() => {}
            () = shared.env.clock.sleep(rest) => {}
        }
    }
}

/// A new leadership starts without memory, and with every live server's lease renewed.
fn follow_leadership(shared: &Shared) {
    let leadership = shared.consensus.leadership().borrow().clone();
    shared.consensus.read(|state| {
        let mut volatile = shared.volatile.lock();
        match (leadership.is_leader, volatile.leases.term()) {
            (true, Some(term)) if term == leadership.term => {}
            (true, _) => {
                // After the election was learned, so later than the election itself.
                let now = shared.env.clock.now();
                volatile.forget(now);
                let served = state.recoveries.all().filter(|recovery| recovery.served_micros.is_some());
                volatile.measured = served.map(|recovery| recovery.server).collect();
                volatile.leases.elected(leadership.term, state.servers.live().iter().copied(), now);
                shared.metrics.is_leader.set(1);
                tracing::info!(term = %leadership.term, "leads the master group");
            }
            (false, Some(term)) => {
                volatile.forget(shared.env.clock.now());
                volatile.leases.deposed();
                shared.metrics.is_leader.set(0);
                tracing::info!(%term, "leads the master group no more");
            }
            (false, None) => {}
        }
    });
}

/// Begins what is to be done; returns how long nothing more can come of the passing of time.
fn step(shared: &Arc<Shared>, term: Term) -> Duration {
    let now = shared.now();
    let (actions, rest) = shared.consensus.read(|state| {
        let mut volatile = shared.volatile.lock();
        volatile.follow(state, now.moment);
        let actions = plan(state, &volatile, &shared.tuning, now);
        for action in &actions {
            volatile.begin(action, now.moment);
        }
        update_metrics(shared, state, &mut volatile);
        (actions, next_look(&volatile, Duration::from_millis(shared.tuning.balance_every_ms), now.moment))
    });
    for action in actions {
        let shared_by_task = shared.clone();
        shared.env.tasks.spawn("master action", async move {
            let key = action.key();
            let outcome = perform(&shared_by_task, term, action).await;
            finish(&shared_by_task, term, key, outcome);
        });
    }
    rest
}

fn next_look(volatile: &Volatile, balance_every: Duration, now: Moment) -> Duration {
    let next = volatile.leases.next_lapse().into_iter().chain(volatile.next_retry(now)).min();
    let look_every = LOOK_EVERY.min(balance_every);
    let rest = next.map_or(look_every, |next| next.saturating_since(now).min(look_every));
    // Timers are coarse: a rest of nothing would spin until the moment has come.
    rest.max(Duration::from_millis(1))
}

fn update_metrics(shared: &Shared, state: &State, volatile: &mut Volatile) {
    let metrics = &shared.metrics;
    for server in state.unfinished_recoveries() {
        let recovery = state.recoveries.get(*server).expect("an unfinished recovery is remembered");
        if let Some(served) = recovery.served_micros
            && volatile.measured.insert(*server)
        {
            metrics.recovery_seconds.observe((served - recovery.noticed_micros) as f64 / 1_000_000.0);
        }
    }
    volatile.measured.retain(|server| state.recoveries.get(*server).is_some());
    metrics.servers_live.set(state.servers.live().len() as i64);
    metrics.recoveries_unfinished.set(state.unfinished_recoveries().len() as i64);
    metrics.files_to_delete.set(state.deletions.entries().len() as i64);
}

fn finish(shared: &Shared, term: Term, key: ActionKey, outcome: Outcome) {
    if let Err(problem) = &outcome {
        tracing::debug!(action = ?key, problem, "failed; is tried again");
    }
    let now = shared.env.clock.now();
    let rest = |failures: u32| {
        now + shared.env.random.jitter((REST_MIN * 2_u32.pow(failures.saturating_sub(1).min(10))).min(REST_MAX))
    };
    let problem = outcome.as_ref().err().cloned().unwrap_or_default();
    let failures = {
        let mut volatile = shared.volatile.lock();
        if volatile.leases.term() != Some(term) {
            return; // a later leadership may have begun the same action: this is not its end
        }
        volatile.end(key.clone(), outcome.map_err(Arc::from), rest)
    };
    if failures > 0 {
        shared.metrics.actions_failed.inc();
    }
    // Each step is logged when it starts to matter, and then ever more rarely.
    if failures >= 4 && failures.is_power_of_two() {
        tracing::warn!(action = ?key, failures, problem, "keeps failing; is tried again");
    }
    shared.wake.notify_one();
}

/// What was planned in `term` is proposed in it or not at all: a later leadership, also of this node, may have
/// granted leases and heard reports that the plan knew nothing of.
async fn perform(shared: &Arc<Shared>, term: Term, action: Action) -> Outcome {
    match action {
        Action::DeclareDead(server) => recovery::declare_dead(shared, term, server).await,
        Action::Seal(server) => recovery::seal(shared, term, server).await,
        Action::Sort { log, segment, sorter } => recovery::sort(shared, term, log, segment, sorter).await,
        Action::Finish(server) => recovery::finish(shared, term, server).await,
        Action::Assign(assignments) => {
            let micros = shared.env.clock.wall_micros();
            match shared.propose_in(term, Command::Assign { assignments, micros }).await {
                Ok(Reply::Assigned(assigned)) => {
                    tracing::info!(tablets = assigned.len(), "assigned tablets");
                    Ok(())
                }
                Ok(reply) => unreachable!("the reply to an assignment is {reply:?}"),
                Err(error) => Err(error.to_string()),
            }
        }
        Action::Open { server, tablets } => recovery::open(shared, server, &tablets).await,
        Action::Close { server, kind, tablets } => recovery::close(shared, server, kind, &tablets).await,
        Action::Abandon { server, tablets, reason } => recovery::abandon(shared, term, server, &tablets, &reason).await,
        Action::Drain { server, tablets } => {
            tracing::info!(%server, tablets = tablets.len(), "moves tablets off a server that ends");
            propose_done(shared, term, Command::Close { tablets }).await
        }
        Action::Reshape { server, procedure } => orders::reshape(shared, server, procedure).await,
        Action::GiveUp { procedure, reason } => {
            tracing::warn!(%procedure, reason, "gives a procedure up");
            let micros = shared.env.clock.wall_micros();
            propose_done(shared, term, Command::EndProcedure { procedure, reason, micros }).await
        }
        Action::SetSchema { server, table } => orders::set_schema(shared, term, server, table).await,
        Action::Decide => {
            orders::decide(shared, term).await;
            Ok(())
        }
        Action::StartMove(planned) => orders::start_move(shared, term, planned).await,
        Action::Check => {
            let findings = check::run(shared, true).await.map_err(|error| error.to_string())?;
            let errors = findings.findings.iter().filter(|finding| finding.is_error);
            errors.for_each(|error| tracing::error!(kind = error.kind, what = error.what, "a check found an error"));
            let micros = shared.env.clock.wall_micros();
            shared.volatile.lock().findings = Some((micros, findings));
            Ok(())
        }
        Action::SplitMeta(meta) => {
            let rows_max = shared.tuning.meta_tablet_rows_max;
            propose_done(shared, term, Command::SplitMeta { meta, rows_max }).await
        }
        Action::Trim { server, upto } => files::trim(shared, server, upto).await,
        Action::DeleteFiles(entries) => files::delete(shared, term, entries).await,
        Action::Sweep => files::sweep(shared, term).await,
    }
}

/// Proposes what was decided in `term`, whose reply tells nothing.
pub async fn propose_done(shared: &Shared, term: Term, command: Command) -> Outcome {
    match shared.propose_in(term, command).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
