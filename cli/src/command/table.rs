//! `uruk table`: create, alter, list, describe, delete.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use uruk_base::Env;
use uruk_client::{
    Compression, FamilyChange, FamilySpec, FilterOn, GcRule, LocalityGroup, TableInfo, TableSchema, TableSpec,
};

use crate::command::admin::{self, parse_size};
use crate::command::connect::Connect;
use crate::output::{human_bytes, parse_bytes, print_table};

/// Create, alter, list, describe, delete tables.
#[derive(Subcommand, Debug)]
pub enum Table {
    /// Create a table: uruk table create users --families profile,log:versions=1 --splits h,p
    Create(Create),
    /// Change families and locality groups under load: uruk table alter users --add-family log:age=7d
    ///
    /// All changes happen at once, or none; it ends when every tablet server goes by them.
    Alter(Alter),
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
    /// Families, separated by commas: name, name:versions=N, name:age=DURATION (s, m, h, d), name:group=N
    #[arg(long, required = true, value_delimiter = ',')]
    families: Vec<String>,
    /// Row keys at which tablets start, separated by commas (\xNN for bytes)
    #[arg(long, value_delimiter = ',')]
    splits: Vec<String>,
    /// Spread rows over N ranges (2 to 256) by a hash of their keys, for keys that only grow; scans read all
    /// of them side by side and stay in order
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=256))]
    salt: u32,
    /// A tablet above this size is split, such as 512MiB [default: the cluster's]
    #[arg(long, value_name = "SIZE", default_value = "0", hide_default_value = true, value_parser = parse_size)]
    split_bytes: u64,
    /// How a locality group is kept: N, N:block=SIZE, N:compression=none|lz4|zstd, N:in-memory,
    /// N:filter=row|row-column
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `table alter` takes.
#[derive(Args, Debug)]
pub struct Alter {
    /// The table's name
    name: String,
    /// Add a family: name, name:versions=N, name:age=DURATION, name:group=N
    #[arg(long, value_name = "FAMILY")]
    add_family: Vec<String>,
    /// Drop a family with all of its cells
    #[arg(long, value_name = "NAME")]
    drop_family: Vec<String>,
    /// Give a family another rule: name (keep everything), name:versions=N, name:age=DURATION; or another
    /// locality group: name:group=N
    #[arg(long, value_name = "FAMILY")]
    set_gc: Vec<String>,
    /// Keep a locality group otherwise: N (as by default), N:block=SIZE, N:compression=none|lz4|zstd, N:in-memory,
    /// N:filter=row|row-column
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
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
            let families: Result<Vec<_>> = options.families.iter().map(|text| Ok(parse_family(text)?.spec())).collect();
            let splits =
                options.splits.iter().map(|text| parse_bytes(text).map(Bytes::from)).collect::<Result<Vec<_>>>()?;
            let spec = TableSpec {
                name: options.name.clone(),
                families: families?,
                splits,
                groups: options.group.iter().map(|text| parse_group(text)).collect::<Result<_>>()?,
                salt: options.salt,
                split_bytes: options.split_bytes,
            };
            let made = admin::client(&options.connect, &env).await?.create_table_with(&spec).await;
            let made = made.with_context(|| format!("cannot create table {}", options.name))?;
            match (options.json, made.tablets) {
                (true, _) => println!("{}", describe_json(&made)),
                (false, 1) => println!("created table {} with 1 tablet", options.name),
                (false, tablets) => println!("created table {} with {tablets} tablets", options.name),
            }
        }
        Table::Alter(options) => alter(&env, options).await?,
        Table::List(options) => list(&env, options).await?,
        Table::Describe(options) => describe(&env, options).await?,
        Table::Delete(options) => {
            let deleted = admin::client(&options.connect, &env).await?.delete_table(&options.name).await;
            deleted.with_context(|| format!("cannot delete table {}", options.name))?;
            println!("deleted table {}", options.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(env: &Env, options: List) -> Result<()> {
    let tables =
        admin::client(&options.connect, env).await?.list_tables().await.with_context(|| options.connect.hint())?;
    if options.json {
        for table in &tables {
            let families: Vec<&str> = table.schema.families.iter().map(|family| family.name.as_str()).collect();
            println!(
                "{}",
                json!({
                    "name": table.schema.name, "families": families, "tablets": table.tablets, "bytes": table.bytes,
                    "salt": table.schema.salt,
                })
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
    let table = admin::client(&options.connect, env).await?.get_table(&options.name).await;
    let table = table.with_context(|| format!("cannot describe table {}", options.name))?;
    if options.json {
        println!("{}", describe_json(&table));
        return Ok(());
    }
    let schema = &table.schema;
    println!("table    {} (id {}, schema version {})", schema.name, schema.id.0, schema.version);
    println!("tablets  {} ({} open), {} in files", table.tablets, table.tablets_open, human_bytes(table.bytes));
    if schema.salt > 1 {
        println!("salt     rows are spread over {} ranges", schema.salt);
    }
    if schema.split_bytes > 0 {
        println!("split    tablets above {}", human_bytes(schema.split_bytes));
    }
    println!();
    let rows = schema.families.iter().map(|family| {
        vec![family.name.clone(), family.id.0.to_string(), show_gc(&family.gc), family.locality_group.to_string()]
    });
    print_table(&["FAMILY", "ID", "KEEPS", "LOCALITY GROUP"], rows);
    if !schema.groups.is_empty() {
        println!();
        let rows = schema.groups.iter().map(|group| {
            let block =
                if group.block_bytes == 0 { "default".to_owned() } else { human_bytes(group.block_bytes.into()) };
            let in_memory = if group.in_memory { "yes" } else { "no" };
            let words = [show_compression(group.compression), in_memory, show_filter(group.filter)];
            [group.number.to_string(), block].into_iter().chain(words.map(str::to_owned)).collect()
        });
        print_table(&["LOCALITY GROUP", "BLOCK", "COMPRESSION", "IN MEMORY", "FILTER"], rows);
    }
    Ok(())
}

fn describe_json(table: &TableInfo) -> Value {
    let schema = &table.schema;
    json!({
        "name": schema.name, "table_id": schema.id.0, "version": schema.version,
        "tablets": table.tablets, "tablets_open": table.tablets_open, "bytes": table.bytes,
        "salt": schema.salt, "split_bytes": schema.split_bytes,
        "families": schema.families.iter().map(|family| json!({
            "name": family.name, "family_id": family.id.0, "gc": show_gc(&family.gc),
            "locality_group": family.locality_group,
        })).collect::<Vec<_>>(),
        "groups": schema.groups.iter().map(|group| json!({
            "number": group.number, "block_bytes": group.block_bytes,
            "compression": show_compression(group.compression), "in_memory": group.in_memory,
            "filter": show_filter(group.filter),
        })).collect::<Vec<_>>(),
    })
}

async fn alter(env: &Env, options: Alter) -> Result<()> {
    let groups = options.group.iter().map(|text| parse_group(text)).collect::<Result<Vec<_>>>()?;
    let client = admin::client(&options.connect, env).await?;
    let mut changes = Vec::new();
    for text in &options.add_family {
        changes.push(FamilyChange::Create(parse_family(text)?.spec()));
    }
    if !options.set_gc.is_empty() {
        let known = client.get_table(&options.name).await.with_context(|| options.connect.hint())?.schema;
        for text in &options.set_gc {
            changes.push(FamilyChange::Update(parse_family(text)?.changed(&known)?));
        }
    }
    changes.extend(options.drop_family.iter().cloned().map(FamilyChange::Drop));
    if changes.is_empty() && groups.is_empty() {
        bail!("nothing to change: give --add-family, --drop-family, --set-gc or --group");
    }
    let altered = client.alter_table(&options.name, &changes, &groups).await;
    let altered = altered.with_context(|| format!("cannot alter table {}", options.name))?;
    match options.json {
        true => println!("{}", describe_json(&altered)),
        false => println!("altered table {}: schema version {}", options.name, altered.schema.version),
    }
    Ok(())
}

fn show_filter(filter: FilterOn) -> &'static str {
    match filter {
        FilterOn::Row => "row",
        FilterOn::RowColumn => "row-column",
    }
}

fn show_compression(compression: Compression) -> &'static str {
    match compression {
        Compression::Auto => "auto",
        Compression::None => "none",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
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

/// A family as people write it.
#[derive(Debug)]
struct FamilyText {
    name: String,
    gc: Vec<GcRule>,
    group: Option<u32>,
}

impl FamilyText {
    /// A new family.
    fn spec(self) -> FamilySpec {
        FamilySpec { name: self.name, gc: rule_of(self.gc), locality_group: self.group.unwrap_or(0) }
    }

    /// The same family as it should be from now on: a group alone leaves the rule as it is, and a rule the group.
    fn changed(self, schema: &TableSchema) -> Result<FamilySpec> {
        let known = schema.family(&self.name).with_context(|| format!("no family {} to change", self.name))?;
        let gc = match (self.gc.is_empty(), self.group) {
            (true, Some(_)) => known.gc.clone(),
            (_, _) => rule_of(self.gc),
        };
        Ok(FamilySpec { name: self.name, gc, locality_group: self.group.unwrap_or(known.locality_group) })
    }
}

/// As in cbt: several rules mean that whatever breaks any of them may go.
fn rule_of(mut rules: Vec<GcRule>) -> GcRule {
    match rules.len() {
        0 => GcRule::KeepAll,
        1 => rules.remove(0),
        _ => GcRule::Union(rules),
    }
}

/// `name`, `name:versions=N`, `name:age=7d`, `name:group=2`.
fn parse_family(text: &str) -> Result<FamilyText> {
    let (name, rules) = text.split_once(':').unwrap_or((text, ""));
    let (mut gc, mut group) = (Vec::new(), None);
    for rule in rules.split(':').filter(|rule| !rule.is_empty()) {
        match rule.split_once('=') {
            Some(("versions", n)) => gc.push(GcRule::MaxVersions(
                n.parse().ok().filter(|n| *n > 0).with_context(|| format!("bad number in {text:?}"))?,
            )),
            Some(("age", age)) => {
                gc.push(GcRule::MaxAge(parse_duration_micros(age).with_context(|| format!("bad age in {text:?}"))?));
            }
            Some(("group", n)) => group = Some(n.parse().with_context(|| format!("bad group in {text:?}"))?),
            _ => bail!("family {text:?}: write name, name:versions=N, name:age=7d or name:group=N"),
        }
    }
    Ok(FamilyText { name: name.to_owned(), gc, group })
}

/// `2`, `2:block=64KiB:compression=zstd:in-memory:filter=row-column`.
fn parse_group(text: &str) -> Result<LocalityGroup> {
    let how = "write N, N:block=SIZE, N:compression=none|lz4|zstd, N:in-memory or N:filter=row|row-column";
    let mut parts = text.split(':');
    let number = parts.next().unwrap_or_default().parse().ok().with_context(|| format!("group {text:?}: {how}"))?;
    let mut group = LocalityGroup { number, ..LocalityGroup::default() };
    for part in parts {
        match part.split_once('=').unwrap_or((part, "")) {
            ("block", size) => {
                let bytes = parse_size(size).map_err(anyhow::Error::msg)?;
                group.block_bytes =
                    bytes.try_into().with_context(|| format!("group {text:?}: the block is too large"))?;
            }
            ("compression", "auto") => group.compression = Compression::Auto,
            ("compression", "none") => group.compression = Compression::None,
            ("compression", "lz4") => group.compression = Compression::Lz4,
            ("compression", "zstd") => group.compression = Compression::Zstd,
            ("in-memory", "") => group.in_memory = true,
            ("filter", "row") => group.filter = FilterOn::Row,
            ("filter", "row-column") => group.filter = FilterOn::RowColumn,
            _ => bail!("group {text:?}: {how}"),
        }
    }
    Ok(group)
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
        for good in ["f", "f:versions=3", "f:age=1h", "f:versions=3:age=1h", "f:group=2", "f:age=1h:group=2"] {
            assert!(parse_family(good).is_ok(), "{good}");
        }
        for bad in ["f:versions=0", "f:versions=x", "f:3", "f:ttl=3", "f:group=x"] {
            assert!(parse_family(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_changed_family_keeps_what_is_not_named() {
        let known = FamilySpec::new("f").with_gc(GcRule::MaxVersions(2)).in_locality_group(5);
        let schema = TableSchema { families: vec![(&known).into()], ..TableSchema::default() };
        let changed = |text: &str| parse_family(text).unwrap().changed(&schema);
        assert_eq!(changed("f:group=1").unwrap(), known.clone().in_locality_group(1));
        assert_eq!(changed("f:age=1s").unwrap(), known.clone().with_gc(GcRule::MaxAge(1_000_000)));
        assert_eq!(changed("f").unwrap(), known.with_gc(GcRule::KeepAll));
        assert!(changed("g").is_err());
    }

    #[test]
    fn groups_parse_or_say_why_not() {
        let group = parse_group("2:block=64KiB:compression=zstd:in-memory:filter=row-column").unwrap();
        assert_eq!(group.filter, FilterOn::RowColumn);
        assert_eq!((group.number, group.block_bytes, group.in_memory), (2, 65_536, true));
        assert_eq!(group.compression, Compression::Zstd);
        assert_eq!(parse_group("3").unwrap(), LocalityGroup { number: 3, ..LocalityGroup::default() });
        for bad in ["", "x", "1:block=9T", "1:compression=gzip", "1:memory", "1:filter=column"] {
            assert!(parse_group(bad).is_err(), "{bad}");
        }
    }
}
