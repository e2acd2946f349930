//! Randomness. The only source of it, so that one seed decides a whole simulated run.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

/// Handle on one process's random generator. Not for secrets.
#[derive(Clone, Debug)]
pub struct Random(Arc<Mutex<fastrand::Rng>>);

impl Random {
    /// Seeded by the operating system.
    #[allow(clippy::disallowed_methods)] // this is the one place that asks
    pub fn from_os() -> Random {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).expect("the operating system gives randomness");
        Random::from_seed(u64::from_le_bytes(seed))
    }

    /// Always the same sequence for the same seed.
    pub fn from_seed(seed: u64) -> Random {
        Random(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    /// Any 64 bits.
    pub fn u64(&self) -> u64 {
        self.0.lock().u64(..)
    }

    /// A number in `range`, which must not be empty.
    pub fn range(&self, range: std::ops::Range<u64>) -> u64 {
        self.0.lock().u64(range)
    }

    /// A number in [0, 1).
    pub fn unit(&self) -> f64 {
        self.0.lock().f64()
    }

    /// `base` times a factor in [0.5, 1.5): keeps retries of many callers apart.
    pub fn jitter(&self, base: Duration) -> Duration {
        base.mul_f64(0.5 + self.unit())
    }

    /// Shuffles in place.
    pub fn shuffle<T>(&self, items: &mut [T]) {
        self.0.lock().shuffle(items);
    }

    /// Fills `buffer` with random bytes.
    pub fn fill(&self, buffer: &mut [u8]) {
        self.0.lock().fill(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_same_sequence() {
        let (a, b) = (Random::from_seed(7), Random::from_seed(7));
        assert!((0..100).all(|_| a.u64() == b.u64()));
    }

    #[test]
    fn jitter_stays_within_half() {
        let random = Random::from_seed(1);
        for _ in 0..1000 {
            let d = random.jitter(Duration::from_millis(100));
            assert!(d >= Duration::from_millis(50) && d < Duration::from_millis(150));
        }
    }
}
