//! Measures one tablet's engine in process: `uruk bench engine` without the rest of the binary.
//!
//! `cargo run --release -p uruk-tabletserver --example engine_bench -- --workload fillseq,readseq`;
//! flags as there: `--keys --value-bytes --threads --sync-operations --block-bytes --cache-bytes
//! --memtable-bytes --folder --json`.

use uruk_base::Env;
use uruk_tabletserver::engine::bench::{self, BenchOptions, Measurement, Workload};

/// As in the `uruk` binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn parse() -> (BenchOptions, bool) {
    let mut options = BenchOptions { workloads: Workload::ALL.to_vec(), ..BenchOptions::default() };
    options.folder = options.folder.with_extension(std::process::id().to_string());
    let mut json = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        if flag == "--json" {
            json = true;
            continue;
        }
        let value = arguments.next().unwrap_or_else(|| panic!("{flag} needs a value"));
        let number = || value.parse::<u64>().unwrap_or_else(|_| panic!("{flag} needs a number"));
        match flag.as_str() {
            "--workload" => {
                let workload = |name: &str| Workload::parse(name).unwrap_or_else(|| panic!("no workload {name}"));
                options.workloads = value.split(',').map(workload).collect();
            }
            "--keys" => options.keys = number(),
            "--value-bytes" => options.value_bytes = number() as usize,
            "--threads" => options.threads = number() as usize,
            "--sync-operations" => options.sync_operations = number(),
            "--block-bytes" => options.engine.block_bytes = number() as usize,
            "--cache-bytes" => options.engine.block_cache_bytes = number(),
            "--memtable-bytes" => options.memtable_bytes = number(),
            "--folder" => options.folder = value.into(),
            other => panic!("no flag {other}"),
        }
    }
    (options, json)
}

fn main() {
    let (options, json) = parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let env = Env::real();
    let mut report = |done: &Measurement| match json {
        true => println!("{}", done.to_json()),
        false => println!("{done}"),
    };
    let run = bench::run(&env, &options, &mut report);
    runtime.expect("a runtime").block_on(run).expect("the bench runs");
}
