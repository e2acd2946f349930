//! Which tablets go where.
//!
//! Cost: for each server, how far it is from the mean in load, bytes and tablets, squared and weighted; and the
//! same of zones. Load and bytes weigh less while there is so little of them that they are noise. Greedy: the
//! tablet of the most loaded server whose move lowers the cost most, again and again (as HBase's stochastic
//! balancer, which has the same costs, but tries moves at random). Hysteresis: nothing moves while all servers
//! are near the mean; a move must gain something; what was moved rests.

use std::time::Duration;

use uruk_proto::ServerId;

use super::View;
use super::look::{Look, Seen};
use crate::command::TabletKey;

/// Moves planned at a time; what they change is looked at anew after that.
const MOVES_PLANNED_MAX: usize = 200;
/// Below so many requests per second and server, load counts for less.
const REQUESTS_PER_SERVER: f64 = 200.0;
/// Below so many bytes per server, size counts for less.
const BYTES_PER_SERVER: f64 = (64_u64 << 20) as f64;
/// What an empty tablet counts as, in bytes.
const TABLET_BYTES: u64 = 1 << 20;
/// Weights of load, bytes and tablets in the cost; of zones beside them.
const WEIGHTS: [f64; 3] = [1.0, 0.3, 0.2];
const ZONE_WEIGHT: f64 = 0.1;
/// Parts of CPU, requests and bytes in the load.
const LOAD_PARTS: [f64; 3] = [0.5, 0.3, 0.2];
/// A move gains at least so much of a server's cost.
const GAIN_MIN: f64 = 0.000_1;
/// Servers that are looked at as targets of one move.
const TARGETS: usize = 3;

/// One move.
#[derive(Clone, PartialEq, Debug)]
pub struct PlannedMove {
    pub key: TabletKey,
    pub from: ServerId,
    pub to: ServerId,
    pub reason: String,
    /// Of the cost.
    pub gain: f64,
}

/// A server before and after.
#[derive(Clone, PartialEq, Debug)]
pub struct BalancedServer {
    pub server: ServerId,
    /// 1 = the mean.
    pub load: f64,
    pub load_after: f64,
    pub tablets: usize,
    pub tablets_after: usize,
}

/// What to move, and what that changes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct MovePlan {
    pub moves: Vec<PlannedMove>,
    pub servers: Vec<BalancedServer>,
    pub cost: f64,
    pub cost_after: f64,
    /// Why there are no (more) moves.
    pub verdict: String,
}

/// Load, bytes and tablets; of a server in units of the mean, of a tablet in the same.
type Parts = [f64; 3];

struct Place {
    server: ServerId,
    zone: usize,
    /// CPUs over the mean.
    capacity: f64,
    parts: Parts,
    tablets: usize,
    /// That may be moved.
    movable: Vec<(TabletKey, Parts)>,
    is_spent: bool,
}

struct Balance {
    places: Vec<Place>,
    /// Sum of servers' loads and number of servers.
    zones: Vec<(f64, f64)>,
    weights: Parts,
    total: Sum,
}

/// Of some tablets.
#[derive(Clone, Copy, Default)]
struct Sum {
    /// CPU, requests and bytes.
    load: [f64; 3],
    bytes: f64,
    tablets: usize,
}

/// The plan.
pub fn plan(view: View<'_>, look: &Look<'_>) -> MovePlan {
    let mut balance = Balance::of(view, look);
    let cost = balance.cost();
    let mut plan = MovePlan { cost, cost_after: cost, ..MovePlan::default() };
    plan.servers = balance
        .places
        .iter()
        .map(|place| BalancedServer {
            server: place.server,
            load: balance.load(place),
            load_after: balance.load(place),
            tablets: place.tablets,
            tablets_after: place.tablets,
        })
        .collect();
    if let Some(verdict) = waits(view, look) {
        plan.verdict = verdict;
        return plan;
    }
    let tolerance = view.tuning.balance_tolerance_permille as f64 / 1_000.0;
    let loads = plan.servers.iter().map(|server| server.load);
    let (least, most) = loads.fold((f64::MAX, 0.0_f64), |(least, most), load| (least.min(load), most.max(load)));
    if most <= 1.0 + tolerance && least >= 1.0 - 2.0 * tolerance {
        plan.verdict = format!("balanced: loads are from {least:.2} to {most:.2} of the mean");
        return plan;
    }
    balance.find_movable(view, look);
    while plan.moves.len() < MOVES_PLANNED_MAX {
        let Some(next) = balance.next() else {
            plan.verdict = "no move gains anything more".to_owned();
            break;
        };
        plan.moves.push(next);
    }
    if plan.moves.len() == MOVES_PLANNED_MAX {
        plan.verdict = "more moves are planned after these".to_owned();
    }
    plan.cost_after = balance.cost();
    for (server, place) in plan.servers.iter_mut().zip(&balance.places) {
        (server.load_after, server.tablets_after) = (balance.load(place), place.tablets);
    }
    plan
}

