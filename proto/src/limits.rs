//! Limits of the data model: those of Cloud Bigtable.

/// Longest row key, in bytes; the shortest is 1.
pub const ROW_KEY_BYTES_MAX: usize = 4 << 10;
/// Longest column qualifier, in bytes.
pub const QUALIFIER_BYTES_MAX: usize = 16 << 10;
/// Largest cell value, in bytes.
pub const VALUE_BYTES_MAX: usize = 100 << 20;
/// Most bytes of one row's mutations in one write: they come in one message, with little else.
pub const ROW_WRITE_BYTES_MAX: usize = 120 << 20;
/// Most mutations in one row write.
pub const MUTATIONS_PER_ROW_MAX: usize = 100_000;
/// Longest family name, in bytes.
pub const FAMILY_NAME_BYTES_MAX: usize = 64;
/// Most families in a table.
pub const FAMILIES_MAX: usize = 100;
/// Block sizes that a locality group may have, in bytes before compression.
pub const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 1 << 10..=4 << 20;
/// Most prefixes that a table's rows are spread over.
pub const SALT_MAX: u32 = 256;
/// Longest table name, in bytes.
pub const TABLE_NAME_BYTES_MAX: usize = 50;
/// Most rules in one read-modify-write.
pub const READ_MODIFY_WRITE_RULES_MAX: usize = 100_000;
/// Most rows in one batch to one tablet.
pub const BATCH_ROWS_MAX: usize = 100_000;
/// Most by which the numbers of a tablet server's reports run ahead of the last one that a master granted: it
/// gives no larger number before it has that answer. So a report whose number is larger by more than this
/// than the largest that a master has heard is gathered after that moment.
pub const REPORTS_IN_FLIGHT_MAX: u64 = 4;
/// Most running flushes and compactions that a tablet server's report lists, and most that wait.
pub const MAINTENANCE_JOBS_MAX: usize = 32;
