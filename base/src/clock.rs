//! Time. The only place that reads a clock.
//!
//! Leases are counted on clocks that run through suspend: `CLOCK_BOOTTIME`, which `Instant` is not.
//! Invariants: (1) `now` never decreases; (2) for two clocks of one cluster, elapsed time differs by
//! at most a factor `(1 + rho)/(1 - rho)`, `rho` being the configured bound on clock-rate error.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::task::Pause;

/// A point on one process's monotonic clock. Comparable only with moments of the same process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Moment(Duration);

impl Moment {
    /// A moment that lies `since_start` after the clock's own zero.
    pub const fn from_start(since_start: Duration) -> Moment {
        Moment(since_start)
    }

    /// Time since the clock's own zero.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// `self - earlier`, or zero when `earlier` is later.
    pub fn saturating_since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, by: Duration) -> Moment {
        Moment(self.0 + by)
    }
}

/// What a [`Clock`] is made of; the simulator supplies its own, with rate and offset.
pub trait ClockSource: Send + Sync + fmt::Debug {
    /// Monotonic time, running through suspend.
    fn now(&self) -> Moment;
    /// Microseconds since the Unix epoch; may jump.
    fn wall_micros(&self) -> i64;
    /// Completes once `duration` has passed on this clock.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The deadline passed before the future was ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("deadline of {0:?} passed")]
pub struct Elapsed(pub Duration);

/// Handle on the time of one process.
#[derive(Clone, Debug)]
pub struct Clock(Arc<dyn ClockSource>);

impl Clock {
    /// The machine's clocks.
    pub fn real() -> Clock {
        Clock(Arc::new(RealClock))
    }

    /// A clock made of `source`.
    pub fn from_source(source: Arc<dyn ClockSource>) -> Clock {
        Clock(source)
    }

    /// Monotonic time, running through suspend.
    pub fn now(&self) -> Moment {
        self.0.now()
    }

    /// Microseconds since the Unix epoch; may jump. For timestamps and display, never for leases.
    pub fn wall_micros(&self) -> i64 {
        self.0.wall_micros()
    }

    /// Time passed since `earlier`.
    pub fn since(&self, earlier: Moment) -> Duration {
        self.now().saturating_since(earlier)
    }

    /// Completes once `duration` has passed.
    pub async fn sleep(&self, duration: Duration) {
        self.0.sleep(duration).await;
    }

    /// `future`'s output, or [`Elapsed`] when `duration` passes first; the future is then dropped.
    pub async fn timeout<F: Future>(&self, duration: Duration, future: F) -> Result<F::Output, Elapsed> {
        tokio::select! {
            biased;
            output = future => Ok(output),
            () = self.0.sleep(duration) => Err(Elapsed(duration)),
        }
    }
}

#[derive(Debug)]
struct RealClock;

impl ClockSource for RealClock {
    fn now(&self) -> Moment {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Moment(Duration::new(t.tv_sec as u64, t.tv_nsec as u32))
    }

    fn wall_micros(&self) -> i64 {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        t.tv_sec * 1_000_000 + t.tv_nsec / 1_000
    }

    #[allow(clippy::disallowed_methods)] // this is the one place that sleeps
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// Time inside a turmoil host: tokio's paused clock, with a rate and an offset of its own.
#[derive(Debug)]
pub struct SimulatedClock {
    rate: f64,
    wall_start_micros: i64,
    start: tokio::time::Instant,
    pause: Pause,
}

impl SimulatedClock {
    /// Runs at `rate` times the speed of simulated time (1.0 is exact); wall time starts at
    /// `wall_start_micros`. Must be created inside the simulated host.
    pub fn new(rate: f64, wall_start_micros: i64) -> SimulatedClock {
        SimulatedClock::pausable(rate, wall_start_micros, Pause::new())
    }

    /// The same, for a process that `pause` may stop: its time goes on, its sleeps do not end.
    #[allow(clippy::disallowed_methods)] // tokio's clock is the simulated one here
    pub fn pausable(rate: f64, wall_start_micros: i64, pause: Pause) -> SimulatedClock {
        assert!(rate > 0.0, "a clock runs forward");
        SimulatedClock { rate, wall_start_micros, start: tokio::time::Instant::now(), pause }
    }

    #[allow(clippy::disallowed_methods)]
    fn elapsed(&self) -> Duration {
        self.start.elapsed().mul_f64(self.rate)
    }
}

impl ClockSource for SimulatedClock {
    fn now(&self) -> Moment {
        Moment(self.elapsed())
    }

    fn wall_micros(&self) -> i64 {
        self.wall_start_micros + self.elapsed().as_micros() as i64
    }

    #[allow(clippy::disallowed_methods)]
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (sleep, pause) = (tokio::time::sleep(duration.div_f64(self.rate)), self.pause.clone());
        Box::pin(async move {
            sleep.await;
            pause.running().await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_subtract_without_underflow() {
        let early = Moment::from_start(Duration::from_secs(1));
        let late = early + Duration::from_secs(2);
        assert_eq!(late.saturating_since(early), Duration::from_secs(2));
        assert_eq!(early.saturating_since(late), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_clock_sees_more_time_pass() {
        let fast = Clock::from_source(Arc::new(SimulatedClock::new(2.0, 0)));
        let exact = Clock::from_source(Arc::new(SimulatedClock::new(1.0, 0)));
        exact.sleep(Duration::from_secs(3)).await;
        assert_eq!(fast.now().since_start().as_secs(), 6);
        assert_eq!(fast.wall_micros(), 6_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn timeout_drops_what_is_too_slow() {
        let clock = Clock::from_source(Arc::new(SimulatedClock::new(1.0, 0)));
        let late = clock.timeout(Duration::from_millis(5), clock.sleep(Duration::from_secs(1))).await;
        assert_eq!(late, Err(Elapsed(Duration::from_millis(5))));
    }
}
