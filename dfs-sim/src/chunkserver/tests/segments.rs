//! Log segments over the wire.

use super::*;

/// A writer's end of one append stream.
pub(super) struct Writer {
    requests: mpsc::Sender<AppendRequest>,
    acks: Streaming<AppendResponse>,
    segment_id: u64,
    pub(super) length: u64,
}

pub(super) fn open(segment_id: u64, server_id: u64) -> AppendOpen {
    AppendOpen { segment_id, log_id: LOG, server_id, durability: Durability::Fsync as i32, create: true }
}

pub(super) fn frame(segment_id: u64, offset: u64, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    encode_frame(SegmentKey { log_id: LOG, segment_id }, offset, payload, &mut out);
    out.freeze()
}

fn request(offset: u64, data: Bytes) -> AppendRequest {
    let crc = crc32fast::hash(&data);
    AppendRequest { open: None, offset, data, crc, committed: 0 }
}

impl Writer {
    pub(super) async fn open(rig: &Rig, open: AppendOpen) -> Writer {
        let (requests, receiver) = mpsc::channel(64);
        let segment_id = open.segment_id;
        requests.send(AppendRequest { open: Some(open), ..Default::default() }).await.expect("open");
        let acks = rig.client.clone().append(ReceiverStream::new(receiver)).await.expect("opens").into_inner();
        Writer { requests, acks, segment_id, length: 0 }
    }

    async fn send(&mut self, payload: &[u8]) -> Bytes {
        let frame = frame(self.segment_id, self.length, payload);
        self.requests.send(request(self.length, frame.clone())).await.expect("open");
        self.length += frame.len() as u64;
        frame
    }

    /// Waits until everything sent is acknowledged.
    pub(super) async fn flush(&mut self) -> Result<(), Status> {
        loop {
            let ack = self.acks.message().await?.expect("the stream goes on");
            assert!(ack.length <= self.length);
            if ack.length == self.length {
                return Ok(());
            }
        }
    }

    async fn refusal(&mut self) -> ErrorCode {
        loop {
            match self.acks.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ends without a reason"),
                Err(status) => return RpcError::from(status).code,
            }
        }
    }
}

/// A segment of `n` acknowledged frames.
pub(super) async fn filled(rig: &Rig, segment_id: u64, n: u8) -> Bytes {
    let mut writer = Writer::open(rig, open(segment_id, rig.server.server_id())).await;
    let mut all = BytesMut::new();
    for i in 0..n {
        all.extend_from_slice(&writer.send(&[i; 1000]).await);
    }
    writer.flush().await.expect("acknowledged");
    all.freeze()
}

pub(super) fn segment_read(id: u64, length: u64, recovery: u64) -> ReadRequest {
    ReadRequest { id, is_segment: true, offset: 0, length, recovery }
}

#[tokio::test]
async fn a_segment_lives_from_append_to_seal() {
    let rig = Rig::start(4).await;
    let all = filled(&rig, 9, 50).await;
    let length = all.len() as u64;
    assert_eq!(code(rig.read(segment_read(9, length, 0)).await), ErrorCode::FailedPrecondition, "not committed");
    let fence = FenceRequest { segment_id: 9, server_id: 4, recovery: 7 };
    let answer = rig.client.clone().fence(fence).await.expect("answers").into_inner();
    assert_eq!((answer.known, answer.length, answer.crc), (true, length, Some(crc32fast::hash(&all))));
    assert_eq!(rig.read(segment_read(9, length, 7)).await.expect("for the recoverer"), all);
    assert_eq!(code(rig.read(segment_read(9, length, 8)).await), ErrorCode::Fenced);
    let finish = FinishSegmentRequest { segment_id: 9, length, crc: crc32fast::hash(&all) };
    rig.client.clone().finish_segment(finish).await.expect("finishes");
    assert_eq!(rig.read(segment_read(9, length, 0)).await.expect("for everybody"), all);
    rig.until_reported("sealed", |h| h.segments.iter().any(|s| s.segment_id == 9 && s.sealed && s.length == length))
        .await;
    rig.stop().await;
}

