//! What was acknowledged, and the check that it is all there.

use std::collections::{BTreeMap, BTreeSet};

use super::record::WriteId;

/// What one writer knows about its writes `0, 1, 2, ...`.
#[derive(Clone, Debug, Default)]
pub struct WriterLedger {
    /// Every write below it was acknowledged, but for those in `unknown`.
    pub settled: u64,
    /// Writes whose outcome nobody could tell: they may be there or not.
    pub unknown: BTreeSet<u64>,
}

/// What all writers know.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// By writer.
    pub writers: BTreeMap<u32, WriterLedger>,
}

impl Ledger {
    /// Number of acknowledged writes.
    pub fn acknowledged(&self) -> u64 {
        self.writers.values().map(|writer| writer.settled - writer.unknown.len() as u64).sum()
    }

    /// Whether the write was acknowledged.
    pub fn is_acknowledged(&self, id: WriteId) -> bool {
        self.writers.get(&id.writer).is_some_and(|writer| id.n < writer.settled && !writer.unknown.contains(&id.n))
    }
}

/// Compares what a scan returns with the ledger.
#[derive(Debug)]
pub struct Audit<'a> {
    ledger: &'a Ledger,
    value_bytes: usize,
    seen: BTreeMap<u32, Vec<u64>>,
    /// Rows with another value than was written.
    pub damaged: Vec<WriteId>,
    /// Rows that came twice.
    pub doubled: u64,
}

impl<'a> Audit<'a> {
    /// Nothing seen yet.
    pub fn new(ledger: &'a Ledger, value_bytes: usize) -> Audit<'a> {
        Audit { ledger, value_bytes, seen: BTreeMap::new(), damaged: Vec::new(), doubled: 0 }
    }

    /// Takes one row of a load; rows that are none are ignored.
    pub fn see(&mut self, key: &[u8], value: &[u8]) {
        let Some(id) = WriteId::parse(key) else { return };
        let words = self.seen.entry(id.writer).or_default();
        let (word, bit) = (id.n as usize / 64, 1u64 << (id.n % 64));
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        if words[word] & bit != 0 {
            self.doubled += 1;
        }
        words[word] |= bit;
        if value != id.value(self.value_bytes) {
            self.damaged.push(id);
        }
    }

    /// Acknowledged writes that were not seen, in order.
    pub fn missing(&self) -> Vec<WriteId> {
        let mut missing = Vec::new();
        for (writer, ledger) in &self.ledger.writers {
            let words = self.seen.get(writer).map_or(&[][..], Vec::as_slice);
            for n in 0..ledger.settled {
                let is_seen = words.get(n as usize / 64).is_some_and(|word| word & (1 << (n % 64)) != 0);
                if !is_seen && !ledger.unknown.contains(&n) {
                    missing.push(WriteId { writer: *writer, n });
                }
            }
        }
        missing
    }

    /// Acknowledged writes that are lost: missing, or there with another value.
    pub fn lost(&self) -> u64 {
        let damaged = self.damaged.iter().filter(|id| self.ledger.is_acknowledged(**id)).count();
        self.missing().len() as u64 + damaged as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let writer = WriterLedger { settled: 100, unknown: BTreeSet::from([7]) };
        Ledger { writers: BTreeMap::from([(1, writer)]) }
    }

    fn audit_all_but(ledger: &Ledger, left_out: &[u64], damage: Option<u64>) -> u64 {
        let mut audit = Audit::new(ledger, 10);
        for n in (0..100).filter(|n| !left_out.contains(n)) {
            let id = WriteId { writer: 1, n };
            let mut value = id.value(10);
            if damage == Some(n) {
                value[3] ^= 1;
            }
            audit.see(format!("x{}", id.suffix()).as_bytes(), &value);
        }
        audit.lost()
    }

    #[test]
    fn finds_what_is_missing_or_damaged() {
        let ledger = ledger();
        assert_eq!(ledger.acknowledged(), 99);
        assert_eq!(audit_all_but(&ledger, &[], None), 0);
        assert_eq!(audit_all_but(&ledger, &[7], None), 0, "an unknown write may be absent");
        assert_eq!(audit_all_but(&ledger, &[8, 64], None), 2);
        assert_eq!(audit_all_but(&ledger, &[], Some(9)), 1);
    }
}
