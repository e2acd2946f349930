//! Uruk's wire messages and the types that every part shares: ids, keys, cells, mutations, schema.
//!
//! No IO. Whatever arrives as bytes is parsed here, once, into a type that cannot be wrong.

mod amplification;
pub mod calls;
pub mod cell_batch;
pub mod codec;
pub mod error;
pub mod id;
pub mod key;
pub mod limits;
pub mod mutation;
pub mod range;
pub mod schema;

pub use codec::DecodeError;
pub use error::{ErrorCode, RpcError};
pub use id::{Epoch, FamilyId, SeqNo, ServerId, TableId, TabletId};
pub use range::RowRange;

/// Generated code, in modules that mirror the packages' names, as generated cross-references expect.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
mod uruk {
    pub mod error {
        pub mod v1 {
            tonic::include_proto!("uruk.error.v1");
        }
    }
    pub mod raft {
        pub mod v1 {
            tonic::include_proto!("uruk.raft.v1");
        }
    }
    pub mod dfs {
        pub mod v1 {
            tonic::include_proto!("uruk.dfs.v1");
        }
    }
    pub mod master {
        pub mod v1 {
            tonic::include_proto!("uruk.master.v1");
        }
    }
    pub mod tablet {
        pub mod v1 {
            tonic::include_proto!("uruk.tablet.v1");
        }
    }
}

pub use uruk::dfs::v1 as dfs;
pub use uruk::error::v1 as error_detail;
pub use uruk::master::v1 as master;
pub use uruk::raft::v1 as raft;
pub use uruk::tablet::v1 as tablet;
