//! The RPC services: [`control`] for tablet servers, [`client`] for clients.

pub mod client;
pub mod control;
