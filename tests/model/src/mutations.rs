//! Each step left out. [`Mutation::breaks`] says which promise breaks, or that nothing does because
//! another step makes up for it.

use crate::{Bounds, Checked, SealModel};

macro_rules! mutations {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $rule:literal, $fate:expr, $bounds:expr;)+) => {
        /// A step left out or done wrong.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Mutation {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Mutation {
            /// All of them.
            pub const ALL: &'static [Mutation] = &[$(Mutation::$variant,)+];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Mutation::$variant => $name,)+ }
            }

            /// The rule of DESIGN §6 that it drops.
            pub fn rule(self) -> &'static str {
                match self { $(Mutation::$variant => $rule,)+ }
            }

            /// What comes of it.
            pub fn fate(self) -> Fate {
                match self { $(Mutation::$variant => $fate,)+ }
            }

            /// Where that is seen.
            pub fn bounds(self) -> Bounds {
                match self { $(Mutation::$variant => $bounds,)+ }
            }

            /// A list with this one only.
            pub fn alone(self) -> &'static [Mutation] {
                match self { $(Mutation::$variant => &[Mutation::$variant],)+ }
            }
        }
    };
}

/// What comes of leaving a step out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// One of these promises breaks (beginnings of property names).
    Breaks(&'static [&'static str]),
    /// Other steps make up for it, within the bounds.
    Redundant,
}

const SMALL: Bounds = Bounds::SMALL;
const ROLLS: Bounds = Bounds { segments: 2, recoverers: 1, rounds: 1, deaths: 0, crashes: 0, losses: 0, ..SMALL };
const TRIMS: Bounds = Bounds { trims: true, ..ROLLS };
const READS: Bounds = Bounds { readers: true, recoverers: 1, rounds: 1, deaths: 0, ..SMALL };
const TWO: Bounds = Bounds { records: 2, deaths: 0, crashes: 0, losses: 0, ..SMALL };
const PAIR: Bounds = Bounds { members: 2, ..SMALL };