/// Why now is not the time.
fn waits(view: View<'_>, look: &Look<'_>) -> Option<String> {
    if look.takers.len() < 2 {
        return Some("there are not two servers to balance".to_owned());
    }
    let is_unreported = |server: &&ServerId| view.volatile.loads.get(server).is_none_or(|load| load.interval_ms == 0);
    let unreported = look.takers.iter().filter(is_unreported).count();
    if unreported > 0 {
        return Some(format!("waits for the reports of {unreported} servers"));
    }
    // But for those that are on their way.
    let lost = look.tablets.iter().filter(|tablet| tablet.owner.is_none() && tablet.row.procedure.is_none());
    match lost.count() {
        0 => None,
        lost => Some(format!("waits: {lost} tablets have no server")),
    }
}

impl Balance {
    fn of(view: View<'_>, look: &Look<'_>) -> Balance {
        let servers = &look.takers;
        let cpus = |server: &ServerId| {
            let load = view.volatile.loads.get(server);
            load.map_or(0.0, |load| f64::from(load.report.cpus_milli)).max(0.0)
        };
        let known: Vec<f64> = servers.iter().map(cpus).filter(|cpus| *cpus > 0.0).collect();
        let mean_cpus = known.iter().sum::<f64>() / known.len().max(1) as f64;
        let mut zone_names: Vec<&str> = Vec::new();
        let mut places: Vec<Place> = Vec::new();
        for server in servers {
            let zone = view.survey.servers.get(*server).map_or("", |server| server.registration.zone.as_str());
            let zone = zone_names.iter().position(|name| *name == zone).unwrap_or_else(|| {
                zone_names.push(zone);
                zone_names.len() - 1
            });
            let capacity = if cpus(server) > 0.0 { cpus(server) / mean_cpus } else { 1.0 };
            let (parts, movable) = ([0.0; 3], Vec::new());
            places.push(Place { server: *server, zone, capacity, parts, tablets: 0, movable, is_spent: false });
        }
        let zones = zone_names
            .iter()
            .enumerate()
            .map(|(zone, _)| (0.0, places.iter().filter(|p| p.zone == zone).count() as f64));
        let mut balance = Balance { zones: zones.collect(), places, weights: WEIGHTS, total: Sum::default() };
        balance.fill(view, look);
        balance
    }

    /// Where the tablet counts: what is on its way counts where it goes.
    fn place(view: View<'_>, look: &Look<'_>, tablet: &Seen<'_>) -> Option<usize> {
        let owner = if tablet.is_free { tablet.owner } else { view.survey.wanted_at(tablet.row).or(tablet.owner) };
        look.takers.binary_search(&owner?).ok()
    }

    fn fill(&mut self, view: View<'_>, look: &Look<'_>) {
        let mut sums = vec![Sum::default(); self.places.len()];
        for tablet in &look.tablets {
            if let Some(place) = Balance::place(view, look, tablet) {
                sums[place].add(&Sum::of(tablet));
            }
        }
        sums.iter().for_each(|sum| self.total.add(sum));
        let servers = self.places.len().max(1) as f64;
        let data = self.total.bytes - self.total.tablets as f64 * TABLET_BYTES as f64;
        self.weights[0] *= (self.total.load[1] / servers / REQUESTS_PER_SERVER).min(1.0);
        self.weights[1] *= (data / servers / BYTES_PER_SERVER).clamp(0.0, 1.0);
        for (n, sum) in sums.iter().enumerate().filter(|(_, sum)| sum.tablets > 0) {
            let parts = self.parts(sum);
            let place = &mut self.places[n];
            place.tablets = sum.tablets;
            place.parts = std::array::from_fn(|n| parts[n] / capacity(place.capacity, n));
        }
        for n in 0..self.places.len() {
            let load = self.load(&self.places[n]);
            self.zones[self.places[n].zone].0 += load;
        }
    }

    /// Only once something is to be moved.
    fn find_movable(&mut self, view: View<'_>, look: &Look<'_>) {
        let rest = Duration::from_millis(view.tuning.move_rest_ms);
        let moved_at = &view.volatile.moved_at;
        for tablet in look.tablets.iter().filter(|tablet| tablet.is_free) {
            let Some(place) = Balance::place(view, look, tablet) else { continue };
            let moved = moved_at.get(&tablet.row.tablet);
            if moved.is_none_or(|at| view.now.moment.saturating_since(*at) >= rest) {
                let parts = self.parts(&Sum::of(tablet));
                self.places[place].movable.push((tablet.row.key(), parts));
            }
        }
    }

    fn parts(&self, of: &Sum) -> Parts {
        let (total, servers) = (&self.total, self.places.len() as f64);
        let known: f64 = (0..3).filter(|n| total.load[*n] > 0.0).map(|n| LOAD_PARTS[n]).sum();
        let share = |n: usize| {
            if total.load[n] > 0.0 { of.load[n] / total.load[n] * LOAD_PARTS[n] / known } else { 0.0 }
        };
        let load: f64 = (0..3).map(share).sum();
        let tablets = of.tablets as f64 / total.tablets as f64;
        [load * servers, of.bytes / total.bytes * servers, tablets * servers]
    }