#[tokio::test]
async fn hostile_append_streams_are_refused() {
    let rig = Rig::start(4).await;
    let good = open(9, 4);
    for (wrong, expected) in [
        (AppendOpen { server_id: 5, ..good }, ErrorCode::FailedPrecondition),
        (AppendOpen { server_id: 0, ..good }, ErrorCode::FailedPrecondition),
        (AppendOpen { segment_id: 0, ..good }, ErrorCode::InvalidArgument),
        (AppendOpen { log_id: 0, ..good }, ErrorCode::InvalidArgument),
        (AppendOpen { durability: 0, ..good }, ErrorCode::InvalidArgument),
        (AppendOpen { create: false, ..good }, ErrorCode::NotFound),
    ] {
        assert_eq!(Writer::open(&rig, wrong).await.refusal().await, expected, "{wrong:?}");
    }
    let broken = |offset, data: Bytes, crc| AppendRequest { open: None, offset, data, crc, committed: 0 };
    let first = frame(9, 0, b"first");
    for (wrong, expected) in [
        (broken(0, first.clone(), 1), ErrorCode::InvalidArgument),
        (request(100, frame(9, 100, b"gap")), ErrorCode::FailedPrecondition),
        (request(u64::MAX, first.clone()), ErrorCode::InvalidArgument),
        (request(0, first.slice(1..)), ErrorCode::InvalidArgument),
        (request(0, frame(8, 0, b"another segment")), ErrorCode::InvalidArgument),
        (AppendRequest { open: Some(good), ..Default::default() }, ErrorCode::InvalidArgument),
        (AppendRequest { committed: u64::MAX, ..Default::default() }, ErrorCode::InvalidArgument),
    ] {
        let mut writer = Writer::open(&rig, good).await;
        writer.requests.send(wrong).await.expect("open");
        assert_eq!(writer.refusal().await, expected);
    }
    let mut unopened = rig.client.clone().append(stream::iter([request(0, first)])).await.expect("opens").into_inner();
    assert_eq!(code(unopened.message().await), ErrorCode::InvalidArgument);
    assert_eq!(filled(&rig, 9, 3).await.len(), 3 * 1012, "after all that the segment is as new");
    rig.stop().await;
}

#[tokio::test]
async fn a_writer_that_ends_its_stream_still_gets_its_acknowledgements() {
    let rig = Rig::start(4).await;
    rig.disk.faults(|f| f.sync_delay = Duration::from_millis(30));
    let mut writer = Writer::open(&rig, open(9, 4)).await;
    writer.send(b"last words").await;
    let Writer { requests, mut acks, length, .. } = writer;
    drop(requests);
    let mut last = 0;
    while let Some(ack) = acks.message().await.expect("no error") {
        last = ack.length;
    }
    assert_eq!(last, length);
    rig.stop().await;
}

#[tokio::test]
async fn a_fence_ends_the_stream_of_a_living_writer() {
    let rig = Rig::start(4).await;
    let mut writer = Writer::open(&rig, open(9, 4)).await;
    writer.send(b"in time").await;
    writer.flush().await.expect("acknowledged");
    let fence = FenceRequest { segment_id: 9, server_id: 4, recovery: 7 };
    let answer = rig.client.clone().fence(fence).await.expect("answers").into_inner();
    assert_eq!(answer.length, writer.length);
    assert_eq!(writer.refusal().await, ErrorCode::Fenced, "although it sends nothing");
    let late = Writer::open(&rig, open(9, 4)).await.refusal().await;
    assert_eq!(late, ErrorCode::Fenced, "and there is no other one");
    rig.stop().await;
}

#[tokio::test]
async fn a_completion_after_a_fence_acknowledges_nothing_to_the_old_writer() {
    let rig = Rig::start(4).await;
    let mut writer = Writer::open(&rig, open(10, 4)).await;
    for i in 0..2 {
        writer.send(&[i; 1000]).await;
    }
    writer.flush().await.expect("acknowledged");
    let fence = FenceRequest { segment_id: 10, server_id: 4, recovery: 7 };
    let fenced = rig.client.clone().fence(fence).await.expect("answers").into_inner().length;
    assert_eq!(fenced, writer.length);
    let rest = (2..5).fold(BytesMut::new(), |mut rest, i| {
        rest.extend_from_slice(&frame(10, fenced + rest.len() as u64, &[i; 1000]));
        rest
    });
    let length = fenced + rest.len() as u64;
    let durability = Durability::Fsync as i32;
    let header =
        CompleteSegmentHeader { segment_id: 10, recovery: 7, offset: fenced, length, create: false, durability };
    let messages = [CompleteSegmentRequest { header: Some(header), data: rest.freeze() }];
    let completed = rig.client.clone().complete_segment(stream::iter(messages)).await.expect("completes");
    assert_eq!(completed.into_inner().length, length);
    let told = loop {
        match writer.acks.message().await {
            Ok(Some(ack)) => assert!(ack.length <= fenced, "{} acknowledged, fenced at {fenced}", ack.length),
            Ok(None) => panic!("the stream ends without a reason"),
            Err(status) => break RpcError::from(status).code,
        }
    };
    assert_eq!(told, ErrorCode::Fenced, "also without another append");
    rig.stop().await;
}

