//! The stage of every drill: a cluster, a table, traffic that checks itself, and the final audit.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::StreamExt;
use uruk_base::Env;
use uruk_client::{Client, FamilySpec, RowRange, ScanOptions, Table};

use super::Common;
use crate::cluster::{ClusterSpec, LocalCluster};
use crate::command::dev::data_folder;
use crate::command::status::{ServerView, TabletView, fetch_servers, fetch_tablets};
use crate::load::keyspace::{Keyspace, hashed_splits};
use crate::load::ledger::Audit;
use crate::load::traffic::{QUALIFIER, Traffic, TrafficReport, TrafficSpec};
use crate::output::human_count;

/// The drill's table.
pub const TABLE: &str = "drill";
/// The family that the load uses.
pub const FAMILY: &str = "f";
/// The cluster must be whole again within this time after each blow.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// The master neither splits nor merges nor moves by itself: what a drill measures is its own doing.
const SHAPE_STAYS: [&str; 3] = ["--tune=auto_split=false", "--tune=auto_merge=false", "--tune=auto_balance=false"];
/// Pause of writers, readers and scan between calls while a blow is measured: with 4 writers some
/// thousand rows a second, so that the drill measures failover, not a full machine.
pub const QUIET_PAUSE: Duration = Duration::from_millis(40);

/// A running drill.
pub struct Stage {
    pub env: Env,
    pub cluster: LocalCluster,
    pub table: Table,
    pub traffic: Traffic,
    pub json: bool,
    value_bytes: usize,
    _temporary: Option<tempfile::TempDir>,
}

/// What a drill found, for the verdict.
pub struct Verdict {
    pub acknowledged: u64,
    pub lost: u64,
    pub traffic: TrafficReport,
}

impl Stage {
    /// Starts cluster, table and traffic. The tablets stay as they are but for what the drill does to them.
    pub async fn set(common: &Common, tabletserver_flags: Vec<String>) -> Result<Stage> {
        let env = Env::real();
        let (dir, temporary) = data_folder(common.dir.clone())?;
        let spec = ClusterSpec {
            dir,
            masters: usize::from(common.masters),
            controllers: usize::from(common.controllers),
            tablet_servers: 3,
            chunk_servers: 3,
            port_base: 0,
            durability: common.durability,
            tabletserver_flags,
            master_flags: SHAPE_STAYS.map(str::to_owned).to_vec(),
            restart: true,
        };
        let mut cluster = LocalCluster::start(&env, spec).await?;
        let table = match make_table(&env, &cluster, usize::from(common.tablets)).await {
            Ok(table) => table,
            Err(error) => {
                cluster.stop().await;
                return Err(error);
            }
        };
        let value_bytes = common.value_bytes as usize;
        let traffic = TrafficSpec {
            family: FAMILY,
            keyspace: Keyspace::Hashed,
            writers: u32::from(common.writers),
            batch_rows: 50,
            value_bytes,
            readers: u32::from(common.readers),
            pause: QUIET_PAUSE,
            scan: true,
        };
        let traffic = Traffic::start(&env, table.clone(), traffic);
        Ok(Stage { env, cluster, table, traffic, json: common.json, value_bytes, _temporary: temporary })
    }

    /// Says something to a person; nothing in JSON mode.
    pub fn say(&self, text: &str) {
        if !self.json {
            println!("{text}");
        }
    }

    /// The live tablet servers.
    pub async fn servers(&self) -> Result<Vec<ServerView>> {
        let servers = fetch_servers(&self.env, &self.cluster.masters()).await?;
        Ok(servers.into_iter().filter(|server| server.state == "live").collect())
    }

    /// How many incarnations of tablet servers have died.
    pub async fn dead_servers(&self) -> Result<usize> {
        let servers = fetch_servers(&self.env, &self.cluster.masters()).await?;
        Ok(servers.iter().filter(|server| server.state == "dead").count())
    }

    /// The drill's tablets.
    pub async fn tablets(&self) -> Result<Vec<TabletView>> {
        let tablets = fetch_tablets(&self.env, &self.cluster.masters()).await?;
        Ok(tablets.into_iter().filter(|tablet| tablet.table == TABLE).collect())
    }

