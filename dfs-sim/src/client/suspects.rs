//! Chunk servers that failed a moment ago. Advice only: they are asked last, never left out.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use uruk_base::{Clock, Moment};

/// Addresses remembered at most; past it the oldest suspicion goes.
const SUSPECTS_MAX: usize = 256;

/// Addresses under suspicion, each until a moment.
#[derive(Debug)]
pub struct Suspects {
    clock: Clock,
    lasts: Duration,
    until: Mutex<BTreeMap<String, Moment>>,
}

impl Suspects {
    pub fn new(clock: Clock, lasts: Duration) -> Suspects {
        Suspects { clock, lasts, until: Mutex::default() }
    }

    /// `address` failed just now.
    pub fn add(&self, address: &str) {
        let until = self.clock.now() + self.lasts;
        let mut suspects = self.until.lock();
        if suspects.len() >= SUSPECTS_MAX
            && let Some(oldest) = suspects.iter().min_by_key(|(_, until)| **until).map(|(a, _)| a.clone())
        {
            suspects.remove(&oldest);
        }
        suspects.insert(address.to_owned(), until);
    }

    /// `address` answered.
    pub fn clear(&self, address: &str) {
        let mut suspects = self.until.lock();
        if !suspects.is_empty() {
            suspects.remove(address);
        }
    }

    /// The addresses under suspicion now.
    pub fn all(&self) -> Vec<String> {
        let now = self.clock.now();
        let mut suspects = self.until.lock();
        suspects.retain(|_, until| *until > now);
        suspects.keys().cloned().collect()
    }

    /// `addresses` in their order, those under suspicion last.
    pub fn order(&self, addresses: &[String]) -> Vec<String> {
        let suspects = self.all();
        let (bad, mut good): (Vec<_>, Vec<_>) = addresses.iter().cloned().partition(|a| suspects.contains(a));
        good.extend(bad);
        good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn suspects_are_asked_last_until_they_answer() {
        let suspects = Suspects::new(Clock::real(), Duration::from_secs(100));
        let all = ["a:1".to_owned(), "b:1".to_owned()];
        suspects.add("a:1");
        assert_eq!(suspects.order(&all), ["b:1", "a:1"]);
        suspects.clear("a:1");
        assert_eq!(suspects.order(&all), all);
    }

    #[tokio::test]
    async fn suspicion_ends_by_itself_and_is_bounded() {
        let brief = Suspects::new(Clock::real(), Duration::ZERO);
        brief.add("a:1");
        assert!(brief.all().is_empty());
        let long = Suspects::new(Clock::real(), Duration::from_secs(100));
        for i in 0..2 * SUSPECTS_MAX {
            long.add(&format!("host:{i}"));
        }
        assert_eq!(long.all().len(), SUSPECTS_MAX);
    }
}
