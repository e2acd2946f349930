//! Bugs on purpose, for proving that the simulation finds them.
//!
//! Each protocol step that keeps data safe asks [`is_planted`] at the place where leaving it out would be
//! the bug. Only simulation builds (feature `sim`) can plant one; in every other build the answer is a
//! constant `false` and the branch is gone.

use std::fmt;
use std::str::FromStr;

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// A step left out or done too early.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Planted {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Planted {
            /// All of them, in the order of the table in `docs/simulation.md`.
            pub const ALL: &'static [Planted] = &[$(Planted::$variant,)+];

            /// Its name on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Planted::$variant => $name,)+
                }
            }

            /// What is wrong, in one line.
            pub fn description(self) -> &'static str {
                match self {
                    $(Planted::$variant => concat!($($doc),+).trim(),)+
                }
            }
        }
    };
}

bugs! {
    /// A chunk server answers an append before it has synced it.
    NoFsync = "no-fsync-before-ack",
    /// A tablet server reads without looking at its lease.
    ReadWithoutLease = "read-without-lease-check",
    /// A leader grants a renewal without a quorum's word that it still leads.
    UnconfirmedRenewal = "renewal-without-confirmed-leadership",
    /// A chunk server appends to a segment that is fenced.
    FenceNotChecked = "fence-not-checked-on-append",
    /// A chunk server keeps its fences in memory only.
    FenceForgotten = "fence-forgotten-at-restart",
    /// A recovery counts the length of a replica that it has not fenced.
    UnfencedReplica = "recovery-reads-an-unfenced-replica",
    /// A recovery is content with one answer fewer than it needs.
    TooFewAnswers = "seal-with-too-few-answers",
    /// A tablet lets go of its log when a flush starts.
    ReleasedAtFlushStart = "log-released-at-flush-start",
    /// A tablet starts its sequence numbers anew when it is loaded.
    SeqNosReused = "sequence-numbers-reused-after-reload",
    /// A write is acknowledged before its log record is durable.
    AckBeforeDurable = "acknowledged-before-durable",
    /// A write can be read before its log record is durable.
    VisibleBeforeDurable = "visible-before-durable",
    /// The master believes a report that an older incarnation sent.
    LateReport = "late-report-of-an-old-incarnation",
    /// The controller adds a segment to a log that is closing.
    SegmentAfterClosing = "segment-created-after-closing",
    /// A tablet applies a sorted log although it has seen it, each record under a new sequence number.
    ReplayedTwice = "sorted-log-applied-twice",
    /// A tablet serves before its `opened` has committed.
    ServesBeforeOpened = "serving-before-opened-has-committed",
    /// A flush claims a sequence number beyond a write that is still on its way to the memtable.
    FlushedAhead = "flushed-seqno-ahead-of-a-stalled-insert",
    /// A chunk server answers an append that was under way when the fence came.
    AckAfterFence = "late-ack-after-a-fence",
    /// The master deletes a file that is written but not named yet.
    CollectedUnnamed = "file-collected-before-it-is-named",
    /// A tablet server forgets which writes it has seen.
    LateFirstAttempt = "late-first-attempt-applied-after-its-retry",
    /// A report of a death is believed whichever launch it names.
    DeathHitsSuccessor = "proof-of-death-hits-a-successor",
    /// A tablet that is given away does not wait for writes that had passed before the freeze.
    FreezeWithoutDrain = "freeze-without-drain",
    /// A tablet is split though some of it is in no file.
    SplitWithoutFinalFlush = "split-without-final-flush",
    /// A tablet whose split has an unknown outcome is served again.
    SplitReplyLostThaws = "split-reply-lost-and-parent-thawed",
    /// A merge makes each file reference as wide as the new tablet.
    MergeWidensAReference = "merge-widens-a-file-reference",
    /// The master takes a server's silence for its word that it has given a tablet up.
    ReleaseTakenFromSilence = "release-taken-from-silence",
    /// The master lets two procedures have one tablet.
    TwoProceduresOnOneTablet = "two-procedures-on-one-tablet",
    /// A compaction of a tablet commits after its split.
    ParentCompactionCommits = "parent-compaction-commits-after-the-split",
}

impl fmt::Display for Planted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No planted bug has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no planted bug is named {0:?}")]
pub struct UnknownBug(String);

impl FromStr for Planted {
    type Err = UnknownBug;

    fn from_str(name: &str) -> Result<Planted, UnknownBug> {
        Planted::ALL.iter().copied().find(|bug| bug.name() == name).ok_or_else(|| UnknownBug(name.to_owned()))
    }
}

#[cfg(feature = "sim")]
mod switch {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Planted;

    /// One more than the planted bug's number; zero means none.
    static PLANTED: AtomicUsize = AtomicUsize::new(0);

    /// Plants `bug` for the rest of this process.
    pub fn plant(bug: Planted) {
        PLANTED.store(bug as usize + 1, Ordering::Relaxed);
    }

    /// Whether this process runs with `bug`.
    pub fn is_planted(bug: Planted) -> bool {
        PLANTED.load(Ordering::Relaxed) == bug as usize + 1
    }
}

#[cfg(feature = "sim")]
pub use switch::{is_planted, plant};

/// Whether this process runs with `bug`: never, outside of simulation builds.
#[cfg(not(feature = "sim"))]
pub const fn is_planted(_: Planted) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_is_found_by_its_name() {
        for bug in Planted::ALL {
            assert_eq!(bug.name().parse(), Ok(*bug));
            assert!(bug.description().ends_with('.'), "{bug}");
        }
        assert_eq!("none".parse::<Planted>(), Err(UnknownBug("none".to_owned())));
    }
}
