//! Many VMs: a folder with a folder for each of them, and no daemon.
//!
//! ```text
//! STATE/                    $BERTH_STATE_DIR, else $XDG_STATE_HOME/berth, else ~/.local/state/berth; mode 0700
//!   events.jsonl            what happened to all VMs, a line each (journal)
//!   vms/NAME/               one VM; the folder's name is the VM's
//!     meta.json             id, name, when it was made, how it is run
//!     vm.toml               what it is (spec)
//!     lock                  held (flock) by the VM's process as long as it lives: the truth about whether it runs
//!     live.json             its process and state; left behind only by a process that was killed
//!     result.json           how it ended the last time
//!     api.sock console.sock where to drive it and where to attach
//!     console.log log       what its guest said, and what Berth said about it
//!   bases/ID/               what clones share: a snapshot and disks (fork)
//!   vms/.new-ID .gone-ID    being made, being removed: seen by nobody
//! ```
//! Every file is written under another name and renamed, so a reader sees the old one or the new one. A VM appears and
//! disappears by a rename of its folder: of two that are made with one name at once, exactly one is.
#![forbid(unsafe_code)]

pub mod drive;
mod entry;
mod error;
mod files;
pub mod fork;
pub mod journal;
pub mod launch;
mod name;
pub mod process;

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub use entry::{Ended, Entry, Live, LiveState, Manner, Meta, State, Status};
pub use error::FleetError;
pub use name::valid as valid_name;

use crate::events::{Event, EventKind, Identity, timestamp};
use crate::spec::VmSpec;
use error::io_error;

/// What is left of a VM that was being made or removed when the program was killed is cleared away after this long.
const LEFTOVER: Duration = Duration::from_secs(3600);
/// How many made-up names to try before giving up.
const NAME_TRIES: u32 = 100;

/// All VMs of a state directory.
#[derive(Debug, Clone)]
pub struct Fleet {
    root: PathBuf,
}

/// A VM to be made.
#[derive(Debug, Clone, Default)]
pub struct NewVm<'a> {
    /// Its name; made up where it is not given.
    pub name: Option<&'a str>,
    /// What it is.
    pub spec: VmSpec,
    /// How it is run.
    pub manner: Manner,
    /// The snapshot that it starts from.
    pub restore: Option<PathBuf>,
    /// What it shares with other clones, for the last of them to remove.
    pub bases: Vec<PathBuf>,
    /// Whether it is to be removed when it ends.
    pub remove: bool,
    /// Whether it must survive the host's losing power right after.
    pub durable: bool,
}

impl Fleet {
    /// The VMs in `root`, or where they are kept if nothing is said.
    pub fn open(root: Option<PathBuf>) -> Result<Self, FleetError> {
        let root = match root {
            Some(root) => root,
            None => default_root(|name| env::var_os(name).map(PathBuf::from)).ok_or(FleetError::NoRoot)?,
        };
        let root = std::path::absolute(&root).map_err(io_error("found", &root))?;
        Ok(Self { root })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the VMs' folders are.
    pub(crate) fn vms(&self) -> PathBuf {
        self.root.join("vms")
    }

    /// Makes a VM. It does not run yet.
    pub fn create(&self, new: &NewVm<'_>) -> Result<Entry, FleetError> {
        if let Some(name) = new.name {
            name::check(name)?;
        }
        let vms = self.vms();
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&vms).map_err(|cause| FleetError::StateDir {
            path: self.root.clone(),
            cause,
        })?;
        self.clear_leftovers();
        let id = Identity::new().map_err(io_error("made", &vms))?.id;
        let folder = vms.join(format!(".new-{id}"));
        private.create(&folder).map_err(io_error("made", &folder))?;
        let made = self.fill(new, id, &folder);
        if made.is_err() {
            // It is what could not be made; what cannot be removed is a leftover.
            let _ = fs::remove_dir_all(&folder);
        }
        let entry = made?;
        self.tell(&entry, EventKind::Created);
        Ok(entry)
    }

    /// Fills the folder of a new VM and gives it its name.
    fn fill(&self, new: &NewVm<'_>, id: String, folder: &Path) -> Result<Entry, FleetError> {
        let text = toml::to_string(&new.spec).map_err(|cause| FleetError::Spec {
            cause: cause.to_string(),
        })?;
        files::write(&folder.join(entry::SPEC), text.as_bytes(), new.durable)?;
        let mut meta = Meta {
            id,
            name: String::new(),
            created: timestamp(SystemTime::now()),
            manner: new.manner.clone(),
            restore: new.restore.clone(),
            restored_from: new.restore.clone(),
            bases: new.bases.clone(),
            remove: new.remove,
        };
        for attempt in 0..NAME_TRIES {
            meta.name = match new.name {
                Some(name) => name.to_owned(),
                None => name::made_up(&meta.id, attempt),
            };
            files::write_json(&folder.join(entry::META), &meta, new.durable)?;
            let home = self.vms().join(&meta.name);
            match fs::rename(folder, &home) {
                Ok(()) => {
                    if new.durable {
                        files::sync_folder(&self.vms());
                    }
                    return Ok(Entry::new(home, meta));
                }
                Err(error) if is_taken(error.kind()) && new.name.is_none() => {}
                Err(error) if is_taken(error.kind()) => break,
                Err(error) => return Err(io_error("made", &home)(error)),
            }
        }
        Err(FleetError::Taken { name: meta.name })
    }

