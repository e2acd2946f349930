//! A bloom filter: may a row, or a column of it, be here? What of a file it is about, `row_filter` says.
//!
//! ```text
//! filter := line* probes (1 byte)         line := 64 bytes
//! ```
//! A row (or column) picks one line by the upper half of its hash, and `probes` bits in that line by the lower
//! half, so that a lookup touches one cache line (the layout that RocksDB calls FastLocalBloom; about
//! 1 % false positives at 10 bits a row).

use bytes::Bytes;
use uruk_proto::DecodeError;

const LINE_BYTES: usize = 64;
const LINE_BITS_LOG2: u32 = 9;
/// Odd, with well-mixed bits: 2^64 divided by the golden ratio.
const STEP: u32 = 0x9E37_79B9;

/// The hash of a row, or of a column of it, given its escaped prefix. Part of the format.
pub fn row_hash(row_prefix: &[u8]) -> u64 {
    const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(MULTIPLIER).rotate_left(29);
    let mut hash = row_prefix.len() as u64;
    let mut chunks = row_prefix.chunks_exact(8);
    for chunk in &mut chunks {
        hash = mix(hash, u64::from_le_bytes(chunk.try_into().expect("8 bytes")));
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    hash = mix(hash, u64::from_le_bytes(last));
    // The finalizer of MurmurHash3: every input bit reaches both halves.
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    hash ^ (hash >> 33)
}

/// Which bytes and bits of `lines` a hash means.
fn probes(hash: u64, lines: usize, probes: u8) -> impl Iterator<Item = (usize, u8)> {
    let line = (((hash >> 32) * lines as u64) >> 32) as usize;
    let mut bits = hash as u32;
    (0..probes).map(move |_| {
        let bit = (bits >> (32 - LINE_BITS_LOG2)) as usize;
        bits = bits.wrapping_mul(STEP);
        (line * LINE_BYTES + bit / 8, 1 << (bit % 8))
    })
}

/// The filter for what has these hashes.
pub fn build(hashes: &[u64], bits_per_key: usize) -> Vec<u8> {
    let lines = (hashes.len() * bits_per_key).div_ceil(LINE_BYTES * 8).max(1);
    // The optimum is bits × ln 2; a little fewer suits filters whose rows share lines.
    let count = ((bits_per_key * 6) / 10).clamp(1, 30) as u8;
    let mut out = vec![0; lines * LINE_BYTES];
    for hash in hashes {
        for (byte, bit) in probes(*hash, lines, count) {
            out[byte] |= bit;
        }
    }
    out.push(count);
    out
}

/// A filter, ready for lookups.
#[derive(Clone, Debug)]
pub struct Bloom {
    data: Bytes,
    lines: usize,
    probes: u8,
}

impl Bloom {
    /// Checks the frame.
    pub fn parse(data: Bytes) -> Result<Bloom, DecodeError> {
        let error = |why| DecodeError { what: "bloom filter", offset: 0, why };
        let (probes, lines) = data.split_last().ok_or_else(|| error("is empty"))?;
        if lines.is_empty() || !lines.len().is_multiple_of(LINE_BYTES) {
            return Err(error("is not made of lines"));
        }
        let (probes, lines) = (*probes, lines.len() / LINE_BYTES);
        Ok(Bloom { data, lines, probes })
    }

    /// False only when nothing with this hash was added.
    pub fn may_contain(&self, hash: u64) -> bool {
        probes(hash, self.lines, self.probes).all(|(byte, bit)| self.data[byte] & bit != 0)
    }

    /// Bytes in memory.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether it is empty; never so.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(i: u32) -> u64 {
        row_hash(format!("row-{i:07}\0\x01").as_bytes())
    }

    #[test]
    fn it_knows_every_row_and_few_others() {
        let hashes: Vec<u64> = (0..20_000).map(hash).collect();
        let bloom = Bloom::parse(build(&hashes, 10).into()).unwrap();
        assert!(hashes.iter().all(|hash| bloom.may_contain(*hash)));
        let wrong = (20_000..120_000).filter(|i| bloom.may_contain(hash(*i))).count();
        assert!(wrong < 1_800, "{wrong} of 100000 absent rows taken for present");
    }

    #[test]
    fn the_hash_is_part_of_the_format() {
        assert_eq!(row_hash(b"abc\0\x01"), 0x7B37_72E6_BA3F_3DEA);
        assert_ne!(row_hash(b"a\0"), row_hash(b"a"));
    }

    #[test]
    fn an_odd_frame_is_refused() {
        for len in [0, 1, 64, 66] {
            assert!(Bloom::parse(vec![6; len].into()).is_err(), "{len}");
        }
        assert!(Bloom::parse(vec![6; 65].into()).is_ok());
    }
}
