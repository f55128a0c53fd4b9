//! Snapshots: a machine in files, and a machine from them.
//!
//! A snapshot is a description ([`document`]) and a memory ([`crate::memory::image`]), by default `vm.json` and `memory` in one
//! directory. What a description may hold and how it may change is said in [`Components`].
//!
//! A restored machine maps the memory privately, so what it costs does not grow with RAM, and any number of machines share the
//! pages that they have not written. The file must stay as it is while they run. Its sums are looked at only when somebody asks
//! for it ([`Found::verify`]): reading all of it would take longer than everything else.
#![forbid(unsafe_code)]

mod components;
mod document;
mod merge;
mod store;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub use components::{ComponentError, Components};
pub use document::{Body, DocumentError, HostFacts, SnapshotId, decode, encode};
pub use merge::merge;
pub use store::{DESCRIPTION, MEMORY, SnapshotTarget};

pub use crate::memory::image::{ImageError, Written};

use crate::beside::{self, Beside};
use crate::events::EventKind;
use crate::guest;
use crate::memory::image::{self, Identity, Image, Origin};
use crate::spec::VmSpec;
use crate::vm::{StateError, Vm};
use store::Staging;

/// How much memory a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SnapshotKind {
    /// All of it.
    #[default]
    Full,
    /// What was written since the machine was restored. One that was not restored is saved in full: there is nothing to differ
    /// from.
    Diff,
}

impl SnapshotKind {
    /// `full` or `diff`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Diff => "diff",
        }
    }
}

/// A snapshot to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// Where it goes.
    pub target: SnapshotTarget,
    /// What it holds.
    pub kind: SnapshotKind,
    /// Whether it must outlast a crash of the host from the moment it is done.
    pub durable: bool,
}

impl SnapshotRequest {
    /// A full, durable snapshot in the directory `path`.
    pub fn to(path: impl Into<PathBuf>) -> Self {
        Self {
            target: SnapshotTarget::Directory(path.into()),
            kind: SnapshotKind::Full,
            durable: true,
        }
    }

    /// What is told when it is taken.
    pub(crate) fn event(&self) -> EventKind {
        EventKind::Snapshot {
            path: self.target.path().to_owned(),
            kind: self.kind.name(),
        }
    }
}

/// What a snapshot took.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct SnapshotReport {
    /// Its id.
    pub id: SnapshotId,
    /// What was written of the memory.
    pub memory: Written,
    /// Milliseconds.
    pub milliseconds: u64,
}

/// What to do where a snapshot's file cannot be read.
fn hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "; name the directory of a snapshot",
        _ => "",
    }
}

