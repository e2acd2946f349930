//! The status page: HTML from templates, the same as JSON under `/api/v1/`, metrics for Prometheus.
//!
//! Plain TCP on tokio, not the simulated transport: in simulation there is no status page.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use uruk_proto::master::StatusRequest;
use uruk_proto::master::master_client::MasterClient;

use crate::error::StartError;
use crate::shared::Shared;
use crate::status::{self, RecoveryView, ServerView, StatusView, StorageReport, TableView, TabletView};

/// Recoveries whose timelines the overview shows in full.
const TIMELINES_SHOWN: usize = 3;

/// Tablets in the picture of a table's key space.
const BARS_MAX: usize = 2_000;
/// Flushes and compactions that are shown.
const JOBS_SHOWN: usize = 200;
/// Procedures that are over and shown.
const PROCEDURES_SHOWN: usize = 100;

/// The leader tells where its page is within this time.
const LEADER_TIMEOUT: Duration = Duration::from_secs(1);

type Page = Result<Html<String>, PageError>;

/// Serves the pages on `address` until the process ends; returns the address with its real port.
pub async fn start(shared: Arc<Shared>, address: &str) -> Result<String, StartError> {
    let refused = |error| StartError::Listen { address: address.to_owned(), error };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let local = listener.local_addr().map_err(refused)?.to_string();
    shared.http_address.get_or_init(|| local.clone());
    let routes = Router::new()
        .route("/", get(overview))
        .route("/servers", get(servers))
        .route("/tables/{name}", get(table))
        .route("/recoveries/{server}", get(recovery))
        .route("/balance", get(balance))
        .route("/compactions", get(compactions))
        .route("/tablets/{tablet}", get(tablet))
        .route("/api/v1/{*path}", get(json))
        .layer(from_fn_with_state(shared.clone(), to_leader))
        .route("/metrics", get(metrics))
        .with_state(shared.clone());
    shared.env.tasks.spawn("master status page", async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "the status page ended");
        }
    });
    Ok(local)
}

/// A follower knows neither leases nor load: it sends the browser to the leader's page, if the leader tells
/// where that is. With `?here` it shows what it knows itself.
async fn to_leader(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let is_here = request.uri().query().is_some_and(|query| query.split('&').any(|word| word == "here"));
    let page = if is_here { None } else { leader_page(&shared).await };
    match page {
        Some(page) => Redirect::temporary(&format!("http://{page}{}", request.uri().path())).into_response(),
        None => next.run(request).await,
    }
}

/// Where the leader's status page is; None on the leader itself, and when nobody tells.
async fn leader_page(shared: &Shared) -> Option<String> {
    let leadership = shared.consensus.leadership().borrow().clone();
    let leader = leadership.leader.filter(|_| !leadership.is_leader)?.address;
    let mut client = MasterClient::new(shared.channels.get(&leader));
    let answer = client.status(StatusRequest { path: "master".into() });
    let answer = shared.env.clock.timeout(LEADER_TIMEOUT, answer).await.ok()?.ok()?.into_inner();
    let view: serde_json::Value = serde_json::from_slice(&answer.json).ok()?;
    // It may listen on all addresses: it is reached where its services are.
    let (host, _) = leader.rsplit_once(':')?;
    let (_, port) = view["http"].as_str()?.rsplit_once(':')?;
    Some(format!("{host}:{port}"))
}

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewPage {
    view: StatusView,
    storage: Option<StorageReport>,
    /// Storage that is no chunk store tells whatever it likes.
    storage_text: String,
    timelines: usize,
}

#[derive(Template)]
#[template(path = "servers.html")]
struct ServersPage {
    servers: Vec<ServerView>,
}

#[derive(Template)]
#[template(path = "table.html")]
struct TablePage {
    table: TableView,
    tablets: Vec<TabletView>,
    bars: Vec<Bar>,
    max_requests: f64,
}

