//! The task that owns a writer's open segment. [`Window`] decides, this performs.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, SelectAll};
use tokio::sync::{Semaphore, mpsc, watch};
use uruk_base::Moment;
use uruk_base::commit_log::{LogError, LogId, Lsn};
use uruk_proto::dfs::{AppendRequest, RollSegmentRequest, SegmentInfo};

use super::super::super::connection::Shared;
use super::super::seal;
use super::super::window::{MemberIndex, Patience, Window};
use super::replica::{self, ReplicaEvent};
use super::roll::roll;
use super::{Command, Pending, patience};
use crate::format::{SegmentKey, encode_frame, frame_bytes};

/// An idle writer whose replicas keep failing tries new ones this often.
const IDLE_ROLL_DELAY: Duration = Duration::from_secs(1);

pub(super) struct WriterTask {
    shared: Arc<Shared>,
    id: LogId,
    nonce: u64,
    patience: Patience,
    commands: mpsc::UnboundedReceiver<Command>,
    permits: Arc<Semaphore>,
    show: watch::Sender<Result<Lsn, LogError>>,

    segment: SegmentInfo,
    window: Window,
    /// Where requests to each member go; None once it failed.
    replicas: Vec<Option<mpsc::UnboundedSender<AppendRequest>>>,
    events: SelectAll<BoxStream<'static, (MemberIndex, ReplicaEvent)>>,
    /// Frames that are not durable, in order. The first `sent` of them are sent in this segment.
    pending: VecDeque<Pending>,
    sent: usize,
    /// The request for the next segment, while one is under way.
    rolling: Option<BoxFuture<'static, Result<SegmentInfo, LogError>>>,
    /// Servers that the last roll asked to avoid.
    avoided: Vec<u64>,

    /// When members are to be told how far the log is committed, unless a frame does it.
    tell_committed_at: Option<Moment>,
    /// Since when nothing became durable although it should.
    trouble_since: Option<Moment>,
    /// What a replica said last when it failed, for the error that gives up.
    last_failure: String,
    rolls_without_progress: u32,
}

/// What woke the task.
enum Wake {
    Replica(MemberIndex, ReplicaEvent),
    Rolled(Result<SegmentInfo, LogError>),
    Command(Option<Command>),
    Time,
}

impl WriterTask {
    pub fn new(
        shared: Arc<Shared>,
        id: LogId,
        nonce: u64,
        segment: SegmentInfo,
        commands: mpsc::UnboundedReceiver<Command>,
        permits: Arc<Semaphore>,
        show: watch::Sender<Result<Lsn, LogError>>,
    ) -> WriterTask {
        let window = new_window(&segment);
        let mut task = WriterTask {
            patience: patience(&shared),
            shared,
            id,
            nonce,
            commands,
            permits,
            show,
            segment,
            window,
            replicas: Vec::new(),
            events: SelectAll::new(),
            pending: VecDeque::new(),
            sent: 0,
            rolling: None,
            avoided: Vec::new(),
            tell_committed_at: None,
            trouble_since: None,
            last_failure: String::new(),
            rolls_without_progress: 0,
        };
        task.open_replicas();
        task
    }

    pub async fn run(mut self) {
        let end = loop {
            let step = match self.wake().await {
                Wake::Replica(member, event) => self.on_replica(member, event),
                Wake::Rolled(result) => self.on_rolled(result),
                Wake::Command(Some(Command::Append(pending))) => {
                    self.pending.push_back(pending);
                    Ok(())
                }
                Wake::Command(Some(Command::Stop(done))) => {
                    self.events.clear();
                    let _ = done.send(());
                    Err(LogError::Fenced(self.id))
                }
                Wake::Command(None) => Err(LogError::Indeterminate(self.id, "the writer was dropped".into())),
                Wake::Time => Ok(()),
            };
            if let Err(error) = step {
                break error;
            }
            self.send_frames();
            self.roll_if_needed();
            self.tell_committed_if_idle();
        };
        self.poison(end);
    }

