//! `uruk table`: create, list, describe, delete.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use serde_json::json;
use uruk_base::Env;
use uruk_client::FamilySpec;
use uruk_proto::schema::GcRule;

use crate::command::connect::Connect;
use crate::output::{human_bytes, parse_bytes, print_table};

/// Create, list, describe, delete tables.
#[derive(Subcommand, Debug)]
pub enum Table {
    /// Create a table: uruk table create users --families profile,log:versions=1 --splits h,p
    Create(Create),
    /// List all tables
    #[command(visible_alias = "ls")]
    List(List),
    /// Show a table's families and tablets
    Describe(Named),
    /// Delete a table and all of its rows
    Delete(Delete),
}

/// What `table create` takes.
#[derive(Args, Debug)]
pub struct Create {
    /// Name: letters, digits, '_', '-', '.'; at most 50
    name: String,
    /// Families, separated by commas: name, name:versions=N, name:age=DURATION (s, m, h, d)
    #[arg(long, required = true, value_delimiter = ',')]
    families: Vec<String>,
    /// Row keys at which tablets start, separated by commas (\xNN for bytes)
    #[arg(long, value_delimiter = ',')]
    splits: Vec<String>,
    #[command(flatten)]
    connect: Connect,
}

/// What `table list` takes.
#[derive(Args, Debug)]
pub struct List {
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// A table by name.
#[derive(Args, Debug)]
pub struct Named {
    /// The table's name
    name: String,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `table delete` takes.
#[derive(Args, Debug)]
pub struct Delete {
    /// The table's name
    name: String,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub async fn run(command: Table) -> Result<ExitCode> {
    let env = Env::real();
    match command {
        Table::Create(options) => {
            let families = options.families.iter().map(|text| parse_family(text)).collect::<Result<Vec<_>>>()?;
            let splits =
                options.splits.iter().map(|text| parse_bytes(text).map(Bytes::from)).collect::<Result<Vec<_>>>()?;
            let tablets = splits.len() + 1;
            let client = options.connect.client(&env)?;
            let made = client.create_table(&options.name, &families, &splits).await;
            made.with_context(|| format!("cannot create table {}", options.name))?;
            println!("created table {} with {tablets} tablet{}", options.name, if tablets == 1 { "" } else { "s" });
        }
        Table::List(options) => list(&env, options).await?,
        Table::Describe(options) => describe(&env, options).await?,
        Table::Delete(options) => {
            let deleted = options.connect.client(&env)?.delete_table(&options.name).await;
            deleted.with_context(|| format!("cannot delete table {}", options.name))?;
            println!("deleted table {}", options.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(env: &Env, options: List) -> Result<()> {
    let tables = options.connect.client(env)?.list_tables().await.with_context(|| options.connect.hint())?;
    if options.json {
        for table in &tables {
            let families: Vec<&str> = table.schema.families.iter().map(|family| family.name.as_str()).collect();
            println!(
                "{}",
                json!({"name": table.schema.name, "families": families, "tablets": table.tablets, "bytes": table.bytes})
            );
        }
        return Ok(());
    }
    let rows = tables.into_iter().map(|table| {
        let families: Vec<String> = table.schema.families.iter().map(|family| family.name.clone()).collect();
        vec![table.schema.name, families.join(","), table.tablets.to_string(), human_bytes(table.bytes)]
    });
    print_table(&["TABLE", "FAMILIES", "TABLETS", "FILES"], rows);
    Ok(())
}

async fn describe(env: &Env, options: Named) -> Result<()> {
    let table = options.connect.client(env)?.get_table(&options.name).await;
    let table = table.with_context(|| format!("cannot describe table {}", options.name))?;
    if options.json {
        println!(
            "{}",
            json!({
                "name": table.schema.name, "table_id": table.schema.id.0, "version": table.schema.version,
                "tablets": table.tablets, "tablets_open": table.tablets_open, "bytes": table.bytes,
                "families": table.schema.families.iter().map(|family| json!({
                    "name": family.name, "family_id": family.id.0, "gc": show_gc(&family.gc),
                    "locality_group": family.locality_group,
                })).collect::<Vec<_>>(),
            })
        );
        return Ok(());
    }
    println!("table    {} (id {}, schema version {})", table.schema.name, table.schema.id.0, table.schema.version);
    println!("tablets  {} ({} open), {} in files\n", table.tablets, table.tablets_open, human_bytes(table.bytes));
    let rows = table.schema.families.iter().map(|family| {
        vec![family.name.clone(), family.id.0.to_string(), show_gc(&family.gc), family.locality_group.to_string()]
    });
    print_table(&["FAMILY", "ID", "KEEPS", "LOCALITY GROUP"], rows);
    Ok(())
}

fn show_gc(rule: &GcRule) -> String {
    let join = |rules: &[GcRule], word: &str| rules.iter().map(show_gc).collect::<Vec<_>>().join(word);
    match rule {
        GcRule::KeepAll => "all versions".to_owned(),
        GcRule::MaxVersions(n) => format!("versions={n}"),
        GcRule::MaxAge(micros) => format!("age={}s", micros / 1_000_000),
        GcRule::Union(rules) => format!("({})", join(rules, " or ")),
        GcRule::Intersection(rules) => format!("({})", join(rules, " and ")),
    }
}

/// `name`, `name:versions=N`, `name:age=7d`.
fn parse_family(text: &str) -> Result<FamilySpec> {
    let (name, rules) = text.split_once(':').unwrap_or((text, ""));
    let mut gc = Vec::new();
    for rule in rules.split(':').filter(|rule| !rule.is_empty()) {
        gc.push(match rule.split_once('=') {
            Some(("versions", n)) => GcRule::MaxVersions(
                n.parse().ok().filter(|n| *n > 0).with_context(|| format!("bad number in {text:?}"))?,
            ),
            Some(("age", age)) => {
                GcRule::MaxAge(parse_duration_micros(age).with_context(|| format!("bad age in {text:?}"))?)
            }
            _ => bail!("family {text:?}: write name, name:versions=N or name:age=7d"),
        });
    }
    // As in cbt: several rules mean that whatever breaks any of them may go.
    let gc = match gc.len() {
        0 => GcRule::KeepAll,
        1 => gc.remove(0),
        _ => GcRule::Union(gc),
    };
    Ok(FamilySpec::new(name).with_gc(gc))
}

fn parse_duration_micros(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        other => bail!("unknown unit {other:?}; use s, m, h or d"),
    };
    let number: u64 = digits.parse().context("not a number")?;
    number.checked_mul(unit * 1_000_000).context("too long")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_parse_or_say_why_not() {
        assert_eq!(parse_duration_micros("90").unwrap(), 90_000_000);
        assert_eq!(parse_duration_micros("7d").unwrap(), 7 * 86_400_000_000);
        for bad in ["", "d", "5y", "-1s", "99999999999999999d"] {
            assert!(parse_duration_micros(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn families_parse_or_say_why_not() {
        for good in ["f", "f:versions=3", "f:age=1h", "f:versions=3:age=1h"] {
            assert!(parse_family(good).is_ok(), "{good}");
        }
        for bad in ["f:versions=0", "f:versions=x", "f:3", "f:ttl=3"] {
            assert!(parse_family(bad).is_err(), "{bad}");
        }
    }
}
