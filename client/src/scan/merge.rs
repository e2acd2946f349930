//! Puts the pieces of a scan together.
//!
//! Invariants: (1) the pieces cover the range without gap or overlap: each starts where the one
//! before ended; (2) in order, rows of a piece come only after the pieces before it have ended;
//! (3) a piece waits with at most one decoded batch; what else it holds is bounded by its
//! connection's flow-control window.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use uruk_proto::RowRange;
use uruk_proto::limits::ROW_KEY_BYTES_MAX;

use crate::error::{Error, Result};
use crate::locate::Wanted;
use crate::retry::{Attempts, Effect, Failure};
use crate::row::RowBatch;
use crate::salt::Salt;
use crate::scan::piece::Piece;
use crate::scan::{Order, ScanOptions};
use crate::table::Table;

/// All pieces of a scan, merged.
pub(super) struct Merge {
    plan: BoxStream<'static, Result<Slot>>,
    plan_ended: bool,
    open: VecDeque<Slot>,
    open_max: usize,
    order: Order,
}

/// An open piece, and what it brought too early.
struct Slot {
    batches: BoxStream<'static, Result<RowBatch>>,
    ready: Option<Option<Result<RowBatch>>>,
}

impl Slot {
    /// Lets the piece work until it has brought something; true then.
    fn advance(&mut self, cx: &mut Context<'_>) -> bool {
        if self.ready.is_none()
            && let Poll::Ready(item) = self.batches.poll_next_unpin(cx)
        {
            self.ready = Some(item);
        }
        self.ready.is_some()
    }
}

impl Merge {
    /// `range` is one of stored keys, made for a table with this salt.
    pub fn new(table: Table, range: RowRange, options: ScanOptions, salt: Salt) -> Merge {
        let (open_max, order) = (options.open_pieces(), options.order);
        let plan = plan(table, range, Arc::new(options), salt).boxed();
        Merge { plan, plan_ended: false, open: VecDeque::new(), open_max, order }
    }

    /// Opens pieces until enough are open. An error of the plan waits for its turn in the order.
    fn open_pieces(&mut self, cx: &mut Context<'_>) {
        while !self.plan_ended && self.open.len() < self.open_max {
            match self.plan.poll_next_unpin(cx) {
                Poll::Pending => return,
                Poll::Ready(None) => self.plan_ended = true,
                Poll::Ready(Some(Ok(slot))) => self.open.push_back(slot),
                Poll::Ready(Some(Err(error))) => {
                    self.plan_ended = true;
                    self.open
                        .push_back(Slot { batches: futures::stream::empty().boxed(), ready: Some(Some(Err(error))) });
                }
            }
        }
    }
}

impl Stream for Merge {
    type Item = Result<RowBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<RowBatch>>> {
        let this = &mut *self;
        'again: loop {
            this.open_pieces(cx);
            if this.open.is_empty() && this.plan_ended {
                return Poll::Ready(None);
            }
            let mut found = None;
            for (place, slot) in this.open.iter_mut().enumerate() {
                let may_go = place == 0 || this.order == Order::Any;
                if slot.advance(cx) && may_go && found.is_none() {
                    found = Some(place);
                }
            }
            let Some(place) = found else { return Poll::Pending };
            match this.open[place].ready.take().expect("it has brought something") {
                Some(item) => return Poll::Ready(Some(item)),
                None => {
                    this.open.remove(place);
                    continue 'again;
                }
            }
        }
    }
}

struct Planner {
    table: Table,
    /// What is not yet cut into pieces; None at the end.
    rest: Option<RowRange>,
    options: Arc<ScanOptions>,
    salt: Salt,
}

