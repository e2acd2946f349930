//! Keys and values of the bench: 24-byte keys, values that compress to half.

use bytes::Bytes;

/// Bytes of a key.
pub const KEY_BYTES: usize = 24;
/// Values are slices of one buffer of this size.
const POOL_BYTES: usize = 1 << 20;
/// Pieces of this size, the second half of each a repeat of the first.
const PIECE_BYTES: usize = 100;

/// Key `n`, in order of `n`: decimal digits.
pub fn key(n: u64) -> [u8; KEY_BYTES] {
    let mut key = [b'0'; KEY_BYTES];
    let (mut at, mut rest) = (KEY_BYTES, n);
    while rest > 0 {
        at -= 1;
        key[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// A key that no `key` gives, next to that of `n`.
pub fn missing_key(n: u64) -> [u8; KEY_BYTES] {
    let mut key = key(n);
    key[0] = b'.';
    key.rotate_left(1);
    key
}

/// A small fast generator of one thread's choices (xorshift64*).
#[derive(Debug)]
pub struct Choices(u64);

impl Choices {
    /// Seeded; equal seeds give equal choices.
    pub fn new(seed: u64) -> Choices {
        Choices(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Any 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(n)) >> 64) as u64
    }
}

/// Gives out values.
#[derive(Debug)]
pub struct Values {
    pool: Bytes,
    value_bytes: usize,
    at: usize,
}

impl Values {
    /// Values of this size.
    pub fn new(value_bytes: usize, seed: u64) -> Values {
        let mut choices = Choices::new(seed);
        let mut pool = Vec::with_capacity(POOL_BYTES + value_bytes + PIECE_BYTES);
        while pool.len() < POOL_BYTES + value_bytes {
            let half: Vec<u8> = (0..PIECE_BYTES / 2).map(|_| b' ' + (choices.word() >> 58) as u8).collect();
            pool.extend_from_slice(&half);
            pool.extend_from_slice(&half);
        }
        Values { pool: pool.into(), value_bytes, at: 0 }
    }

    /// The next value.
    pub fn value(&mut self) -> Bytes {
        if self.at + self.value_bytes > self.pool.len() {
            self.at = 0;
        }
        let value = self.pool.slice(self.at..self.at + self.value_bytes);
        self.at += self.value_bytes;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_ascend_and_missing_ones_are_between_them() {
        assert_eq!(&key(90210), b"000000000000000000090210");
        assert!(key(9) < key(10));
        assert_eq!(&missing_key(90210), b"00000000000000000090210.");
    }
}
