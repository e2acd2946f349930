//! The steps of a recovery, and the orders to tablet servers.
//!
//! Each step may be repeated, by this leader or another: sealing is idempotent, the first sorted file
//! wins, orders carry epochs, deletion of a log's data is idempotent. Nothing here decides; what was
//! planned from old news is refused where it takes effect.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Response, Status};
use uruk_base::commit_log::LogId;
use uruk_base::planted::{Planted, is_planted};
use uruk_base::rpc::MESSAGE_BYTES_MAX;
use uruk_consensus::Term;
use uruk_proto::tablet::tablet_server_control_client::TabletServerControlClient;
use uruk_proto::tablet::{CloseTabletsRequest, OpenTabletsRequest, SortSegmentRequest};
use uruk_proto::{ErrorCode, RpcError, ServerId, master};

use crate::command::{Command, TabletKey};
use crate::driver::{Outcome, propose_done};
use crate::shared::Shared;
use crate::state::State;
use crate::state::row::{CloseKind, MetaRow, TabletState};

/// The lease has lapsed: the tablets are nobody's from now on.
pub async fn declare_dead(shared: &Shared, term: Term, server: ServerId) -> Outcome {
    let last_heard_micros = shared.volatile.lock().leases.session(server).and_then(|session| session.renewed_micros);
    let micros = shared.env.clock.wall_micros();
    tracing::warn!(%server, "lease lapsed; declares the server dead");
    let how = "lease lapsed".to_owned();
    propose_done(shared, term, Command::DeclareDead { server, how, last_heard_micros, micros }).await?;
    shared.metrics.deaths.inc();
    Ok(())
}

/// Fences the dead server's log and records where it ends. There is no way around this step.
pub async fn seal(shared: &Shared, term: Term, server: ServerId) -> Outcome {
    let sealed = shared.storage.logs.seal(LogId(server.0)).await.map_err(|error| error.to_string())?;
    let segments: Vec<Range<u64>> = sealed.segments.iter().map(|piece| piece.start.0..piece.end.0).collect();
    let micros = shared.env.clock.wall_micros();
    tracing::info!(%server, bytes = sealed.bytes(), pieces = segments.len(), "sealed a dead server's log");
    propose_done(shared, term, Command::RecordSeal { server, segments, end: sealed.end.0, micros }).await
}

/// Has one piece of a dead server's log sorted.
pub async fn sort(shared: &Shared, term: Term, log: ServerId, segment: u32, sorter: ServerId) -> Outcome {
    let planned = shared.consensus.read(|state| {
        let address = state.servers.address(sorter)?.to_owned();
        let seal = state.recoveries.get(log)?.seal.as_ref()?;
        let piece = seal.segments.get(segment as usize)?.range.clone();
        let log_segments = seal.segments.iter().flat_map(|piece| [piece.range.start, piece.range.end]).collect();
        Some((address, piece, log_segments))
    });
    let Some((address, piece, log_segments)) = planned else { return Ok(()) };
    let request = SortSegmentRequest {
        server_id: sorter.0,
        log_id: log.0,
        segment,
        start_lsn: piece.start,
        end_lsn: piece.end,
        log_segments,
    };
    let deadline = Duration::from_millis(shared.tuning.sort_deadline_ms);
    let sorted = call(shared, sorter, &address, deadline, client(shared, &address).sort_segment(request)).await?;
    let micros = shared.env.clock.wall_micros();
    tracing::info!(%log, segment, %sorter, records = sorted.records, bytes = sorted.bytes, "sorted a piece of a log");
    let path: Arc<str> = sorted.path.into();
    let (records, bytes) = (sorted.records, sorted.bytes);
    propose_done(shared, term, Command::RecordSort { log, segment, sorter, path, records, bytes, micros }).await
}

/// Nobody needs the log: its data goes, then the recovery is done. The fence stays.
pub async fn finish(shared: &Shared, term: Term, server: ServerId) -> Outcome {
    shared.storage.logs.delete(LogId(server.0)).await.map_err(|error| error.to_string())?;
    propose_done(shared, term, Command::FinishRecovery { server, micros: shared.env.clock.wall_micros() }).await?;
    forget_connection(shared, server);
    tracing::info!(%server, "recovery done; its log is deleted");
    Ok(())
}

/// Lets go of the connection to a dead server, unless a live one has its address.
fn forget_connection(shared: &Shared, server: ServerId) {
    let unused = shared.consensus.read(|state| {
        let address = &state.servers.get(server)?.registration.address;
        let is_used = state.servers.live().iter().any(|live| state.servers.address(*live) == Some(address));
        (!is_used).then(|| address.clone())
    });
    unused.into_iter().for_each(|address| shared.channels.forget(&address));
}

