//! Real input that every machine has after a build: the source files of the Cargo registry.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// One source file.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// `crate/version/path`.
    pub row: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
}

/// The folder that Cargo unpacks the registries' crates into: `$CARGO_HOME/registry/src`.
pub fn registry_folder() -> Result<PathBuf> {
    let home = match (std::env::var_os("CARGO_HOME"), std::env::var_os("HOME")) {
        (Some(cargo), _) => PathBuf::from(cargo),
        (None, Some(home)) => Path::new(&home).join(".cargo"),
        (None, None) => bail!("neither CARGO_HOME nor HOME is set; give --input FOLDER"),
    };
    let folder = home.join("registry").join("src");
    if !folder.is_dir() {
        bail!("no folder {}; build something with cargo first, or give --input FOLDER", folder.display());
    }
    Ok(folder)
}

/// Every file below the registry folder, by row key.
pub fn registry_files(folder: &Path) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for registry in folders(folder)? {
        for package in folders(&registry)? {
            let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (name, version) = split_package(&name);
            walk(&package, &format!("{name}/{version}"), &mut files)?;
        }
    }
    // The same crate may come from two registries.
    files.sort_by(|a, b| a.row.cmp(&b.row));
    files.dedup_by(|a, b| a.row == b.row);
    if files.is_empty() {
        bail!("no files below {}; give --input FOLDER", folder.display());
    }
    Ok(files)
}

/// Every file below any folder, by its path in it.
pub fn folder_files(folder: &Path) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    walk(folder, "", &mut files)?;
    files.sort_by(|a, b| a.row.cmp(&b.row));
    if files.is_empty() {
        bail!("no files below {}", folder.display());
    }
    Ok(files)
}

/// `tokio-util-0.7.1` is crate `tokio-util`, version `0.7.1`.
fn split_package(name: &str) -> (&str, &str) {
    let is_version = |text: &str| text.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with('.');
    let dashes = name.match_indices('-').map(|(at, _)| at);
    match dashes
        .into_iter()
        .find(|at| name[at + 1..].starts_with(|c: char| c.is_ascii_digit()) && is_version(&name[at + 1..]))
    {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => (name, "0"),
    }
}

fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

fn walk(folder: &Path, row: &str, files: &mut Vec<SourceFile>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let kind = entry.file_type().with_context(|| format!("cannot look at {}", entry.path().display()))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let row = if row.is_empty() { name } else { format!("{row}/{name}") };
        if kind.is_dir() {
            walk(&entry.path(), &row, files)?;
        } else if kind.is_file() {
            let bytes = entry.metadata().with_context(|| format!("cannot look at {}", entry.path().display()))?.len();
            files.push(SourceFile { row, path: entry.path(), bytes });
        }
    }
    Ok(())
}

/// Row keys that cut the files into `parts` of about the same number of bytes.
pub fn splits(files: &[SourceFile], parts: usize) -> Vec<Vec<u8>> {
    let total: u64 = files.iter().map(|file| file.bytes).sum();
    let mut splits: Vec<Vec<u8>> = Vec::new();
    let mut sum = 0;
    for file in files {
        let wanted = total * (splits.len() as u64 + 1) / parts as u64;
        if splits.len() + 1 < parts && sum >= wanted && sum > 0 {
            splits.push(file.row.clone().into_bytes());
        }
        sum += file.bytes;
    }
    splits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_folders_name_crate_and_version() {
        assert_eq!(split_package("tokio-util-0.7.1"), ("tokio-util", "0.7.1"));
        assert_eq!(split_package("utf-8-0.7.6"), ("utf-8", "0.7.6"));
        assert_eq!(split_package("object_store-0.14.2-rc.1"), ("object_store", "0.14.2-rc.1"));
        assert_eq!(split_package("plain"), ("plain", "0"));
    }

    #[test]
    fn splits_cut_even_parts() {
        let file = |n: u64| SourceFile { row: format!("{n:04}"), path: PathBuf::new(), bytes: 10 };
        let files: Vec<SourceFile> = (0..120).map(file).collect();
        let splits = splits(&files, 12);
        assert_eq!(splits.len(), 11);
        assert_eq!(splits[0], b"0010");
        assert!(splits.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(super::splits(&files[..1], 12).is_empty());
    }
}
