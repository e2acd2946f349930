//! What must hold of the system, looked at from outside of simulated time. One file each.
//!
//! | invariant | looked at |
//! |---|---|
//! | `one-owner` | every tick |
//! | `sequence-numbers-grow` | every tick |
//! | `meta-rows-cover` | twice a second, at each master |
//! | `replicas-identical` | at the end |
//! | `files-complete` | at the end |
//! | `nothing-left-over` | at the end |
//! | `everything-serves-again` | at the end |
//! | `no-panic` | always |
//! What clients saw is checked elsewhere: `crate::check`.

pub mod everything_serves_again;
pub mod files_complete;
pub mod meta_rows_cover;
pub mod no_panic;
pub mod nothing_left_over;
pub mod one_owner;
pub mod replicas_identical;
pub mod sequence_numbers_grow;

use crate::world::World;

/// Something that must hold all the time.
pub trait Always {
    /// Its name in reports.
    fn name(&self) -> &'static str;
    /// Looked at every so many ticks.
    fn every_ticks(&self) -> u64;
    /// What is wrong now, if anything.
    fn check(&mut self, world: &World) -> Result<(), String>;
}

/// Something that must hold soon after everything was healed, and from then on.
pub trait Eventually {
    /// Its name in reports.
    fn name(&self) -> &'static str;
    /// What is still wrong, if anything.
    fn check(&mut self, world: &World) -> Result<(), String>;
}

/// All that hold all the time.
pub fn always() -> Vec<Box<dyn Always>> {
    vec![
        Box::new(one_owner::OneOwner::default()),
        Box::new(sequence_numbers_grow::SequenceNumbersGrow::default()),
        Box::new(meta_rows_cover::MetaRowsCover),
    ]
}

/// All that hold at the end.
pub fn eventually() -> Vec<Box<dyn Eventually>> {
    vec![
        Box::new(replicas_identical::ReplicasIdentical),
        Box::new(files_complete::FilesComplete),
        Box::new(nothing_left_over::NothingLeftOver),
    ]
}
