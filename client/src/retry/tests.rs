use uruk_proto::RpcError;

use super::*;

const POLICY: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(7),
    factor: 1.5,
    wait_max: Duration::from_millis(200),
    retry_after_max: Duration::from_secs(5),
};

fn attempts(effect: Effect) -> Attempts {
    Attempts::new(effect, Moment::default(), Duration::from_secs(10))
}

fn failed(attempts: &mut Attempts, failure: &Failure) -> Step {
    attempts.failed(failure, Moment::default(), 0.5, &POLICY)
}

fn failure(origin: Origin, code: ErrorCode) -> Failure {
    Failure { origin, ..Failure::answered(code, "m") }
}

#[test]
fn first_waits_are_short_and_no_wait_passes_the_cap() {
    for unit in [0.0, 0.5, 0.999] {
        let waits: Vec<Duration> = (0..40).map(|n| POLICY.wait(n, unit)).collect();
        assert!(waits[0] >= Duration::from_micros(4_800) && waits[0] <= Duration::from_micros(9_200), "{waits:?}");
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(waits[39] <= Duration::from_millis(260));
    }
    assert!(POLICY.wait(u32::MAX, 0.5) <= Duration::from_millis(200));
}

#[test]
fn every_code_has_the_outcome_of_the_table() {
    use ErrorCode::*;
    let table = [
        (InvalidArgument, false, Outcome::NotDone),
        (AlreadyExists, false, Outcome::NotDone),
        (FailedPrecondition, false, Outcome::NotDone),
        (Fenced, false, Outcome::NotDone),
        (NotFound, false, Outcome::NotDone),
        (NotLeader, true, Outcome::NotDone),
        (StaleLocation, true, Outcome::NotDone),
        (Unavailable, true, Outcome::NotDone),
        (Overloaded, true, Outcome::NotDone),
        (Unknown, true, Outcome::Unknown),
        (DeadlineExceeded, true, Outcome::Unknown),
        (Corrupt, false, Outcome::Unknown),
        (Internal, false, Outcome::Unknown),
    ];
    assert_eq!(table.len() as u32, (1..).take_while(|n| ErrorCode::from_u32(*n).is_some()).count() as u32);
    for (code, retried, outcome) in table {
        let mut call = attempts(Effect::Write);
        let failure = failure(Origin::Server, code);
        let step = failed(&mut call, &failure);
        assert_eq!(matches!(step, Step::Retry { .. }), retried, "{code:?}");
        assert_eq!(step == Step::Resolve, code == NotFound, "{code:?}");
        assert_eq!(call.error(failure).outcome(), outcome, "{code:?}");
    }
    for (origin, outcome) in
        [(Origin::Connect, Outcome::NotDone), (Origin::Transport, Outcome::Unknown), (Origin::Silent, Outcome::Unknown)]
    {
        let mut call = attempts(Effect::Write);
        let failure = failure(origin, Unknown);
        assert!(matches!(failed(&mut call, &failure), Step::Retry { .. }), "{origin:?}");
        assert_eq!(call.error(failure).outcome(), outcome, "{origin:?}");
    }
}

#[test]
fn a_refusal_after_an_unknown_attempt_leaves_it_unknown() {
    let broke = failure(Origin::Transport, ErrorCode::Unknown);
    for (effect, code, outcome) in [
        (Effect::Write, ErrorCode::FailedPrecondition, Outcome::Unknown),
        (Effect::Write, ErrorCode::Unavailable, Outcome::Unknown),
        (Effect::Write, ErrorCode::InvalidArgument, Outcome::NotDone),
        (Effect::Command, ErrorCode::AlreadyExists, Outcome::NotDone),
        (Effect::Command, ErrorCode::Unavailable, Outcome::Unknown),
        (Effect::Read, ErrorCode::FailedPrecondition, Outcome::NotDone),
        (Effect::Read, ErrorCode::Unavailable, Outcome::NotDone),
    ] {
        let mut call = attempts(effect);
        failed(&mut call, &broke);
        let refusal = failure(Origin::Server, code);
        failed(&mut call, &refusal);
        assert_eq!(call.error(refusal).outcome(), outcome, "{effect:?} {code:?}");
    }
}

#[test]
fn a_stale_location_is_looked_up_at_once_then_at_the_leader_then_with_waits() {
    let mut call = attempts(Effect::Read);
    let stale = failure(Origin::Server, ErrorCode::StaleLocation);
    assert_eq!(failed(&mut call, &stale), Step::Retry { after: Duration::ZERO, ask_leader: false });
    assert_eq!(failed(&mut call, &stale), Step::Retry { after: Duration::ZERO, ask_leader: true });
    let Step::Retry { after, ask_leader: true } = failed(&mut call, &stale) else { panic!("gives up") };
    assert!(after >= Duration::from_millis(5) && after <= Duration::from_millis(10), "{after:?}");
}

#[test]
fn a_servers_wish_is_honoured_up_to_its_cap() {
    let mut call = attempts(Effect::Write);
    let status = tonic::Status::from(RpcError::overloaded("disk full", 1_234));
    let overloaded = Failure::from(status);
    assert_eq!(overloaded.origin, Origin::Server);
    let Step::Retry { after, .. } = failed(&mut call, &overloaded) else { panic!("gives up") };
    assert_eq!(after, Duration::from_millis(1_234));
    let greedy = Failure { retry_after: Duration::from_secs(3_600), ..overloaded };
    let Step::Retry { after, .. } = failed(&mut call, &greedy) else { panic!("gives up") };
    assert_eq!(after, POLICY.retry_after_max);
}

#[test]
fn a_wait_beyond_the_deadline_ends_the_call() {
    let mut call = Attempts::new(Effect::Write, Moment::default(), Duration::from_millis(5));
    let overloaded = failure(Origin::Server, ErrorCode::Overloaded);
    assert_eq!(call.failed(&overloaded, Moment::from_start(Duration::from_millis(1)), 0.5, &POLICY), Step::Fail);
    let error = call.error(overloaded);
    assert_eq!((error.code(), error.outcome()), (ErrorCode::Overloaded, Outcome::NotDone));
}

#[test]
fn a_table_name_is_resolved_once() {
    let mut call = attempts(Effect::Read);
    let gone = failure(Origin::Server, ErrorCode::NotFound);
    assert_eq!(failed(&mut call, &gone), Step::Resolve);
    assert_eq!(failed(&mut call, &gone), Step::Fail);
}

#[test]
fn a_status_without_our_details_is_the_transports() {
    let reset = Failure::from(tonic::Status::unavailable("connection reset"));
    assert_eq!((reset.origin, reset.is_unknown(), reset.is_retriable()), (Origin::Transport, true, true));
    let large = Failure::from(tonic::Status::out_of_range("decoded message length too large"));
    assert_eq!((large.is_unknown(), large.is_retriable()), (true, false));
}
