//! `uruk bench master`: the master alone, with synthetic tablet servers in this process.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::process::Command;
use uruk_base::Env;
use uruk_master::bench::{self, Figures, MasterBench};

use crate::command::dev::data_folder;
use crate::output::print_table;
use crate::runtime;

/// Tablets of a server, unless the number of servers is given.
const TABLETS_PER_SERVER: u64 = 1_000;
/// What is printed.
const FIGURES: &str = "\
Figures:
  memory              resident, of the process; at rest, and at most at any time
  locate              of one tablet, at random keys: calls of the service, and over loopback
  CPU at rest         with nothing but renewals, each with a report of all tablets of its server
  look of the planner as the driver takes it after each command, with nothing to do
  balancing decision  what to split, merge and move; one server in ten is four times as busy
  renewal beside it   the slowest while decisions are made
  reassigned          from the report of a death until all tablets of the server are open again
  snapshot            of the whole state; commands wait until it is captured, not for the rest
  restart             from its start until it leads, and until a tablet is ordered to be opened";
/// The sweep starts with so many tablets, and goes on with ten times as many each.
const SWEEP_FROM: u64 = 1_000;

/// Measure the master alone: memory, look-ups, decisions, reassignment, restart
///
/// The production master on a real folder; tablet servers are synthetic, speak to it over loopback (127.1.0.0 and on:
/// Linux), and open at once what they are told. Everything is put into it through its Raft log. Memory and CPU are of
/// the whole process, synthetic servers included. A million tablets take some 10 minutes, 3 GiB of memory and 2 GiB
/// of disk.
#[derive(Args, Debug)]
#[command(after_long_help = FIGURES)]
pub struct MasterAlone {
    /// Tablets in all
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    tablets: u64,
    /// Tablet servers [default: one for each thousand tablets, at least 3]
    #[arg(long, value_parser = clap::value_parser!(u32).range(3..=60_000))]
    servers: Option<u32>,
    /// Files that each tablet names
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=90))]
    files: u32,
    /// Tablets of one table
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    table_tablets: u64,
    /// Lease of the tablet servers, in milliseconds; on a machine that does other things, a long one
    #[arg(long, default_value_t = 3_000)]
    lease_ms: u32,
    /// How long look-ups are made, in seconds
    #[arg(long, default_value_t = 3)]
    locate_seconds: u64,
    /// Measure 1,000 tablets, ten times as many, and so on up to --tablets, each in a process of its own
    #[arg(long, conflicts_with = "folder")]
    sweep: bool,
    /// Where the master puts its data; must be empty or not exist [default: in the temporary folder]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub async fn run(env: &Env, options: MasterAlone) -> Result<()> {
    let measuring = async {
        match options.sweep {
            true => sweep(&options).await,
            false => Ok(vec![alone(env, &options).await?]),
        }
    };
    let figures = tokio::select! {
        biased;
        // Dropped here, the master's folder goes with what it was made by.
        how = runtime::end_signal() => bail!("{}", how?),
        figures = measuring => figures?,
    };
    if !options.json {
        print(&figures);
    }
    Ok(())
}

async fn alone(env: &Env, options: &MasterAlone) -> Result<Figures> {
    let (folder, _temporary) = data_folder(options.folder.clone())?;
    let servers = (options.tablets / TABLETS_PER_SERVER).clamp(3, 60_000) as u32;
    let bench = MasterBench {
        folder,
        tablets: options.tablets,
        servers: options.servers.unwrap_or(servers),
        files: options.files,
        table_tablets: options.table_tablets,
        lease_ms: options.lease_ms,
        locate_for: Duration::from_secs(options.locate_seconds),
    };
    let began = env.clock.now();
    let progress = |what: &str| eprintln!("{:7.1} s  {what}", env.clock.since(began).as_secs_f64());
    let figures = bench::run(env, &bench, &progress).await.context("the bench failed")?;
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    }
    Ok(figures)
}

