//! Which files this server still reads, as load reports tell the master.
//!
//! The master deletes a file that no row names once a report that was gathered later does not list it.
//! A report lists: files that a tablet's older views read, all files of tablets that were closed here
//! while scans of them go on, and what a compaction's commit removes, from before the command is first
//! sent until its outcome is known and the new view is installed.
//!
//! Invariants: (1) a report's number is given before its content is gathered, and never falls; it grows by
//! each, but runs at most [`REPORTS_IN_FLIGHT_MAX`] ahead of the last that was heard for certain, and is
//! given again then; (2) a command that un-names files names the last number given after they were pinned: every report with a
//! larger number lists those that are still read.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use uruk_proto::limits::REPORTS_IN_FLIGHT_MAX;

use super::tablets::Tablets;

#[derive(Debug, Default)]
struct State {
    last_report: u64,
    /// The largest number of a report that was answered by a grant.
    last_heard: u64,
    /// How often each path is held.
    held: BTreeMap<String, usize>,
}

/// Reports' numbers, and files held by name.
#[derive(Debug, Default)]
pub struct Pins(Mutex<State>);

/// Files held until it is dropped.
#[derive(Debug)]
pub struct Pinned<'a> {
    pins: &'a Pins,
    paths: Vec<String>,
}

impl Pins {
    /// The number of the report whose content is gathered next.
    pub fn next_report(&self) -> u64 {
        let mut state = self.0.lock();
        state.last_report = (state.last_report + 1).min(state.last_heard + REPORTS_IN_FLIGHT_MAX);
        state.last_report
    }

    /// A report of this number was answered by a grant.
    pub fn heard(&self, number: u64) {
        let mut state = self.0.lock();
        state.last_heard = state.last_heard.max(number);
    }

    /// The last number given; 0 before the first.
    pub fn last_report(&self) -> u64 {
        self.0.lock().last_report
    }

    /// Lists the files in every report whose number is given from now on.
    pub fn hold(&self, paths: &[String]) -> Pinned<'_> {
        let mut state = self.0.lock();
        for path in paths {
            *state.held.entry(path.clone()).or_default() += 1;
        }
        Pinned { pins: self, paths: paths.to_vec() }
    }

    /// All files to list, each once, in order.
    pub fn list(&self, tablets: &Tablets) -> Vec<String> {
        let mut paths: Vec<String> = self.0.lock().held.keys().cloned().collect();
        let (loaded, departed) = tablets.held();
        for tablet in &departed {
            let files = tablet.store.files();
            paths.extend(files.into_iter().flat_map(|group| group.files).map(|file| file.path));
        }
        paths.extend(loaded.iter().chain(&departed).flat_map(|tablet| tablet.store.pinned_files()));
        paths.sort_unstable();
        paths.dedup();
        paths
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let mut state = self.pins.0.lock();
        for path in &self.paths {
            let count = state.held.get_mut(path).expect("held by us");
            *count -= 1;
            if *count == 0 {
                state.held.remove(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_listed_until_the_last_holder_lets_go() {
        let (pins, tablets) = (Pins::default(), Tablets::default());
        let paths = ["b".to_owned(), "a".to_owned()];
        let (first, second) = (pins.hold(&paths), pins.hold(&paths[..1]));
        assert_eq!(pins.list(&tablets), ["a", "b"]);
        drop(first);
        assert_eq!(pins.list(&tablets), ["b"]);
        drop(second);
        assert!(pins.list(&tablets).is_empty());
    }

    #[test]
    fn report_numbers_grow_from_1() {
        let pins = Pins::default();
        assert_eq!((pins.last_report(), pins.next_report(), pins.next_report(), pins.last_report()), (0, 1, 2, 2));
    }

    #[test]
    fn report_numbers_run_ahead_of_what_was_heard_by_so_many_only() {
        let pins = Pins::default();
        // However many renewals fail, a master that hears of number 1 late knows of 6: gathered later.
        let numbers: Vec<u64> = (0..6).map(|_| pins.next_report()).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 4, 4]);
        pins.heard(2);
        pins.heard(1);
        let numbers: Vec<u64> = (0..4).map(|_| pins.next_report()).collect();
        assert_eq!(numbers, [5, 6, 6, 6]);
    }
}
