//! How fast compactions write: a budget that follows what is needed, so that they don't crowd out reads and
//! flushes, and don't fall behind either.
//!
//! | what happened in a period | the rate |
//! |---|---|
//! | compactions had to wait most of the time | grows by a tenth |
//! | they hardly waited | shrinks by a tenth |
//!
//! It stays between a twentieth of the configured maximum and the maximum, as RocksDB's auto-tuned rate
//! limiter does. Flushes (level 0) never wait.

use std::time::Duration;

use parking_lot::Mutex;
use uruk_base::Env;
use uruk_base::clock::Moment;

/// After this time the rate is looked at again.
const PERIOD: Duration = Duration::from_secs(1);
/// The rate never falls below the maximum divided by this.
const RATE_RANGE: u64 = 20;
/// Shares of a period that compactions waited for.
const BUSY_PERMILLE: u64 = 900;
const IDLE_PERMILLE: u64 = 500;
/// Who is ahead of the budget by less than this goes on: timers are not finer.
const SLEEP_MIN: Duration = Duration::from_millis(2);

#[derive(Debug)]
struct State {
    bytes_per_second: u64,
    /// When what was granted so far is used up.
    paid_until: Option<Moment>,
    period_started: Option<Moment>,
    waited: Duration,
}

/// The budget of all compactions of a server.
#[derive(Debug)]
pub struct CompactionRate {
    bytes_per_second_max: u64,
    state: Mutex<State>,
}

impl CompactionRate {
    /// At most so many bytes a second; 0: no limit.
    pub fn new(bytes_per_second_max: u64) -> CompactionRate {
        let state = State {
            bytes_per_second: (bytes_per_second_max / 2).max(1),
            paid_until: None,
            period_started: None,
            waited: Duration::ZERO,
        };
        CompactionRate { bytes_per_second_max, state: Mutex::new(state) }
    }

    /// Bytes a second at present; 0: no limit.
    pub fn bytes_per_second(&self) -> u64 {
        if self.bytes_per_second_max == 0 { 0 } else { self.state.lock().bytes_per_second }
    }

    /// Waits until so many bytes may be written to a file of this level.
    pub async fn wait(&self, env: &Env, level: u32, bytes: u64) {
        if level == 0 || self.bytes_per_second_max == 0 || bytes == 0 {
            return;
        }
        let pause = self.state.lock().charge(env.clock.now(), bytes, self.bytes_per_second_max);
        if pause >= SLEEP_MIN {
            env.clock.sleep(pause).await;
        }
    }
}

impl State {
    /// Takes bytes off the budget; how long to wait for them.
    fn charge(&mut self, now: Moment, bytes: u64, max: u64) -> Duration {
        self.tune(now, max);
        let cost = Duration::from_nanos(
            u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second)).unwrap_or(u64::MAX),
        );
        let from = self.paid_until.filter(|paid| *paid > now).unwrap_or(now);
        let pause = from.saturating_since(now);
        self.paid_until = Some(from + cost);
        self.waited += pause.min(PERIOD);
        pause
    }

    fn tune(&mut self, now: Moment, max: u64) {
        let started = *self.period_started.get_or_insert(now);
        let took = now.saturating_since(started);
        if took < PERIOD {
            return;
        }
        let permille = (self.waited.as_micros() * 1000 / took.as_micros().max(1)) as u64;
        let rate = self.bytes_per_second;
        self.bytes_per_second = match permille {
            BUSY_PERMILLE.. => rate.saturating_add((rate / 10).max(1)),
            IDLE_PERMILLE.. => rate,
            _ => rate - rate / 10,
        }
        .clamp((max / RATE_RANGE).max(1), max);
        self.period_started = Some(now);
        self.waited = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offers a load for ten minutes; the rate at the end, and the bytes that went through.
    fn run(max: u64, bytes_per_second: u64) -> (u64, u64) {
        let rate = CompactionRate::new(max);
        let (mut now, mut through) = (Moment::default(), 0);
        let end = now + Duration::from_secs(600);
        let piece = 100_000;
        let own_pace = Duration::from_secs(piece) / u32::try_from(bytes_per_second).unwrap();
        while now < end {
            let pause = rate.state.lock().charge(now, piece, max);
            now = now + pause.max(own_pace);
            through += piece;
        }
        (rate.bytes_per_second(), through)
    }

    #[test]
    fn the_rate_follows_the_load_within_its_bounds() {
        let (rate, through) = run(10_000_000, 1_000_000_000);
        assert_eq!(rate, 10_000_000, "more is wanted than there is");
        assert!(through < 600 * 10_000_000 && through > 600 * 8_000_000, "{through}");
        let (rate, through) = run(10_000_000, 1_000_000);
        assert!((500_000..2_500_000).contains(&rate), "{rate}");
        assert!(through > 600 * 900_000, "a slow load is hardly held back: {through}");
    }

    #[tokio::test]
    async fn flushes_and_an_unlimited_rate_never_wait() {
        let env = Env::real();
        CompactionRate::new(1).wait(&env, 0, u64::MAX).await;
        CompactionRate::new(0).wait(&env, 1, u64::MAX).await;
    }
}
