//! Whether a register's history has an order that real time allows: Gibbons and Korach, "Testing
//! shared memories" (SIAM J. Computing 1997), for registers whose writes all have different values.
//!
//! A *cluster* is a write and all sights of its value; in any order they stand together. A *block* is
//! one cluster, or several that conditional writes tie together in a fixed order. With f the first
//! end and s the last start within a block, A must come before B iff f(A) < s(B). So there is an order
//! iff no two blocks must each come before the other: among blocks with f < s (*forward*) no two may
//! overlap, and no other block may lie within a forward one. (A longer cycle has the block with the
//! smallest f in it, which must come before all of its cycle, also before its own predecessor.)
//!
//! Unknown writes need no case of their own: one that nobody saw never ends, and so comes last; one
//! that was seen ends its block with the first sight.
//!
//! The absence of a row names no deletion. So deletions are clusters without sights, and absences are
//! checked one by one against what is certain. That finds every absence that a value's zone
//! contradicts and every one without any deletion that explains it; not every one that only several
//! absences together contradict.
//!
//! 1. Times that are equal are concurrent. 2. O(n log n).

use std::collections::BTreeMap;
use std::time::Duration;

use super::Finding;
use super::registers::{Register, Seen, Span, Written};
use crate::history::Token;

/// First end and last start of operations that stand together.
#[derive(Clone, Copy, Debug)]
struct Zone {
    first_end: Span,
    last_start: Span,
}

impl Zone {
    fn of(span: Span) -> Zone {
        Zone { first_end: span, last_start: span }
    }

    fn add(&mut self, span: Span) {
        if span.end < self.first_end.end {
            self.first_end = span;
        }
        if span.start > self.last_start.start {
            self.last_start = span;
        }
    }

    fn join(&mut self, other: Zone) {
        self.add(Span { start: other.first_end.start, ..other.first_end });
        self.add(other.last_start);
    }

    fn f(&self) -> Duration {
        self.first_end.end
    }

    fn s(&self) -> Duration {
        self.last_start.start
    }

    fn is_forward(&self) -> bool {
        self.f() < self.s()
    }
}

struct Cluster {
    write: Written,
    zone: Zone,
    sights: usize,
}

/// What is wrong with a register's history; `scans` tells whether sights by scans count.
pub fn check(register: &Register, scans: bool) -> Option<Finding> {
    let counts = |seen: &&Seen| scans || !seen.scan;
    let mut clusters: BTreeMap<Token, Cluster> = BTreeMap::new();
    for write in register.writes.iter().filter(|write| write.token != 0) {
        clusters.insert(write.token, Cluster { write: *write, zone: Zone::of(write.span), sights: 0 });
    }
    for seen in register.seen.iter().filter(counts).filter(|seen| seen.token != 0) {
        // A token that nobody wrote is another check's.
        let Some(cluster) = clusters.get_mut(&seen.token) else { continue };
        if seen.span.end < cluster.write.span.start {
            return Some(Finding::new(
                seen.span.op,
                format!("#{} sees t{} before #{} writes it", seen.span.op, seen.token, cluster.write.span.op),
            ));
        }
        cluster.zone.add(seen.span);
        cluster.sights += 1;
    }
    clusters.retain(|_, cluster| cluster.write.done || cluster.sights > 0);

    let deletions: Vec<Written> = register.writes.iter().filter(|write| write.token == 0).copied().collect();
    let mut blocks = match blocks(&clusters) {
        Ok(blocks) => blocks,
        Err(finding) => return Some(finding),
    };
    let certain = deletions.iter().filter(|write| write.done).map(|write| Zone::of(write.span));
    blocks.extend(certain);
    order(&blocks)
        .or_else(|| absences(register, &clusters, &deletions, scans))
        .or_else(|| misses(register, &clusters, scans))
}

/// Ties clusters together along conditional writes, and checks the order within.
fn blocks(clusters: &BTreeMap<Token, Cluster>) -> Result<Vec<Zone>, Finding> {
    let mut next: BTreeMap<Token, Token> = BTreeMap::new();
    for (token, cluster) in clusters {
        let Some(after) = cluster.write.after.filter(|after| clusters.contains_key(after)) else { continue };
        if let Some(other) = next.insert(after, *token) {
            return Err(Finding::new(
                cluster.write.span.op,
                format!("t{other} and t{token} were both written on the condition that t{after} is there"),
            ));
        }
    }
    let tied = |cluster: &Cluster| cluster.write.after.is_some_and(|after| clusters.contains_key(&after));
    let mut blocks = Vec::new();
    let mut placed = 0;
    for (head, cluster) in clusters.iter().filter(|(_, cluster)| !tied(cluster)) {
        let mut block = cluster.zone;
        placed += 1;
        let mut at = *head;
        while let Some(token) = next.get(&at) {
            let zone = clusters[token].zone;
            if zone.f() < block.s() {
                return Err(Finding::new(
                    block.last_start.op,
                    format!(
                        "#{} comes after #{}, but sees or does what came before t{token}",
                        block.last_start.op, zone.first_end.op
                    ),
                ));
            }
            block.join(zone);
            placed += 1;
            at = *token;
        }
        blocks.push(block);
    }
    if placed < clusters.len() {
        let about = clusters.values().find(|cluster| tied(cluster)).map_or(0, |cluster| cluster.write.span.op);
        return Err(Finding::new(about, "conditional writes depend on each other in a circle"));
    }
    Ok(blocks)
}