    async fn wake(&mut self) -> Wake {
        let clock = self.shared.env.clock.clone();
        let next = self.next_wakeup();
        let time = async {
            match next {
                Some(at) => clock.sleep(at.saturating_since(clock.now())).await,
                None => pending().await,
            }
        };
        let rolled = async {
            match &mut self.rolling {
                Some(rolling) => rolling.await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            Some((member, event)) = self.events.next() => Wake::Replica(member, event),
            result = rolled => Wake::Rolled(result),
            command = self.commands.recv() => Wake::Command(command),
            () = time => Wake::Time,
        }
    }

    fn next_wakeup(&self) -> Option<Moment> {
        if self.rolling.is_some() {
            return None;
        }
        self.window.next_check(self.patience).into_iter().chain(self.tell_committed_at).min()
    }

    fn on_replica(&mut self, member: MemberIndex, event: ReplicaEvent) -> Result<(), LogError> {
        let now = self.shared.env.clock.now();
        match event {
            ReplicaEvent::Holds(length) => {
                if let Some(committed) = self.window.on_ack(member, length, now) {
                    self.on_committed(self.segment.base + committed, now);
                }
            }
            ReplicaEvent::Failed(error) => {
                let address = &self.segment.members[member].address;
                tracing::warn!(log = self.id.0, segment = self.segment.index, %address, %error, "replica failed");
                self.last_failure = format!("; replica {address}: {error}");
                self.window.on_failed(member);
                self.replicas[member] = None;
            }
        }
        Ok(())
    }

    /// Acknowledged last: the quorum holds everything below `durable`.
    fn on_committed(&mut self, durable: u64, now: Moment) {
        while self.pending.front().is_some_and(|frame| frame.end <= durable) {
            self.pending.pop_front();
            self.sent -= 1;
        }
        self.trouble_since = None;
        self.rolls_without_progress = 0;
        self.tell_committed_at = Some(now + Duration::from_millis(self.shared.config.log_idle_commit_ms));
        drop(self.show.send_replace(Ok(Lsn(durable))));
    }

    /// Sends what is pending, as long as the segment takes frames.
    fn send_frames(&mut self) {
        while self.rolling.is_none() && !self.is_full() && self.sent < self.pending.len() {
            let frame = &self.pending[self.sent];
            let offset = self.window.sent();
            assert_eq!(self.segment.base + offset, frame.start, "segments are continuous");
            let key = SegmentKey { log_id: self.id.0, segment_id: self.segment.segment_id };
            let mut data = BytesMut::with_capacity(frame_bytes(frame.payload.len()) as usize);
            encode_frame(key, offset, &frame.payload, &mut data);
            let crc = crc32fast::hash(&data);
            let request =
                AppendRequest { open: None, offset, data: data.freeze(), crc, committed: self.window.committed() };
            self.window.on_sent(request.data.len() as u64, crc, self.shared.env.clock.now());
            self.sent += 1;
            self.send(request);
            self.tell_committed_at = None;
        }
    }

    fn send(&self, request: AppendRequest) {
        for replica in self.replicas.iter().flatten() {
            // A closed queue shows as the replica's failure among the events.
            let _ = replica.send(request.clone());
        }
    }

    fn is_full(&self) -> bool {
        self.window.sent() >= self.shared.config.log_segment_bytes
    }

    fn tell_committed_if_idle(&mut self) {
        let now = self.shared.env.clock.now();
        if self.rolling.is_none() && self.tell_committed_at.is_some_and(|at| at <= now) {
            self.tell_committed_at = None;
            let (offset, committed) = (self.window.sent(), self.window.committed());
            self.send(AppendRequest { offset, committed, ..AppendRequest::default() });
        }
    }

    fn roll_if_needed(&mut self) {
        if self.rolling.is_some() {
            return;
        }
        let now = self.shared.env.clock.now();
        let lagging = self.window.lagging(self.patience, now);
        let full = self.is_full() && self.sent < self.pending.len();
        if lagging.is_empty() && !(full && self.window.is_drained()) {
            return;
        }
        self.start_roll(lagging, now);
    }

    fn start_roll(&mut self, lagging: Vec<MemberIndex>, now: Moment) {
        // From here on nothing in this segment is acknowledged: the command may take effect at any time.
        let (length, crc) = self.window.freeze();
        let request = RollSegmentRequest {
            log_id: self.id.0,
            writer: self.nonce,
            index: self.segment.index,
            length,
            crc,
            avoid: lagging.iter().map(|i| self.segment.members[*i].server_id).collect(),
        };
        tracing::info!(log = self.id.0, segment = request.index, length, avoid = ?request.avoid, "rolling");
        self.shared.counters.rolls.inc();
        lagging.iter().for_each(|i| self.shared.suspects.add(&self.segment.members[*i].address));
        self.avoided = request.avoid.clone();
        let since = *self.trouble_since.get_or_insert(now);
        let give_up = since + Duration::from_millis(self.shared.config.log_write_deadline_ms);
        let delay = match self.rolls_without_progress {
            0 => Duration::ZERO,
            _ if self.pending.is_empty() => IDLE_ROLL_DELAY,
            n => self.shared.env.random.jitter(self.shared.config.backoff(n)),
        };
        self.rolls_without_progress = self.rolls_without_progress.saturating_add(1);
        self.tell_committed_at = None;
        self.replicas.clear();
        self.events.clear();
        self.rolling = Some(Box::pin(roll(self.shared.clone(), request, delay, give_up)));
    }

    fn on_rolled(&mut self, result: Result<SegmentInfo, LogError>) -> Result<(), LogError> {
        self.rolling = None;
        let next = result.map_err(|error| match error {
            LogError::Indeterminate(id, what) => LogError::Indeterminate(id, what + &self.last_failure),
            error => error,
        })?;
        let (length, crc) = self.window.freeze();
        if next.base != self.segment.base + length {
            let what = format!("segment {} begins at {}, not at {}", next.index, next.base, self.segment.base + length);
            return Err(LogError::Indeterminate(self.id, what));
        }
        if self.pending.is_empty() {
            self.trouble_since = None;
        }
        let ended = std::mem::replace(&mut self.segment, next);
        self.adapt_patience();
        drop(seal::finish_in_background(&self.shared, ended, length, crc));
        self.window = new_window(&self.segment);
        self.sent = 0;
        self.open_replicas();
        Ok(())
    }

    /// When there is nobody to take a slow server's place, rolling again does not help: waits longer
    /// each time.
    fn adapt_patience(&mut self) {
        if self.avoided.is_empty() {
            return;
        }
        let is_member = |id: &u64| self.segment.members.iter().any(|m| m.server_id == *id);
        self.patience.slow = match self.avoided.iter().any(is_member) {
            true => (self.patience.slow * 2).min(self.patience.stalled),
            false => patience(&self.shared).slow,
        };
    }

    fn open_replicas(&mut self) {
        self.replicas.clear();
        self.events.clear();
        for (index, member) in self.segment.members.iter().enumerate() {
            let (requests, events) = replica::open(&self.shared, self.id.0, &self.segment, index, member);
            self.replicas.push(Some(requests));
            self.events.push(events);
        }
    }

    fn poison(&mut self, error: LogError) {
        if self.show.borrow().is_ok() {
            tracing::info!(log = self.id.0, %error, "log writer ends");
            drop(self.show.send_replace(Err(error)));
        }
        self.permits.close();
    }
}

impl Drop for WriterTask {
    /// The task may be dropped at any await, at shutdown: whoever waits must learn of it.
    fn drop(&mut self) {
        self.poison(LogError::Indeterminate(self.id, "the writer's task was stopped".into()));
    }
}

fn new_window(segment: &SegmentInfo) -> Window {
    Window::new(segment.members.len(), segment.ack_quorum as usize)
}
