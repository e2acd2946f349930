//! SSTables: immutable sorted files. The format stands in `docs/formats.md`.
//!
//! | part | holds |
//! |---|---|
//! | [`format`] | constants, footer, handles, what surrounds a stored block |
//! | [`block`] | entries with shared prefixes and restart points: builder and cursor |
//! | [`bloom`], [`row_filter`] | a filter's bits; what it knows of a partition, and why a look-up may go by it |
//! | [`properties`] | what a file says about itself |
//! | [`skip`] | what of a file a reader may leave unread |
//! | [`builder`] | entries in, bytes out; no IO |
//! | [`upload`] | bytes to the object store |
//! | [`file`], [`tail`], [`pins`] | an open file, its blocks through the cache; the table of open files; what of a file stays in memory |
//! | [`inspect`], [`decode`] | a file for people, with its damage; the decoders for those who try to break them |
//! | [`cursor`] | walks a file's entries; says when it needs a block instead of waiting for it |

pub mod block;
pub mod bloom;
pub mod builder;
pub mod cursor;
pub mod decode;
pub mod file;
pub mod format;
pub mod inspect;
pub mod pins;
pub mod properties;
pub mod row_filter;
pub mod skip;
pub mod tail;
pub mod upload;

#[cfg(test)]
mod tests;

pub use block::Block;
pub use builder::TableBuilder;
pub use cursor::FileCursor;
pub use file::{FileHandle, FileTable, SstableFile};
pub use properties::Properties;
