//! The client library of Uruk: a distributed, ordered, wide-column table store.
//!
//! ```no_run
//! use futures::StreamExt;
//! use uruk_base::Env;
//! use uruk_client::{Client, FamilySpec, Mutation, ReadOptions, RowMutation, RowRange, ScanOptions};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(&Env::real(), &["localhost:7000".to_owned()])?;
//! client.create_table("pages", &[FamilySpec::new("meta")], &["m".into()]).await?;
//!
//! let pages = client.table("pages").await?;
//! pages.mutate_row("com.example/", vec![Mutation::set("meta", "title", "Example")]).await?;
//! if let Some(row) = pages.read_row("com.example/", &ReadOptions::default()).await? {
//!     println!("{:?}", row.value("meta", "title"));
//! }
//!
//! // Many rows: collected into batches per tablet, bounded in memory.
//! let writer = pages.batch_writer();
//! for n in 0..100_000 {
//!     writer.add(RowMutation::new(format!("org.{n:06}"), vec![Mutation::set("meta", "n", n.to_string())])).await?;
//! }
//! writer.flush().await?;
//!
//! // A scan is a stream of rows, over any number of tablets.
//! let mut rows = pages.scan(RowRange::prefix(b"org."), ScanOptions::default());
//! while let Some(row) = rows.next().await {
//!     println!("{:?}", row?.key());
//! }
//! # Ok(()) }
//! ```
//!
//! # How a call ends
//! Done (`Ok`), not done, or unknown: [`Error::outcome`] tells the last two apart. A call is tried
//! again until it has a final answer or its deadline has passed; each attempt of a write carries the
//! same idempotency key, so that a write is performed at most once however often it is sent, also
//! when its tablet has moved to another server in between.
//!
//! # What it does by itself
//! | event | what happens |
//! |---|---|
//! | a tablet moved, split, was merged | the server refuses; the location is looked up and the call sent again at once; a batch is cut anew |
//! | a tablet is frozen for a moment | the write is sent again after a few milliseconds |
//! | a tablet server died | its connections break; the master is asked until another server has the tablet |
//! | a tablet server fell silent | after `slow_check_ms` the master is asked, now and then, whether the tablet has a new owner |
//! | a server is overloaded | the call waits as long as the server asks |
//! | a scan's server died | the scan goes on after the last complete row; a part of a row is thrown away |
//! | the master died or lost its leadership | the next one is asked; known locations go on working without any |
//! | the table was deleted and made again | its name is resolved again |
//!
//! # Parts
//! | module | holds |
//! |---|---|
//! | `client`, `admin`, `shape`, `config` | the handle on a cluster, tables, tablets and servers, every limit |
//! | `table` | name → id and schema; the retry loop that all calls share |
//! | `retry`, `error` | when to try again, how calls end: pure policy |
//! | `location`, `locate`, `masters`, `server` | which server has a row, and connections to it |
//! | `shared_work` | look-ups that many wait for, whoever of them is polled |
//! | `idempotency` | sequence numbers of writes |
//! | `salt` | the prefixes of salted tables' row keys |
//! | `read`, `scan`, `write`, `batch_writer` | the data calls |
//! | `mutation`, `filter`, `row` | what they take and give, with families by name |

mod admin;
mod batch_writer;
mod calls;
mod client;
mod config;
mod error;
mod filter;
mod idempotency;
mod locate;
mod location;
mod masters;
mod mutation;
mod read;
mod retry;
mod row;
mod salt;
mod scan;
mod server;
mod shape;
mod shared_work;
mod table;
mod write;

pub use admin::{FamilyChange, FamilySpec, TableInfo, TableSpec};
pub use batch_writer::{BatchError, BatchWriter, Receipt, RowFailure};
pub use client::{Client, ClientBuilder};
pub use config::ClientConfig;
pub use error::{Error, Outcome, Result};
pub use filter::{Filter, ReadOptions};
pub use mutation::{Mutation, ReadModifyWriteRule, RowMutation};
pub use row::{Cell, Row, RowBatch};
pub use scan::{BatchStream, Order, RowStream, ScanOptions};
pub use shape::{BalanceMode, CheckDepth, Procedure, TabletChoice};
pub use table::Table;
pub use uruk_proto::master::{BalanceResponse, BalancedServer, CheckFinding, CheckResponse, PlannedMove};
pub use uruk_proto::schema::{Compression, Family, FilterOn, GcRule, LocalityGroup, TableSchema};
pub use uruk_proto::{ErrorCode, RowRange, cell_batch};