#[tokio::test]
async fn fences_for_another_server_do_not_count_and_lower_ones_are_refused() {
    let rig = Rig::start(4).await;
    let fence = |server_id, recovery| {
        let mut client = rig.client.clone();
        async move { client.fence(FenceRequest { segment_id: 9, server_id, recovery }).await.map(|a| a.into_inner()) }
    };
    for wrong in [0, 5] {
        let answer = fence(wrong, 7).await.expect("answers");
        assert!(!answer.known && answer.reason.contains("server 4") && answer.crc.is_none(), "{answer:?}");
    }
    assert_eq!(code(fence(4, 0).await), ErrorCode::InvalidArgument);
    assert!(fence(4, 7).await.expect("answers").known);
    assert_eq!(code(fence(4, 6).await), ErrorCode::Fenced);
    rig.stop().await;
}

#[tokio::test]
async fn completions_come_over_the_wire() {
    let rig = Rig::start(4).await;
    let all = filled(&rig, 9, 5).await;
    let header = |create, offset, length| CompleteSegmentHeader {
        segment_id: 10,
        recovery: 7,
        offset,
        length,
        create,
        durability: Durability::Fsync as i32,
    };
    let first = |header| CompleteSegmentRequest { header: Some(header), data: Bytes::new() };
    let body = |data| CompleteSegmentRequest { header: None, data };
    let length = all.len() as u64;
    let complete = |messages: Vec<CompleteSegmentRequest>| {
        let mut client = rig.client.clone();
        async move { client.complete_segment(stream::iter(messages)).await.map(|a| a.into_inner().length) }
    };
    assert_eq!(code(complete(vec![]).await), ErrorCode::InvalidArgument);
    assert_eq!(code(complete(vec![body(all.clone())]).await), ErrorCode::InvalidArgument);
    let absent = complete(vec![first(header(false, 0, length)), body(all.clone())]).await;
    assert_eq!(code(absent), ErrorCode::NotFound);
    let gap = complete(vec![first(header(true, 5, length)), body(all.slice(5..))]).await;
    assert_eq!(code(gap), ErrorCode::FailedPrecondition);
    let short = complete(vec![first(header(true, 0, length)), body(all.slice(..100))]).await;
    assert_eq!(code(short), ErrorCode::InvalidArgument);
    let twice = complete(vec![first(header(true, 0, length)), first(header(true, 0, length))]).await;
    assert_eq!(code(twice), ErrorCode::InvalidArgument);
    let done = complete(vec![first(header(true, 0, length)), body(all.slice(..700)), body(all.slice(700..))]).await;
    assert_eq!(done.expect("completes"), length);
    assert_eq!(rig.read(segment_read(10, length, 7)).await.expect("reads"), all);
    let finish = |length, crc| {
        let mut client = rig.client.clone();
        async move { client.finish_segment(FinishSegmentRequest { segment_id: 10, length, crc }).await }
    };
    assert_eq!(code(finish(length + 1, 0).await), ErrorCode::FailedPrecondition);
    finish(length, crc32fast::hash(&all)).await.expect("finishes");
    let again = complete(vec![first(header(true, 0, length)), body(all.clone())]).await;
    assert_eq!(again.expect("it is sealed at that length already"), length);
    let unknown = rig.client.clone().finish_segment(FinishSegmentRequest { segment_id: 11, length: 0, crc: 0 }).await;
    assert_eq!(code(unknown), ErrorCode::NotFound);
    rig.stop().await;
}

#[tokio::test]
async fn a_failed_sync_ends_the_server_and_acknowledges_nothing() {
    let mut rig = Rig::start(4).await;
    let mut writer = Writer::open(&rig, open(9, 4)).await;
    writer.send(b"sound").await;
    writer.flush().await.expect("acknowledged");
    let sound = writer.length;
    rig.disk.faults(|f| f.sync_errors = 1);
    writer.send(b"lost").await;
    let mut ended = false;
    while !ended {
        match writer.acks.message().await {
            Ok(Some(ack)) => assert!(ack.length <= sound, "an acknowledgement after a failed sync"),
            Ok(None) | Err(_) => ended = true,
        }
    }
    let result = rig.env.clock.timeout(PATIENCE, &mut rig.ended).await.expect("ends").expect("says why");
    assert!(result.expect_err("an error").to_string().contains("sync failed"));
    rig.stop().await;
}
