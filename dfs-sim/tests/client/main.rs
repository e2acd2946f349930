//! The client against a real cluster in this process: one controller, chunk servers with folders of
//! their own, loopback ports, and a network that can be told to fail.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, missing_docs)] // tests poll with real time

mod cluster;
mod conformance;
mod files;
mod logs;
mod network;
mod random;
mod seals;