/// Cuts `range` at the tablets' ends, lazily.
fn plan(
    table: Table,
    range: RowRange,
    options: Arc<ScanOptions>,
    salt: Salt,
) -> impl Stream<Item = Result<Slot>> + Send {
    let rest = (!range.is_empty()).then_some(range);
    let planner = Planner { table, rest, options, salt };
    futures::stream::try_unfold(planner, |mut planner| async move {
        let Some(rest) = planner.rest.take() else { return Ok(None) };
        let descending = planner.options.order == Order::Descending;
        let tablet = planner.tablet_at(&rest, descending).await?;
        let here = tablet.intersect(&rest);
        planner.rest = beyond(&rest, &tablet, descending);
        let piece = Piece::new(planner.table.clone(), here, planner.options.clone(), planner.salt);
        Ok(Some((Slot { batches: piece.into_stream().boxed(), ready: None }, planner)))
    })
}

impl Planner {
    /// The range of the tablet at the near end of `rest`.
    async fn tablet_at(&self, rest: &RowRange, descending: bool) -> Result<RowRange> {
        let near = if descending { key_before(&rest.end) } else { rest.start.clone() };
        let mut attempts: Attempts = self.table.attempts(Effect::Read);
        let mut wanted = Wanted::default();
        loop {
            let resolved = self.table.resolved();
            let left = attempts.left(self.table.now());
            match resolved.locations.find(&self.table.core, &near, wanted, left).await {
                Ok(location) => return Ok(location.range.clone()),
                Err(Error::Refused { code, message, .. }) => {
                    let failure = Failure::answered(code, message);
                    wanted = self.table.after(&resolved, None, failure, &mut attempts).await?;
                }
                Err(other) => return Err(attempts.ends_with(other)),
            }
        }
    }
}

/// What is left of `rest` once the part in `tablet`, at its near end, has been dealt with.
pub(super) fn beyond(rest: &RowRange, tablet: &RowRange, descending: bool) -> Option<RowRange> {
    let left = match descending {
        true if tablet.start.is_empty() => return None,
        true => RowRange { start: rest.start.clone(), end: tablet.start.clone() },
        false if tablet.end.is_empty() => return None,
        false => RowRange { start: tablet.end.clone(), end: rest.end.clone() },
    };
    (!left.is_empty()).then_some(left)
}

/// The last key before `bound`; the last of all when it is empty.
pub(super) fn key_before(bound: &Bytes) -> Bytes {
    let Some((last, head)) = bound.split_last() else { return vec![0xFF; ROW_KEY_BYTES_MAX].into() };
    if *last == 0 {
        return bound.slice(..head.len());
    }
    let mut key = head.to_vec();
    key.push(last - 1);
    key.resize(ROW_KEY_BYTES_MAX.max(bound.len()), 0xFF);
    key.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_before_a_bound_has_nothing_between() {
        assert_eq!(key_before(&Bytes::from_static(b"a\0")), "a");
        let before_b = key_before(&Bytes::from_static(b"b"));
        assert_eq!(before_b.len(), ROW_KEY_BYTES_MAX);
        assert!(before_b.starts_with(b"a\xff\xff") && before_b < "b");
        assert!(key_before(&Bytes::new()).iter().all(|byte| *byte == 0xFF));
    }

    #[test]
    fn pieces_meet_without_gap() {
        let rest = RowRange::new("b", "y");
        assert_eq!(beyond(&rest, &RowRange::new("", "m"), false), Some(RowRange::new("m", "y")));
        assert_eq!(beyond(&rest, &RowRange::new("m", "y"), false), None);
        assert_eq!(beyond(&rest, &RowRange::new("m", ""), false), None);
        assert_eq!(beyond(&rest, &RowRange::new("m", ""), true), Some(RowRange::new("b", "m")));
        assert_eq!(beyond(&rest, &RowRange::new("b", "m"), true), None);
        assert_eq!(beyond(&rest, &RowRange::new("", "m"), true), None);
        assert_eq!(beyond(&RowRange::ALL, &RowRange::new("m", ""), true), Some(RowRange::new("", "m")));
    }
}
