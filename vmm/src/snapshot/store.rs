//! Writing files so that a crash leaves the old ones or the new ones.
//!
//! A directory is written under a temporary name beside it, made durable, and put in its place in one step; so is a single file.
//! Two files that do not share a directory cannot be replaced in one step: then the memory's id, which differs from the
//! description's, tells a reader that they do not belong together.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Name of the description in a snapshot's directory.
pub const DESCRIPTION: &str = "vm.json";
/// Name of the memory in a snapshot's directory.
pub const MEMORY: &str = "memory";

/// Where a snapshot goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotTarget {
    /// A directory, which is replaced if it is a snapshot already.
    Directory(PathBuf),
    /// Two files, which are replaced.
    Files {
        /// The description.
        state: PathBuf,
        /// The memory.
        memory: PathBuf,
    },
}

/// Files that are being written. Dropped before [`commit`](Self::commit) they are removed.
pub(super) struct Staging {
    target: SnapshotTarget,
    state: PathBuf,
    memory: PathBuf,
    directory: Option<PathBuf>,
    done: bool,
}

impl Staging {
    /// Makes room for a snapshot at `target`.
    pub(super) fn new(target: &SnapshotTarget, id: &str) -> io::Result<Self> {
        let staging = match target {
            SnapshotTarget::Directory(path) => {
                if path.exists() && !path.join(DESCRIPTION).exists() && fs::read_dir(path)?.next().is_some() {
                    return Err(io::Error::other(
                        "it is there and no snapshot; choose another directory",
                    ));
                }
                let directory = temporary(path, id);
                fs::DirBuilder::new().mode(0o700).create(&directory)?;
                Self {
                    target: target.clone(),
                    state: directory.join(DESCRIPTION),
                    memory: directory.join(MEMORY),
                    directory: Some(directory),
                    done: false,
                }
            }
            SnapshotTarget::Files { state, memory } => Self {
                target: target.clone(),
                state: temporary(state, id),
                memory: temporary(memory, id),
                directory: None,
                done: false,
            },
        };
        Ok(staging)
    }

    /// The empty file for the memory.
    pub(super) fn create_memory(&self) -> io::Result<File> {
        create(&self.memory)
    }

    /// Writes the description.
    pub(super) fn write_state(&self, text: &[u8], durable: bool) -> io::Result<()> {
        let mut file = create(&self.state)?;
        file.write_all(text)?;
        if durable { file.sync_all() } else { Ok(()) }
    }

    /// Puts everything in its place.
    pub(super) fn commit(mut self, durable: bool) -> io::Result<()> {
        match &self.target {
            SnapshotTarget::Directory(path) => {
                let Some(directory) = self.directory.take() else {
                    return Ok(());
                };
                if durable {
                    sync_folder(&directory)?;
                }
                let placed = place(&directory, path);
                if placed.is_err() {
                    self.directory = Some(directory);
                    placed?;
                }
                if durable {
                    sync_folder(parent(path))?;
                }
            }
            SnapshotTarget::Files { state, memory } => {
                fs::rename(&self.memory, memory)?;
                fs::rename(&self.state, state)?;
                if durable {
                    sync_folder(parent(memory))?;
                    sync_folder(parent(state))?;
                }
            }
        }
        self.done = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // What cannot be removed has a name that says what it is.
        match &self.directory {
            Some(directory) => drop(fs::remove_dir_all(directory)),
            None => drop((fs::remove_file(&self.state), fs::remove_file(&self.memory))),
        }
    }
}

/// Renames `from` to `to`; what was there is removed after.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => return Ok(()),
        Err(Errno::EXIST) => {}
        // A file system without the flag: only an empty directory, or none, can be replaced.
        Err(_) => return fs::rename(from, to),
    }
    renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE)?;
    fs::remove_dir_all(from)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// A name beside `path` that nobody else uses.
fn temporary(path: &Path, id: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".");
    name.push(&id[..id.len().min(12)]);
    name.push(".partial");
    parent(path).join(name)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
