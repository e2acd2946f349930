//! Calls that share a stream: each on its own, none lost, none that nobody waits for.

mod fake;

use std::time::Duration;

use fake::{Cluster, Fault};
use futures::StreamExt;
use futures::future::join_all;
use uruk_base::rpc;
use uruk_client::{ClientConfig, Mutation, ReadOptions};
use uruk_proto::calls::{CALLS_IN_FLIGHT_MAX, CALLS_PER_MESSAGE_MAX};
use uruk_proto::tablet::tablet_server_calls_client::TabletServerCallsClient;
use uruk_proto::tablet::{
    Answer, Call, CallBatch, CancelCall, IdempotencyKey, MutateRowsRequest, ReadRequest, RowMutations, RowRange,
    TabletRef, answer, call,
};

fn all() -> ReadOptions {
    ReadOptions::default()
}

/// The stream of a client that nobody here wrote.
struct Stream {
    calls: tokio::sync::mpsc::UnboundedSender<CallBatch>,
    answers: tonic::Streaming<uruk_proto::tablet::AnswerBatch>,
}

impl Stream {
    async fn open(cluster: &Cluster) -> Stream {
        let channel = rpc::channel(&cluster.env.transport, &Cluster::address(0));
        let (calls, outgoing) = tokio::sync::mpsc::unbounded_channel();
        let outgoing = tokio_stream::wrappers::UnboundedReceiverStream::new(outgoing);
        let answers = TabletServerCallsClient::new(channel).calls(outgoing).await.expect("opens").into_inner();
        Stream { calls, answers }
    }

    fn send(&self, calls: impl IntoIterator<Item = (u64, Option<call::Call>)>) {
        let calls = calls.into_iter().map(|(id, call)| Call { id, call }).collect();
        self.calls.send(CallBatch { calls }).expect("the stream is open");
    }

    async fn answers(&mut self, count: usize) -> Vec<Answer> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.answers.next().await.expect("goes on").expect("is not broken").answers);
        }
        all
    }
}

fn reads_row(cluster: &Cluster, row: &str) -> Option<call::Call> {
    let tablet_id = *cluster.lock().tablets.keys().next().expect("there is a tablet");
    let tablet = Some(TabletRef { tablet_id, schema_version: 1 });
    Some(call::Call::Read(ReadRequest { tablet, rows: vec![row.to_owned().into()], ..ReadRequest::default() }))
}

fn writes_row(cluster: &Cluster, sequence: u64) -> Option<call::Call> {
    let tablet_id = *cluster.lock().tablets.keys().next().expect("there is a tablet");
    let key = IdempotencyKey { client_id: 7, sequence, first_incomplete: 1, issued_micros: 1 };
    let entries = vec![RowMutations { row: "k".into(), ..RowMutations::default() }];
    let tablet = Some(TabletRef { tablet_id, schema_version: 1 });
    Some(call::Call::MutateRows(MutateRowsRequest { tablet, key: Some(key), entries }))
}

