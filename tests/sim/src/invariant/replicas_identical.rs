//! All copies of a finished chunk, and of a sealed log segment, are the same bytes.
//!
//! Why: readers take any copy. Copies that differ are two answers to one question, and repair may make
//! the wrong one the only one.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use uruk_dfs_sim::format::replica_file::{self, DATA_OFFSET};

use super::Eventually;
use crate::cluster::Role;
use crate::world::World;

/// Reads the disks of all chunk servers.
pub struct ReplicasIdentical;

impl Eventually for ReplicasIdentical {
    fn name(&self) -> &'static str {
        "replicas-identical"
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        let mut first: BTreeMap<String, (String, Bytes)> = BTreeMap::new();
        for server in world.names(&[Role::ChunkServer]) {
            let disk = world.host(&server).disk();
            for (path, _) in disk.files() {
                let Some((piece, content)) = finished(&path, |path| disk.content(path)) else { continue };
                match first.get(&piece) {
                    Some((other, known)) if *known != content => {
                        let at = known.iter().zip(&content).position(|(a, b)| a != b);
                        return Err(format!(
                            "{piece}: {} bytes on {other}, {} bytes on {server}, first difference at {at:?}",
                            known.len(),
                            content.len()
                        ));
                    }
                    Some(_) => {}
                    None => {
                        first.insert(piece, (server.clone(), content));
                    }
                }
            }
        }
        Ok(())
    }
}

/// A chunk, or a sealed segment: its name and what every copy of it must hold.
fn finished(path: &Path, read: impl Fn(&Path) -> Option<Bytes>) -> Option<(String, Bytes)> {
    let name = path.file_name()?.to_str()?.to_owned();
    match path.extension()?.to_str()? {
        "chunk" => Some((name, read(path)?)),
        "meta" => {
            let id = u64::from_str_radix(path.file_stem()?.to_str()?, 16).ok()?;
            let meta = replica_file::parse_meta(id, &read(path)?).ok()?;
            let length = meta.sealed?.length as usize;
            let log = read(&path.with_extension("log"))?;
            let end = (DATA_OFFSET as usize + length).min(log.len());
            Some((name, log.slice((DATA_OFFSET as usize).min(end)..end)))
        }
        _ => None,
    }
}
