//! Tables and families, as the master keeps them and everyone else reads them.

use serde::{Deserialize, Serialize};

use crate::error::{ErrorCode, RpcError};
use crate::id::{FamilyId, TableId};
use crate::{limits, master};

/// Deepest nesting of a garbage-collection rule.
const GC_DEPTH_MAX: usize = 20;

/// Which cells of a family may go.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum GcRule {
    /// None.
    #[default]
    KeepAll,
    /// All but the newest n of each column.
    MaxVersions(u32),
    /// Those older than this many microseconds.
    MaxAge(u64),
    /// Those that any of the rules lets go.
    Union(Vec<GcRule>),
    /// Those that every one of the rules lets go.
    Intersection(Vec<GcRule>),
}

impl GcRule {
    /// Whether the column's cell number `version` (0 = newest) with `timestamp` may go at time
    /// `now` (both microseconds).
    pub fn lets_go(&self, version: u32, timestamp: i64, now: i64) -> bool {
        match self {
            GcRule::KeepAll => false,
            GcRule::MaxVersions(n) => version >= *n,
            GcRule::MaxAge(age) => timestamp < now.saturating_sub(i64::try_from(*age).unwrap_or(i64::MAX)),
            GcRule::Union(rules) => rules.iter().any(|rule| rule.lets_go(version, timestamp, now)),
            GcRule::Intersection(rules) => {
                !rules.is_empty() && rules.iter().all(|rule| rule.lets_go(version, timestamp, now))
            }
        }
    }

    fn from_message(message: &master::GcRule, depth: usize) -> Result<GcRule, RpcError> {
        use master::gc_rule::Rule;
        if depth > GC_DEPTH_MAX {
            return Err(invalid("garbage-collection rule is nested too deep"));
        }
        let rules = |list: &master::GcRules| {
            list.rules.iter().map(|rule| GcRule::from_message(rule, depth + 1)).collect::<Result<Vec<_>, _>>()
        };
        Ok(match &message.rule {
            None => GcRule::KeepAll,
            Some(Rule::MaxVersions(0)) => return Err(invalid("max versions must be at least 1")),
            Some(Rule::MaxVersions(n)) => GcRule::MaxVersions(*n),
            Some(Rule::MaxAgeMicros(age)) => GcRule::MaxAge(*age),
            Some(Rule::Union(list)) => GcRule::Union(rules(list)?),
            Some(Rule::Intersection(list)) => GcRule::Intersection(rules(list)?),
        })
    }

    fn to_message(&self) -> master::GcRule {
        use master::gc_rule::Rule;
        let rules = |list: &[GcRule]| master::GcRules { rules: list.iter().map(GcRule::to_message).collect() };
        let rule = match self {
            GcRule::KeepAll => None,
            GcRule::MaxVersions(n) => Some(Rule::MaxVersions(*n)),
            GcRule::MaxAge(age) => Some(Rule::MaxAgeMicros(*age)),
            GcRule::Union(list) => Some(Rule::Union(rules(list))),
            GcRule::Intersection(list) => Some(Rule::Intersection(rules(list))),
        };
        master::GcRule { rule }
    }
}

/// A column family.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Family {
    /// Its name in the table.
    pub name: String,
    /// Its id, for ever; 0 until the master issued one.
    pub id: FamilyId,
    /// Which of its cells may go.
    pub gc: GcRule,
    /// The group of families that shares its files.
    pub locality_group: u32,
}

/// How the blocks of a locality group's files are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Compression {
    /// Fast for what is soon merged again, dense for what is merged for good.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// Fast.
    Lz4,
    /// Dense.
    Zstd,
}

/// What the bloom filters of a locality group's files know, so that look-ups leave files out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FilterOn {
    /// Rows.
    #[default]
    Row,
    /// Rows, and their columns: also reads of given columns leave out files that have the row and not the column. The
    /// filters grow by as much for each column of a row as for a row.
    RowColumn,
}

/// How a locality group's files are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "StoredGroup", into = "StoredGroup")]
pub struct LocalityGroup {
    /// Its number, as families name it.
    pub number: u32,
    /// Size of a block before compression; 0: the default.
    pub block_bytes: u32,
    /// Of blocks.
    pub compression: Compression,
    /// Its blocks are never evicted from the cache.
    pub in_memory: bool,
    /// Of its files.
    pub filter: FilterOn,
}

