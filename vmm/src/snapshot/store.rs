//! Writing files so that a crash leaves the old ones or the new ones.
//!
//! A directory is written under a temporary name beside it, made durable, and put in its place in one step. Two files that do not
//! share a directory cannot be: the description is put in its place first, and a reader who finds that the memory has another id
//! takes the one that still has its temporary name, which is made of the id.
//!
//! Who writes holds a lock on what has a temporary name. What is left of somebody who was killed has none, and goes when the next
//! snapshot is written to the same place.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
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

impl SnapshotTarget {
    /// The file or directory by which it is known.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Files { state: path, .. } => path,
        }
    }
}

/// Files that are being written. Dropped before [`commit`](Self::commit) they are removed.
pub(super) struct Staging {
    target: SnapshotTarget,
    state: PathBuf,
    memory: PathBuf,
    directory: Option<PathBuf>,
    /// Locks on what has a temporary name.
    locks: Vec<File>,
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
                    locks: lock(File::open(&directory)).into_iter().collect(),
                    directory: Some(directory),
                    done: false,
                }
            }
            SnapshotTarget::Files { state, memory } => Self {
                target: target.clone(),
                state: temporary(state, id),
                memory: temporary(memory, id),
                directory: None,
                locks: Vec::new(),
                done: false,
            },
        };
        Ok(staging)
    }

    /// Descriptors that hold locks.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        self.locks.iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// Leaves everything to somebody else, who has the locks too.
    pub(super) fn leave(mut self) {
        self.done = true;
    }

    /// The empty file for the memory.
    pub(super) fn create_memory(&mut self) -> io::Result<File> {
        let file = create(&self.memory)?;
        self.locks.extend(lock(file.try_clone()));
        Ok(file)
    }

    /// Writes the description.
    pub(super) fn write_state(&mut self, text: &[u8], durable: bool) -> io::Result<()> {
        let mut file = create(&self.state)?;
        self.locks.extend(lock(file.try_clone()));
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
                fs::rename(&self.state, state)?;
                fs::rename(&self.memory, memory)?;
                if durable {
                    sync_folder(parent(memory))?;
                    sync_folder(parent(state))?;
                }
            }
        }
        self.done = true;
        match &self.target {
            SnapshotTarget::Directory(path) => sweep(path),
            SnapshotTarget::Files { state, memory } => {
                sweep(state);
                sweep(memory);
            }
        }
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

/// Locks a file against [`sweep`]. Where the file system has no locks there is nothing to lose: then nothing is swept either.
fn lock(file: io::Result<File>) -> Option<File> {
    let file = file.ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}

/// Removes what is left beside `path` of those who were killed while they wrote there.
fn sweep(path: &Path) {
    let Ok(entries) = fs::read_dir(parent(path)) else {
        return;
    };
    for entry in entries.flatten() {
        let left = entry.path();
        if is_temporary(&entry.file_name(), path)
            && let Some(_lock) = lock(File::open(&left))
        {
            let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            // What cannot be removed has a name that says what it is.
            let _ = if directory {
                fs::remove_dir_all(left)
            } else {
                fs::remove_file(left)
            };
        }
    }
}

/// Whether `name` is one that [`temporary`] gives for `path`.
fn is_temporary(name: &OsStr, path: &Path) -> bool {
    let own = path.file_name().unwrap_or_default().as_encoded_bytes();
    let id = name
        .as_encoded_bytes()
        .strip_prefix(b".")
        .and_then(|name| name.strip_prefix(own))
        .and_then(|name| name.strip_prefix(b"."))
        .and_then(|name| name.strip_suffix(b".partial"));
    id.is_some_and(|id| id.len() == ID_DIGITS && id.iter().all(u8::is_ascii_hexdigit))
}

/// Digits of a snapshot's id in temporary names.
const ID_DIGITS: usize = 12;

/// A name beside `path` that nobody else uses.
pub(super) fn temporary(path: &Path, id: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".");
    name.push(&id[..id.len().min(ID_DIGITS)]);
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
