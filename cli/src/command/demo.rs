//! `uruk demo`: the main job on real input, with a killed server in the middle.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use uruk_base::Env;
use uruk_client::{Client, FamilySpec, Mutation, RowMutation, RowRange, ScanOptions, Table};

use crate::cluster::{ClusterSpec, LocalCluster};
use crate::command::dev::data_folder;
use crate::command::drill::signal;
use crate::command::status::{
    RecoveryView, TabletView, fetch_recoveries, fetch_servers, fetch_tablets, print_timeline,
};
use crate::load::availability::{Availability, probe};
use crate::load::keyspace::Keyspace;
use crate::load::ledger::Audit;
use crate::load::sources::{self, SourceFile};
use crate::load::traffic::{QUALIFIER, Traffic, TrafficReport, TrafficSpec};
use crate::output::{human_bytes, human_count};
use crate::process::Durability;

const TABLE: &str = "sources";
const TABLETS: usize = 12;
/// Size of the values that the demo's own writers write, in bytes.
const VALUE_BYTES: usize = 1000;
/// Writers, readers and the long scan run this long before the kill, and after the last range is
/// served again.
const RUN_TIME: Duration = Duration::from_secs(3);
/// Ranges must be served again within this time.
const OUTAGE_LIMIT: Duration = Duration::from_secs(60);

/// Show what Uruk does: load real files, kill a tablet server, check every row.
#[derive(Args, Debug)]
pub struct Demo {
    /// End when done instead of staying up; exit code 1 if anything was lost
    #[arg(long)]
    exit: bool,
    /// Print the summary as one JSON object (implies that nothing else is printed)
    #[arg(long)]
    json: bool,
    /// Import the files of this folder instead of the Cargo registry's
    #[arg(long, value_name = "FOLDER")]
    input: Option<PathBuf>,
    /// Keep the data in this folder [default: a temporary one, removed at the end]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// What an acknowledged write has survived
    #[arg(long, value_enum, default_value_t)]
    durability: Durability,
}

struct Run {
    env: Env,
    cluster: LocalCluster,
    json: bool,
}

struct Summary {
    acknowledged: u64,
    lost: u64,
    unavailable: Duration,
    report: TrafficReport,
}