/// A locality group as masters store it: in a positional encoding, so that what came later than `in_memory` (a byte, 0
/// or 1) is another bit of that byte. What has only older options reads and writes as ever.
#[derive(Serialize, Deserialize)]
struct StoredGroup {
    number: u32,
    block_bytes: u32,
    compression: Compression,
    flags: u8,
}

impl StoredGroup {
    const IN_MEMORY: u8 = 1;
    const FILTER_ON_COLUMNS: u8 = 2;
}

impl From<LocalityGroup> for StoredGroup {
    fn from(group: LocalityGroup) -> StoredGroup {
        let in_memory = if group.in_memory { StoredGroup::IN_MEMORY } else { 0 };
        let filter = match group.filter {
            FilterOn::Row => 0,
            FilterOn::RowColumn => StoredGroup::FILTER_ON_COLUMNS,
        };
        let LocalityGroup { number, block_bytes, compression, .. } = group;
        StoredGroup { number, block_bytes, compression, flags: in_memory | filter }
    }
}

impl TryFrom<StoredGroup> for LocalityGroup {
    type Error = &'static str;
    fn try_from(stored: StoredGroup) -> Result<LocalityGroup, &'static str> {
        let StoredGroup { number, block_bytes, compression, flags } = stored;
        if flags & !(StoredGroup::IN_MEMORY | StoredGroup::FILTER_ON_COLUMNS) != 0 {
            return Err("a locality group has options that this program does not know");
        }
        let filter = if flags & StoredGroup::FILTER_ON_COLUMNS != 0 { FilterOn::RowColumn } else { FilterOn::Row };
        let in_memory = flags & StoredGroup::IN_MEMORY != 0;
        Ok(LocalityGroup { number, block_bytes, compression, in_memory, filter })
    }
}

/// A table.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TableSchema {
    /// Its id, for ever; 0 until the master issued one.
    pub id: TableId,
    /// Its name.
    pub name: String,
    /// Raised by every change.
    pub version: u64,
    /// By name.
    pub families: Vec<Family>,
    /// Those that differ from the default, ascending by number.
    pub groups: Vec<LocalityGroup>,
    /// The client library spreads rows over so many prefixes; 0 and 1: none.
    pub salt: u32,
    /// A tablet above it is split; 0: the cluster's default.
    pub split_bytes: u64,
}

impl TableSchema {
    /// How the files of the locality group are kept.
    pub fn group(&self, number: u32) -> LocalityGroup {
        let given = self.groups.iter().find(|group| group.number == number);
        given.copied().unwrap_or(LocalityGroup { number, ..LocalityGroup::default() })
    }

    /// The family of this name.
    pub fn family(&self, name: &str) -> Option<&Family> {
        self.families.iter().find(|family| family.name == name)
    }

    /// The family with this id.
    pub fn family_by_id(&self, id: FamilyId) -> Option<&Family> {
        self.families.iter().find(|family| family.id == id)
    }

