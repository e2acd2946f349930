//! Where a tablet's recent requests lie: a few of their row keys, chosen at random.
//!
//! Two generations of a reservoir (Li, "Reservoir-sampling algorithms", 1994, algorithm L): most requests
//! cost one decrement. A tablet without requests holds no memory.
//!
//! Invariants: (1) at most [`SAMPLES_MAX`] keys per generation, two generations; (2) every request of a
//! generation has the same chance to be in it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use uruk_base::Moment;

/// Keys of one generation.
pub const SAMPLES_MAX: usize = 64;
/// Fewer say nothing about where the load is.
const SAMPLES_MIN: usize = 16;
/// A generation lasts this long; "recent" means one or two of them.
const GENERATION: Duration = Duration::from_secs(10);
/// A row with this share of the requests is hot; a split does not help it. In thousandths.
pub const HOT_ROW_PERMILLE: u32 = 500;

/// Why there is no middle of the load.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoMiddle {
    /// Nothing is known.
    #[error("too few recent requests to tell where its load is")]
    TooFew,
    /// Its requests go to one row.
    #[error("row \"{}\" has {permille} thousandths of its requests: a split does not help", row.escape_ascii())]
    HotRow {
        /// Which.
        row: Bytes,
        /// Its share.
        permille: u32,
    },
}

/// What the samples say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// The row key that parts the requests best; empty: unknown.
    pub median: Bytes,
    /// The row with most requests.
    pub hottest: Bytes,
    /// Its share of them.
    pub hottest_permille: u32,
}

/// The samples of one tablet.
#[derive(Debug)]
pub struct Samples {
    /// Requests to let pass before the next is taken.
    skip: AtomicI64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    random: u64,
    current: Option<Box<Generation>>,
    previous: Option<Box<Generation>>,
}

#[derive(Debug)]
struct Generation {
    keys: Vec<Bytes>,
    /// Requests that it stands for.
    seen: u64,
    /// Chance of a request to be taken, of algorithm L.
    weight: f64,
    began: Option<Moment>,
}

impl Samples {
    /// Nothing yet. The same seed and the same requests give the same samples.
    pub fn new(seed: u64) -> Samples {
        Samples { skip: AtomicI64::new(0), state: Mutex::new(State { random: seed, current: None, previous: None }) }
    }

    /// A request of this row.
    pub fn note(&self, row: &[u8]) {
        self.note_one_of(|_| Some(Bytes::copy_from_slice(row)));
    }

    /// A request of several rows: `choose` is called if it is taken, with a number in (0, 1], and gives one.
    pub fn note_one_of(&self, choose: impl FnOnce(f64) -> Option<Bytes>) {
        if self.skip.fetch_sub(1, Ordering::Relaxed) > 0 {
            return;
        }
        let mut state = self.state.lock();
        let chance = state.unit();
        let skip = choose(chance).map_or(0, |row| state.take(row));
        self.skip.store(skip, Ordering::Relaxed);
    }

    /// Lets go of what is old. Called with every load report.
    pub fn age(&self, now: Moment) {
        let mut state = self.state.lock();
        if state.current.is_none() && state.previous.is_none() {
            return;
        }
        let began = match &mut state.current {
            Some(current) => *current.began.get_or_insert(now),
            None => now,
        };
        let is_over = state.current.is_none() || now.saturating_since(began) >= GENERATION;
        if is_over {
            state.previous = state.current.take();
            drop(state);
            self.skip.store(0, Ordering::Relaxed);
        }
    }

    /// What is known of recent requests.
    pub fn summary(&self) -> Summary {
        let weighted = self.state.lock().weighted();
        let total: f64 = weighted.iter().map(|(_, weight)| weight).sum();
        let Some((hottest, share)) = weighted.iter().max_by(|a, b| a.1.total_cmp(&b.1)) else {
            return Summary::default();
        };
        // A boundary puts its key to the right; the first key would leave nothing on the left.
        let (mut left, mut best) = (0.0, None);
        for pair in weighted.windows(2) {
            left += pair[0].1;
            let distance = (left / total - 0.5).abs();
            if best.is_none_or(|(least, _)| distance < least) {
                best = Some((distance, &pair[1].0));
            }
        }
        Summary {
            median: best.map(|(_, key)| key.clone()).unwrap_or_default(),
            hottest: hottest.clone(),
            hottest_permille: (share / total * 1000.0).round() as u32,
        }
    }

