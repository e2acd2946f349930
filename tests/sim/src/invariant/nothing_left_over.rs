//! Chunk servers hold nothing for long that the controllers do not know, or that nothing can name again.
//!
//! Why: a piece that is no longer named and never deleted fills the disk, and no file's deletion shows it.

use std::path::Path;

use uruk_dfs_sim::controller::Controller;
use uruk_dfs_sim::controller::id::{ChunkId, PieceId, SegmentId};
use uruk_dfs_sim::controller::state::Want;

use super::Eventually;
use crate::cluster::Role;
use crate::world::World;

/// Pieces shown.
const SHOWN_MAX: usize = 4;

/// Asks the store's leader about each piece on each disk.
pub struct NothingLeftOver;

impl Eventually for NothingLeftOver {
    fn name(&self) -> &'static str {
        "nothing-left-over"
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        let controllers = world.setting.registry.controllers();
        let is_leader = |controller: &Controller| controller.consensus().leadership().borrow().is_leader;
        let Some((_, store)) = controllers.iter().find(|(_, controller)| is_leader(controller)) else {
            return Err("no controller leads".into());
        };
        let mut left = Vec::new();
        for server in world.names(&[Role::ChunkServer]) {
            for (path, _) in world.host(&server).disk().files() {
                let Some(piece) = piece(&path) else { continue };
                let wanted = store.consensus().read(|state| state.want(piece));
                if matches!(wanted, Want::Foreign | Want::Garbage) {
                    left.push(format!("{} on {server}: {wanted:?}", path.display()));
                }
            }
        }
        match left.len() {
            0 => Ok(()),
            n => Err(format!("{n} files are left on chunk servers: {}", left[..n.min(SHOWN_MAX)].join(", "))),
        }
    }
}

/// What a file of a chunk server is part of.
fn piece(path: &Path) -> Option<PieceId> {
    let id = u64::from_str_radix(path.file_stem()?.to_str()?, 16).ok()?;
    match path.extension()?.to_str()? {
        "chunk" => Some(PieceId::Chunk(ChunkId(id))),
        "log" | "meta" => Some(PieceId::Segment(SegmentId(id))),
        _ => None,
    }
}
