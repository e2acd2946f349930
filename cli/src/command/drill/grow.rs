//! Loads a table that starts as one tablet, and watches it split and spread; deletes most of it, and watches
//! it merge back.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures::StreamExt;
use serde::Serialize;
use serde_json::json;
use uruk_base::Env;
use uruk_client::{
    BalanceMode, Client, FamilySpec, Filter, Mutation, Order, RowMutation, RowRange, ScanOptions, Table, TableSpec,
};

use super::stage::{FAMILY, TABLE};
use crate::cluster::{ClusterSpec, LocalCluster};
use crate::command::dev::data_folder;
use crate::command::status::{TabletView, fetch_tablets};
use crate::load::keyspace::Keyspace;
use crate::load::ledger::{Audit, Ledger};
use crate::load::record::WriteId;
use crate::load::traffic::{QUALIFIER, Traffic, TrafficReport, TrafficSpec};
use crate::output::{human_bytes, human_count, print_table};
use crate::process::Durability;

const SERVERS: usize = 3;
/// Between two looks at the cluster.
const SAMPLE: Duration = Duration::from_secs(2);
/// A load that is this much above the mean on no server is balanced.
const BALANCED: f64 = 1.25;
/// Pause of each writer between batches once enough is loaded: some load to balance, but little more data.
const SETTLE_PAUSE: Duration = Duration::from_millis(250);
/// What takes hours by default takes minutes here: merges of cold tablets, moves one after the other.
const QUICK: [&str; 3] = ["--tune=merge_age_ms=20000", "--tune=balance_every_ms=2000", "--tune=move_rest_ms=10000"];
/// So do memtables that wait for a flush: until then nobody but readers knows what they delete.
const QUICK_SERVERS: [&str; 1] = ["--tune=memtable_idle_ms=5000"];
/// Rows of one batch.
const BATCH_ROWS: usize = 100;
/// While the load runs, a look that finds no progress this often in a row ends the drill.
const STALLS_MAX: u32 = 60;

/// Load a table that starts as one tablet; show how it splits, spreads, and merges back once most is deleted.
#[derive(Args, Debug)]
pub struct Options {
    /// GiB of values to load
    #[arg(long, default_value_t = 5.0)]
    gib: f64,
    /// Tablets of the drill's table split above this: small, so that the drill ends in minutes
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=4096))]
    split_mib: u64,
    /// Share of the rows that is deleted in the end, in percent
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u8).range(0..=100))]
    delete_percent: u8,
    /// Wait so many seconds at most for balance, and again for merges
    #[arg(long, default_value_t = 240)]
    patience_s: u64,
    /// Concurrent writers
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    writers: u16,
    /// Size of each value in bytes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    value_bytes: u32,
    /// What an acknowledged write has survived
    #[arg(long, value_enum, default_value_t)]
    durability: Durability,
    /// More flags for each tablet server, as one string
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    tabletserver_flags: Option<String>,
    /// More flags for each master, as one string
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    master_flags: Option<String>,
    /// Keep the cluster's data and logs in this folder [default: a temporary one]
    #[arg(long)]
    dir: Option<std::path::PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The cluster at one moment.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    seconds: f64,
    rows_per_s: f64,
    tablets: usize,
    servers_in_use: usize,
    /// The fullest server's share of the bytes over the mean.
    max_over_mean_bytes: f64,
    /// The busiest server's load over the mean, as the balancer sees it; null when it does not tell.
    max_over_mean_load: Option<f64>,
}

struct Grow {
    env: Env,
    options: Options,
    masters: Vec<String>,
    client: Client,
    table: Table,
    samples: Vec<Sample>,
}

/// What came of it.
struct Outcome {
    traffic: TrafficReport,
    /// Acknowledged when enough was loaded, and how long that took.
    loaded: (u64, f64),
    balanced: Sample,
    lost: u64,
    undead: u64,
    tablets_before: usize,
    tablets_after: usize,
    merge_seconds: f64,
}

