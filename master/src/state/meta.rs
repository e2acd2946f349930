//! The root table and the meta tablets.
//!
//! The root table locates meta tablets, meta tablets hold rows; both are ordered maps, so that
//! locating is one map lookup at either level.
//!
//! Rows and meta tablets are shared with those who look at the state as it was ([`super::survey`], snapshots): a
//! change copies its row, and its meta tablet once for each such look.
//!
//! Invariants: (1) the root's lowest key is [`lowest`]; (2) every row of a meta tablet is at or above
//! its root key and below the next one; (3) only the lowest meta tablet may be empty.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uruk_proto::TableId;

use super::row::{MetaRow, RowKey};

/// Names a meta tablet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct MetaTabletId(pub u64);

type Rows = BTreeMap<RowKey, Arc<MetaRow>>;

/// Root table and meta tablets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Meta {
    root: BTreeMap<RowKey, MetaTabletId>,
    tablets: BTreeMap<MetaTabletId, Arc<Rows>>,
    next: u64,
}

fn seen(row: &Arc<MetaRow>) -> &MetaRow {
    examined::note();
    row
}

/// Counts the rows that are looked at, for tests of how work grows. Nothing otherwise.
pub mod examined {
    #[cfg(test)]
    thread_local! {
        static ROWS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    #[inline]
    pub(super) fn note() {
        #[cfg(test)]
        ROWS.set(ROWS.get() + 1);
    }

    /// Rows that `look` looks at.
    #[cfg(test)]
    pub fn by<R>(look: impl FnOnce() -> R) -> (u64, R) {
        let before = ROWS.get();
        let result = look();
        (ROWS.get() - before, result)
    }
}

/// Before every row: table ids start at 1.
fn lowest() -> RowKey {
    RowKey { table: TableId(0), start: Bytes::new() }
}

impl Meta {
    /// One empty meta tablet.
    pub fn new() -> Meta {
        let first = MetaTabletId(1);
        Meta { root: [(lowest(), first)].into(), tablets: [(first, Arc::default())].into(), next: 2 }
    }

    fn home(&self, key: &RowKey) -> (&RowKey, MetaTabletId) {
        let (low, id) = self.root.range(..=key).next_back().expect("the root's lowest key is below every row");
        (low, *id)
    }

    pub fn get(&self, key: &RowKey) -> Option<&Arc<MetaRow>> {
        examined::note();
        self.tablets[&self.home(key).1].get(key)
    }

    /// Adds or replaces the row at its place; returns what was there.
    pub fn put(&mut self, row: MetaRow) -> Option<Arc<MetaRow>> {
        let key = row.row_key();
        let home = self.home(&key).1;
        self.rows_mut(home).insert(key, Arc::new(row))
    }

    fn rows_mut(&mut self, home: MetaTabletId) -> &mut Rows {
        Arc::make_mut(self.tablets.get_mut(&home).expect("the root names only meta tablets that exist"))
    }

    pub fn remove(&mut self, key: &RowKey) -> Option<Arc<MetaRow>> {
        let (low, home) = self.home(key);
        let low = low.clone();
        let rows = self.rows_mut(home);
        let removed = rows.remove(key);
        if rows.is_empty() && low != lowest() {
            self.tablets.remove(&home);
            self.root.remove(&low);
        }
        removed
    }

    /// The row whose range holds `row`.
    pub fn locate(&self, table: TableId, row: &[u8]) -> Option<&MetaRow> {
        let key = RowKey { table, start: Bytes::copy_from_slice(row) };
        // Below a meta tablet's first row (its former first row may be gone), look one further down.
        let mut homes = self.root.range(..=&key).rev();
        let found = homes.find_map(|(_, id)| self.tablets[id].range(..=&key).next_back())?.1;
        (found.table == table && found.range.contains(row)).then_some(&**found)
    }

    /// Rows from `key` on, in order.
    pub fn rows_from(&self, key: RowKey) -> impl Iterator<Item = &MetaRow> {
        let low = self.home(&key).0.clone();
        self.root.range(low..).flat_map(move |(_, id)| self.tablets[id].range(key.clone()..).map(|(_, row)| seen(row)))
    }

    /// Rows of a table, in order.
    pub fn rows_of(&self, table: TableId) -> impl Iterator<Item = &MetaRow> {
        self.rows_from(RowKey { table, start: Bytes::new() }).take_while(move |row| row.table == table)
    }

    /// All rows, in order.
    pub fn rows(&self) -> impl Iterator<Item = &MetaRow> {
        self.root.values().flat_map(|id| self.tablets[id].values()).map(seen)
    }

    /// Every meta tablet with its number of rows.
    pub fn sizes(&self) -> impl Iterator<Item = (MetaTabletId, usize)> {
        self.tablets.iter().map(|(id, rows)| (*id, rows.len()))
    }

