//! Where in a table the load goes.

use super::record::WriteId;

/// Maps writes to row keys over the whole key range.
#[derive(Clone, Debug)]
pub enum Keyspace {
    /// Four hex digits of the write's hash, then its name: even over a table split by hex prefix.
    Hashed,
    /// Behind one of these keys (sorted), chosen by the write's hash: over a table as it is filled.
    Behind(Vec<String>),
}

impl Keyspace {
    /// The row key of a write.
    pub fn key(&self, id: WriteId) -> Vec<u8> {
        let hash = id.hash();
        match self {
            Keyspace::Hashed => format!("{:04x}{}", hash >> 48, id.suffix()).into_bytes(),
            Keyspace::Behind(keys) => {
                let place = (hash >> 16) as usize % keys.len();
                format!("{}{}", keys[place], id.suffix()).into_bytes()
            }
        }
    }
}

/// Row keys that cut the hashed key space into `tablets` even ranges.
pub fn hashed_splits(tablets: usize) -> Vec<Vec<u8>> {
    (1..tablets).map(|place| format!("{:04x}", place * 0x1_0000 / tablets).into_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_keys_spread_evenly_over_their_splits() {
        let splits = hashed_splits(8);
        let mut counts = vec![0; 8];
        for n in 0..8000 {
            let key = Keyspace::Hashed.key(WriteId { writer: 1, n });
            counts[splits.partition_point(|split| *split <= key)] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }
}
