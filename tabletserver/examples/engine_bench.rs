//! Measures one tablet's engine in process: `uruk bench engine` without the rest of the binary.
//!
//! `cargo run --release -p uruk-tabletserver --example engine_bench -- fillseq,readseq [KEYS] [THREADS] [BLOCK_BYTES]`

use uruk_base::Env;
use uruk_tabletserver::engine::bench::{self, BenchOptions, Workload};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let names = arguments.next().unwrap_or_else(|| "fillseq,readseq".to_owned());
    let parse = |name: &str| Workload::parse(name).unwrap_or_else(|| panic!("no workload {name}"));
    let workloads = names.split(',').map(parse).collect();
    let mut number = |default: u64| arguments.next().and_then(|word| word.parse().ok()).unwrap_or(default);
    let mut options = BenchOptions { workloads, ..BenchOptions::default() };
    options.keys = number(options.keys);
    options.threads = number(1) as usize;
    options.engine.block_bytes = number(options.engine.block_bytes as u64) as usize;
    options.folder = options.folder.with_extension(std::process::id().to_string());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let env = Env::real();
    let mut report = |done: &bench::Measurement| {
        println!(
            "{:<12} {:>10.0}/s  p50 {:>8.2} p99 {:>8.2} p999 {:>8.2} us  found {} of {}  {:.0} stored, {:.0} log bytes a cell  {} files, wrote {:.1}x, cache {:.2}",
            done.workload.name(),
            done.ops_per_s,
            done.p50_us,
            done.p99_us,
            done.p999_us,
            done.found,
            done.operations,
            done.stored_bytes_per_cell,
            done.log_bytes_per_write,
            done.files,
            done.write_amplification,
            done.cache_hit_ratio
        );
    };
    let run = bench::run(&env, &options, &mut report);
    runtime.expect("a runtime").block_on(run).expect("the bench runs");
}
