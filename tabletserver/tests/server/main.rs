//! The tablet server over loopback, with a master and storage in memory.

mod cluster;
mod idempotency;
mod jobs;
mod large;
mod lease;
mod load;
mod logs;
mod made;
mod master;
mod merge;
mod objects;
mod parent;
mod pins;
mod recovery;
mod schema;
mod split;
mod split_faults;
mod stop;
mod tablets;
mod writes;