mutations! {
    /// The writer sends other bytes at an offset that it has used.
    OtherBytes = "other-bytes", "I1", Fate::Breaks(&["S2 sealed copies"]), SMALL;
    /// A replica takes records behind a gap, and acknowledges its last offset.
    TakesGaps = "takes-gaps", "I2", Fate::Breaks(&["S2", "S3"]), Bounds { records: 2, ..ROLLS };
    /// A replica acknowledges before the sync.
    AckBeforeSync = "ack-before-sync", "I2", Fate::Breaks(&["S2", "S3"]), SMALL;
    /// An append does not look at the fence.
    FenceNotChecked = "fence-not-checked", "I3", Fate::Breaks(&["S2", "S3"]), SMALL;
    /// A fence does not wait for the sync that is under way, which is acknowledged afterwards.
    LateAck = "late-ack", "I3", Fate::Breaks(&["S2", "S3"]), SMALL;
    /// A fenced member acknowledges what a recoverer's completion made durable.
    AckAfterCompletion = "ack-after-completion", "I3", Fate::Redundant, TWO;
    /// A restart forgets the fence.
    FenceForgotten = "fence-forgotten", "I4", Fate::Breaks(&["S2", "S3"]), SMALL;
    /// A member that lost its disk answers with length 0.
    LostDiskCounts = "lost-disk-counts", "I5", Fate::Breaks(&["S2", "S3"]), SMALL;
    /// A member that was asked but not fenced counts.
    UnfencedCounts = "unfenced-counts", "I5", Fate::Breaks(&["S2", "S3"]), SMALL;
    /// A copy on a new server counts as an answer.
    CopiesCount = "copies-count", "I5", Fate::Breaks(&["S2", "S3"]), PAIR;
    /// Step 4: one answer fewer is enough.
    TooFewAnswers = "too-few-answers", "I6, step 4", Fate::Breaks(&["S2", "S3"]), SMALL;
    /// Step 5: the shortest length.
    ShortestLength = "shortest-length", "I6, step 5", Fate::Breaks(&["S2"]), SMALL;
    /// Step 7: a sealed segment is sealed again.
    SealedNotFinal = "sealed-not-final", "I7, step 7", Fate::Breaks(&["S4", "S5"]), SMALL;
    /// Step 7: who loses returns his own length.
    LoserKeepsItsResult = "loser-keeps-its-result", "I7, step 7", Fate::Breaks(&["S4", "S2", "S3"]), SMALL;
    /// A reader of unsealed data reads all that is there.
    ReadsUncommitted = "reads-uncommitted", "I8", Fate::Breaks(&["what was read"]), READS;
    /// After a failed sync the process goes on, and its next sync succeeds.
    SyncErrorIgnored = "sync-error-ignored", "I9", Fate::Breaks(&["S2", "S3", "S5"]), SMALL;
    /// After a failed sync the process ends, and on restart believes the page cache.
    TrustsAfterFailedSync = "trusts-after-failed-sync", "I9", Fate::Breaks(&["S2", "S3", "S5"]), SMALL;
    /// Step 1: the log is not closed: rolls and trims go on.
    LogNotClosed = "log-not-closed", "step 1", Fate::Breaks(&["S7"]), TRIMS;
    /// Step 2: the segment is not marked.
    NoRecoveringMark = "no-recovering-mark", "step 2", Fate::Redundant, SMALL;
    /// Step 3: lengths are asked for, and nothing is fenced.
    NoFence = "no-fence", "step 3", Fate::Breaks(&["S2", "S3"]), SMALL;
    /// Step 6: sealed whoever holds it.
    NoCopies = "no-copies", "step 6", Fate::Breaks(&["S2 sealed data"]), SMALL;
    /// Step 7: a recoverer that was overtaken may still seal.
    AnyRecovererSeals = "any-recoverer-seals", "step 7", Fate::Redundant, TWO;
    /// Step 8 before step 7.
    CutsBeforeSealed = "cuts-before-sealed", "step 8", Fate::Breaks(&["S2", "S5"]), SMALL;
    /// One acknowledgement is enough for the writer.
    AckByOne = "ack-by-one", "A", Fate::Breaks(&["S2", "S3"]), SMALL;
    /// The writer acknowledges in a segment for which it has asked for a roll.
    AcksAfterRollRequest = "acks-after-roll-request", "roll", Fate::Breaks(&["S2", "S3"]), ROLLS;
    /// A closed log gets a new segment.
    SegmentAfterClosing = "segment-after-closing", "step 1", Fate::Redundant, ROLLS;
    /// A closed log is trimmed.
    TrimAfterClosing = "trim-after-closing", "S7", Fate::Breaks(&["S7"]), TRIMS;
    /// Data goes before the trim point is recorded.
    DeletesBeforeTrim = "deletes-before-trim", "S7", Fate::Breaks(&["S2 sealed data"]), TRIMS;
    /// The fence goes with the data.
    TrimRemovesFence = "trim-removes-fence", "S7", Fate::Breaks(&["S3"]), Bounds { segments: 1, ..TRIMS };
    /// The writer acknowledges although it has shown an error.
    AcksAfterError = "acks-after-error", "S6", Fate::Breaks(&["S6"]), ROLLS;
    /// A replica takes appends of its writer again after a restart.
    OpenAfterRestart = "open-after-restart", "an earlier incarnation takes no appends", Fate::Redundant, SMALL;
}

impl Mutation {
    /// The mutation of that name.
    pub fn named(name: &str) -> Option<Mutation> {
        Mutation::ALL.iter().copied().find(|m| m.name() == name)
    }

    /// The model without this step, checked for promises only: breaking its own rule proves nothing.
    pub fn model(self) -> SealModel {
        SealModel { bounds: self.bounds(), mutations: self.alone(), checked: Checked::Promises }
    }
}