fn code(answer: &Answer) -> Option<tonic::Code> {
    match &answer.answer {
        Some(answer::Answer::Error(error)) => Some(error.code.into()),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_holds_up_no_other() {
    let cluster = Cluster::start(1).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 10);
    let table = cluster.client().table("t").await.unwrap();
    cluster.faults([Fault::Slow { ms: 400 }]);
    let begun = cluster.now();
    let (table, cluster) = (&table, &cluster);
    let read = |n: usize| async move {
        assert!(table.read_row(format!("row-{n:03}"), &all()).await.unwrap().is_some());
        cluster.now() - begun
    };
    let ended = join_all((0..10).map(read)).await;
    assert_eq!(ended.iter().filter(|after| **after >= Duration::from_millis(400)).count(), 1, "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_nobody_waits_for_is_left_undone() {
    let cluster = Cluster::start(1).await;
    let id = cluster.table("t", &[]);
    let table = cluster.client().table("t").await.unwrap();
    table.mutate_row("first", vec![Mutation::set("f", "q", "v")]).await.unwrap();
    cluster.faults([Fault::Slow { ms: 400 }]);
    let write = table.mutate_row("given-up", vec![Mutation::set("f", "q", "v")]);
    let given_up = cluster.env.clock.timeout(Duration::from_millis(100), write).await;
    assert!(given_up.is_err());
    cluster.env.clock.sleep(Duration::from_secs(2)).await;
    assert_eq!((cluster.value(id, "first"), cluster.value(id, "given-up")), (Some("v".into()), None));
    assert_eq!(cluster.lock().keys.len(), 1, "the second one never came to the point of writing");
}

#[tokio::test(start_paused = true)]
async fn a_row_beyond_a_shared_answer_is_read_by_a_call_of_its_own() {
    let cluster = Cluster::start(1).await;
    cluster.table("t", &[]);
    let table = cluster.client().table("t").await.unwrap();
    let value = vec![b'v'; 300_000];
    table.mutate_row("large", vec![Mutation::set("f", "q", value.clone())]).await.unwrap();
    let row = table.read_row("large", &all()).await.unwrap().unwrap();
    assert_eq!(row.value("f", "q").unwrap(), &value);
    assert_eq!(cluster.lock().reads, 2);
}

#[tokio::test(start_paused = true)]
async fn servers_that_take_no_streams_are_called_as_ever() {
    let cluster = Cluster::start_with(2, false).await;
    let id = cluster.table("t", &["m"]);
    let table = cluster.client().table("t").await.unwrap();
    for key in ["a", "z", "b"] {
        table.mutate_row(key, vec![Mutation::set("f", "q", key)]).await.unwrap();
        assert_eq!(table.read_row(key, &all()).await.unwrap().unwrap().value("f", "q").unwrap(), key);
    }
    assert_eq!(cluster.value(id, "z"), Some("z".into()));
    {
        let state = cluster.lock();
        assert_eq!((state.writes, state.reads), (3, 3), "each once");
    }
    cluster.check();
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_made_by_the_first_call_and_kept() {
    let cluster = Cluster::start(1).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 8);
    let config = ClientConfig { channels_per_server: 1, ..ClientConfig::default() };
    let table = cluster.client_with(config).table("t").await.unwrap();
    assert_eq!(cluster.net.connects(&Cluster::address(0)), 0);
    for n in 0..8 {
        table.read_row(format!("row-{n:03}"), &all()).await.unwrap();
    }
    assert_eq!(cluster.net.connects(&Cluster::address(0)), 1);
}

#[tokio::test(start_paused = true)]
async fn calls_of_a_client_that_is_gone_are_dropped_and_none_is_begun() {
    let cluster = Cluster::start(1).await;
    cluster.table("t", &[]);
    cluster.faults((0..2 * CALLS_IN_FLIGHT_MAX).map(|_| Fault::Slow { ms: 1_000 }));
    let stream = Stream::open(&cluster).await;
    for first in (0..2 * CALLS_IN_FLIGHT_MAX as u64).step_by(CALLS_PER_MESSAGE_MAX) {
        stream.send((first..first + CALLS_PER_MESSAGE_MAX as u64).map(|id| (id, writes_row(&cluster, id + 1))));
    }
    cluster.env.clock.sleep(Duration::from_millis(500)).await;
    drop(stream);
    cluster.env.clock.sleep(Duration::from_secs(5)).await;
    let state = cluster.lock();
    assert_eq!((state.writes, state.keys.len()), (CALLS_IN_FLIGHT_MAX, 0), "begun, done");
}

#[tokio::test(start_paused = true)]
async fn a_message_of_too_many_calls_ends_its_stream() {
    let cluster = Cluster::start(1).await;
    cluster.table("t", &[]);
    let mut stream = Stream::open(&cluster).await;
    stream.send((0..=CALLS_PER_MESSAGE_MAX as u64).map(|id| (id, reads_row(&cluster, "row-000"))));
    assert!(stream.answers.next().await.is_none());
    assert_eq!(cluster.lock().reads, 0);
}

#[tokio::test(start_paused = true)]
async fn nonsense_is_answered_and_harms_no_other_call() {
    let cluster = Cluster::start(1).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 1);
    let mut stream = Stream::open(&cluster).await;
    let range = ReadRequest { ranges: vec![RowRange::default()], ..ReadRequest::default() };
    let cancel = || Some(call::Call::Cancel(CancelCall {}));
    let row = reads_row(&cluster, "row-000");
    stream.send([(9, cancel()), (1, None), (2, Some(call::Call::Read(range))), (3, row)]);
    let mut answers = stream.answers(3).await;
    answers.sort_by_key(|answer| answer.id);
    assert_eq!(answers.iter().map(|answer| answer.id).collect::<Vec<_>>(), [1, 2, 3]);
    let invalid = Some(tonic::Code::InvalidArgument);
    assert_eq!(answers.iter().map(code).collect::<Vec<_>>(), [invalid, invalid, None]);
}

#[tokio::test(start_paused = true)]
async fn calls_in_flight_are_bounded_and_all_are_answered() {
    let cluster = Cluster::start(1).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 1);
    cluster.faults((0..3 * CALLS_IN_FLIGHT_MAX).map(|_| Fault::Slow { ms: 1_000 }));
    let mut stream = Stream::open(&cluster).await;
    let count = 2 * CALLS_IN_FLIGHT_MAX as u64;
    for first in (0..count).step_by(CALLS_PER_MESSAGE_MAX) {
        stream.send((first..first + CALLS_PER_MESSAGE_MAX as u64).map(|id| (id, reads_row(&cluster, "row-000"))));
    }
    cluster.env.clock.sleep(Duration::from_millis(500)).await;
    assert_eq!(cluster.lock().reads, CALLS_IN_FLIGHT_MAX);
    let mut ids: Vec<u64> = stream.answers(count as usize).await.iter().map(|answer| answer.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..count).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_place_can_be_cancelled() {
    let cluster = Cluster::start(1).await;
    let id = cluster.table("t", &[]);
    cluster.fill(id, 1);
    cluster.faults((0..CALLS_IN_FLIGHT_MAX).map(|_| Fault::Slow { ms: 1_000 }));
    let mut stream = Stream::open(&cluster).await;
    for first in (0..CALLS_IN_FLIGHT_MAX as u64).step_by(CALLS_PER_MESSAGE_MAX) {
        stream.send((first..first + CALLS_PER_MESSAGE_MAX as u64).map(|id| (id, reads_row(&cluster, "row-000"))));
    }
    let cancel = Some(call::Call::Cancel(CancelCall {}));
    stream.send([(10_001, writes_row(&cluster, 1)), (10_002, writes_row(&cluster, 2)), (10_001, cancel)]);
    stream.answers(CALLS_IN_FLIGHT_MAX + 1).await;
    let keys: Vec<u64> = cluster.lock().keys.iter().map(|key| key.sequence).collect();
    assert_eq!(keys, [2]);
}