/// Why a snapshot cannot be taken, read or restored. Displays as a sentence that names the file.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The machine's state cannot be read.
    #[error("the snapshot cannot be taken: {0}")]
    Save(StateError),
    /// The files cannot be written.
    #[error("{}: the snapshot cannot be written: {cause}", .path.display())]
    Write {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong.
        cause: io::Error,
    },
    /// A file cannot be read.
    #[error("{}: {cause}{}", .path.display(), hint(.cause))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The description.
    #[error("{}: {cause}", .path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: DocumentError,
    },
    /// The memory.
    #[error("{}: {cause}", .path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: ImageError,
    },
    /// It cannot be joined with what was given.
    #[error("{}: it cannot be joined: {why}", .path.display())]
    Unjoined {
        /// The description.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It does not fit this host or this Berth.
    #[error("{}: it cannot be restored here: {why}", .path.display())]
    Unfit {
        /// The description.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// Takes a snapshot of `vm`, which is paused and is what `spec` says.
pub(crate) fn take(
    vm: &Vm,
    spec: &VmSpec,
    request: &SnapshotRequest,
) -> Result<SnapshotReport, SnapshotError> {
    let start = Instant::now();
    let pending = Pending::new(vm, spec, request)?;
    let (id, path) = (SnapshotId(pending.identity.id), pending.path.clone());
    let written = pending.finish(vm, false);
    let written = written.map_err(|cause| SnapshotError::Write { path, cause })?;
    Ok(SnapshotReport {
        id,
        memory: written,
        milliseconds: start.elapsed().as_millis() as u64,
    })
}

/// A snapshot whose memory is still being written.
#[derive(Debug)]
pub struct Writing {
    path: PathBuf,
    /// None if it is done.
    copy: Option<Beside>,
}

impl Writing {
    /// Waits until it is whole and in its place. On any thread.
    pub fn wait(self) -> Result<(), SnapshotError> {
        let path = self.path;
        let waited = self.copy.map_or(Ok(()), Beside::wait);
        waited.map_err(|cause| SnapshotError::Write { path, cause })
    }
}

/// The same; `vm` can go on at once, while a copy of this process writes the memory as it is now. Where there can be no copy, it
/// is done when this returns.
pub(crate) fn begin(vm: &Vm, spec: &VmSpec, request: &SnapshotRequest) -> Result<Writing, SnapshotError> {
    let pending = Pending::new(vm, spec, request)?;
    let path = pending.path.clone();
    let write = |cause| SnapshotError::Write {
        path: path.clone(),
        cause,
    };
    let (_, origin) = vm.memory();
    let mut keep = pending.staging.descriptors();
    keep.push(pending.file.as_raw_fd());
    if let Origin::Image(image) = origin {
        keep.push(image.file.as_raw_fd());
    }
    let mut pending = Some(pending);
    let copy = match origin {
        // Its pages come to this process alone.
        Origin::Handler(_) => None,
        _ => beside::begin(&keep, &mut || {
            pending
                .take()
                .map_or(Ok(()), |pending| pending.finish(vm, true).map(drop))
        })
        .inspect_err(|error| tracing::info!("the guest stands still while it is saved: {error}"))
        .ok(),
    };
    // What is left here is the copy's if there is one.
    if let Some(pending) = pending {
        if copy.is_some() {
            pending.staging.leave();
        } else {
            pending.finish(vm, false).map_err(write)?;
        }
    }
    Ok(Writing { path, copy })
}

/// A snapshot that lacks its memory.
struct Pending {
    path: PathBuf,
    staging: Staging,
    file: File,
    identity: Identity,
    /// The description.
    text: Vec<u8>,
    durable: bool,
}

impl Pending {
    /// Everything but the memory of `vm`.
    fn new(vm: &Vm, spec: &VmSpec, request: &SnapshotRequest) -> Result<Self, SnapshotError> {
        let path = request.target.path();
        let write = |cause| SnapshotError::Write {
            path: path.to_owned(),
            cause,
        };
        let id = SnapshotId::random().map_err(write)?;
        let components = vm.save().map_err(SnapshotError::Save)?;
        let mut staging = Staging::new(&request.target, &id.to_string()).map_err(write)?;
        let (_, origin) = vm.memory();
        let base = match origin {
            Origin::Image(image) if request.kind == SnapshotKind::Diff => Some(SnapshotId(image.identity.id)),
            _ => None,
        };
        let file = staging.create_memory().map_err(write)?;
        let mut spec = spec.clone();
        spec.take_paths_from(&std::env::current_dir().map_err(write)?);
        let size = spec.memory.0;
        let body = Body {
            id,
            created: since_1970(),
            berth: env!("CARGO_PKG_VERSION").to_owned(),
            host: HostFacts::here(vm.kind()),
            guest: spec.kernel.is_none().then(|| guest::ID.to_owned()),
            streams: vm.streams(),
            memory: size,
            base,
            spec,
            components,
        };
        Ok(Self {
            path: path.to_owned(),
            staging,
            file,
            identity: Identity {
                id: id.0,
                size,
                difference: base.is_some(),
            },
            text: document::encode(&body).map_err(|cause| write(io::Error::other(cause)))?,
            durable: request.durable,
        })
    }

    /// Writes the memory, and puts everything in its place.
    fn finish(self, vm: &Vm, alone: bool) -> io::Result<Written> {
        let Self {
            mut staging,
            file,
            identity,
            text,
            durable,
            ..
        } = self;
        let (memory, origin) = vm.memory();
        let written = image::write(memory, origin, &file, identity, alone)?;
        if durable {
            file.sync_all()?;
        }
        staging.write_state(&text, durable)?;
        staging.commit(durable)?;
        Ok(written)
    }
}

fn since_1970() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}

/// A snapshot that was found and read, but for its memory's pages.
#[derive(Debug)]
pub struct Found {
    /// Where its description is.
    pub path: PathBuf,
    /// Where its memory is.
    pub memory: PathBuf,
    /// What it says.
    pub body: Body,
}

impl Found {
    /// Reads the snapshot in the directory `path`.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        Self::open_files(&path.join(DESCRIPTION), &path.join(MEMORY))
    }

    /// Reads the snapshot of these two files.
    pub fn open_files(state: &Path, memory: &Path) -> Result<Self, SnapshotError> {
        let text = fs::read(state).map_err(|cause| SnapshotError::Read {
            path: state.to_owned(),
            cause,
        })?;
        let body = decode(&text).map_err(|cause| SnapshotError::Document {
            path: state.to_owned(),
            cause,
        })?;
        if body.memory != body.spec.memory.0 {
            return Err(SnapshotError::Document {
                path: state.to_owned(),
                cause: DocumentError::Body("memory and spec.memory differ".to_owned()),
            });
        }
        Ok(Self {
            path: state.to_owned(),
            memory: memory.to_owned(),
            body,
        })
    }

    /// Reads all of the memory and compares its sums.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        self.image()?.verify().map_err(|cause| self.memory_error(cause))
    }

    /// Whether the memory is there, whole and this snapshot's, as far as that shows without reading it.
    pub fn check_memory(&self) -> Result<(), SnapshotError> {
        self.image().map(drop)
    }

    /// Opens the memory.
    pub(crate) fn image(&self) -> Result<Image, SnapshotError> {
        let opened = self.image_at(&self.memory);
        if opened.is_err() {
            // A description is put in its place before its memory is. Somebody may have been killed between the two.
            let unplaced = store::temporary(&self.memory, &self.body.id.to_string());
            if let Ok(image) = self.image_at(&unplaced) {
                return Ok(image);
            }
        }
        opened
    }

    fn image_at(&self, path: &Path) -> Result<Image, SnapshotError> {
        let wrong = |cause| SnapshotError::Memory {
            path: path.to_owned(),
            cause,
        };
        let file = File::open(path).map_err(|cause| SnapshotError::Read {
            path: path.to_owned(),
            cause,
        })?;
        let image = Image::open(file, self.body.id.0, self.body.memory).map_err(wrong)?;
        if image.identity.difference == self.body.base.is_some() {
            Ok(image)
        } else {
            Err(wrong(ImageError::Foreign))
        }
    }

    fn memory_error(&self, cause: ImageError) -> SnapshotError {
        SnapshotError::Memory {
            path: self.memory.clone(),
            cause,
        }
    }

    /// Whether a machine can be made of it here, as far as that shows before it is tried.
    pub(crate) fn fits(&self) -> Result<(), SnapshotError> {
        let body = &self.body;
        let unfit = |why: String| SnapshotError::Unfit {
            path: self.path.clone(),
            why,
        };
        if let Some(base) = body.base {
            return Err(unfit(format!(
                "it is a difference; join it with its base, the snapshot {base}, first (berth snapshot merge)"
            )));
        }
        if body.guest.as_deref().is_some_and(|guest| guest != guest::ID) {
            return Err(unfit(format!(
                "it runs the guest that ships with Berth {}, and this Berth ships another",
                body.berth
            )));
        }
        Ok(())
    }
}