    /// The locality groups in use, each once, ascending; never empty.
    pub fn locality_groups(&self) -> Vec<u32> {
        let mut groups: Vec<u32> = self.families.iter().map(|family| family.locality_group).collect();
        groups.push(0);
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// Checks names and counts against the limits.
    pub fn validate(&self) -> Result<(), RpcError> {
        validate_table_name(&self.name)?;
        if self.families.len() > limits::FAMILIES_MAX {
            return Err(invalid(format!("{} families; the limit is {}", self.families.len(), limits::FAMILIES_MAX)));
        }
        let mut names: Vec<&str> = self.families.iter().map(|family| family.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(invalid(format!("family {} is given twice", twice[0])));
        }
        names.into_iter().try_for_each(validate_family_name)?;
        self.validate_groups()?;
        if self.salt > limits::SALT_MAX {
            return Err(invalid(format!("salt of {}; the limit is {}", self.salt, limits::SALT_MAX)));
        }
        Ok(())
    }

    fn validate_groups(&self) -> Result<(), RpcError> {
        if self.groups.len() > limits::FAMILIES_MAX {
            let message = format!("{} locality groups; the limit is {}", self.groups.len(), limits::FAMILIES_MAX);
            return Err(invalid(message));
        }
        if let Some(pair) = self.groups.windows(2).find(|pair| pair[0].number >= pair[1].number) {
            return Err(invalid(format!("locality group {} is given twice, or out of order", pair[1].number)));
        }
        let is_good = |bytes: u32| bytes == 0 || limits::BLOCK_BYTES.contains(&bytes);
        match self.groups.iter().find(|group| !is_good(group.block_bytes)) {
            Some(group) => Err(invalid(format!(
                "locality group {}: blocks of {} bytes; from {} to {} are possible",
                group.number,
                group.block_bytes,
                limits::BLOCK_BYTES.start(),
                limits::BLOCK_BYTES.end()
            ))),
            None => Ok(()),
        }
    }
}

/// Table names: `[_a-zA-Z0-9][-_.a-zA-Z0-9]*`, at most 50 bytes.
pub fn validate_table_name(name: &str) -> Result<(), RpcError> {
    let first = name.bytes().next().is_some_and(|b| b == b'_' || b.is_ascii_alphanumeric());
    if first && name.len() <= limits::TABLE_NAME_BYTES_MAX && name.bytes().all(is_name_byte) {
        return Ok(());
    }
    Err(invalid(format!(
        "bad table name {name:?}: 1 to 50 of letters, digits, '_', '-', '.', not starting with '-' or '.'"
    )))
}

/// Family names: `[-_.a-zA-Z0-9]+`, at most 64 bytes.
pub fn validate_family_name(name: &str) -> Result<(), RpcError> {
    if !name.is_empty() && name.len() <= limits::FAMILY_NAME_BYTES_MAX && name.bytes().all(is_name_byte) {
        return Ok(());
    }
    Err(invalid(format!("bad family name {name:?}: 1 to 64 of letters, digits, '_', '-', '.'")))
}

/// Row keys: 1 byte to 4 KiB.
pub fn validate_row_key(row: &[u8]) -> Result<(), RpcError> {
    match row.len() {
        0 => Err(invalid("Row keys must be non-empty")),
        1..=limits::ROW_KEY_BYTES_MAX => Ok(()),
        len => Err(invalid(format!("row key of {len} bytes; the limit is {}", limits::ROW_KEY_BYTES_MAX))),
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

fn invalid(message: impl Into<String>) -> RpcError {
    RpcError::new(ErrorCode::InvalidArgument, message)
}

impl TryFrom<&master::FamilySchema> for Family {
    type Error = RpcError;
    fn try_from(message: &master::FamilySchema) -> Result<Family, RpcError> {
        let gc = message.gc.as_ref().map(|rule| GcRule::from_message(rule, 0)).transpose()?.unwrap_or_default();
        validate_family_name(&message.name)?;
        Ok(Family {
            name: message.name.clone(),
            id: FamilyId(message.family_id),
            gc,
            locality_group: message.locality_group,
        })
    }
}

impl From<&Family> for master::FamilySchema {
    fn from(family: &Family) -> master::FamilySchema {
        master::FamilySchema {
            name: family.name.clone(),
            family_id: family.id.0,
            gc: Some(family.gc.to_message()),
            locality_group: family.locality_group,
        }
    }
}

impl TryFrom<&master::LocalityGroupSchema> for LocalityGroup {
    type Error = RpcError;
    fn try_from(message: &master::LocalityGroupSchema) -> Result<LocalityGroup, RpcError> {
        let (number, block_bytes, in_memory) = (message.number, message.block_bytes, message.in_memory);
        let compression = match master::Compression::try_from(message.compression) {
            Ok(master::Compression::Unspecified) => Compression::Auto,
            Ok(master::Compression::None) => Compression::None,
            Ok(master::Compression::Lz4) => Compression::Lz4,
            Ok(master::Compression::Zstd) => Compression::Zstd,
            Err(_) => return Err(invalid(format!("locality group {number}: unknown compression"))),
        };
        let filter = match master::FilterOn::try_from(message.filter) {
            Ok(master::FilterOn::Row) => FilterOn::Row,
            Ok(master::FilterOn::RowColumn) => FilterOn::RowColumn,
            Err(_) => return Err(invalid(format!("locality group {number}: unknown kind of filter"))),
        };
        Ok(LocalityGroup { number, block_bytes, compression, in_memory, filter })
    }
}

impl From<&LocalityGroup> for master::LocalityGroupSchema {
    fn from(group: &LocalityGroup) -> master::LocalityGroupSchema {
        let compression = match group.compression {
            Compression::Auto => master::Compression::Unspecified,
            Compression::None => master::Compression::None,
            Compression::Lz4 => master::Compression::Lz4,
            Compression::Zstd => master::Compression::Zstd,
        };
        master::LocalityGroupSchema {
            number: group.number,
            block_bytes: group.block_bytes,
            compression: compression.into(),
            in_memory: group.in_memory,
            filter: match group.filter {
                FilterOn::Row => master::FilterOn::Row.into(),
                FilterOn::RowColumn => master::FilterOn::RowColumn.into(),
            },
        }
    }
}

impl TryFrom<&master::TableSchema> for TableSchema {
    type Error = RpcError;
    fn try_from(message: &master::TableSchema) -> Result<TableSchema, RpcError> {
        let families = message.families.iter().map(Family::try_from).collect::<Result<_, _>>()?;
        let id = TableId(message.table_id);
        let groups = message.groups.iter().map(LocalityGroup::try_from).collect::<Result<_, _>>()?;
        let schema = TableSchema {
            id,
            name: message.name.clone(),
            version: message.version,
            families,
            groups,
            salt: message.salt,
            split_bytes: message.split_bytes,
        };
        schema.validate()?;
        Ok(schema)
    }
}

impl From<&TableSchema> for master::TableSchema {
    fn from(schema: &TableSchema) -> master::TableSchema {
        master::TableSchema {
            table_id: schema.id.0,
            name: schema.name.clone(),
            version: schema.version,
            families: schema.families.iter().map(master::FamilySchema::from).collect(),
            groups: schema.groups.iter().map(master::LocalityGroupSchema::from).collect(),
            salt: schema.salt,
            split_bytes: schema.split_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> TableSchema {
        let gc = GcRule::Intersection(vec![GcRule::MaxVersions(2), GcRule::Union(vec![GcRule::MaxAge(5)])]);
        let families = vec![
            Family { name: "a".into(), id: FamilyId(7), gc, locality_group: 3 },
            Family { name: "b".into(), id: FamilyId(8), gc: GcRule::KeepAll, locality_group: 0 },
        ];
        let group = LocalityGroup {
            number: 3,
            block_bytes: 65_536,
            compression: Compression::Zstd,
            in_memory: true,
            filter: FilterOn::RowColumn,
        };
        let groups = vec![group];
        TableSchema { id: TableId(4), name: "t".into(), version: 9, families, groups, salt: 8, split_bytes: 77 }
    }

    #[test]
    fn a_schema_survives_the_wire() {
        assert_eq!(TableSchema::try_from(&master::TableSchema::from(&schema())).unwrap(), schema());
        assert_eq!(schema().locality_groups(), [0, 3]);
        assert!(schema().group(3).in_memory);
        assert_eq!(schema().group(9), LocalityGroup { number: 9, ..LocalityGroup::default() });
    }

    #[test]
    fn refuses_bad_names() {
        for name in ["", "-x", ".x", "a b", "ä", &"x".repeat(51)] {
            assert!(validate_table_name(name).is_err(), "{name}");
        }
        for name in ["t", "_t", "0-a.b_C", &"x".repeat(50)] {
            assert!(validate_table_name(name).is_ok(), "{name}");
        }
        let mut twice = schema();
        twice.families[1].name = "a".into();
        assert_eq!(twice.validate().unwrap_err().message, "family a is given twice");
        assert!(validate_row_key(b"").is_err());
        assert!(validate_row_key(&[b'k'; 4097]).is_err());
        assert!(validate_row_key(&[b'k'; 4096]).is_ok());
    }

    #[test]
    fn refuses_bad_groups() {
        for bad in [
            LocalityGroup { number: 3, ..LocalityGroup::default() },
            LocalityGroup { number: 4, block_bytes: 7, ..LocalityGroup::default() },
        ] {
            let mut schema = schema();
            schema.groups.push(bad);
            assert!(schema.validate().is_err(), "{bad:?}");
        }
        assert!(TableSchema { salt: limits::SALT_MAX + 1, ..schema() }.validate().is_err());
    }

    #[test]
    fn gc_rules_combine() {
        let both = GcRule::Intersection(vec![GcRule::MaxVersions(1), GcRule::MaxAge(10)]);
        assert!(both.lets_go(1, 80, 100));
        assert!(!both.lets_go(0, 80, 100));
        assert!(!both.lets_go(1, 95, 100));
        let either = GcRule::Union(vec![GcRule::MaxVersions(1), GcRule::MaxAge(10)]);
        assert!(either.lets_go(1, 95, 100) && either.lets_go(0, 80, 100) && !either.lets_go(0, 95, 100));
        assert!(!GcRule::Intersection(vec![]).lets_go(9, 0, 100));
        assert!(!GcRule::MaxAge(u64::MAX).lets_go(0, 0, 100));
    }
}