/// One tablet in the picture of a table's key space.
struct Bar {
    tablet: u64,
    title: String,
    /// Of the row, as a CSS `flex-grow`.
    width: u64,
    /// A colour for its server; empty: it has none.
    hue: String,
    /// Of the busiest tablet, in percent.
    heat: u64,
}

#[derive(Template)]
#[template(path = "balance.html")]
struct BalancePage {
    balance: status::BalanceView,
    check: status::CheckView,
    procedures: status::ProceduresView,
}

#[derive(Template)]
#[template(path = "compactions.html")]
struct CompactionsPage {
    view: status::CompactionsView,
    not_shown: u64,
    is_leader: bool,
}

#[derive(Template)]
#[template(path = "tablet.html")]
struct TabletPage {
    history: status::HistoryView,
}

#[derive(Template)]
#[template(path = "recovery.html")]
struct RecoveryPage {
    recovery: RecoveryView,
}

async fn overview(State(shared): State<Arc<Shared>>) -> Page {
    let view = status::view(&shared).await;
    let storage = StorageReport::from_json(&view.storage);
    let storage_text = match (&storage, &view.storage) {
        (Some(_), _) | (None, serde_json::Value::Null) => String::new(),
        (None, other) => serde_json::to_string_pretty(other).unwrap_or_default(),
    };
    page(&OverviewPage { view, storage, storage_text, timelines: TIMELINES_SHOWN })
}

async fn servers(State(shared): State<Arc<Shared>>) -> Page {
    page(&ServersPage { servers: status::servers(&shared) })
}

