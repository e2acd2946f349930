//! Commits of new files to the master, and what to do when the answer is lost.
//!
//! Invariants: (1) one command of a tablet is in flight, numbers grow, and a retry repeats its number;
//! (2) an outcome that is not known is resolved by reading the row, before
//! anything else happens to the tablet; (3) a file is deleted by its creator only when it was never
//! offered, or when its commit was refused while the row, read again, is still this server's and does not
//! name it. A row that is another's, or gone, may name it through an attempt whose answer was lost, or will
//! be read by an owner who found it named: such files are left to the master's sweep, which sees all rows
//! and takes them once this incarnation is dead.

use std::sync::atomic::Ordering;
use std::time::Duration;

use object_store::ObjectStoreExt;
use object_store::path::Path;
use uruk_proto::master::{CommitFilesRequest, GetTabletRequest, MetaRow};
use uruk_proto::{ErrorCode, RpcError};

use super::Server;
use super::incarnation::Ended;
use super::tablet::Tablet;

/// Pause before the row is asked for again.
const REREAD_DELAY: Duration = Duration::from_millis(100);

/// What became of a commit.
#[derive(Debug)]
pub enum CommitOutcome {
    /// It is in effect; the row as committed.
    Committed(MetaRow),
    /// It is not in effect, for this reason; the tablet is still ours, and the files are deleted.
    Refused(RpcError),
    /// The tablet is not ours any more; whether it was in effect before, and so what became of the files,
    /// is for others to know.
    Lost(RpcError),
}

impl Server {
    /// Commits a tablet's `files`, of which the request names those with something in them; its numbers are
    /// set here. The caller holds the tablet's `maintenance`, and deletes nothing: see invariant 3.
    pub async fn commit_files(
        &self,
        tablet: &Tablet,
        mut request: CommitFilesRequest,
        files: &[String],
    ) -> CommitOutcome {
        request.command = self.next_command.fetch_add(1, Ordering::Relaxed);
        request.report_number = self.pins.last_report();
        let answer = self
            .masters
            .call("commit files", |mut master| {
                let request = request.clone();
                async move { master.commit_files(request).await }
            })
            .await;
        let error = match answer.result {
            Ok(response) => match response.row {
                Some(row) => return CommitOutcome::Committed(row),
                None => RpcError::new(ErrorCode::Internal, "the master's answer has no row"),
            },
            Err(error) => error,
        };
        if error.code == ErrorCode::Fenced {
            self.incarnation.end(Ended::DeclaredDead(error.message.clone()));
            return CommitOutcome::Lost(error);
        }
        tracing::warn!(tablet = %tablet.id, uncertain = answer.uncertain, %error, "files are not committed; reading the row");
        match self.read_row(tablet).await {
            Some(row) if row.server_id != self.incarnation.server_id.0 || row.epoch != tablet.epoch.0 => {
                CommitOutcome::Lost(error)
            }
            Some(row) if is_in_effect(&request, &row) => CommitOutcome::Committed(row),
            Some(row) => {
                // Otherwise an attempt may still be under way.
                if error.code.is_not_done() {
                    self.renounce(&not_named(files, &row)).await;
                }
                CommitOutcome::Refused(error)
            }
            None => CommitOutcome::Lost(error),
        }
    }

    /// The row as committed; None when the tablet does not exist any more. Asks until it is told.
    pub async fn read_row(&self, tablet: &Tablet) -> Option<MetaRow> {
        loop {
            let answer = self
                .masters
                .call("get tablet", |mut master| async move {
                    master.get_tablet(GetTabletRequest { tablet_id: tablet.id.0 }).await
                })
                .await;
            match answer.result {
                Ok(response) if response.row.is_some() => return response.row,
                Ok(_) => return None,
                Err(error) if error.code == ErrorCode::NotFound => return None,
                Err(error) => tracing::warn!(tablet = %tablet.id, %error, "cannot read the row yet"),
            }
            self.env.clock.sleep(REREAD_DELAY).await;
        }
    }

    /// Deletes files that no row names: see invariant 3.
    pub async fn renounce(&self, paths: &[String]) {
        for path in paths {
            match self.storage.objects.delete(&Path::from(path.as_str())).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => {
                    tracing::warn!(%path, %error, "cannot delete a renounced file; the master's collection will")
                }
            }
        }
    }
}

fn names_table(row: &MetaRow, path: &str) -> bool {
    row.groups.iter().flat_map(|group| &group.files).any(|file| file.path == path)
}

/// Those of `files` that the row does not name.
fn not_named(files: &[String], row: &MetaRow) -> Vec<String> {
    let is_named = |path: &str| names_table(row, path) || row.memory_file == path;
    files.iter().filter(|path| !is_named(path)).cloned().collect()
}

/// Whether the row shows the request's work.
fn is_in_effect(request: &CommitFilesRequest, row: &MetaRow) -> bool {
    let named = |path: &String| names_table(row, path);
    let added = request.add.iter().flat_map(|group| &group.files);
    added.map(|file| &file.path).all(named)
        && !request.remove.iter().any(named)
        && row.flushed_seq >= request.flushed_seq
        && (request.memory_file.is_empty() || row.memory_file == request.memory_file)
        && !request.logs_done.iter().any(|log| row.needed_logs.contains(log))
}

#[cfg(test)]
mod tests {
    use uruk_proto::master::{FileRef, LocalityGroupFiles};

    use super::*;

    fn group(paths: &[&str]) -> Vec<LocalityGroupFiles> {
        let files = paths.iter().map(|path| FileRef { path: (*path).into(), ..FileRef::default() }).collect();
        vec![LocalityGroupFiles { locality_group: 0, files }]
    }

    #[test]
    fn what_a_row_names_is_not_renounced() {
        let row = MetaRow { groups: group(&["1.sst"]), memory_file: "2.mem".into(), ..MetaRow::default() };
        let files = ["1.sst", "2.mem", "3.sst", "4.mem"].map(String::from);
        assert_eq!(not_named(&files, &row), ["3.sst", "4.mem"]);
    }

    #[test]
    fn a_commit_is_in_effect_only_with_all_of_its_work() {
        let request = CommitFilesRequest {
            add: group(&["new"]),
            remove: vec!["old".into()],
            flushed_seq: 5,
            memory_file: "m".into(),
            logs_done: vec![3],
            ..CommitFilesRequest::default()
        };
        let done = MetaRow {
            groups: group(&["new", "other"]),
            flushed_seq: 5,
            memory_file: "m".into(),
            needed_logs: vec![4],
            ..MetaRow::default()
        };
        assert!(is_in_effect(&request, &done));
        for undone in [
            MetaRow { groups: group(&["other"]), ..done.clone() },
            MetaRow { groups: group(&["new", "old"]), ..done.clone() },
            MetaRow { flushed_seq: 4, ..done.clone() },
            MetaRow { memory_file: "before".into(), ..done.clone() },
            MetaRow { needed_logs: vec![3, 4], ..done.clone() },
        ] {
            assert!(!is_in_effect(&request, &undone), "{undone:?}");
        }
    }
}
