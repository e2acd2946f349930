//! A process that stands still while time goes on, as after SIGSTOP or in a suspended virtual machine.
//!
//! Everything that a simulated process is made of asks the same [`Pause`]: its tasks are not polled, its
//! sleeps do not end, its connections move no byte, its disk answers nothing. Its clock runs on, so a
//! process that wakes up finds its lease in the past.
//!
//! Invariant: whoever found the process paused is woken when it goes on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// The switch of one process. Clones mean the same process.
#[derive(Clone, Debug, Default)]
pub struct Pause(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    is_paused: bool,
    waiting: Vec<Waker>,
}

impl Pause {
    /// A process that runs.
    pub fn new() -> Pause {
        Pause::default()
    }

    /// Stops it.
    pub fn pause(&self) {
        self.0.lock().is_paused = true;
    }

    /// Lets it go on.
    pub fn resume(&self) {
        let waiting = {
            let mut state = self.0.lock();
            state.is_paused = false;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Whether it stands still.
    pub fn is_paused(&self) -> bool {
        self.0.lock().is_paused
    }

    /// Ready while the process runs.
    pub fn poll_running(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if !state.is_paused {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Completes while the process runs.
    pub async fn running(&self) {
        std::future::poll_fn(|cx| self.poll_running(cx)).await;
    }

    /// `future`, polled only while the process runs.
    pub fn gate<F: Future>(&self, future: F) -> Gated<F> {
        Gated { pause: self.clone(), future: Box::pin(future) }
    }
}

/// See [`Pause::gate`].
#[derive(Debug)]
pub struct Gated<F> {
    pause: Pause,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Gated<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.pause.poll_running(cx) {
            Poll::Ready(()) => self.future.as_mut().poll(cx),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_paused_process_polls_nothing_and_goes_on_where_it_was() {
        let pause = Pause::new();
        let mut work = pause.gate(async { 7 });
        let mut cx = Context::from_waker(Waker::noop());
        pause.pause();
        assert_eq!(Pin::new(&mut work).poll(&mut cx), Poll::Pending);
        pause.resume();
        assert_eq!(Pin::new(&mut work).poll(&mut cx), Poll::Ready(7));
    }
}
