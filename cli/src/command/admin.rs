//! What the commands that shape a running cluster share: how a tablet is named, how a procedure is told.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde_json::{Value, json};
use uruk_base::Env;
use uruk_client::{Client, Procedure, TabletChoice};
use uruk_proto::{ServerId, TabletId};

use crate::command::connect::Connect;
use crate::command::status::fetch_tablets;
use crate::output::parse_bytes;

/// A client of the cluster.
pub async fn client(connect: &Connect, env: &Env) -> Result<Client> {
    connect.client(env).await
}

/// The tablet that a person means: an id, `TABLE:ROW`, or the name of a table that has one tablet (or,
/// with `at`, whose tablet holds that row).
pub async fn tablet(env: &Env, connect: &Connect, text: &str, at: Option<&Bytes>) -> Result<TabletChoice> {
    if let Some(id) = parse_id(text, "tablet-") {
        return Ok(TabletChoice::Id(TabletId(id)));
    }
    let table = match (text.split_once(':'), at) {
        (Some((table, row)), _) => {
            let row = parse_bytes(row).with_context(|| format!("bad row in {text:?}"))?;
            return Ok(TabletChoice::row(table, row));
        }
        (None, Some(at)) => return Ok(TabletChoice::row(text, at.clone())),
        (None, None) => text,
    };
    let tablets = fetch_tablets(env, &connect.masters()?).await.with_context(|| connect.hint())?;
    let mut tablets = tablets.iter().filter(|tablet| tablet.table == table);
    match (tablets.next(), tablets.next()) {
        (Some(only), None) => Ok(TabletChoice::Id(TabletId(only.tablet_id))),
        (Some(_), Some(_)) => bail!(
            "table {table} has several tablets: name one by its id (`uruk tablet list {table}`) or by a row of it ({table}:ROW)"
        ),
        (None, _) => bail!("{text:?} is neither a tablet's id nor a table; `uruk table list` shows the tables"),
    }
}

/// The server that a person means: `3` or `server-3`.
pub fn server(text: &str) -> Result<ServerId, String> {
    let id = parse_id(text, "server-").filter(|id| *id > 0);
    id.map(ServerId).ok_or_else(|| format!("{text:?} is no server; `uruk server list` shows their numbers"))
}

fn parse_id(text: &str, prefix: &str) -> Option<u64> {
    text.strip_prefix(prefix).unwrap_or(text).parse().ok()
}

/// Tells that a procedure is done.
pub fn print_procedure(procedure: &Procedure, as_json: bool) {
    let took_micros = procedure.ended_micros.saturating_sub(procedure.started_micros);
    if as_json {
        println!("{}", procedure_json(procedure));
        return;
    }
    let list = |tablets: &[TabletId]| tablets.iter().map(TabletId::to_string).collect::<Vec<_>>().join(" and ");
    let what = match (procedure.kind.as_str(), procedure.server) {
        ("move", Some(server)) => format!("moved {} to {server}", list(&procedure.tablets)),
        ("split", _) => format!("split {} into {}", list(&procedure.tablets), list(&procedure.results)),
        ("merge", _) => format!("merged {} into {}", list(&procedure.tablets), list(&procedure.results)),
        (kind, _) => format!("{kind} of {} is done", list(&procedure.tablets)),
    };
    println!("{what} in {:.1} ms", took_micros as f64 / 1_000.0);
}

fn procedure_json(procedure: &Procedure) -> Value {
    let ids = |tablets: &[TabletId]| tablets.iter().map(|tablet| tablet.0).collect::<Vec<_>>();
    json!({
        "procedure_id": procedure.procedure, "kind": procedure.kind, "reason": procedure.reason,
        "tablets": ids(&procedure.tablets), "results": ids(&procedure.results),
        "target_server_id": procedure.server.map(|server| server.0),
        "started_micros": procedure.started_micros, "ended_micros": procedure.ended_micros,
    })
}

/// `64KiB`, `512M`, `1GiB`, `1000`: units are powers of 1,024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("bad size {text:?}; write 1000, 64KiB, 512MiB or 1GiB")),
    };
    let number: Option<u64> = digits.parse().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| format!("bad size {text:?}; write 1000, 64KiB, 512MiB or 1GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_or_say_why_not() {
        for (text, bytes) in
            [("0", 0), ("1000", 1000), ("64KiB", 65_536), ("64k", 65_536), ("1GiB", 1 << 30), ("5B", 5)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "KiB", "5X", "-1", "99999999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn servers_are_named_by_number() {
        assert_eq!((server("3"), server("server-3")), (Ok(ServerId(3)), Ok(ServerId(3))));
        for bad in ["", "0", "three", "tablet-3"] {
            assert!(server(bad).unwrap_err().contains("uruk server list"), "{bad}");
        }
    }
}
