use proptest::prelude::*;

use super::*;

type Parts = (Vec<u8>, u64, Vec<u8>, i64, u64);

fn bytes_with_zeros() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xFF), any::<u8>()], 0..6)
}

fn parts() -> impl Strategy<Value = Parts> {
    let id = prop_oneof![1u64..4, 250u64..260, any::<u64>().prop_map(|id| id.max(1))];
    let timestamp = prop_oneof![-2i64..3, any::<i64>()];
    (bytes_with_zeros(), id, bytes_with_zeros(), timestamp, any::<u64>())
}

fn encode(p: &Parts) -> Vec<u8> {
    cell(&p.0, FamilyId(p.1), &p.2, p.3, SeqNo(p.4))
}

proptest! {
    #[test]
    fn a_cell_key_survives_parsing(p in parts()) {
        let key = encode(&p);
        let parsed = KeyRef::parse(&key).unwrap();
        prop_assert_eq!(&parsed.row()[..], &p.0[..]);
        prop_assert_eq!(parsed.family, FamilyId(p.1));
        prop_assert_eq!(&parsed.qualifier()[..], &p.2[..]);
        prop_assert_eq!((parsed.timestamp, parsed.seq, parsed.kind), (p.3, SeqNo(p.4), Kind::Cell));
        prop_assert_eq!(seq_of(&key), Some(SeqNo(p.4)));
        prop_assert_eq!(parsed.row_prefix(), &row_prefix(&p.0)[..]);
        let mut row = Vec::new();
        put_unescaped(&mut row, parsed.row_prefix());
        prop_assert_eq!(&row, &p.0);
        row.clear();
        put_unescaped(&mut row, &key[parsed.qualifier_at()..parsed.column_len]);
        prop_assert_eq!(&row, &p.2);
        let suffix = read_suffix(&key[parsed.column_len..]).unwrap();
        prop_assert_eq!(suffix, (p.3, SeqNo(p.4), Kind::Cell));
        prop_assert!(read_suffix(&key[parsed.column_len + 1..]).is_err());
    }

    #[test]
    fn memcmp_is_the_order_of_the_parts(a in parts(), b in parts()) {
        use std::cmp::Reverse;
        let order = |p: &Parts| (p.0.clone(), p.1, p.2.clone(), Reverse(p.3), Reverse(p.4));
        prop_assert_eq!(encode(&a).cmp(&encode(&b)), order(&a).cmp(&order(&b)));
    }

    #[test]
    fn a_row_bound_splits_the_keys_at_the_row(p in parts(), row in bytes_with_zeros()) {
        let bound = row_lower_bound(&row);
        prop_assert_eq!(encode(&p) >= bound, p.0 >= row);
    }

    #[test]
    fn deletions_stand_before_what_they_hide(p in parts(), seq in any::<u64>()) {
        let (row, family) = (&p.0[..], FamilyId(p.1));
        let key = encode(&p);
        prop_assert!(delete_row(row, SeqNo(seq)) < delete_family(row, family, SeqNo(seq)));
        prop_assert!(delete_family(row, family, SeqNo(seq)) < key);
        if p.3 < i64::MAX || seq > p.4 {
            prop_assert!(delete_column(row, family, &p.2, SeqNo(seq)) < key);
        }
        for deletion in [delete_row(row, SeqNo(seq)), delete_family(row, family, SeqNo(seq)), delete_column(row, family, &p.2, SeqNo(seq))] {
            let parsed = KeyRef::parse(&deletion).unwrap();
            prop_assert_eq!(&parsed.row()[..], row);
            prop_assert_eq!(parsed.seq, SeqNo(seq));
        }
    }

    #[test]
    fn any_bytes_parse_or_fail_without_panic(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..64)) {
        if let Ok(parsed) = KeyRef::parse(&bytes) {
            let _ = (parsed.row(), parsed.qualifier());
        }
    }

    #[test]
    fn a_cut_key_is_refused(p in parts(), cut in 1usize..SUFFIX_BYTES) {
        let key = encode(&p);
        // What is left may by chance still look like a shorter key, but never like this row's cell.
        if let Ok(parsed) = KeyRef::parse(&key[..key.len() - cut]) {
            prop_assert!(parsed.column_prefix() != KeyRef::parse(&key).unwrap().column_prefix());
        }
    }
}
