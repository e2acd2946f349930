//! Rows that prove themselves: key and value of write `n` of writer `w` follow from `(w, n)`.

/// Names one write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WriteId {
    /// Which writer.
    pub writer: u32,
    /// Its how-manyth write.
    pub n: u64,
}

impl WriteId {
    /// The part of the row key that names the write: fixed width, so that it parses back.
    pub fn suffix(self) -> String {
        format!("#w{:04x}/{:010x}", self.writer, self.n)
    }

    /// The write that a row key names, if it is one of ours.
    pub fn parse(key: &[u8]) -> Option<WriteId> {
        let text = std::str::from_utf8(key).ok()?;
        let (_, suffix) = text.rsplit_once("#w")?;
        let (writer, n) = suffix.split_once('/')?;
        let exact = writer.len() == 4 && n.len() == 10;
        exact.then_some(())?;
        Some(WriteId { writer: u32::from_str_radix(writer, 16).ok()?, n: u64::from_str_radix(n, 16).ok()? })
    }

    /// A number that looks random and depends on the write alone (SplitMix64).
    pub fn hash(self) -> u64 {
        let mut z = (u64::from(self.writer) << 40 ^ self.n).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The value: `bytes` bytes that do not compress.
    #[allow(clippy::disallowed_methods)] // seeded by the write itself: data, not chance
    pub fn value(self, bytes: usize) -> Vec<u8> {
        let mut value = vec![0; bytes];
        fastrand::Rng::with_seed(self.hash()).fill(&mut value);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_write() {
        let id = WriteId { writer: 3, n: 77 };
        assert_eq!(WriteId::parse(format!("serde/1.0/src/lib.rs{}", id.suffix()).as_bytes()), Some(id));
        assert_eq!(WriteId::parse(b"serde/1.0/src/lib.rs"), None);
        assert_eq!(WriteId::parse(b"#w3/4"), None);
    }

    #[test]
    fn values_differ_and_repeat() {
        let (a, b) = (WriteId { writer: 0, n: 1 }, WriteId { writer: 1, n: 0 });
        assert_eq!(a.value(100), a.value(100));
        assert_ne!(a.value(100), b.value(100));
        assert_eq!(a.value(10), a.value(100)[..10]);
    }
}
