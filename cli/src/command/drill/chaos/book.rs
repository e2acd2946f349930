//! What happened and when: a line each on the terminal and in the folder, and the counts.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use uruk_base::{Clock, Moment};

use super::schedule::{Blow, Kind};
use crate::output::print_table;

/// The lines of a run, in its folder.
pub const FILE: &str = "chaos.txt";

/// The book of a run.
pub struct Book {
    clock: Clock,
    began: Moment,
    is_quiet: bool,
    file: std::fs::File,
    counts: BTreeMap<(&'static str, Kind), u64>,
    /// Processes that were killed (SIGKILL), stopped (SIGSTOP), asked to end (SIGTERM).
    pub kills: u64,
    pub pauses: u64,
    pub restarts: u64,
}

impl Book {
    /// Opens it; a quiet one prints nothing.
    pub fn open(clock: &Clock, folder: &Path, is_quiet: bool) -> Result<Book> {
        let path = folder.join(FILE);
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let (clock, began, counts) = (clock.clone(), clock.now(), BTreeMap::new());
        Ok(Book { clock, began, is_quiet, file, counts, kills: 0, pauses: 0, restarts: 0 })
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.clock.since(self.began)
    }

    /// Notes a line, with the time in seconds.
    pub fn say(&mut self, text: &str) {
        let line = format!("{:>8.1}  {text}", self.elapsed().as_secs_f64());
        if !self.is_quiet {
            println!("{line}");
        }
        // The line is also on the terminal, and the disk may be what broke.
        let _ = writeln!(self.file, "{line}");
    }

    /// Counts a blow that fell on so many processes.
    pub fn count(&mut self, blow: Blow, kind: Kind, processes: usize) {
        *self.counts.entry((blow.name(), kind)).or_default() += 1;
        let total = match blow {
            Blow::Kill | Blow::Down(_) => &mut self.kills,
            Blow::Restart => &mut self.restarts,
            Blow::Pause(_) => &mut self.pauses,
        };
        *total += processes as u64;
    }

    /// Prints how often each blow fell on each kind of process.
    pub fn print_counts(&self) {
        let rows =
            self.counts.iter().map(|((blow, kind), n)| vec![(*blow).to_owned(), kind.to_string(), n.to_string()]);
        print_table(&["EVENT", "PROCESS", "TIMES"], rows);
    }
}
