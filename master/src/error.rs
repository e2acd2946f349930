//! Why a master cannot start.

use std::io;

use uruk_base::data_folder::DataFolderError;

use crate::config::ConfigError;

/// A master cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data folder cannot be used.
    #[error(transparent)]
    Folder(#[from] DataFolderError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Which address.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// The group's state cannot be read, or its configuration cannot work.
    #[error(transparent)]
    Consensus(#[from] uruk_consensus::StartError),
}
