//! The files of a member, for people: what each holds, and where it is damaged. Any bytes give a report.

use bytes::Bytes;
use uruk_base::inspect::FileReport;

use crate::log::format::{Frame, scan_segment};
use crate::{hard_state, snapshot};

/// The first eight bytes of a segment of the log.
pub const LOG_MAGIC: [u8; 8] = *b"URUKRLOG";
/// The first eight bytes of a snapshot.
pub const SNAPSHOT_MAGIC: [u8; 8] = *b"URUKRSNP";
/// The first eight bytes of what a member must never forget.
pub const STATE_MAGIC: [u8; 8] = *b"URUKRSTA";

/// A segment of the log.
pub fn log_segment(file: &Bytes) -> FileReport {
    let mut report = FileReport::new("segment of a raft log");
    let sequence = file.get(12..20).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")));
    let scan = scan_segment(file, sequence);
    report.fact("segment", sequence);
    report.fact("frames", scan.frames.len());
    let mut cuts = Vec::new();
    let (mut entries, mut first, mut last) = (0, None, None);
    for (_, frame) in &scan.frames {
        match frame {
            Frame::Cut(from) => cuts.push(from.to_string()),
            Frame::Entries(more) => {
                entries += more.len();
                first = first.or(more.first().map(|entry| entry.log_id));
                last = more.last().map(|entry| entry.log_id).or(last);
            }
        }
    }
    report.fact("entries", entries);
    if let (Some(first), Some(last)) = (first, last) {
        let show = |id: crate::types::LogId| format!("{} (term {})", id.index, id.leader_id.term);
        report.fact("from, to", format!("{}, {}", show(first), show(last)));
    }
    if !cuts.is_empty() {
        report.fact("cut back to", cuts.join(", "));
    }
    report.fact("good bytes", scan.good_bytes);
    if let Some(bad) = scan.bad {
        let hint = if bad.torn { "; at the end of the newest segment: a write that a crash has torn" } else { "" };
        report.damaged(bad.offset, format!("{}{hint}", bad.problem));
    }
    report
}

/// A snapshot.
pub fn snapshot_file(file: &Bytes) -> FileReport {
    let mut report = FileReport::new("raft snapshot");
    match snapshot::decode(file.clone()) {
        Err((offset, problem)) => report.damaged(offset, problem),
        Ok((meta, content)) => {
            let last =
                meta.last_log_id.map_or("-".to_owned(), |id| format!("{} (term {})", id.index, id.leader_id.term));
            report.fact("last entry", last);
            let members = meta.last_membership.membership();
            let nodes: Vec<String> = members.nodes().map(|(id, node)| format!("{id} at {}", node.addr)).collect();
            report.fact("members", nodes.join(", "));
            report.fact("bytes of content", content.len());
        }
    }
    report
}

/// Vote and purge point.
pub fn state_file(file: &Bytes) -> FileReport {
    let mut report = FileReport::new("raft state");
    match hard_state::decode(file) {
        Err(problem) => report.damaged(0, problem),
        Ok(state) => {
            report.fact("content", format!("{state:?}"));
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use openraft::impls::leader_id_std::LeaderId;
    use openraft::{BasicNode, EntryPayload};

    use super::*;
    use crate::decode;
    use crate::hard_state::HardState;
    use crate::log::format::{EntriesBody, cut_frame, segment_header};
    use crate::types::{Entry, Membership, SnapshotMeta, StoredMembership, Vote, log_id};

    fn segment() -> Vec<u8> {
        let mut file = segment_header(3).to_vec();
        for index in 10..14 {
            let mut body = EntriesBody::new();
            body.push(&Entry { log_id: log_id(2, index), payload: EntryPayload::Blank });
            file.extend_from_slice(&body.into_frame(file.len() as u64));
        }
        file.extend_from_slice(&cut_frame(file.len() as u64, 12));
        file
    }

    fn snapshot_of_one_member() -> Bytes {
        let nodes: BTreeMap<u64, BasicNode> = [(1, BasicNode { addr: "a:1".into() })].into();
        let membership = Membership::new(vec![BTreeSet::from([1])], nodes).expect("a good one");
        let last = log_id(3, 7);
        let last_membership = StoredMembership::new(Some(log_id(0, 0)), membership);
        let meta = SnapshotMeta { last_log_id: Some(last), last_membership };
        [&snapshot::encode_header(&meta, last, b"content")[..], b"content"].concat().into()
    }

    fn state() -> Bytes {
        let mut state = HardState::new("controllers", 2);
        state.set_vote(&Vote { leader_id: LeaderId { term: 7, voted_for: 3 }, committed: true });
        state.set_purged(log_id(6, 1000));
        state.encode()
    }

    #[test]
    fn a_segment_is_told_and_its_damage_found() {
        let good = segment();
        let report = log_segment(&good.clone().into());
        assert_eq!(report.damage, []);
        assert!(report.facts.contains(&("entries", "4".to_owned())));
        assert!(report.facts.contains(&("cut back to", "12".to_owned())));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let damage = log_segment(&bad.into()).damage;
            assert!(damage[0].offset <= at as u64, "byte {at}");
        }
    }

    #[test]
    fn any_bytes_give_a_report() {
        for len in 0..200 {
            let bytes = Bytes::from(vec![len as u8; len]);
            for report in [log_segment(&bytes), snapshot_file(&bytes), state_file(&bytes)] {
                assert_eq!(report.damage.len(), 1, "{len}");
            }
        }
    }

    #[test]
    fn a_short_fuzz_run_from_valid_files_panics_nowhere() {
        const RUNS: u32 = 4000;
        let corpus = [segment().into(), snapshot_of_one_member(), state()];
        assert!(snapshot_file(&corpus[1]).damage.is_empty() && state_file(&corpus[2]).damage.is_empty());
        let random = uruk_base::Random::from_seed(1);
        let passes = |report: FileReport| !report.damage.iter().any(|damage| damage.what.contains("checksum"));
        let mut passed = [0; 3];
        for _ in 0..RUNS {
            let input = uruk_base::splice::spliced(&corpus, &random);
            decode::raft_log(&input);
            decode::raft_snapshot(&input);
            decode::raft_state(&input);
            let signed = decode::signed_snapshot(&input);
            let reports = [
                Some(log_segment(&decode::signed_segment(&input))),
                signed.as_ref().map(snapshot_file),
                Some(state_file(&decode::signed_state(&input))),
            ];
            for (passed, report) in passed.iter_mut().zip(reports) {
                *passed += u32::from(report.is_some_and(passes));
            }
        }
        // Behind the checksums, too.
        assert!(passed.iter().all(|passed| *passed > RUNS / 10), "{passed:?}");
    }
}
