//! SSTables: immutable sorted files. The format stands in `docs/formats.md`.
//!
//! | part | holds |
//! |---|---|
//! | [`format`] | constants, footer, handles, what surrounds a stored block |
//! | [`block`] | entries with shared prefixes and restart points: builder and cursor |
//! | [`bloom`] | the filter on rows |
//! | [`properties`] | what a file says about itself |
//! | [`skip`] | what of a file a reader may leave unread |
//! | [`builder`] | entries in, bytes out; no IO |
//! | [`upload`] | bytes to the object store |
//! | [`file`] | an open file, its blocks through the cache; the table of open files |
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
pub mod properties;
pub mod skip;
pub mod upload;

#[cfg(test)]
mod tests;

pub use block::Block;
pub use builder::TableBuilder;
pub use cursor::FileCursor;
pub use file::{FileHandle, FileTable, SstableFile};
pub use properties::Properties;
