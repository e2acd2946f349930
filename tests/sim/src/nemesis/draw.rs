//! Draws of the nemesis.

use std::time::Duration;

use uruk_base::Random;

/// Chances, times and choices.
pub struct Draw(pub Random);

impl Draw {
    /// Any of them.
    pub fn one<'a, T>(&self, from: &'a [T]) -> Option<&'a T> {
        (!from.is_empty()).then(|| &from[self.below(from.len() as u64) as usize])
    }

    /// A number below `limit`.
    pub fn below(&self, limit: u64) -> u64 {
        self.0.range(0..limit)
    }

    /// True this often.
    pub fn chance(&self, chance: f64) -> bool {
        self.0.unit() < chance
    }

    /// Any time up to this.
    pub fn up_to(&self, max: Duration) -> Duration {
        max.mul_f64(self.0.unit())
    }

    /// Mostly shorter, at times much longer.
    pub fn about(&self, mean: Duration) -> Duration {
        mean.mul_f64((-(1.0 - self.0.unit()).ln()).clamp(0.02, 4.0))
    }

    /// Some of them: at least one, never all of many.
    pub fn some(&self, mut from: Vec<String>) -> Vec<String> {
        self.0.shuffle(&mut from);
        let most = (from.len() / 2).max(1) as u64;
        from.truncate(1 + self.below(most) as usize);
        from
    }
}