    /// The row key that halves the recent requests.
    pub fn middle(&self) -> Result<Bytes, NoMiddle> {
        if self.state.lock().len() < SAMPLES_MIN {
            return Err(NoMiddle::TooFew);
        }
        let summary = self.summary();
        if summary.hottest_permille >= HOT_ROW_PERMILLE || summary.median.is_empty() {
            return Err(NoMiddle::HotRow { row: summary.hottest, permille: summary.hottest_permille });
        }
        Ok(summary.median)
    }
}

impl State {
    fn len(&self) -> usize {
        [&self.current, &self.previous].into_iter().flatten().map(|generation| generation.keys.len()).sum()
    }

    /// In (0, 1]: SplitMix64 (Steele, Lea, Flood 2014).
    fn unit(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 + f64::EPSILON / 2.0
    }

    /// Takes a key; how many requests pass before the next.
    fn take(&mut self, key: Bytes) -> i64 {
        let (place, choice, gap) = (self.unit(), self.unit(), self.unit());
        let new = || Box::new(Generation { keys: Vec::new(), seen: 0, weight: 1.0, began: None });
        let generation = self.current.get_or_insert_with(new);
        generation.seen += 1;
        if generation.keys.len() < SAMPLES_MAX {
            generation.keys.push(key);
            if generation.keys.len() < SAMPLES_MAX {
                return 0;
            }
        } else {
            generation.keys[(place * SAMPLES_MAX as f64) as usize % SAMPLES_MAX] = key;
        }
        generation.weight *= (choice.ln() / SAMPLES_MAX as f64).exp();
        let skip = (gap.ln() / (1.0 - generation.weight).ln()).floor().clamp(0.0, 1e12) as i64;
        generation.seen += skip as u64;
        skip
    }

    /// Each sampled key once, in order, with the requests that it stands for.
    fn weighted(&self) -> Vec<(Bytes, f64)> {
        let mut all: Vec<(Bytes, f64)> = Vec::new();
        for generation in [&self.current, &self.previous].into_iter().flatten() {
            let each = generation.seen as f64 / generation.keys.len().max(1) as f64;
            all.extend(generation.keys.iter().map(|key| (key.clone(), each)));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 += next.1;
            }
            same
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    fn noted(rows: impl Iterator<Item = u32>) -> Samples {
        let samples = Samples::new(7);
        rows.for_each(|row| samples.note(format!("{row:06}").as_bytes()));
        samples
    }

    #[test]
    fn the_middle_of_an_even_load_is_in_the_middle() {
        let middle = noted((0..100_000).map(|i| i * 7919 % 1000)).middle().expect("known");
        let middle: u32 = std::str::from_utf8(&middle).expect("digits").parse().expect("number");
        assert!((350..650).contains(&middle), "{middle}");
    }

    #[test]
    fn the_middle_is_where_the_load_is_not_where_the_rows_are() {
        // Nine of ten requests go to the last hundred rows.
        let row = |i: u32| if i.is_multiple_of(10) { i % 1000 } else { 900 + i % 100 };
        let middle = noted((0..100_000).map(row)).middle().expect("known");
        assert!(middle[..] > *b"000900".as_slice(), "{middle:?}");
    }

    #[test]
    fn one_hot_row_is_named_instead_of_a_middle() {
        let samples = noted((0..10_000).map(|i| if i % 5 == 0 { i % 1000 } else { 77 }));
        let Err(NoMiddle::HotRow { row, permille }) = samples.middle() else { panic!("not found") };
        assert_eq!(row, "000077");
        assert!((650..950).contains(&permille), "{permille}");
        assert!(matches!(noted([5; 100].into_iter()).middle(), Err(NoMiddle::HotRow { permille: 1000, .. })));
    }

    #[test]
    fn few_requests_have_no_middle_and_old_ones_are_forgotten() {
        assert_eq!(noted(0..10).middle(), Err(NoMiddle::TooFew));
        let samples = noted(0..1000);
        samples.age(at(0));
        samples.age(at(11));
        assert!(samples.middle().is_ok(), "the generation before still counts");
        samples.note(b"new");
        assert!(samples.middle().is_ok());
        samples.age(at(12));
        samples.age(at(23));
        samples.age(at(34));
        samples.age(at(45));
        assert_eq!((samples.middle(), samples.summary()), (Err(NoMiddle::TooFew), Summary::default()));
        assert!(samples.state.lock().previous.is_none(), "an idle tablet holds nothing");
    }

    #[test]
    fn memory_is_bounded_however_many_requests_come() {
        let samples = noted(0..1_000_000);
        assert_eq!(samples.state.lock().len(), SAMPLES_MAX);
        let seen = samples.state.lock().current.as_ref().expect("there").seen;
        assert!((900_000..1_400_000).contains(&seen), "{seen}");
    }
}