async fn table(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Page {
    let Some(table) = status::tables(&shared).into_iter().find(|table| table.name == name) else {
        return Err(PageError::NotFound(format!("there is no table {name:?}")));
    };
    let tablets = status::tablets(&shared, Some(&name));
    let requests = |tablet: &TabletView| tablet.reads_per_s + tablet.writes_per_s;
    let max_requests = tablets.iter().map(requests).fold(0.0, f64::max);
    let bars = tablets.iter().take(BARS_MAX).map(|tablet| bar(tablet, requests(tablet), max_requests)).collect();
    page(&TablePage { table, tablets, bars, max_requests })
}

fn bar(tablet: &TabletView, requests: f64, max_requests: f64) -> Bar {
    // The golden angle keeps neighbouring numbers apart.
    let hue = (tablet.server_id * 137) % 360;
    let key = |key: &str, none: &str| if key.is_empty() { none.to_owned() } else { key.to_owned() };
    Bar {
        tablet: tablet.tablet_id,
        title: format!(
            "tablet-{}: {} to {}, server-{}, {}, {:.0} requests/s, {} MiB",
            tablet.tablet_id,
            key(&tablet.start, "first row"),
            key(&tablet.end, "last row"),
            tablet.server_id,
            tablet.state,
            requests,
            (tablet.file_bytes + tablet.memtable_bytes) >> 20
        ),
        // Also an empty tablet is seen.
        width: 1 + ((tablet.file_bytes + tablet.memtable_bytes) >> 20),
        hue: if tablet.server_id == 0 { String::new() } else { hue.to_string() },
        heat: if max_requests > 0.0 { (requests / max_requests * 100.0) as u64 } else { 0 },
    }
}

async fn balance(State(shared): State<Arc<Shared>>) -> Page {
    let mut procedures = status::procedures(&shared);
    procedures.ended.truncate(PROCEDURES_SHOWN);
    page(&BalancePage { balance: status::balance(&shared), check: status::check(&shared), procedures })
}

async fn compactions(State(shared): State<Arc<Shared>>) -> Page {
    let view = status::compactions(&shared, JOBS_SHOWN);
    let total = &view.total;
    let all = [total.flushes_running, total.flushes_queued, total.compactions_running, total.compactions_queued];
    let all: u64 = all.iter().map(|jobs| u64::from(*jobs)).sum();
    let not_shown = all.saturating_sub(view.jobs.len() as u64);
    page(&CompactionsPage { view, not_shown, is_leader: status::master(&shared).is_leader })
}

async fn tablet(State(shared): State<Arc<Shared>>, Path(tablet): Path<u64>) -> Page {
    match status::history(&shared, tablet) {
        Some(history) => page(&TabletPage { history }),
        None => Err(PageError::NotFound(format!("nothing is known of tablet {tablet}"))),
    }
}

async fn recovery(State(shared): State<Arc<Shared>>, Path(server): Path<u64>) -> Page {
    match status::recoveries(&shared).into_iter().find(|recovery| recovery.server_id == server) {
        Some(recovery) => page(&RecoveryPage { recovery }),
        None => Err(PageError::NotFound(format!("there is no recovery of server {server}"))),
    }
}

async fn json(State(shared): State<Arc<Shared>>, Path(path): Path<String>) -> Response {
    match status::json(&shared, &path).await {
        Some(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        None => PageError::NotFound(format!("there is no /api/v1/{path}")).into_response(),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let gauges = &shared.metrics;
    shared.consensus.read(|state| {
        gauges.tablets.set(state.index.tablets() as i64);
        let open: u32 = state.tables.all().map(|table| state.index.counts(table.schema.id).open).sum();
        gauges.tablets_open.set(open.into());
        gauges.tables.set(state.tables.all().count() as i64);
    });
    let total = status::compactions_total(&shared);
    gauges.compactions_running.set(total.compactions_running.into());
    gauges.compactions_queued.set(total.compactions_queued.into());
    gauges.write_amplification.set(total.write_amplification.unwrap_or(f64::NAN));
    gauges.space_amplification.set(total.space_amplification.unwrap_or(f64::NAN));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shared.env.metrics.encode()).into_response()
}

fn page(page: &impl Template) -> Page {
    page.render().map(Html).map_err(|error| PageError::Broken(error.to_string()))
}

/// Why there is no page.
enum PageError {
    NotFound(String),
    Broken(String),
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        match self {
            PageError::NotFound(what) => (StatusCode::NOT_FOUND, format!("{what}\n")).into_response(),
            PageError::Broken(why) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")).into_response(),
        }
    }
}

/// Filters that the templates use.
mod filters {
    use askama::{Result, Values};

    /// `12.3 MiB`.
    #[askama::filter_fn]
    pub fn human_bytes(bytes: &u64, _: &dyn Values) -> Result<String> {
        let mut amount = *bytes as f64;
        for unit in ["B", "KiB", "MiB", "GiB"] {
            if amount < 1024.0 {
                return Ok(if unit == "B" { format!("{amount} B") } else { format!("{amount:.1} {unit}") });
            }
            amount /= 1024.0;
        }
        Ok(format!("{amount:.1} TiB"))
    }

    /// `2.5`; a dash for what is not known.
    #[askama::filter_fn]
    pub fn ratio(ratio: &Option<f64>, _: &dyn Values) -> Result<String> {
        Ok(ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}")))
    }

    /// `12.3 ms`; nothing for what has not happened.
    #[askama::filter_fn]
    pub fn ms(after: &Option<f64>, _: &dyn Values) -> Result<String> {
        Ok(after.map_or_else(|| "–".to_owned(), |after| format!("{after:.1} ms")))
    }

    /// Microseconds since 1970 as `2026-01-31 12:00:00.123` UTC.
    #[askama::filter_fn]
    pub fn utc(micros: &i64, _: &dyn Values) -> Result<String> {
        let (days, rest) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000));
        let (year, month, day) = super::civil_date(days);
        let (seconds, ms) = (rest / 1_000_000, rest / 1_000 % 1_000);
        let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        Ok(format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ms:03}"))
    }
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant, "chrono-compatible low-level
/// date algorithms", `civil_from_days`).
fn civil_date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(civil_date(0), (1970, 1, 1));
        assert_eq!(civil_date(19_782), (2024, 2, 29));
        assert_eq!(civil_date(19_783), (2024, 3, 1));
        assert_eq!(civil_date(-1), (1969, 12, 31));
    }
}
