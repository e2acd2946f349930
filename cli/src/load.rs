//! Load that checks itself: writers whose every row can be recomputed, readers and scans that
//! compare, and a ledger of what was acknowledged. Drills and the demo trust nothing else.

pub mod availability;
pub mod in_flight;
pub mod keyspace;
pub mod ledger;
pub mod linked_list;
pub mod pause;
pub mod record;
pub mod sources;
pub mod traffic;