/// Runs the demo.
pub async fn run(options: Demo) -> Result<ExitCode> {
    let env = Env::real();
    let files = match &options.input {
        Some(folder) => sources::folder_files(folder)?,
        None => sources::registry_files(&sources::registry_folder()?)?,
    };
    let (dir, _temporary) = data_folder(options.dir.clone())?;
    let spec = ClusterSpec {
        dir,
        masters: 1,
        controllers: 1,
        tablet_servers: 3,
        chunk_servers: 3,
        port_base: 0,
        durability: options.durability,
        tabletserver_flags: vec![],
        master_flags: vec![],
        restart: true,
    };
    let mut run = Run { env: env.clone(), cluster: LocalCluster::start(&env, spec).await?, json: options.json };
    let outcome = tokio::select! {
        biased;
        _ = crate::runtime::end_signal() => Err(anyhow::anyhow!("interrupted")),
        outcome = run.show(&files) => outcome,
    };
    let summary = match outcome {
        Ok(summary) => summary,
        Err(error) => {
            run.cluster.stop().await;
            return Err(error);
        }
    };
    run.print_summary(&summary);
    if !options.exit {
        run.say(&format!("the cluster stays up: {}   (Ctrl-C ends it)", run.cluster.status_page()));
        crate::runtime::end_signal().await?;
    }
    run.cluster.stop().await;
    let wrong = summary.lost > 0 || summary.report.violations > 0;
    Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Run {
    fn say(&self, text: &str) {
        if !self.json {
            println!("{text}");
        }
    }

    async fn show(&mut self, files: &[SourceFile]) -> Result<Summary> {
        self.say(&format!(
            "cluster: 1 master, 3 tablet servers, 1 controller, 3 chunk servers; status page {}",
            self.cluster.status_page()
        ));
        let client = Client::connect(&self.env, &self.cluster.masters())?;
        let families = [FamilySpec::new("meta"), FamilySpec::new("contents")];
        let splits: Vec<Bytes> = sources::splits(files, TABLETS).into_iter().map(Bytes::from).collect();
        client.create_table(TABLE, &families, &splits).await.context("cannot create the table")?;
        let table = client.table(TABLE).await?;
        self.say(&format!("table {TABLE}: families meta, contents; {TABLETS} tablets"));

        let checksums = self.import(&table, files).await?;
        self.scan_prefixes(&table, files).await?;

        let rows = checksums.keys().cloned().collect();
        let spec = TrafficSpec {
            family: "contents",
            keyspace: Keyspace::Behind(rows),
            writers: 4,
            batch_rows: 50,
            value_bytes: VALUE_BYTES,
            readers: 2,
            pause: Duration::from_millis(20),
            scan: true,
        };
        let traffic = Traffic::start(&self.env, table.clone(), spec);
        self.say("writers, readers and a long scan run ...");
        self.env.clock.sleep(RUN_TIME).await;
        let (availability, recovery) = self.kill(&table).await?;
        self.env.clock.sleep(RUN_TIME).await;
        let report = traffic.stop().await;
        if !self.json {
            print_served(&availability);
            recovery.iter().for_each(print_timeline);
        }
        let lost = self.read_back(&table, &checksums, &report).await?;
        Ok(Summary {
            acknowledged: checksums.len() as u64 + report.ledger.acknowledged(),
            lost,
            unavailable: availability.unavailable(),
            report,
        })
    }

    /// Writes every file; returns the checksum of each row's contents.
    async fn import(&self, table: &Table, files: &[SourceFile]) -> Result<BTreeMap<String, u32>> {
        let total = files.iter().map(|file| file.bytes).sum();
        let bar = self.progress(total, "importing");
        let started = self.env.clock.now();
        let mut checksums = BTreeMap::new();
        let writer = table.batch_writer();
        for file in files {
            #[allow(clippy::disallowed_methods)] // input, not data of uruk
            let contents = std::fs::read(&file.path).with_context(|| format!("cannot read {}", file.path.display()))?;
            let crc = crc32fast::hash(&contents);
            checksums.insert(file.row.clone(), crc);
            bar.inc(contents.len() as u64);
            writer.add(source_row(&file.row, crc, contents)).await?;
        }
        writer.flush().await?;
        bar.finish_and_clear();
        let seconds = self.env.clock.since(started).as_secs_f64();
        self.say(&format!(
            "imported {} files, {} in {seconds:.1} s: {} rows/s, {:.1} MB/s",
            human_count(files.len() as u64),
            human_bytes(total),
            human_count((files.len() as f64 / seconds) as u64),
            total as f64 / seconds / 1e6
        ));
        Ok(checksums)
    }

    /// Scans the rows of some crates, then all rows.
    async fn scan_prefixes(&self, table: &Table, files: &[SourceFile]) -> Result<()> {
        let mut crates: Vec<&str> = files.iter().filter_map(|file| file.row.split('/').next()).collect();
        crates.dedup();
        let step = (crates.len() / 3).max(1);
        let mut ranges: Vec<(String, RowRange)> = Vec::new();
        for name in crates.iter().step_by(step).take(3) {
            ranges.push((format!("prefix {name}/"), RowRange::prefix(format!("{name}/").as_bytes())));
        }
        ranges.push(("whole table".to_owned(), RowRange::ALL));
        for (what, range) in ranges {
            let started = self.env.clock.now();
            let mut rows = table.scan(range, ScanOptions::default());
            let (mut count, mut bytes) = (0u64, 0u64);
            while let Some(row) = rows.next().await {
                count += 1;
                bytes += row?.cells().map(|cell| cell.value.len() as u64).sum::<u64>();
            }
            let seconds = self.env.clock.since(started).as_secs_f64();
            self.say(&format!(
                "scan of {what}: {} rows, {} in {:.0} ms: {} rows/s, {:.0} MB/s",
                human_count(count),
                human_bytes(bytes),
                seconds * 1e3,
                human_count((count as f64 / seconds) as u64),
                bytes as f64 / seconds / 1e6
            ));
        }
        Ok(())
    }

    /// Kills the tablet server with most tablets and measures until every range is served again.
    async fn kill(&self, table: &Table) -> Result<(Availability, Option<RecoveryView>)> {
        let masters = self.cluster.masters();
        let servers = fetch_servers(&self.env, &masters).await?;
        let live = servers.into_iter().filter(|server| server.state == "live");
        let victim = live.max_by_key(|server| server.tablets).context("no tablet server lives")?;
        let tablets: Vec<TabletView> = fetch_tablets(&self.env, &masters).await?;
        let tablets: Vec<&TabletView> = tablets.iter().filter(|tablet| tablet.table == TABLE).collect();
        let mine = tablets.iter().filter(|tablet| tablet.server_id == victim.server_id).count();
        self.say(&format!(
            "kill -9 {} (tablet server {}, {mine} of {} tablets, {} not yet flushed)",
            victim.pid,
            victim.server_id,
            tablets.len(),
            human_bytes(victim.unflushed_log_bytes)
        ));
        let keys = tablets.iter().map(|tablet| Bytes::from(format!("{}!probe", tablet.start))).collect();
        let killed = self.env.clock.now();
        signal(victim.pid, rustix::process::Signal::KILL)?;
        let availability = probe(&self.env, table, "meta", keys, killed, OUTAGE_LIMIT).await;
        if !availability.out.is_empty() {
            bail!("{} ranges are not served after {OUTAGE_LIMIT:?}", availability.out.len());
        }
        let recoveries = fetch_recoveries(&self.env, &masters).await?;
        Ok((availability, recoveries.into_iter().find(|recovery| recovery.server_id == victim.server_id)))
    }

    /// Reads every row and compares; returns how many acknowledged ones are lost.
    async fn read_back(&self, table: &Table, checksums: &BTreeMap<String, u32>, report: &TrafficReport) -> Result<u64> {
        let bar = self.progress(checksums.len() as u64 + report.ledger.acknowledged(), "reading back");
        let mut audit = Audit::new(&report.ledger, VALUE_BYTES);
        let mut good = 0u64;
        let mut rows = table.scan(RowRange::ALL, ScanOptions::default());
        while let Some(row) = rows.next().await {
            let row = row?;
            bar.inc(1);
            if let Some(value) = row.value("contents", QUALIFIER) {
                audit.see(row.key(), value);
                continue;
            }
            let wanted = std::str::from_utf8(row.key()).ok().and_then(|key| checksums.get(key));
            if let (Some(wanted), Some(contents)) = (wanted, row.value("contents", "data")) {
                good += u64::from(crc32fast::hash(contents) == *wanted);
            }
        }
        bar.finish_and_clear();
        Ok(checksums.len() as u64 - good + audit.lost())
    }

    fn progress(&self, total: u64, what: &'static str) -> ProgressBar {
        if self.json {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{msg:14} [{bar:40}] {percent:>3} %  {elapsed}")
            .expect("the template is valid")
            .progress_chars("=> ");
        ProgressBar::new(total).with_style(style).with_message(what)
    }

    fn print_summary(&self, summary: &Summary) {
        let unavailable_ms = summary.unavailable.as_millis() as u64;
        if self.json {
            println!(
                "{}",
                json!({
                    "acknowledged": summary.acknowledged, "lost": summary.lost, "unavailable_ms": unavailable_ms,
                    "wrong_answers": summary.report.violations, "reads": summary.report.reads,
                    "scans": summary.report.scans, "status_page": self.cluster.status_page(),
                })
            );
            return;
        }
        summary.report.violation_texts.iter().for_each(|text| println!("WRONG: {text}"));
        println!(
            "while it ran: {} single rows and {} whole scans checked",
            human_count(summary.report.reads),
            summary.report.scans
        );
        println!("acknowledged {}, lost {}, unavailable {unavailable_ms} ms", summary.acknowledged, summary.lost);
        println!("status page {}", self.cluster.status_page());
    }
}

fn source_row(row: &str, crc: u32, contents: Vec<u8>) -> RowMutation {
    let lines = contents.iter().filter(|byte| **byte == b'\n').count();
    let text = |number: u64| Bytes::from(number.to_string());
    let mutations = vec![
        Mutation::set("meta", "size", text(contents.len() as u64)),
        Mutation::set("meta", "lines", text(lines as u64)),
        Mutation::set("meta", "crc", Bytes::from(format!("{crc:08x}"))),
        Mutation::set("contents", "data", Bytes::from(contents)),
    ];
    RowMutation::new(row.to_owned(), mutations)
}

fn print_served(availability: &Availability) {
    println!(
        "first key range read and written again after {} ms, every one after {} ms",
        availability.first_served().as_millis(),
        availability.unavailable().as_millis()
    );
}
