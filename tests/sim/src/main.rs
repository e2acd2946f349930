//! A whole cluster in one process, from one seed, on the production code.
//!
//! Controller, chunk servers, master, tablet servers and a client run as turmoil hosts: real HTTP/2
//! over simulated TCP, simulated disks, simulated clocks. The same seed gives the same trace, byte
//! for byte; `tests/identical_trace.rs` demands it. One seed per process, since clocks and randomness
//! are overridden for the whole process.

mod check;
mod cluster;
mod history;
mod host;
mod scenario;
mod trace;
mod workload;

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use clap::Parser;
use rand::SeedableRng;

/// Simulated wall time starts here: 2024-01-01, in seconds since the epoch.
const EPOCH_SECONDS: u64 = 1_704_067_200;

/// Simulate a whole cluster from one seed.
#[derive(Parser, Debug)]
#[command(name = "uruk-sim", version)]
struct Options {
    /// The seed that decides everything
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print every event of the trace
    #[arg(long)]
    trace: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// At most this many simulated seconds
    #[arg(long, default_value_t = 120)]
    seconds: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !options.json {
        println!("seed {}", options.seed);
    }
    mad_turmoil::rand::set_rng(rand::rngs::StdRng::seed_from_u64(options.seed));
    fastrand::seed(options.seed);
    let _clocks = mad_turmoil::time::SimClocksGuard::init();
    let trace = trace::record(options.trace);

    let mut builder = turmoil::Builder::new();
    builder
        .rng_seed(options.seed)
        .epoch(UNIX_EPOCH + Duration::from_secs(EPOCH_SECONDS))
        .simulation_duration(Duration::from_secs(options.seconds))
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_micros(200))
        .max_message_latency(Duration::from_millis(3))
        .tcp_capacity(1 << 16);
    let mut sim = builder.build();
    let outcome = scenario::put_scan_kill_scan(&mut sim, options.seed);
    let simulated = sim.elapsed();
    let summary = trace.summary();
    match &outcome {
        Ok(report) if options.json => println!(
            "{}",
            serde_json::json!({
                "seed": options.seed, "ok": true, "rows": report.rows, "scans": report.scans,
                "simulated_ms": simulated.as_millis() as u64, "events": summary.events, "trace": summary.hash,
            })
        ),
        Ok(report) => println!(
            "ok: {} rows, {} scans, {:.1} simulated seconds; trace {} ({} events)",
            report.rows,
            report.scans,
            simulated.as_secs_f64(),
            summary.hash,
            summary.events
        ),
        Err(error) => {
            println!("VIOLATION with seed {}: {error:#}", options.seed);
            println!("the last events:");
            trace.last_events().iter().for_each(|event| println!("  {event}"));
            println!("replay: cargo run --release -p uruk-sim -- --seed {} --trace", options.seed);
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