    /// All parts in one number; 1 = the mean.
    fn load(&self, place: &Place) -> f64 {
        self.weighted(&place.parts)
    }

    fn weighted(&self, parts: &Parts) -> f64 {
        let weights: f64 = self.weights.iter().sum();
        (0..3).map(|n| self.weights[n] * parts[n]).sum::<f64>() / weights
    }

    fn cost_of(&self, parts: &Parts) -> f64 {
        (0..3).map(|n| self.weights[n] * (parts[n] - 1.0).powi(2)).sum()
    }

    fn cost(&self) -> f64 {
        let servers: f64 = self.places.iter().map(|place| self.cost_of(&place.parts)).sum();
        let zones: f64 = self.zones.iter().map(|zone| zone_cost(*zone)).sum();
        (servers + zones) / self.places.len().max(1) as f64
    }

    /// The best move off the most loaded server that has one.
    fn next(&mut self) -> Option<PlannedMove> {
        loop {
            let mut order: Vec<usize> = (0..self.places.len()).collect();
            order.sort_by(|a, b| self.load(&self.places[*a]).total_cmp(&self.load(&self.places[*b])));
            let from = *order.iter().rev().find(|place| !self.places[**place].is_spent)?;
            let mut best: Option<(f64, usize, usize)> = None;
            for to in order.into_iter().filter(|to| *to != from).take(TARGETS) {
                for (number, (_, parts)) in self.places[from].movable.iter().enumerate() {
                    let gain = self.gain(from, to, parts);
                    if gain > best.map_or(GAIN_MIN, |best| best.0) {
                        best = Some((gain, to, number));
                    }
                }
            }
            match best {
                Some((gain, to, number)) => return Some(self.perform(from, to, number, gain)),
                None => self.places[from].is_spent = true,
            }
        }
    }

    fn after(&self, place: usize, parts: &Parts, sign: f64) -> Parts {
        let place = &self.places[place];
        std::array::from_fn(|n| place.parts[n] + sign * parts[n] / capacity(place.capacity, n))
    }

    /// By how much the move lowers the sum of costs.
    fn gain(&self, from: usize, to: usize, parts: &Parts) -> f64 {
        let (before_from, before_to) = (&self.places[from].parts, &self.places[to].parts);
        let (after_from, after_to) = (self.after(from, parts, -1.0), self.after(to, parts, 1.0));
        let servers =
            self.cost_of(before_from) + self.cost_of(before_to) - self.cost_of(&after_from) - self.cost_of(&after_to);
        let (zone_from, zone_to) = (self.places[from].zone, self.places[to].zone);
        if zone_from == zone_to {
            return servers;
        }
        let moved = |zone: usize, by: f64| zone_cost((self.zones[zone].0 + by, self.zones[zone].1));
        let lost = self.weighted(before_from) - self.weighted(&after_from);
        let won = self.weighted(&after_to) - self.weighted(before_to);
        let before = zone_cost(self.zones[zone_from]) + zone_cost(self.zones[zone_to]);
        servers + before - moved(zone_from, -lost) - moved(zone_to, won)
    }

    fn perform(&mut self, from: usize, to: usize, number: usize, gain: f64) -> PlannedMove {
        let (load_from, load_to) = (self.load(&self.places[from]), self.load(&self.places[to]));
        let (key, parts) = self.places[from].movable.swap_remove(number);
        self.places[from].parts = self.after(from, &parts, -1.0);
        self.places[to].parts = self.after(to, &parts, 1.0);
        self.places[from].tablets -= 1;
        self.places[to].tablets += 1;
        let (after_from, after_to) = (self.load(&self.places[from]), self.load(&self.places[to]));
        self.zones[self.places[from].zone].0 += after_from - load_from;
        self.zones[self.places[to].zone].0 += after_to - load_to;
        let gain = gain / self.places.len() as f64;
        let (from, to) = (self.places[from].server, self.places[to].server);
        let reason = format!("{from} has {load_from:.2} of the mean load, {to} {load_to:.2}");
        PlannedMove { key, from, to, reason, gain }
    }
}

impl Sum {
    fn of(tablet: &Seen<'_>) -> Sum {
        let load = tablet.heat.map_or([0.0; 3], |heat| [heat.cpu_permille, heat.requests_per_s, heat.bytes_per_s]);
        Sum { load, bytes: (tablet.bytes + TABLET_BYTES) as f64, tablets: 1 }
    }

    fn add(&mut self, other: &Sum) {
        (0..3).for_each(|n| self.load[n] += other.load[n]);
        self.bytes += other.bytes;
        self.tablets += other.tablets;
    }
}

/// Only load is shared out by what a server can bear.
fn capacity(capacity: f64, part: usize) -> f64 {
    if part == 0 { capacity } else { 1.0 }
}

fn zone_cost((load, servers): (f64, f64)) -> f64 {
    ZONE_WEIGHT * (load / servers - 1.0).powi(2) * servers
}

#[cfg(test)]
mod tests;