/// Tells the server what to load.
pub async fn open(shared: &Shared, server: ServerId, keys: &[TabletKey]) -> Outcome {
    let (address, tablets) = shared.consensus.read(|state| {
        let tablets: Vec<_> = keys.iter().filter_map(|key| open_order(state, server, *key)).collect();
        (state.servers.address(server).map(str::to_owned), tablets)
    });
    let Some(address) = address.filter(|_| !tablets.is_empty()) else { return Ok(()) };
    let taken: Vec<TabletKey> = keys.to_vec();
    let request = OpenTabletsRequest { server_id: server.0, tablets };
    call(shared, server, &address, shared.order_deadline(), client(shared, &address).open_tablets(request)).await?;
    let now = shared.env.clock.now();
    let mut volatile = shared.volatile.lock();
    taken.into_iter().for_each(|key| {
        volatile.opens_taken.insert(key.tablet, (key.epoch, now));
    });
    Ok(())
}

/// The server does not open these: they are nobody's again. Its late word that it has is refused.
pub async fn abandon(shared: &Shared, term: Term, server: ServerId, keys: &[TabletKey], reason: &str) -> Outcome {
    let is_opening = |state: &State, key: &TabletKey| {
        let row = state.row(key.tablet).filter(|row| row.epoch == key.epoch && row.owner() == Some(server));
        row.is_some_and(MetaRow::is_unserved_until_opened)
    };
    tracing::warn!(%server, tablets = keys.len(), reason, "takes tablets away that are not opened");
    for key in keys {
        // It may have opened a moment ago; a failure noted on an open tablet would only mislead.
        if !shared.consensus.read(|state| is_opening(state, key)) {
            continue;
        }
        let (reason, micros) = (reason.to_owned(), shared.env.clock.wall_micros());
        let command = Command::Fail { server, key: *key, reason, lost_recovery_files: Vec::new(), micros };
        match shared.propose_in(term, command).await {
            Ok(_) => {}
            // Opened, released or dead: as good.
            Err(error) if matches!(error.code, ErrorCode::FailedPrecondition | ErrorCode::Fenced) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

/// The row, and the sorted files of every log that it needs but the server's own: all or nothing.
fn open_order(state: &State, server: ServerId, key: TabletKey) -> Option<master::OpenTablet> {
    let row = state.row(key.tablet).filter(|row| row.check_owner(server, key).is_ok())?;
    if row.state != TabletState::Opening(server) || !state.is_openable(row) {
        return None;
    }
    let mut recovered = Vec::new();
    for log in row.needed_logs.iter().filter(|log| **log != server) {
        let seal = state.recoveries.get(*log)?.seal.as_ref()?;
        for (segment, piece) in seal.segments.iter().enumerate() {
            let sorted = piece.sorted.as_ref()?;
            recovered.push(master::RecoveredSegment {
                log_id: log.0,
                segment: segment as u32,
                path: sorted.path.to_string(),
            });
        }
    }
    let schema = Some((&state.tables.get(row.table)?.schema).into());
    Some(master::OpenTablet { row: Some(row.to_message()), recovered, schema })
}

/// Tells the server what to give up.
pub async fn close(shared: &Shared, server: ServerId, kind: CloseKind, keys: &[TabletKey]) -> Outcome {
    let Some(address) = shared.consensus.read(|state| state.servers.address(server).map(str::to_owned)) else {
        return Ok(());
    };
    let tablets = keys.iter().map(|key| master::TabletKey { tablet_id: key.tablet.0, epoch: key.epoch.0 }).collect();
    let discard = kind == CloseKind::Discard;
    let request = CloseTabletsRequest { server_id: server.0, tablets, discard };
    let mut client = client(shared, &address);
    let taken = call(shared, server, &address, shared.order_deadline(), client.close_tablets(request)).await;
    if taken.is_err() && is_planted(Planted::ReleaseTakenFromSilence) {
        for key in keys {
            let _ = shared.propose(Command::Release { server, key: *key }).await;
        }
    }
    taken?;
    let now = shared.env.clock.now();
    let mut volatile = shared.volatile.lock();
    for key in keys {
        volatile.closes_taken.insert(key.tablet, (key.epoch, now));
    }
    Ok(())
}

pub fn client(shared: &Shared, address: &str) -> TabletServerControlClient<Channel> {
    TabletServerControlClient::new(shared.channels.get(address))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

pub async fn call<T>(
    shared: &Shared,
    server: ServerId,
    address: &str,
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, String> {
    match shared.env.clock.timeout(deadline, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => {
            let error = RpcError::from(status);
            let code = match error.code {
                ErrorCode::Unknown => String::new(),
                code => format!("{code:?}: "),
            };
            Err(format!("{server}: {code}{}", error.message))
        }
        Err(elapsed) => {
            // The connection may lead to a machine that is gone, though a successor has its address.
            shared.channels.forget(address);
            Err(format!("{server}: {elapsed}"))
        }
    }
}