/// Runs the drill; exit code 1 if anything was lost.
pub async fn run(options: Options) -> Result<ExitCode> {
    let env = Env::real();
    let (dir, _temporary) = data_folder(options.dir.clone())?;
    let flags = |text: &Option<String>| {
        text.as_deref().unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let owned = |flags: &'static [&'static str]| flags.iter().map(|flag| (*flag).to_owned());
    let spec = ClusterSpec {
        dir,
        masters: 1,
        controllers: 1,
        tablet_servers: SERVERS,
        chunk_servers: 3,
        port_base: 0,
        durability: options.durability,
        tabletserver_flags: owned(&QUICK_SERVERS).chain(flags(&options.tabletserver_flags)).collect(),
        master_flags: owned(&QUICK).chain(flags(&options.master_flags)).collect(),
        restart: true,
    };
    let mut cluster = LocalCluster::start(&env, spec).await?;
    if !options.json {
        println!("status page {}", cluster.status_page());
    }
    let outcome = drill(&env, cluster.masters(), options).await;
    cluster.stop().await;
    outcome
}

async fn drill(env: &Env, masters: Vec<String>, options: Options) -> Result<ExitCode> {
    let client = Client::connect(env, &masters)?;
    let spec = TableSpec {
        name: TABLE.to_owned(),
        families: vec![FamilySpec::new(FAMILY)],
        split_bytes: options.split_mib << 20,
        ..TableSpec::default()
    };
    client.create_table_with(&spec).await.context("cannot create the drill's table")?;
    let table = client.table(TABLE).await?;
    let mut grow = Grow { env: env.clone(), options, masters, client, table, samples: Vec::new() };
    let outcome = grow.run().await?;
    grow.report(&outcome);
    let is_good = outcome.lost == 0 && outcome.undead == 0 && outcome.traffic.violations == 0;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Grow {
    async fn run(&mut self) -> Result<Outcome> {
        let traffic = Traffic::start(
            &self.env,
            self.table.clone(),
            TrafficSpec {
                family: FAMILY,
                keyspace: Keyspace::Hashed,
                writers: u32::from(self.options.writers),
                batch_rows: BATCH_ROWS,
                value_bytes: self.options.value_bytes as usize,
                readers: 1,
                pause: Duration::ZERO,
                scan: false,
            },
        );
        let loaded = self.load(&traffic).await;
        traffic.set_pause(SETTLE_PAUSE);
        let balanced = match &loaded {
            Ok((_, seconds)) => self.settle(&traffic, *seconds).await,
            Err(_) => self.sample(0.0).await,
        };
        let report = traffic.stop().await;
        let (loaded, balanced) = (loaded?, balanced?);
        self.say("reading every acknowledged row back ...");
        let (mut lost, mut undead) = self.audit(&report.ledger, 100).await?;
        let kept_percent = 100 - self.options.delete_percent;
        let tablets_before = self.tablets().await?.len();
        let deleted = self.delete(&report.ledger, kept_percent).await?;
        self.say(&format!("deleted {} rows; waiting for merges ...", human_count(deleted)));
        let begun = self.env.clock.now();
        // The rest in half as many tablets shows that they merge; how far they go is the master's policy.
        let wanted = (tablets_before / 2).max(1);
        let merged = self.wait("merges", |sample| sample.tablets <= wanted).await?;
        let merge_seconds = self.env.clock.since(begun).as_secs_f64();
        self.say("reading what is left ...");
        let after = self.audit(&report.ledger, kept_percent).await?;
        (lost, undead) = (lost.max(after.0), undead.max(after.1));
        let tablets_after = merged.tablets;
        Ok(Outcome { traffic: report, loaded, balanced, lost, undead, tablets_before, tablets_after, merge_seconds })
    }

    /// Lets the writers run until enough is acknowledged; returns how many rows that are, and how many seconds
    /// it took.
    async fn load(&mut self, traffic: &Traffic) -> Result<(u64, f64)> {
        let wanted = (self.options.gib * (1u64 << 30) as f64 / f64::from(self.options.value_bytes)) as u64;
        let begun = self.env.clock.now();
        let (mut before, mut seconds_before, mut stalls) = (0, 0.0, 0);
        loop {
            self.env.clock.sleep(SAMPLE).await;
            let (rows, seconds) = (traffic.acknowledged(), self.env.clock.since(begun).as_secs_f64());
            let mut sample = self.sample((rows - before) as f64 / (seconds - seconds_before)).await?;
            sample.seconds = seconds;
            self.tell(rows, &sample);
            self.samples.push(sample);
            stalls = if rows == before { stalls + 1 } else { 0 };
            if stalls > STALLS_MAX {
                bail!("no row is acknowledged any more, after {} of {}", human_count(rows), human_count(wanted));
            }
            (before, seconds_before) = (rows, seconds);
            if rows >= wanted {
                return Ok((rows, seconds));
            }
        }
    }

    /// Waits for balance, under a little load.
    async fn settle(&mut self, traffic: &Traffic, load_seconds: f64) -> Result<Sample> {
        let begun = self.env.clock.now();
        let mut sample = self.wait("balance", |sample| sample.max_over_mean() <= BALANCED).await?;
        sample.seconds = load_seconds + self.env.clock.since(begun).as_secs_f64();
        self.tell(traffic.acknowledged(), &sample);
        self.samples.push(sample.clone());
        Ok(sample)
    }

    /// Waits until the cluster is as wanted, or as long as patience lasts; returns how it is then.
    async fn wait(&self, what: &str, is_good: impl Fn(&Sample) -> bool) -> Result<Sample> {
        let begun = self.env.clock.now();
        loop {
            let sample = self.sample(0.0).await?;
            if is_good(&sample) {
                return Ok(sample);
            }
            if self.env.clock.since(begun).as_secs() >= self.options.patience_s {
                self.say(&format!("waited {} s for {what} in vain", self.options.patience_s));
                return Ok(sample);
            }
            self.env.clock.sleep(SAMPLE).await;
        }
    }

    async fn sample(&self, rows_per_s: f64) -> Result<Sample> {
        let tablets = self.tablets().await?;
        let mut bytes: std::collections::BTreeMap<u64, u64> = std::collections::BTreeMap::new();
        for tablet in tablets.iter().filter(|tablet| tablet.server_id != 0) {
            *bytes.entry(tablet.server_id).or_default() += tablet.file_bytes + tablet.memtable_bytes;
        }
        let (most, sum) = (bytes.values().max().copied().unwrap_or(0), bytes.values().sum::<u64>());
        let plan = self.client.balance(BalanceMode::DryRun).await.ok();
        let load = plan.and_then(|plan| plan.servers.iter().map(|server| server.load).reduce(f64::max));
        Ok(Sample {
            seconds: 0.0,
            rows_per_s: rows_per_s.round(),
            tablets: tablets.len(),
            servers_in_use: bytes.len(),
            max_over_mean_bytes: if sum == 0 { 1.0 } else { most as f64 * SERVERS as f64 / sum as f64 },
            max_over_mean_load: load.filter(|load| load.is_finite()),
        })
    }

    async fn tablets(&self) -> Result<Vec<TabletView>> {
        let tablets = fetch_tablets(&self.env, &self.masters).await?;
        Ok(tablets.into_iter().filter(|tablet| tablet.table == TABLE).collect())
    }

    /// Reads every row; returns how many acknowledged ones of the first `kept_percent` of the keys are lost, and
    /// how many of the others are still there.
    async fn audit(&self, ledger: &Ledger, kept_percent: u8) -> Result<(u64, u64)> {
        let mut audit = Audit::new(ledger, self.options.value_bytes as usize);
        let options = ScanOptions {
            filter: Filter::all().cells_per_column(1),
            order: Order::Any,
            parallel: SERVERS,
            ..ScanOptions::default()
        };
        let mut rows = self.table.scan(RowRange::ALL, options);
        let mut undead = 0;
        while let Some(row) = rows.next().await {
            let row = row.context("the read of every acknowledged row")?;
            let is_kept = WriteId::parse(row.key()).is_none_or(|id| is_kept(id, kept_percent));
            match row.value(FAMILY, QUALIFIER) {
                Some(value) if is_kept => audit.see(row.key(), value),
                Some(_) => undead += 1,
                None => {}
            }
        }
        let missing = audit.missing().into_iter().filter(|id| is_kept(*id, kept_percent)).count();
        Ok(((missing + audit.damaged.len()) as u64 + audit.doubled, undead))
    }

    async fn delete(&self, ledger: &Ledger, kept_percent: u8) -> Result<u64> {
        let writer = self.table.batch_writer();
        let mut deleted = 0;
        for (number, of) in &ledger.writers {
            for n in 0..of.settled {
                let id = WriteId { writer: *number, n };
                if !is_kept(id, kept_percent) {
                    writer.add(RowMutation::new(Keyspace::Hashed.key(id), vec![Mutation::delete_row()])).await?;
                    deleted += 1;
                }
            }
        }
        writer.flush().await.context("cannot delete the rows")?;
        Ok(deleted)
    }

    fn say(&self, text: &str) {
        if !self.options.json {
            println!("{text}");
        }
    }

    fn tell(&self, rows: u64, sample: &Sample) {
        self.say(&format!(
            "{:>6.1} s  {:>10} rows  {:>9}  {:>8} rows/s  {:>3} tablets on {} servers, max/mean bytes {:.2}, load {}",
            sample.seconds,
            human_count(rows),
            human_bytes(rows * u64::from(self.options.value_bytes)),
            human_count(sample.rows_per_s as u64),
            sample.tablets,
            sample.servers_in_use,
            sample.max_over_mean_bytes,
            sample.max_over_mean_load.map_or("-".to_owned(), |load| format!("{load:.2}")),
        ));
    }

    fn report(&self, outcome: &Outcome) {
        let acknowledged = outcome.traffic.ledger.acknowledged();
        let (rows, seconds) = outcome.loaded;
        let rows_per_s = rows as f64 / seconds;
        let options = &self.options;
        let tablets_max = self.samples.iter().map(|sample| sample.tablets).max().unwrap_or(0);
        if options.json {
            println!(
                "{}",
                json!({
                    "gib": options.gib, "acknowledged": acknowledged, "lost": outcome.lost, "undead": outcome.undead,
                    "wrong_answers": outcome.traffic.violations,
                    "failed_requests": outcome.traffic.failed_requests,
                    "load_seconds": seconds, "rows_loaded": rows, "rows_per_s": rows_per_s.round(),
                    "mb_per_s": rows_per_s * f64::from(options.value_bytes) / 1e6,
                    "tablets_max": tablets_max, "balanced": outcome.balanced,
                    "merge": {
                        "tablets_before": outcome.tablets_before, "tablets_after": outcome.tablets_after,
                        "seconds": outcome.merge_seconds, "deleted_percent": options.delete_percent,
                    },
                    "samples": self.samples, "split_mib": options.split_mib, "durability": options.durability,
                    "replicas": 3, "value_bytes": options.value_bytes, "writers": options.writers,
                })
            );
            return;
        }
        println!();
        let row = |what: &str, value: String| vec![what.to_owned(), value];
        print_table(
            &["WHAT", "VALUE"],
            [
                row("acknowledged rows", human_count(acknowledged)),
                row("lost", outcome.lost.to_string()),
                row("deleted but there", outcome.undead.to_string()),
                row("rows/s", human_count(rows_per_s as u64)),
                row("most tablets", tablets_max.to_string()),
                row("max/mean at the end of the load", format!("{:.2}", outcome.balanced.max_over_mean())),
                row(
                    "tablets after deleting",
                    format!(
                        "{} of {} after {:.0} s",
                        outcome.tablets_after, outcome.tablets_before, outcome.merge_seconds
                    ),
                ),
            ],
        );
    }
}

impl Sample {
    /// As the balancer sees it, if it tells; else by bytes.
    fn max_over_mean(&self) -> f64 {
        self.max_over_mean_load.unwrap_or(self.max_over_mean_bytes)
    }
}

/// Whether the row lies in the first `percent` of the hashed keys.
fn is_kept(id: WriteId, percent: u8) -> bool {
    (id.hash() >> 48) * 100 < 0x1_0000 * u64::from(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kept_share_is_what_was_asked_for() {
        let kept = |percent| (0..10_000).filter(|n| is_kept(WriteId { writer: 2, n: *n }, percent)).count();
        assert_eq!((kept(0), kept(100)), (0, 10_000));
        assert!((800..1_200).contains(&kept(10)), "{}", kept(10));
    }
}