    /// A key inside each tablet that no load row has.
    pub fn probe_keys(tablets: &[TabletView]) -> Vec<Bytes> {
        tablets.iter().map(|tablet| Bytes::from(format!("{}!probe", tablet.start))).collect()
    }

    /// The family that the load uses.
    pub fn family(&self) -> &'static str {
        FAMILY
    }

    /// Waits until all tablet servers live and every tablet is open.
    pub async fn whole(&self) -> Result<()> {
        let wait = async {
            loop {
                if let (Ok(servers), Ok(tablets)) = (self.servers().await, self.tablets().await)
                    && servers.len() >= 3
                    && tablets.iter().all(|tablet| tablet.state == "open")
                {
                    return;
                }
                self.env.clock.sleep(POLL).await;
            }
        };
        if self.env.clock.timeout(WHOLE_TIMEOUT, wait).await.is_err() {
            bail!(
                "the cluster is not whole {WHOLE_TIMEOUT:?} after a blow; its status page is {}",
                self.cluster.status_page()
            );
        }
        Ok(())
    }

    /// Ends the traffic, reads every acknowledged row back, ends the cluster.
    pub async fn end(mut self) -> Result<Verdict> {
        let report = self.traffic.stop().await;
        let mut audit = Audit::new(&report.ledger, self.value_bytes);
        let mut rows = self.table.scan(RowRange::ALL, ScanOptions::default());
        let mut failure = None;
        while let Some(row) = rows.next().await {
            match row {
                Ok(row) => {
                    if let Some(value) = row.value(FAMILY, QUALIFIER) {
                        audit.see(row.key(), value);
                    }
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let verdict =
            Verdict { acknowledged: report.ledger.acknowledged(), lost: audit.lost(), traffic: report.clone() };
        self.cluster.stop().await;
        match failure {
            Some(error) => Err(error).context("the final read of every acknowledged row"),
            None => Ok(verdict),
        }
    }
}

impl Verdict {
    /// Prints what traffic saw, in words.
    pub fn print(&self) {
        println!(
            "reads checked {}, whole scans checked {}, wrong answers {}",
            human_count(self.traffic.reads),
            self.traffic.scans,
            self.traffic.violations
        );
        self.traffic.violation_texts.iter().for_each(|text| println!("  {text}"));
    }

    /// 1 if anything was lost or answered wrongly.
    pub fn exit_code(&self) -> ExitCode {
        if self.lost > 0 || self.traffic.violations > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    /// 1 also if a request failed: of drills during which none may.
    pub fn strict_exit_code(&self) -> ExitCode {
        if self.traffic.failed_requests > 0 { ExitCode::FAILURE } else { self.exit_code() }
    }
}

async fn make_table(env: &Env, cluster: &LocalCluster, tablets: usize) -> Result<Table> {
    let client = Client::connect(env, &cluster.masters())?;
    let splits: Vec<Bytes> = hashed_splits(tablets).into_iter().map(Bytes::from).collect();
    client.create_table(TABLE, &[FamilySpec::new(FAMILY)], &splits).await.context("cannot create the drill's table")?;
    Ok(client.table(TABLE).await?)
}

/// Sends a signal to a process of this machine.
pub fn signal(pid: u32, signal: rustix::process::Signal) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(pid as i32).with_context(|| format!("pid {pid} is none"))?;
    rustix::process::kill_process(pid, signal)
        .with_context(|| format!("cannot signal process {}", pid.as_raw_nonzero()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_request_fails_a_drill_during_which_none_may() {
        let verdict = |lost, violations, failed_requests| {
            let traffic = TrafficReport { violations, failed_requests, ..TrafficReport::default() };
            Verdict { acknowledged: 9, lost, traffic }
        };
        for (lost, violations, failed, exit_code, strict) in [
            (0, 0, 0, ExitCode::SUCCESS, ExitCode::SUCCESS),
            (0, 0, 1, ExitCode::SUCCESS, ExitCode::FAILURE),
            (0, 1, 0, ExitCode::FAILURE, ExitCode::FAILURE),
            (1, 0, 0, ExitCode::FAILURE, ExitCode::FAILURE),
        ] {
            let verdict = verdict(lost, violations, failed);
            assert_eq!((verdict.exit_code(), verdict.strict_exit_code()), (exit_code, strict));
        }
    }
}
