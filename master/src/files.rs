//! Letting go: of files that nothing names, and of flushed logs.
//!
//! A file goes only if (a) a committed command un-named it: then it is in the deletion queue, and the
//! planner waits until no live server reads it, by reports that were surely gathered later; or (b) its
//! creator is dead, or does not own any more the tablet in the file's path, and nothing names it: what the
//! sweep finds. Such a creator can have it named no more, so what is unnamed then stays unnamed for ever; or
//! (c) it is a sorted piece of a log, nothing names it, and no sort by its creator is under way: the answer
//! that told of it was lost, and is not listened to any more. Should it be named after all, by a command whose
//! outcome this leader does not know, the piece counts as lost and is sorted anew. Age alone never counts.
//!
//! (b) trusts that tablet servers name a file only for the tablet in its path.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use uruk_base::commit_log::{LogId, Lsn};
use uruk_base::planted::{Planted, is_planted};
use uruk_consensus::Term;
use uruk_proto::ServerId;

use crate::command::Command;
use crate::driver::{Outcome, propose_done};
use crate::shared::Shared;
use crate::state::files::creator;

/// Deletions under way at a time.
const DELETIONS_MAX: usize = 8;
/// Files that the sweep looks at in one go.
const LISTED_MAX: usize = 256;
/// Where tablet servers put their files. The sweep looks nowhere else: the store may hold more.
pub const SWEPT_PREFIXES: [&str; 2] = ["tables", RECOVERY_PREFIX];
/// Sorted pieces of logs.
const RECOVERY_PREFIX: &str = "recovery";

/// Deletes these entries of the deletion queue, then forgets them.
pub async fn delete(shared: &Shared, term: Term, entries: Vec<(u64, Arc<str>)>) -> Outcome {
    shared.confirm_term(term).await.map_err(|error| error.to_string())?;
    let objects = &shared.storage.objects;
    let deletions = futures::stream::iter(entries).map(|(entry, path)| async move {
        match delete_file(objects, &path).await {
            Ok(()) => Ok(entry),
            Err(error) => Err(format!("cannot delete {path}: {error}")),
        }
    });
    let results: Vec<Result<u64, String>> = deletions.buffer_unordered(DELETIONS_MAX).collect().await;
    let (gone, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let gone: Vec<u64> = gone.into_iter().flatten().collect();
    shared.metrics.files_deleted.inc_by(gone.len() as u64);
    if !gone.is_empty() {
        tracing::debug!(files = gone.len(), "deleted files that nothing names");
        propose_done(shared, term, Command::ForgetFiles { entries: gone }).await?;
    }
    match failed.into_iter().find_map(Result::err) {
        Some(problem) => Err(problem),
        None => Ok(()),
    }
}

/// Deletes every file that nothing names and nobody can name any more.
pub async fn sweep(shared: &Shared, term: Term) -> Outcome {
    let mut deleted = 0_u64;
    for prefix in SWEPT_PREFIXES {
        let mut listed = shared.storage.objects.list(Some(&Path::from(prefix))).try_chunks(LISTED_MAX);
        while let Some(files) = listed.try_next().await.map_err(|error| format!("cannot list {prefix}: {error}"))? {
            // After they were listed: whoever owned a tablet when its file was made is known here from now on.
            shared.confirm_term(term).await.map_err(|error| error.to_string())?;
            for file in files {
                let path = file.location.as_ref();
                let Some(creator) = creator(path) else { continue };
                // After the file was listed, and before its name is looked for: see the module's header.
                let is_left = prefix == RECOVERY_PREFIX && !shared.volatile.lock().is_sorting(creator);
                let is_orphan = shared.consensus.read(|state| {
                    (state.is_abandoned(path, creator) || is_left || is_planted(Planted::CollectedUnnamed))
                        && !state.is_named(path)
                        && !state.deletions.entries().values().any(|queued| **queued == *path)
                });
                if is_orphan {
                    delete_file(&shared.storage.objects, path).await.map_err(|error| error.to_string())?;
                    deleted += 1;
                }
            }
        }
    }
    shared.metrics.orphans_deleted.inc_by(deleted);
    if deleted > 0 {
        tracing::info!(files = deleted, "deleted files that nothing named");
    }
    Ok(())
}

async fn delete_file(objects: &Arc<dyn ObjectStore>, path: &str) -> object_store::Result<()> {
    match objects.delete(&Path::from(path)).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets go of a live server's log up to where all of it is flushed.
pub async fn trim(shared: &Shared, server: ServerId, upto: u64) -> Outcome {
    shared.storage.logs.trim(LogId(server.0), Lsn(upto)).await.map_err(|error| error.to_string())?;
    shared.volatile.lock().trimmed.insert(server, upto);
    Ok(())
}
