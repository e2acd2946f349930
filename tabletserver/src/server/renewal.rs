//! The loop that keeps the lease.
//!
//! A renewal that hangs does not hold up the next one: several may be in flight, each to another
//! master if the one before got no answer, and each counts from the moment that it was sent.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use uruk_base::Moment;
use uruk_base::planted::{Planted, is_planted};
use uruk_proto::master::{RenewLeaseRequest, RenewLeaseResponse};
use uruk_proto::{ErrorCode, RpcError};

use super::Server;
use super::incarnation::Ended;
use super::lease::LeaseStatus;
use super::load;

/// Renewals in flight.
const IN_FLIGHT_MAX: usize = 4;
/// After a refused or failed renewal the next follows this soon.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Renews until the lease is lost. `lease` bounds one renewal, `renewal` is the pause between two.
pub async fn run(server: Arc<Server>, lease: Duration, renewal: Duration) {
    let clock = &server.env.clock;
    let mut in_flight = FuturesUnordered::new();
    let mut next_send = clock.now();
    // Whether a planned end made us send a renewal at once.
    let mut told = false;
    // Since the last grant.
    let mut failures = 0_u64;
    loop {
        let now = clock.now();
        let left = match server.incarnation.lease.status(now) {
            LeaseStatus::Waiting => renewal,
            LeaseStatus::Held(left) => left,
            // Planted: it goes on as if it had a lease still, until a master says that it is dead.
            LeaseStatus::Lapsed if is_planted(Planted::ReadWithoutLease) => renewal,
            LeaseStatus::Lapsed => return server.incarnation.end_at_lapse(),
        };
        if now >= next_send && in_flight.len() < IN_FLIGHT_MAX {
            in_flight.push(renew(&server, lease));
            next_send = now + renewal;
        }
        // When all slots are taken, only an answer or the end of the lease matters.
        let until_send = if in_flight.len() < IN_FLIGHT_MAX { next_send.saturating_since(now) } else { left };
        tokio::select! {
            biased;
            Some((sent, was_draining, number, result)) = in_flight.next(), if !in_flight.is_empty() => match result {
                Ok(RenewLeaseResponse { granted: true, .. }) => {
                    server.incarnation.lease.granted(sent, clock.now());
                    failures = 0;
                    server.pins.heard(number);
                    if was_draining {
                        server.stop.note_known();
                    }
                }
                Ok(RenewLeaseResponse { granted: false, master }) => {
                    return server.incarnation.end(Ended::DeclaredDead(format!("master {master} refused the renewal")));
                }
                Err(error) if error.code == ErrorCode::Fenced => {
                    return server.incarnation.end(Ended::DeclaredDead(error.message));
                }
                Err(error) => {
                    failures += 1;
                    // Ever more rarely: the next attempt follows soon.
                    if failures.is_power_of_two() {
                        tracing::warn!(server = %server.incarnation.server_id, %error, failures, "cannot renew the lease yet");
                    }
                    next_send = next_send.min(clock.now() + RETRY_DELAY);
                }
            },
            () = server.stop.asked(), if !told => {
                told = true;
                next_send = clock.now();
            }
            () = clock.sleep(left.min(until_send)) => hint_at_silence(&server, &in_flight),
        }
    }
}

/// The believed leader keeps a renewal waiting: the next one goes elsewhere.
fn hint_at_silence<F>(server: &Server, in_flight: &FuturesUnordered<F>) {
    if !in_flight.is_empty() {
        let silent = RpcError::new(ErrorCode::DeadlineExceeded, "silent");
        server.masters.failed_at(&server.masters.current(), &silent);
    }
}

/// When it was sent, whether it told of a planned end, its report's number, and the answer.
async fn renew(server: &Server, timeout: Duration) -> (Moment, bool, u64, Result<RenewLeaseResponse, RpcError>) {
    let draining = server.stop.is_asked();
    let report_number = server.pins.next_report();
    let load = load::report(server);
    let request =
        RenewLeaseRequest { server_id: server.incarnation.server_id.0, load: Some(load), draining, report_number };
    let sent = server.env.clock.now();
    let address = server.masters.current();
    let mut client = server.masters.client(&address);
    let result = match server.env.clock.timeout(timeout, client.renew_lease(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(RpcError::from(status)),
        Err(elapsed) => Err(RpcError::new(ErrorCode::DeadlineExceeded, format!("master {address}: {elapsed}"))),
    };
    if let Err(error) = &result {
        server.masters.failed_at(&address, error);
    }
    (sent, draining, report_number, result)
}
