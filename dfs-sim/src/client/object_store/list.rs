//! Listing and deleting files, page by page.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ListResult, ObjectMeta, Result};
use uruk_proto::dfs::{DeleteFilesRequest, ListFilesRequest, ListFilesResponse};

use super::super::connection::Shared;
use super::errors;

/// Files per page.
const PAGE_FILES_MAX: u32 = 1_000;
/// Files deleted by one command.
const DELETE_FILES_MAX: usize = 256;
/// Sorts after every character of a path.
const LAST_CHARACTER: char = char::MAX;

/// What all paths below `prefix` start with.
fn folder(prefix: Option<&Path>) -> String {
    match prefix {
        Some(prefix) if !prefix.as_ref().is_empty() => format!("{prefix}/"),
        Some(_) | None => String::new(),
    }
}

async fn page(shared: &Shared, prefix: &str, after: &str) -> Result<ListFilesResponse> {
    let request = ListFilesRequest { prefix: prefix.to_owned(), after: after.to_owned(), limit: PAGE_FILES_MAX };
    let answer = shared
        .controllers
        .call("list files", |mut controller| {
            let request = request.clone();
            async move { controller.list_files(request).await }
        })
        .await;
    match answer {
        Ok(answer) => Ok(answer),
        Err(error) => Err(errors::from_call(&Path::from(prefix), error)),
    }
}

/// Files below `prefix` after `after`, in order.
pub fn list(shared: Arc<Shared>, prefix: Option<&Path>, after: String) -> BoxStream<'static, Result<ObjectMeta>> {
    let prefix = folder(prefix);
    stream::try_unfold(Some(after), move |after| {
        let (shared, prefix) = (shared.clone(), prefix.clone());
        async move {
            let Some(after) = after else { return Ok(None) };
            let page = page(&shared, &prefix, &after).await?;
            let next = page.files.last().filter(|_| page.more).map(|file| file.path.clone());
            let files: Vec<Result<ObjectMeta>> = page.files.iter().map(errors::object_meta).collect();
            Ok::<_, object_store::Error>(Some((stream::iter(files), next)))
        }
    })
    .try_flatten()
    .boxed()
}

/// Files directly in `prefix`, and the folders in it. A folder costs one page, however large it is.
pub async fn list_with_delimiter(shared: &Shared, prefix: Option<&Path>) -> Result<ListResult> {
    let prefix = folder(prefix);
    let (mut objects, mut folders) = (Vec::new(), BTreeSet::new());
    let mut after = String::new();
    loop {
        let page = page(shared, &prefix, &after).await?;
        for file in &page.files {
            let Some(rest) = file.path.strip_prefix(&prefix) else { continue };
            match rest.split_once('/') {
                Some((folder, _)) => drop(folders.insert(format!("{prefix}{folder}"))),
                None => objects.push(errors::object_meta(file)?),
            }
        }
        let Some(last) = page.files.last().filter(|_| page.more) else { break };
        after = match last.path.strip_prefix(&prefix).and_then(|rest| rest.split_once('/')) {
            Some((folder, _)) => format!("{prefix}{folder}/{LAST_CHARACTER}"),
            None => last.path.clone(),
        };
    }
    let common_prefixes = folders.iter().map(Path::parse).collect::<Result<_, _>>()?;
    Ok(ListResult { objects, common_prefixes, extensions: Default::default() })
}

/// Deletes files in batches; what is not there counts as deleted.
pub fn delete_stream(
    shared: Arc<Shared>,
    locations: BoxStream<'static, Result<Path>>,
) -> BoxStream<'static, Result<Path>> {
    locations
        .ready_chunks(DELETE_FILES_MAX)
        .then(move |batch| delete(shared.clone(), batch))
        .flat_map(stream::iter)
        .boxed()
}

async fn delete(shared: Arc<Shared>, batch: Vec<Result<Path>>) -> Vec<Result<Path>> {
    let paths: Vec<String> = batch.iter().flatten().map(Path::to_string).collect();
    if paths.is_empty() {
        return batch;
    }
    let deleted = shared
        .controllers
        .call("delete files", |mut controller| {
            let request = DeleteFilesRequest { paths: paths.clone() };
            async move { controller.delete_files(request).await }
        })
        .await;
    for path in &paths {
        shared.files.remove(path);
    }
    match deleted {
        Ok(_) => batch,
        Err(error) => {
            batch.into_iter().map(|location| location.and_then(|l| Err(errors::from_call(&l, error.clone())))).collect()
        }
    }
}
