//! The bench's commit log: the server's records in frames, appended to one local file.
//!
//! A writer that finds nobody writing takes all records that wait, its own included, and writes them as
//! one frame (group commit); the others wait for it. With `sync` the frame is durable (`fdatasync`)
//! before anyone goes on; without, it is in the page cache, as RocksDB's log is then. Records, frames
//! and their checksum are what a tablet server hands to its log; there are no replicas.
//!
//! Invariant: sequence numbers are given under the log's lock, so they ascend in the file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::{Condvar, Mutex};
use uruk_proto::{Epoch, SeqNo, TabletId};

use crate::server::record::{self, Piece, Record, RowWrite};

/// The file grows in steps of this size, so that `fdatasync` seldom has to write metadata: its length is not
/// that of its content, which zeros end, as in a chunk server's replica.
const STEP_BYTES: u64 = 16 << 20;

#[derive(Debug)]
struct State {
    /// The frame to come.
    waiting: BytesMut,
    /// Records in it or before it.
    appended: u64,
    /// Records that are written (and durable, with `sync`).
    written: u64,
    writing: bool,
    counter: u64,
    bytes: u64,
    records: u64,
    reserved: u64,
}

/// A commit log in one file.
#[derive(Debug)]
pub struct BenchLog {
    file: File,
    state: Mutex<State>,
    wrote: Condvar,
}

impl BenchLog {
    /// Creates the file.
    pub fn create(path: &Path) -> io::Result<BenchLog> {
        let file = OpenOptions::new().create_new(true).write(true).open(path)?;
        let state = State {
            waiting: BytesMut::new(),
            appended: 0,
            written: 0,
            writing: false,
            counter: 0,
            bytes: 0,
            records: 0,
            reserved: 0,
        };
        Ok(BenchLog { file, state: Mutex::new(state), wrote: Condvar::new() })
    }

    /// Logs one row's write; returns its sequence number once it is written, and durable if `sync`.
    pub fn commit(&self, row: &[u8], mutations: Bytes, timestamp: i64, sync: bool) -> io::Result<SeqNo> {
        let mut state = self.state.lock();
        state.counter += 1;
        let seq = SeqNo::new(Epoch(1), state.counter).expect("fewer writes than an epoch has numbers");
        let row = RowWrite { offset: 0, row: Bytes::copy_from_slice(row), mutations };
        let record = Record {
            tablet: TabletId(1),
            first: seq,
            last: seq,
            timestamp,
            call: None,
            result: None,
            piece: Piece::Whole,
            rows: vec![row],
        };
        if state.waiting.is_empty() {
            state.waiting.put_u64_le(0); // length and checksum come here
            record::start_frame(&mut state.waiting);
        }
        record.put(&mut state.waiting);
        state.appended += 1;
        let mine = state.appended;
        while state.written < mine {
            if state.writing {
                self.wrote.wait(&mut state);
                continue;
            }
            state.writing = true;
            let (frame, upto) = (state.waiting.split(), state.appended);
            let grow = state.bytes + frame.len() as u64 > state.reserved;
            if grow {
                state.reserved += STEP_BYTES;
            }
            let reserve = grow.then_some(state.reserved - STEP_BYTES);
            // Alone there is nobody to let in meanwhile; with others waiting for the disk there is.
            let result = if sync {
                parking_lot::MutexGuard::unlocked(&mut state, || self.write(frame, reserve, sync))
            } else {
                self.write(frame, reserve, sync)
            };
            state.writing = false;
            self.wrote.notify_all();
            let (frame, bytes) = result?;
            state.bytes += bytes;
            state.records += upto - state.written;
            state.written = upto;
            if state.waiting.is_empty() && state.waiting.capacity() == 0 {
                state.waiting = frame;
                state.waiting.clear();
            }
        }
        Ok(seq)
    }

    /// Bytes and records so far.
    pub fn written(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.bytes, state.records)
    }

    fn write(&self, mut frame: BytesMut, reserve: Option<u64>, sync: bool) -> io::Result<(BytesMut, u64)> {
        if let Some(offset) = reserve {
            // Where the file system cannot, the file grows as it is written.
            let _ = rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), offset, STEP_BYTES);
        }
        let bytes = frame.len() as u64;
        let crc = crc32fast::hash(&frame[8..]);
        frame[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
        frame[4..8].copy_from_slice(&crc.to_le_bytes());
        (&self.file).write_all(&frame)?;
        if sync {
            self.file.sync_data()?;
        }
        Ok((frame, bytes))
    }
}
