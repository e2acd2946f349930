use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let payload = prop_oneof![
        Just(EntryPayload::Blank),
        vec(any::<u8>(), 0..60).prop_map(|b| EntryPayload::Normal(Command(b.into()))),
        vec(1u64..9, 1..4).prop_map(|ids| {
            let nodes: BTreeMap<u64, BasicNode> =
                ids.iter().map(|id| (*id, BasicNode { addr: format!("h{id}:1") })).collect();
            EntryPayload::Membership(Membership::new(vec![ids.into_iter().collect()], nodes).unwrap())
        }),
    ];
    vec((any::<u64>(), any::<u64>(), payload), 1..6)
        .prop_map(|all| all.into_iter().map(|(t, i, payload)| Entry { log_id: log_id(t, i), payload }).collect())
}

fn frames() -> impl Strategy<Value = Vec<Frame>> {
    vec(prop_oneof![entries().prop_map(Frame::Entries), any::<u64>().prop_map(Frame::Cut)], 1..6)
}

/// The segment's bytes and the offset of each frame.
fn segment(sequence: u64, frames: &[Frame]) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut offsets) = (segment_header(sequence).to_vec(), Vec::new());
    for frame in frames {
        let at = bytes.len() as u64;
        offsets.push(bytes.len());
        match frame {
            Frame::Cut(from) => bytes.extend_from_slice(&cut_frame(at, *from)),
            Frame::Entries(entries) => {
                let mut body = EntriesBody::new();
                entries.iter().for_each(|entry| body.push(entry));
                bytes.extend_from_slice(&body.into_frame(at));
            }
        }
    }
    (bytes, offsets)
}

proptest! {
    #[test]
    fn a_segment_reads_back_as_it_was_written(sequence in any::<u64>(), frames in frames()) {
        let (bytes, offsets) = segment(sequence, &frames);
        let len = bytes.len() as u64;
        let scan = scan_segment(&bytes.into(), sequence);
        prop_assert_eq!(scan.bad, None);
        prop_assert_eq!(scan.good_bytes, len);
        prop_assert_eq!(scan.frames.iter().map(|(at, _)| *at as usize).collect::<Vec<_>>(), offsets);
        prop_assert_eq!(scan.frames.into_iter().map(|(_, f)| f).collect::<Vec<_>>(), frames);
    }

    #[test]
    fn a_flipped_bit_is_found_where_it_is(frames in frames(), place in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (mut bytes, offsets) = segment(7, &frames);
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        let scan = scan_segment(&bytes.into(), 7);
        let hit = offsets.iter().rposition(|at| *at <= place);
        prop_assert_eq!(scan.bad.as_ref().map(|bad| bad.offset as usize), Some(hit.map_or(0, |i| offsets[i])));
        // Every frame but the last has a good one behind it, and so has the header.
        prop_assert_eq!(scan.bad.map(|bad| bad.torn), Some(hit == Some(offsets.len() - 1)));
        prop_assert_eq!(scan.frames.len(), hit.unwrap_or(0));
    }

    #[test]
    fn a_cut_off_file_keeps_its_whole_frames(frames in frames(), place in any::<prop::sample::Index>()) {
        let (mut bytes, offsets) = segment(7, &frames);
        bytes.truncate(place.index(bytes.len()));
        let len = bytes.len();
        let scan = scan_segment(&bytes.into(), 7);
        let whole = offsets.iter().skip(1).filter(|end| **end <= len).count();
        prop_assert_eq!(scan.frames.len(), whole);
        prop_assert!(scan.bad.is_none_or(|bad| bad.torn));
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in vec(any::<u8>(), 0..300)) {
        scan_segment(&bytes.clone().into(), 1);
        let mut framed = segment_header(1).to_vec();
        framed.extend_from_slice(&frame(framed.len() as u64, &bytes));
        let scan = scan_segment(&framed.into(), 1);
        prop_assert_eq!(scan.frames.len() + usize::from(scan.bad.is_some_and(|bad| !bad.torn)), 1);
    }
}

#[test]
fn a_frame_inside_a_command_is_not_taken_for_one() {
    let inner = cut_frame(24, 5);
    let entry = Entry { log_id: log_id(1, 1), payload: EntryPayload::Normal(Command(inner)) };
    let (mut bytes, _) = segment(1, &[Frame::Entries(vec![entry])]);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert!(scan_segment(&bytes.into(), 1).bad.unwrap().torn);
}

#[test]
fn a_segment_under_another_name_is_refused() {
    let scan = scan_segment(&segment(3, &[Frame::Cut(1)]).0.into(), 4);
    assert_eq!(scan.bad.unwrap().problem, "the header says segment 3, the name 4");
}
