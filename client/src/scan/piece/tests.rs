use proptest::prelude::*;
use uruk_proto::FamilyId;
use uruk_proto::cell_batch::BatchBuilder;

use super::*;

fn progress(range: RowRange, descending: bool) -> Progress {
    Progress { rest: Some(range), rows_left: u64::MAX, partial: None, descending }
}

/// A response of rows: key, cells, goes on from before, goes on in next.
fn response(rows: &[(&str, usize, bool, bool)], last_scanned: &'static str) -> ReadResponse {
    let mut builder = BatchBuilder::new();
    for (key, cells, from_before, in_next) in rows {
        builder.start_row(key.as_bytes(), *from_before);
        for cell in 0..*cells {
            builder.push(FamilyId(1), &Bytes::from("q"), cell as i64, b"value");
        }
        if *in_next {
            builder.break_row();
        }
    }
    ReadResponse { batch: builder.finish(), last_scanned: Bytes::from_static(last_scanned.as_bytes()) }
}

fn keys(rows: Vec<cell_batch::Row>) -> Vec<String> {
    rows.iter().map(|row| String::from_utf8_lossy(&row.key).into_owned()).collect()
}

#[test]
fn goes_on_after_the_last_complete_row() {
    let mut progress = progress(RowRange::new("a", "z"), false);
    let rows = progress.take(response(&[("b", 1, false, false), ("c", 1, false, true)], "")).unwrap();
    assert_eq!(keys(rows), ["b"]);
    assert_eq!(progress.rest, Some(RowRange::new("b\0", "z")));
    progress.partial = None; // the connection broke here
    let rows = progress.take(response(&[("c", 2, false, true)], "")).unwrap();
    assert_eq!(keys(rows), Vec::<String>::new());
    let rows = progress.take(response(&[("c", 3, true, false), ("d", 1, false, false)], "")).unwrap();
    assert_eq!(rows[0].cells.len(), 5);
    assert_eq!(progress.rest, Some(RowRange::new("d\0", "z")));
}

#[test]
fn goes_on_after_what_the_server_looked_at_but_not_past_a_row_that_goes_on() {
    let mut progress = progress(RowRange::new("a", "z"), false);
    progress.take(response(&[("b", 1, false, false)], "m")).unwrap();
    assert_eq!(progress.rest, Some(RowRange::new("m\0", "z")));
    progress.take(response(&[("n", 1, false, true)], "n")).unwrap();
    assert_eq!(progress.rest, Some(RowRange::new("m\0", "z")));
    // Something outside of what is left is not believed.
    progress.partial = None;
    progress.take(response(&[], "b")).unwrap();
    assert_eq!(progress.rest, Some(RowRange::new("m\0", "z")));
}

#[test]
fn a_descending_scan_goes_on_before_the_last_complete_row() {
    let mut progress = progress(RowRange::new("a", ""), true);
    let rows = progress.take(response(&[("y", 1, false, false), ("c", 1, false, false)], "b")).unwrap();
    assert_eq!(keys(rows), ["y", "c"]);
    assert_eq!(progress.rest, Some(RowRange::new("a", "b")));
    progress.tablet_ended(&RowRange::new("", "m")).unwrap();
    assert_eq!(progress.rest, None);
}

#[test]
fn refuses_rows_out_of_order_or_range() {
    for rows in [
        &[("c", 1, false, false), ("b", 1, false, false)][..],
        &[("b", 1, false, false), ("b", 1, false, false)],
        &[("z", 1, false, false)],
        &[("", 1, false, false)],
        &[("b", 1, true, false)],
    ] {
        let refused = progress(RowRange::new("", "z"), false).take(response(rows, ""));
        assert!(matches!(refused, Err(Error::BadResponse { .. })), "{rows:?}");
    }
    let mut cut = progress(RowRange::ALL, false);
    cut.take(response(&[("b", 1, false, true)], "")).unwrap();
    assert!(cut.tablet_ended(&RowRange::ALL).is_err());
}

proptest! {
    /// However rows are cut into pieces and responses, and wherever the answer breaks off: resuming
    /// where `rest` says gives every row once, whole.
    #[test]
    fn resuming_gives_every_row_once(
        rows in prop::collection::btree_map("[a-d]{1,2}", 1usize..4, 1..8),
        cuts in prop::collection::vec((1usize..5, any::<bool>()), 1..30),
        descending in any::<bool>(),
    ) {
        let mut progress = progress(RowRange::ALL, descending);
        let mut given: Vec<(String, usize)> = Vec::new();
        let mut cuts = cuts.into_iter().chain(std::iter::repeat((usize::MAX, false)));
        'attempt: while let Some(rest) = progress.rest.clone() {
            // What the server has left, cell by cell.
            let mut left: Vec<(&String, usize)> = rows
                .iter()
                .filter(|(key, _)| rest.contains(key.as_bytes()))
                .flat_map(|(key, count)| (0..*count).map(move |cell| (key, cell)))
                .collect();
            if descending {
                left.sort_by(|a, b| b.0.cmp(a.0).then(a.1.cmp(&b.1)));
            }
            let mut from = 0;
            while from < left.len() {
                let (cells, breaks) = cuts.next().expect("endless");
                let to = from.saturating_add(cells).min(left.len());
                let mut builder = BatchBuilder::new();
                for at in from..to {
                    let (key, cell) = left[at];
                    if at == from || left[at - 1].0 != key {
                        builder.start_row(key.as_bytes(), cell > 0);
                    }
                    builder.push(FamilyId(1), &Bytes::from("q"), cell as i64, b"v");
                }
                if to < left.len() && left[to].0 == left[to - 1].0 {
                    builder.break_row();
                }
                let response = ReadResponse { batch: builder.finish(), last_scanned: Bytes::new() };
                for row in progress.take(response).unwrap() {
                    given.push((String::from_utf8_lossy(&row.key).into_owned(), row.cells.len()));
                }
                from = to;
                if breaks {
                    progress.partial = None;
                    continue 'attempt;
                }
            }
            progress.tablet_ended(&RowRange::ALL).unwrap();
        }
        let mut expected: Vec<(String, usize)> = rows.into_iter().collect();
        if descending {
            expected.reverse();
        }
        prop_assert_eq!(given, expected);
    }
}