    /// The VM with this name, or with the id that begins so.
    pub fn find(&self, reference: &str) -> Result<Entry, FleetError> {
        if name::valid(reference)
            && let Some(entry) = Entry::read(&self.vms().join(reference))?
        {
            return Ok(entry);
        }
        let is_id = !reference.is_empty() && reference.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut found = if is_id { self.list()? } else { Vec::new() };
        found.retain(|entry| entry.meta().id.starts_with(reference));
        match found.len() {
            0 => Err(FleetError::Missing {
                reference: reference.to_owned(),
                near: self.near(reference),
            }),
            1 => Ok(found.remove(0)),
            _ => Err(FleetError::Ambiguous {
                reference: reference.to_owned(),
                names: found.iter().map(|entry| entry.name().to_owned()).collect(),
            }),
        }
    }

    /// A name that `reference` may have been meant to be.
    fn near(&self, reference: &str) -> Option<String> {
        let all = self.list().ok()?;
        let distance = |entry: &Entry| strsim::damerau_levenshtein(entry.name(), reference);
        let nearest = all.iter().min_by_key(|entry| distance(entry))?;
        (distance(nearest) <= 2).then(|| nearest.name().to_owned())
    }

    /// All VMs, by name.
    pub fn list(&self) -> Result<Vec<Entry>, FleetError> {
        let vms = self.vms();
        let folders = match fs::read_dir(&vms) {
            Ok(folders) => folders,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read", &vms)(error)),
        };
        let mut entries = Vec::new();
        for folder in folders {
            let folder = folder.map_err(io_error("read", &vms))?;
            let is_name = folder.file_name().to_str().is_some_and(name::valid);
            // One that is removed meanwhile is none.
            if is_name && let Some(entry) = Entry::read(&folder.path())? {
                entries.push(entry);
            }
        }
        entries.sort_by(|one, other| one.name().cmp(other.name()));
        Ok(entries)
    }

    /// Removes a VM that does not run, with all that is in its folder.
    pub fn remove(&self, entry: &Entry) -> Result<(), FleetError> {
        // Held to the end, so that nobody starts it meanwhile.
        let Some(_lock) = entry.try_lock()? else {
            return Err(FleetError::Runs {
                name: entry.name().to_owned(),
                what: "removed",
                hint: "stop it first, or remove it with --force",
            });
        };
        let gone = self.vms().join(format!(".gone-{}", entry.meta().id));
        fs::rename(entry.folder(), &gone).map_err(io_error("removed", entry.folder()))?;
        self.tell(entry, EventKind::Removed);
        fs::remove_dir_all(&gone).map_err(io_error("removed", &gone))?;
        self.release(entry)
    }

    /// Removes what a clone that is gone shared with others, if it was the last.
    fn release(&self, entry: &Entry) -> Result<(), FleetError> {
        let others = if entry.meta().bases.is_empty() {
            Vec::new()
        } else {
            self.list()?
        };
        for base in &entry.meta().bases {
            let needed = others.iter().any(|other| other.meta().bases.contains(base));
            // Nothing outside is removed, whatever the file says.
            if needed || base.parent() != Some(&fork::bases(&self.root)) {
                continue;
            }
            match fs::remove_dir_all(base) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(io_error("removed", base)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes what happens to a VM that has no process into the journal.
    fn tell(&self, entry: &Entry, kind: EventKind) {
        if let Err(error) = journal::append(&self.root, &Event::now(entry.identity(), kind)) {
            tracing::warn!("{error}");
        }
    }

    /// Clears away what was half made or half removed when a program was killed, long ago.
    fn clear_leftovers(&self) {
        let Ok(folders) = fs::read_dir(self.vms()) else {
            return;
        };
        for folder in folders.flatten() {
            let name = folder.file_name();
            let leftover = name
                .to_str()
                .is_some_and(|name| name.starts_with(".new-") || name.starts_with(".gone-"));
            let old = || {
                let changed = folder.metadata().and_then(|data| data.modified()).ok()?;
                changed.elapsed().ok()
            };
            if leftover && old().is_some_and(|age| age > LEFTOVER) {
                // The next one tries again.
                let _ = fs::remove_dir_all(folder.path());
            }
        }
    }
}

fn is_taken(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory
    )
}

/// Where VMs are kept if nothing is said. One rule for every user, root included.
fn default_root(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    // Relative ones are to be ignored (XDG Base Directory Specification).
    let absolute = |path: &PathBuf| path.is_absolute();
    let state = variable("XDG_STATE_HOME").filter(absolute);
    let home = || Some(variable("HOME").filter(absolute)?.join(".local/state"));
    Some(state.or_else(home)?.join("berth"))
}

#[cfg(test)]
mod tests;
