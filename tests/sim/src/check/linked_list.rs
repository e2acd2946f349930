//! The Big Linked List: every node that was flushed is there, and what it points at is there too.
//!
//! Why: each batch is written only after the one it points at was acknowledged, so a node that points
//! at nothing proves that acknowledged data is lost, whatever else the client remembers.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Finding;
use crate::history::{Entry, Node, Op, Told};

/// All reads of all nodes.
pub fn check(entries: &[Entry]) -> Vec<Finding> {
    let mut written: BTreeMap<u64, Vec<(&Entry, Node)>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.may_be_done()) {
        if let Op::Nodes { nodes } = &entry.op {
            for node in nodes.iter() {
                written.entry(node.id).or_default().push((entry, *node));
            }
        }
    }
    let mut findings = Vec::new();
    for entry in entries {
        if let (Op::ReadNodes, Some(Told::Nodes(nodes))) = (&entry.op, entry.told()) {
            findings.extend(sight(entry, nodes, &written));
        }
    }
    findings
}

fn sight(entry: &Entry, nodes: &[Node], written: &BTreeMap<u64, Vec<(&Entry, Node)>>) -> Option<Finding> {
    let there: BTreeMap<u64, Option<u64>> = nodes.iter().map(|node| (node.id, node.next)).collect();
    let undefined: Vec<&Node> =
        nodes.iter().filter(|node| node.next.is_some_and(|next| !there.contains_key(&next))).collect();
    if let Some(node) = undefined.first() {
        let detail = format!(
            "{} undefined references, the first: {:x} points at {:x}, which is not there",
            undefined.len(),
            node.id,
            node.next.unwrap_or_default()
        );
        return Some(Finding::new(entry.id, detail));
    }
    for (id, writes) in written {
        let flushed = writes.iter().find(|(write, _)| write.is_done() && write.end() < entry.start);
        if let (Some((write, _)), None) = (flushed, there.get(id)) {
            return Some(Finding::new(write.id, format!("node {id:x} of #{} was flushed and is lost", write.id)));
        }
    }
    for node in nodes {
        let writes = written.get(&node.id).map_or(&[][..], |writes| &writes[..]);
        let shown = writes.iter().filter(|(_, write)| write.next == node.next);
        let end = |write: &Entry| if write.is_done() { write.end() } else { Duration::MAX };
        // Replaced: a write that began after this one ended is done.
        let replaced = |write: &Entry| {
            writes.iter().any(|(later, _)| later.is_done() && later.start > end(write) && later.end() < entry.start)
        };
        if shown.clone().next().is_none() {
            return Some(Finding::new(entry.id, format!("nobody wrote node {:x} as it is there", node.id)));
        }
        if shown.clone().all(|(write, _)| replaced(write)) {
            return Some(Finding::new(entry.id, format!("node {:x} is as it was before its last write", node.id)));
        }
    }
    None
}
