//! Identities. Every one is issued by a Raft log before first use and never reused.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Defines ids: newtypes of `u64` that show as a prefix and the number. The caller's module imports
/// `std::fmt` and serde's two derives.
#[macro_export]
macro_rules! define_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

define_id!(
    /// A table, for ever: a table made again under the same name has another id.
    TableId, "table-");
define_id!(
    /// A column family; 0 is never issued.
    FamilyId, "family-");
define_id!(
    /// A tablet; its range never changes (a split or merge makes new tablets).
    TabletId, "tablet-");
define_id!(
    /// One incarnation of a tablet server; also the id of its commit log. 0 means none.
    ServerId, "server-");
define_id!(
    /// Raised by every assignment of a tablet.
    Epoch, "epoch-");

/// Orders the writes of one tablet, across all of its owners: (epoch, counter) in 24 + 40 bits.
///
/// A tablet can be assigned 16 million times and take 10^12 writes under each assignment; both ends
/// are checked where numbers are issued.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct SeqNo(pub u64);

impl SeqNo {
    const COUNTER_BITS: u32 = 40;
    /// The largest counter within an epoch.
    pub const COUNTER_MAX: u64 = (1 << Self::COUNTER_BITS) - 1;
    /// The largest epoch.
    pub const EPOCH_MAX: u64 = (1 << (64 - Self::COUNTER_BITS)) - 1;
    /// Before every write.
    pub const ZERO: SeqNo = SeqNo(0);
    /// After every write.
    pub const MAX: SeqNo = SeqNo(u64::MAX);

    /// The number of write `counter` under `epoch`; None past either end.
    pub fn new(epoch: Epoch, counter: u64) -> Option<SeqNo> {
        (epoch.0 <= Self::EPOCH_MAX && counter <= Self::COUNTER_MAX)
            .then_some(SeqNo(epoch.0 << Self::COUNTER_BITS | counter))
    }

    /// Under which assignment the write was made.
    pub fn epoch(self) -> Epoch {
        Epoch(self.0 >> Self::COUNTER_BITS)
    }

    /// Its place within the epoch.
    pub fn counter(self) -> u64 {
        self.0 & Self::COUNTER_MAX
    }
}

impl fmt::Display for SeqNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch().0, self.counter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_epoch_is_after_every_counter_of_an_earlier_one() {
        let last = SeqNo::new(Epoch(1), SeqNo::COUNTER_MAX).expect("in range");
        let next = SeqNo::new(Epoch(2), 0).expect("in range");
        assert!(last < next);
        assert_eq!((next.epoch(), next.counter()), (Epoch(2), 0));
        assert_eq!(SeqNo::new(Epoch(1), SeqNo::COUNTER_MAX + 1), None);
        assert_eq!(SeqNo::new(Epoch(SeqNo::EPOCH_MAX + 1), 0), None);
    }
}
