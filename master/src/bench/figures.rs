//! The measurements, one after the other on the same master.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tonic::Request;
use uruk_base::process::{own_memory_peak_bytes, own_usage};
use uruk_base::rpc::Channels;
use uruk_consensus::StateMachine;
use uruk_proto::ServerId;
use uruk_proto::master::LocateRequest;
use uruk_proto::master::master_client::MasterClient;
use uruk_proto::master::master_server::Master as _;

use super::fill::row_key;
use super::fleet::Member;
use super::{Bench, BenchError, Figures};
use crate::assign::plan;
use crate::orders;
use crate::service::client::ClientService;
use crate::state::State;

/// How long the master is watched at rest: some decisions and reports of every server fall into it.
const REST: Duration = Duration::from_secs(12);
/// Look-ups between two looks at the clock.
const LOCATES: u64 = 5_000;
/// Look-ups over the network under way at a time.
const LOCATES_AT_A_TIME: usize = 64;
/// Decisions and looks of the planner that are measured; the median counts.
const DECISIONS: usize = 5;
const PLANS: usize = 50;
/// Servers that die, one after the other.
const DEATHS: usize = 5;
/// One server in so many is busier than the others while decisions are measured, so much.
const HOT_EVERY: usize = 10;
const HOT_TIMES: u64 = 4;

fn median(mut measured: Vec<f64>) -> f64 {
    measured.sort_by(f64::total_cmp);
    measured.get(measured.len() / 2).copied().unwrap_or_default()
}