/// Each size in a process of its own, since memory that was freed is not all given back.
async fn sweep(options: &MasterAlone) -> Result<Vec<Figures>> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut figures = Vec::new();
    let sizes = std::iter::successors(Some(SWEEP_FROM), |size| Some(size * 10));
    for tablets in sizes.take_while(|size| *size <= options.tablets) {
        eprintln!("{tablets} tablets:");
        let mut command = Command::new(&program);
        command.args(["bench", "master", "--json", "--tablets", &tablets.to_string()]);
        command.args(["--files", &options.files.to_string(), "--lease-ms", &options.lease_ms.to_string()]);
        command.args(["--table-tablets", &options.table_tablets.to_string()]);
        command.args(["--locate-seconds", &options.locate_seconds.to_string()]);
        if let Some(servers) = options.servers {
            command.args(["--servers", &servers.to_string()]);
        }
        // Not `output()`, which would keep what the measurement tells of itself.
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let output = command.spawn().context("cannot start this program")?.wait_with_output().await?;
        if !output.status.success() {
            bail!("{tablets} tablets: {}", output.status);
        }
        let line = String::from_utf8(output.stdout).context("the figures are not text")?;
        if options.json {
            print!("{line}");
        }
        figures.push(serde_json::from_str(&line).context("cannot read the figures")?);
    }
    Ok(figures)
}

/// A row for each figure, a column for each size.
fn print(figures: &[Figures]) {
    type Tell = fn(&Figures) -> String;
    let rows: [(&str, Tell); 21] = [
        ("tablet servers", |f| f.servers.to_string()),
        ("files per tablet", |f| f.files.to_string()),
        ("all opened, s", |f| format!("{:.1}", f.open_ms as f64 / 1e3)),
        ("all files committed, s", |f| format!("{:.1}", f.files_ms as f64 / 1e3)),
        ("memory at rest, MiB", |f| (f.steady_bytes >> 20).to_string()),
        ("memory at most, MiB", |f| (f.peak_bytes >> 20).to_string()),
        ("locate from memory, /s", |f| format!("{:.0}", f.locate_per_s)),
        ("locate over loopback, /s", |f| format!("{:.0}", f.locate_rpc_per_s)),
        ("CPU at rest, cores", |f| format!("{:.3}", f.idle_cpu_permille as f64 / 1e3)),
        ("renewal p50/p99/max, ms", |f| {
            let ms = |us: u64| us as f64 / 1e3;
            format!("{:.1}/{:.1}/{:.1}", ms(f.renewal_p50_us), ms(f.renewal_p99_us), ms(f.renewal_max_us))
        }),
        ("look of the planner, ms", |f| format!("{:.3}", f.plan_us as f64 / 1e3)),
        ("balancing decision, ms", |f| format!("{:.1}", f.decide_ms)),
        ("moves in it", |f| f.moves.to_string()),
        ("renewal beside it, max, ms", |f| format!("{:.1}", f.decide_renewal_max_us as f64 / 1e3)),
        ("tablets reassigned", |f| f.reassigned.to_string()),
        ("reassigned, median/max, ms", |f| format!("{:.0}/{:.0}", f.reassign_ms, f.reassign_max_ms)),
        ("snapshot, MiB", |f| format!("{:.1}", f.snapshot_bytes as f64 / f64::from(1 << 20))),
        ("commands wait for it, ms", |f| format!("{:.1}", f.capture_ms)),
        ("snapshot, ms", |f| format!("{:.0}", f.snapshot_ms)),
        ("restart to leading, ms", |f| format!("{:.0}", f.restart_lead_ms)),
        ("restart to first assignment, ms", |f| format!("{:.0}", f.restart_assign_ms)),
    ];
    let sizes = figures.iter().map(|figures| figures.tablets.to_string());
    let header: Vec<String> = std::iter::once("tablets".to_owned()).chain(sizes).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let row = |(name, tell): &(&str, Tell)| {
        let cells = figures.iter().map(tell);
        std::iter::once((*name).to_owned()).chain(cells).collect::<Vec<String>>()
    };
    print_table(&header, rows.iter().map(row));
}