    /// Cuts the meta tablet in two at its middle row, when it has more than `rows_max` (at least 1).
    pub fn split(&mut self, id: MetaTabletId, rows_max: usize) {
        let Some(rows) = self.tablets.get_mut(&id).map(Arc::make_mut) else { return };
        if rows.len() <= rows_max.max(1) {
            return;
        }
        let middle = rows.keys().nth(rows.len() / 2).expect("more than one row").clone();
        let upper = rows.split_off(&middle);
        let new = MetaTabletId(self.next);
        self.next += 1;
        self.root.insert(middle, new);
        self.tablets.insert(new, Arc::new(upper));
    }

    /// Lets rows share the bytes of their bounds, as they did before they were decoded.
    pub fn share_bounds(&mut self) {
        let mut before = Bytes::new();
        for id in self.root.values() {
            let rows = self.tablets.get_mut(id).expect("the root names only meta tablets that exist");
            let shared = std::mem::take(Arc::make_mut(rows)).into_values().map(|row| {
                let mut row = Arc::unwrap_or_clone(row);
                row.share_bounds(&before);
                before = row.range.end.clone();
                (row.row_key(), Arc::new(row))
            });
            *rows = Arc::new(shared.collect());
        }
    }

    /// What is broken, if anything.
    pub fn check(&self) -> Result<(), String> {
        if self.root.keys().next() != Some(&lowest()) || self.root.len() != self.tablets.len() {
            return Err("root table and meta tablets do not match".into());
        }
        let mut lows = self.root.iter().peekable();
        while let Some((low, id)) = lows.next() {
            let rows = self.tablets.get(id).ok_or("the root names a meta tablet that does not exist")?;
            if rows.is_empty() && *low != lowest() {
                return Err(format!("meta tablet {} is empty", id.0));
            }
            let next = lows.peek().map(|(next, _)| *next);
            let below_next = |key: &RowKey| next.is_none_or(|next| key < next);
            if let Some(key) = rows.keys().find(|key| **key < *low || !below_next(key)) {
                return Err(format!("row {key:?} is in the wrong meta tablet"));
            }
            if let Some((key, _)) = rows.iter().find(|(key, row)| **key != row.row_key()) {
                return Err(format!("row {key:?} is under the wrong key"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uruk_proto::{RowRange, TabletId};

    fn row(table: u64, start: &'static str, end: &'static str) -> MetaRow {
        MetaRow::new(TabletId(0), TableId(table), RowRange::new(start, end))
    }

    fn filled() -> Meta {
        let mut meta = Meta::new();
        for table in [1, 3] {
            for (start, end) in [("", "b"), ("b", "d"), ("d", "f"), ("f", "")] {
                meta.put(row(table, start, end));
            }
        }
        meta
    }

    #[test]
    fn locates_the_same_row_however_the_meta_tablets_are_cut() {
        let mut meta = filled();
        for _ in 0..4 {
            for (key, start) in [("", ""), ("a", ""), ("b", "b"), ("c", "b"), ("e", "d"), ("zz", "f")] {
                for table in [1, 3] {
                    let found = meta.locate(TableId(table), key.as_bytes()).expect("covered");
                    assert_eq!((found.table.0, &found.range.start[..]), (table, start.as_bytes()));
                }
                assert_eq!(meta.locate(TableId(2), key.as_bytes()), None);
            }
            assert_eq!(meta.rows_of(TableId(3)).count(), 4);
            meta.check().unwrap();
            let sizes: Vec<_> = meta.sizes().collect();
            sizes.iter().for_each(|(id, _)| meta.split(*id, 1));
        }
        assert_eq!(meta.sizes().count(), 8);
    }

    #[test]
    fn locates_below_a_meta_tablet_whose_first_row_is_gone() {
        let mut meta = filled();
        meta.split(MetaTabletId(1), 1); // cut at table 3, ""
        meta.split(MetaTabletId(1), 1); // cut at table 1, "d"
        let wide = row(1, "b", "f");
        meta.remove(&row(1, "d", "f").row_key());
        meta.put(wide.clone());
        assert_eq!(meta.locate(TableId(1), b"e"), Some(&wide));
        meta.check().unwrap();
    }

    #[test]
    fn empty_meta_tablets_go() {
        let mut meta = filled();
        (0..4).for_each(|_| meta.sizes().collect::<Vec<_>>().iter().for_each(|(id, _)| meta.split(*id, 1)));
        let keys: Vec<RowKey> = meta.rows().map(MetaRow::row_key).collect();
        for key in keys {
            meta.remove(&key);
            meta.check().unwrap();
        }
        assert_eq!(meta.sizes().count(), 1);
    }
}