/// Two blocks that must each come before the other.
fn order(blocks: &[Zone]) -> Option<Finding> {
    let conflict = |a: &Zone, b: &Zone| {
        Finding::new(
            b.last_start.op,
            format!(
                "no order: #{} ended before #{} began, and #{} ended before #{} began",
                a.first_end.op, b.last_start.op, b.first_end.op, a.last_start.op
            ),
        )
    };
    let mut forward: Vec<&Zone> = blocks.iter().filter(|zone| zone.is_forward()).collect();
    forward.sort_by_key(|zone| (zone.f(), zone.s()));
    // Up to the first overlap they are disjoint, so only neighbours can overlap.
    if let Some(pair) = forward.windows(2).find(|pair| pair[1].f() < pair[0].s()) {
        return Some(conflict(pair[0], pair[1]));
    }
    for zone in blocks.iter().filter(|zone| !zone.is_forward()) {
        if let Some(around) = within(&forward, zone.s(), zone.f()) {
            return Some(conflict(around, zone));
        }
    }
    None
}

/// The zone, of disjoint and sorted ones, that this stretch lies strictly within.
fn within<'a>(forward: &[&'a Zone], start: Duration, end: Duration) -> Option<&'a Zone> {
    let candidates = forward.partition_point(|zone| zone.f() < start);
    let last = forward[..candidates].last()?;
    (end < last.s()).then_some(*last)
}

/// An absence while a value was certainly there, or after a value that nothing deleted.
fn absences(
    register: &Register,
    clusters: &BTreeMap<Token, Cluster>,
    deletions: &[Written],
    scans: bool,
) -> Option<Finding> {
    let mut forward: Vec<&Zone> =
        clusters.values().map(|cluster| &cluster.zone).filter(|zone| zone.is_forward()).collect();
    forward.sort_by_key(|zone| zone.f());
    // (when it was certainly there, when its write began), the latter the highest so far.
    let mut there: Vec<(Duration, Duration, Span)> =
        clusters.values().map(|cluster| (cluster.zone.f(), cluster.write.span.start, cluster.zone.first_end)).collect();
    there.sort_by_key(|(certain, _, _)| *certain);
    for n in 1..there.len() {
        if there[n - 1].1 > there[n].1 {
            (there[n].1, there[n].2) = (there[n - 1].1, there[n - 1].2);
        }
    }
    // (start, end) of deletions, the end the highest so far.
    let mut gone: Vec<(Duration, Duration)> =
        deletions.iter().map(|write| (write.span.start, write.span.end)).collect();
    gone.sort_unstable();
    for n in 1..gone.len() {
        gone[n].1 = gone[n].1.max(gone[n - 1].1);
    }
    for seen in register.seen.iter().filter(|seen| seen.token == 0 && (scans || !seen.scan)) {
        let span = seen.span;
        if let Some(zone) = within(&forward, span.start, span.end) {
            return Some(Finding::new(
                span.op,
                format!(
                    "#{} finds no row, but the same value was seen before it by #{} and after it by #{}",
                    span.op, zone.first_end.op, zone.last_start.op
                ),
            ));
        }
        let before = there.partition_point(|(certain, _, _)| *certain < span.start);
        let Some((_, written, witness)) = there[..before].last() else { continue };
        let candidates = gone.partition_point(|(start, _)| *start <= span.end);
        let explained = gone[..candidates].last().is_some_and(|(_, end)| end >= written);
        if !explained {
            return Some(Finding::new(
                span.op,
                format!("#{} finds no row, but #{} wrote or saw one and nothing deleted it since", span.op, witness.op),
            ));
        }
    }
    None
}

/// A token said to be missing while it was certainly there.
fn misses(register: &Register, clusters: &BTreeMap<Token, Cluster>, scans: bool) -> Option<Finding> {
    for missed in register.missed.iter().filter(|missed| scans || !missed.scan) {
        let Some(cluster) = clusters.get(&missed.token) else { continue };
        if cluster.zone.f() < missed.span.start && missed.span.end < cluster.zone.s() {
            return Some(Finding::new(
                missed.span.op,
                format!("#{} does not find t{}, which was there throughout", missed.span.op, missed.token),
            ));
        }
    }
    None
}
