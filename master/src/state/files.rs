//! Files that no committed command names any more: they wait here until nobody reads them.
//!
//! Invariant: names are unique for ever, so what was let go once is never named again; deleting a
//! queued file is right whoever does it, and however late.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uruk_proto::{ServerId, TabletId};

/// The server that created the file. None for files that are not named so; nobody may sweep those.
///
/// | file | name |
/// |---|---|
/// | of a tablet | `tables/<...>/<server>-<counter>` and maybe an extension |
/// | sorted piece of a log | `recovery/<server>/<counter>` |
pub fn creator(path: &str) -> Option<ServerId> {
    let mut parts = path.rsplit('/');
    let name = parts.next()?;
    let (server, counter) = match name.split_once('-') {
        Some((server, rest)) => (server, rest.split('.').next()?),
        None => (parts.next().filter(|_| parts.next() == Some("recovery"))?, name),
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(server) && is_number(counter)).then(|| server.parse().ok().map(ServerId))?
}

/// The tablet that a file was made for: `tables/<table>/<tablet>/<file>`. None for other names.
pub fn tablet_of(path: &str) -> Option<TabletId> {
    let mut parts = path.strip_prefix("tables/")?.split('/');
    let (_table, tablet, _file) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then(|| tablet.parse().ok().map(TabletId))?
}

/// Files to delete.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DeletionQueue {
    entries: BTreeMap<u64, Arc<str>>,
    next: u64,
}

impl DeletionQueue {
    pub(super) fn add(&mut self, path: Arc<str>) {
        if !path.is_empty() {
            self.entries.insert(self.next, path);
            self.next += 1;
        }
    }

    pub(super) fn add_all(&mut self, paths: Vec<Arc<str>>) {
        paths.into_iter().for_each(|path| self.add(path));
    }

    pub(super) fn forget(&mut self, entries: &[u64]) {
        entries.iter().for_each(|entry| {
            self.entries.remove(entry);
        });
    }

    /// By the order in which they were let go.
    pub fn entries(&self) -> &BTreeMap<u64, Arc<str>> {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tablet_is_in_the_name() {
        assert_eq!(tablet_of("tables/3/50/17-42.sst"), Some(TabletId(50)));
        for other in ["", "tables/17-42.sst", "tables/3/17-42.sst", "tables/3/x/17-42.sst", "tables/3/50/1/17-42.sst"] {
            assert_eq!(tablet_of(other), None, "{other}");
        }
    }

    #[test]
    fn the_creator_is_in_the_name() {
        assert_eq!(creator("tables/3/17-42.sst"), Some(ServerId(17)));
        assert_eq!(creator("17-42"), Some(ServerId(17)));
        assert_eq!(creator("recovery/17/42"), Some(ServerId(17)));
        for other in [
            "",
            "recovery/17/x",
            "tables/17/42",
            "tables/17-42/x.sst",
            "a-1.sst",
            "17.sst",
            "17-.sst",
            "-3",
            "17-x.sst",
            "+1-2",
        ] {
            assert_eq!(creator(other), None, "{other}");
        }
    }
}