impl Bench<'_> {
    pub(super) async fn measure(&mut self) -> Result<Figures, BenchError> {
        self.fill().await?;
        self.rest().await?;
        self.locate().await?;
        self.locate_over_the_network().await?;
        self.plans();
        self.decisions().await?;
        self.deaths().await?;
        self.snapshot();
        self.restart().await?;
        self.figures.peak_bytes = own_memory_peak_bytes();
        match self.fleet.members.is_broken.load(Ordering::Relaxed) {
            true => Err(BenchError::InVain("every server keeps its lease")),
            false => Ok(self.figures.clone()),
        }
    }

    /// Renewals alone.
    async fn rest(&mut self) -> Result<(), BenchError> {
        self.tell("watches it at rest");
        self.env.clock.sleep(REST / 2).await;
        self.fleet.members.renewals.lock().clear();
        let (began, used) = (self.env.clock.now(), own_usage().cpu);
        self.env.clock.sleep(REST).await;
        self.figures.idle_cpu_permille = ((own_usage().cpu - used).as_secs_f64() / self.ms_since(began) * 1e6) as u64;
        let mut renewals = std::mem::take(&mut *self.fleet.members.renewals.lock());
        renewals.sort_unstable();
        let at = |permille: usize| renewals.get(renewals.len() * permille / 1_000).copied().unwrap_or_default();
        (self.figures.renewal_p50_us, self.figures.renewal_p99_us) = (at(500), at(990));
        self.figures.renewal_max_us = renewals.last().copied().unwrap_or_default();
        self.figures.steady_bytes = own_usage().memory_bytes;
        Ok(())
    }

    /// A key of some tablet, and its table.
    fn any_key(&self, ids: &[u64]) -> LocateRequest {
        let tablet = self.env.random.range(0..self.options.tablets);
        let (table, number) = (tablet / self.options.table_tablets, tablet % self.options.table_tablets);
        let table_id = ids.get(table as usize).copied().unwrap_or_default();
        let row = if number == 0 { Bytes::from_static(b"a") } else { row_key(number) };
        LocateRequest { table_id, row, limit: 1, from_leader: false }
    }

    fn table_ids(&self) -> Vec<u64> {
        self.master().shared.consensus.read(|state| state.tables.all().map(|table| table.schema.id.0).collect())
    }

    async fn locate(&mut self) -> Result<(), BenchError> {
        self.tell("looks tablets up");
        let (service, ids) = (ClientService(self.master().shared.clone()), self.table_ids());
        let (mut located, mut passed) = (0_u64, Duration::ZERO);
        while passed < self.options.locate_for {
            let requests: Vec<LocateRequest> = (0..LOCATES).map(|_| self.any_key(&ids)).collect();
            let began = self.env.clock.now();
            for request in requests {
                let found = service.locate(Request::new(request)).await.map_err(uruk_proto::RpcError::from)?;
                located += found.into_inner().tablets.len() as u64;
            }
            passed += self.env.clock.since(began);
            // The servers' turn.
            self.env.clock.sleep(Duration::from_millis(1)).await;
        }
        self.figures.locate_per_s = located as f64 / passed.as_secs_f64();
        Ok(())
    }

    async fn locate_over_the_network(&mut self) -> Result<(), BenchError> {
        let channels = Channels::new(self.env.transport.clone());
        let clients: Vec<_> = (0..4).map(|n| MasterClient::new(channels.get_nth(&self.address, n))).collect();
        let (ids, began) = (self.table_ids(), self.env.clock.now());
        let requests = futures::stream::iter(0_usize..)
            .take_while(|_| std::future::ready(self.env.clock.since(began) < self.options.locate_for))
            .map(|n| {
                let mut client = clients[n % clients.len()].clone();
                let request = self.any_key(&ids);
                async move { client.locate(request).await.is_ok() }
            });
        let located = requests.buffer_unordered(LOCATES_AT_A_TIME).filter(|ok| std::future::ready(*ok)).count().await;
        self.figures.locate_rpc_per_s = located as f64 * 1_000.0 / self.ms_since(began);
        Ok(())
    }

    /// One look of the planner, as the driver takes it after each command.
    fn plans(&mut self) {
        let shared = self.master().shared.clone();
        let times = (0..PLANS).map(|_| {
            let (now, began) = (shared.now(), self.env.clock.now());
            shared.consensus.read(|state| {
                let mut volatile = shared.volatile.lock();
                volatile.follow(state, now.moment);
                let _ = plan(state, &volatile, &shared.tuning, now);
            });
            self.ms_since(began) * 1_000.0
        });
        self.figures.plan_us = median(times.collect()) as u64;
    }

    async fn decisions(&mut self) -> Result<(), BenchError> {
        self.tell("decides what to balance");
        for member in self.fleet.all().iter().step_by(HOT_EVERY) {
            member.heat.store(HOT_TIMES, Ordering::Relaxed);
        }
        self.env.clock.sleep(REST / 2).await;
        self.fleet.members.renewals.lock().clear();
        let shared = self.master().shared.clone();
        let mut times = Vec::new();
        for _ in 0..DECISIONS {
            let began = self.env.clock.now();
            let planned = orders::balance(&shared, false).await?;
            times.push(self.ms_since(began));
            self.figures.moves = planned.moves.len();
            self.env.clock.sleep(Duration::from_secs(1)).await;
        }
        self.figures.decide_ms = median(times);
        let longest = self.fleet.members.renewals.lock().iter().max().copied();
        self.figures.decide_renewal_max_us = longest.unwrap_or_default();
        Ok(())
    }

    /// Servers die one after the other; each time all tablets must be open again before the next one does.
    async fn deaths(&mut self) -> Result<(), BenchError> {
        self.tell("reassigns the tablets of dead servers");
        let mut times = Vec::new();
        let members = self.fleet.all();
        let deaths = DEATHS.min(members.len().saturating_sub(2));
        for member in members.iter().take(deaths) {
            self.figures.reassigned = member.tablets() as u64;
            let began = self.env.clock.now();
            self.fleet.kill(member).await?;
            self.until("the tablets are open again", |bench| bench.is_served(member)).await?;
            times.push(self.ms_since(began));
        }
        self.figures.reassign_max_ms = times.iter().copied().fold(0.0, f64::max);
        self.figures.reassign_ms = median(times);
        Ok(())
    }

    fn is_served(&self, member: &Member) -> bool {
        self.master().shared.consensus.read(|state| {
            let recovery = state.recoveries.get(ServerId(member.id));
            recovery.is_some_and(|recovery| recovery.served_micros.is_some())
        })
    }

    fn snapshot(&mut self) {
        self.tell("takes a snapshot");
        let began = self.env.clock.now();
        let captured = self.master().shared.consensus.read(State::capture);
        self.figures.capture_ms = self.ms_since(began);
        self.figures.snapshot_bytes = captured().len() as u64;
        self.figures.snapshot_ms = self.ms_since(began);
    }

    /// It ends with a dead server's tablets to give away, and starts again.
    async fn restart(&mut self) -> Result<(), BenchError> {
        self.tell("starts it again");
        let members = self.fleet.all();
        let dead = members.first().ok_or(BenchError::InVain("some server lives"))?;
        self.logs.is_held.store(true, Ordering::Relaxed);
        self.fleet.kill(dead).await?;
        let before = own_usage().memory_bytes;
        self.stop_master().await?;
        self.logs.is_held.store(false, Ordering::Relaxed);
        *self.fleet.members.first_order.lock() = None;
        let began = self.env.clock.now();
        self.start_master().await?;
        self.figures.restart_open_ms = self.ms_since(began);
        self.until("it leads again", |bench| bench.master().is_leader()).await?;
        self.figures.restart_lead_ms = self.ms_since(began);
        self.until("tablets are given away", |bench| bench.fleet.members.first_order.lock().is_some()).await?;
        let ordered = self.fleet.members.first_order.lock().unwrap_or(began);
        self.figures.restart_assign_ms = ordered.saturating_since(began).as_secs_f64() * 1_000.0;
        let after = own_usage().memory_bytes;
        self.tell(format!("resident before and after: {} and {} MiB", before >> 20, after >> 20));
        self.until("the tablets are open again", |bench| bench.is_served(dead)).await
    }
}
