//! Forking: from one VM, running or saved, to many that go on from the same point.
//!
//! What they share lies in a folder of its own, `bases/ID` in the state directory: the snapshot and a frozen copy of each
//! disk that can be written. Memory is mapped from the snapshot, copy on write; a clone's disk is a reflink of the frozen
//! copy where the file system has that, and otherwise a copy that leaves holes as holes. A base goes when the last VM that
//! came from it is removed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;
use serde_json::json;

use super::error::io_error;
use super::{Entry, Fleet, FleetError, NewVm, State, drive};
use crate::events::Identity;
use crate::snapshot::Found;
use crate::spec::{SerialSpec, VmSpec};

/// What clones have in common.
#[derive(Debug)]
pub struct Base {
    folder: PathBuf,
    snapshot: PathBuf,
    spec: VmSpec,
    /// The frozen copy of each disk; none for one that nobody writes.
    disks: Vec<Option<PathBuf>>,
}

/// What the clones are to be.
#[derive(Debug, Clone)]
pub struct Clones {
    /// Their names are this, a dash and a number.
    pub prefix: String,
    /// How many.
    pub count: u32,
    /// The names of their taps, with `{}` for the clone's number.
    pub taps: Vec<String>,
    /// Whether each is removed when it ends.
    pub remove: bool,
}

/// Where bases are.
pub(super) fn bases(root: &Path) -> PathBuf {
    root.join("bases")
}

impl Base {
    /// Saves a VM, which stands still only as long as that takes.
    pub fn of_vm(fleet: &Fleet, entry: &Entry) -> Result<Self, FleetError> {
        let folder = new_folder(fleet)?;
        let base = (|| {
            let state = entry.status()?.state;
            if state == State::Running {
                drive::ask(entry, "pause", "be forked")?;
            }
            let saved = save(entry, &folder);
            if state == State::Running {
                drive::ask(entry, "resume", "be resumed")?;
            }
            saved
        })();
        if base.is_err() {
            // Nobody knows it yet.
            let _ = fs::remove_dir_all(&folder);
        }
        base
    }

    /// Takes a VM that was saved in the directory `snapshot`.
    pub fn of_snapshot(fleet: &Fleet, snapshot: &Path) -> Result<Self, FleetError> {
        let spec = saved_spec(snapshot)?;
        let folder = new_folder(fleet)?;
        match freeze(&spec, &folder) {
            Ok(disks) => Ok(Self {
                folder,
                snapshot: snapshot.to_owned(),
                spec,
                disks,
            }),
            Err(error) => {
                let _ = fs::remove_dir_all(&folder);
                Err(error)
            }
        }
    }

    /// Makes the clones; they do not run yet.
    pub fn clone_vms(&self, fleet: &Fleet, clones: &Clones) -> Result<Vec<Entry>, FleetError> {
        let nets = self.spec.nets.len();
        if nets > 0 && clones.taps.len() != nets {
            return Err(FleetError::Fork {
                why: format!(
                    "the VM has {nets} network interface(s), and a tap serves one VM; give --tap that often, with {{}} for the \
                     clone's number, as in --tap tap{{}}"
                ),
            });
        }
        if clones.count > 1
            && let Some(tap) = clones.taps.iter().find(|tap| !tap.contains("{}"))
        {
            return Err(FleetError::Fork {
                why: format!(
                    "the clones cannot share the tap {tap}; write {{}} where the clone's number goes"
                ),
            });
        }
        let mut made = Vec::new();
        let mut number = 0_u32;
        while made.len() < clones.count as usize {
            number += 1;
            match self.clone_vm(fleet, clones, number) {
                Ok(entry) => made.push(entry),
                // Somebody else has that number.
                Err(FleetError::Taken { .. }) => {}
                Err(error) => {
                    for entry in made {
                        // What cannot be removed can still be seen.
                        let _ = fleet.remove(&entry);
                    }
                    return Err(error);
                }
            }
        }
        Ok(made)
    }

    fn clone_vm(&self, fleet: &Fleet, clones: &Clones, number: u32) -> Result<Entry, FleetError> {
        let name = format!("{}-{number}", clones.prefix);
        let home = fleet.vms().join(&name);
        let mut spec = self.spec.clone();
        for (net, tap) in spec.nets.iter_mut().zip(&clones.taps) {
            net.tap = tap.replace("{}", &number.to_string());
        }
        let mut copies = Vec::new();
        for (index, (disk, frozen)) in spec.disks.iter_mut().zip(&self.disks).enumerate() {
            if let Some(frozen) = frozen {
                disk.path = home.join(disk_name(index));
                copies.push((frozen, disk.path.clone()));
            }
        }
        let entry = fleet.create(&NewVm {
            name: Some(&name),
            spec,
            log_level: None,
            restore: Some(self.snapshot.clone()),
            base: Some(self.folder.clone()),
            remove: clones.remove,
            durable: false,
        })?;
        for (frozen, own) in copies {
            if let Err(error) = copy(frozen, &own) {
                let _ = fleet.remove(&entry);
                return Err(error);
            }
        }
        Ok(entry)
    }

    /// Removes what no clone came from.
    pub fn discard(self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn new_folder(fleet: &Fleet) -> Result<PathBuf, FleetError> {
    let bases = bases(fleet.root());
    let id = Identity::new().map_err(io_error("made", &bases))?.id;
    let folder = bases.join(id);
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700);
    private.create(&folder).map_err(io_error("made", &folder))?;
    Ok(folder)
}

/// Saves a VM that stands still.
fn save(entry: &Entry, folder: &Path) -> Result<Base, FleetError> {
    let snapshot = folder.join("snapshot");
    let body = json!({ "path": snapshot, "kind": "full", "resume": false, "durable": false });
    drive::request(entry, "POST", "/berth/v1/snapshot", Some(&body), "be forked")?;
    let spec = saved_spec(&snapshot)?;
    let disks = freeze(&spec, folder)?;
    Ok(Base {
        folder: folder.to_owned(),
        snapshot,
        spec,
        disks,
    })
}

/// The description in a snapshot, for a VM of the state directory: its console is kept in its own folder.
pub fn saved_spec(snapshot: &Path) -> Result<VmSpec, FleetError> {
    let found = Found::open(snapshot).map_err(|error| FleetError::Fork {
        why: error.to_string(),
    })?;
    let mut spec = found.body.spec;
    spec.serial = SerialSpec::Stdio;
    Ok(spec)
}

/// Copies every disk that can be written, as it is now.
fn freeze(spec: &VmSpec, folder: &Path) -> Result<Vec<Option<PathBuf>>, FleetError> {
    let mut disks = Vec::new();
    for (index, disk) in spec.disks.iter().enumerate() {
        if disk.read_only {
            disks.push(None);
            continue;
        }
        let kind = fs::metadata(&disk.path)
            .map_err(io_error("read", &disk.path))?
            .file_type();
        if kind.is_block_device() {
            return Err(FleetError::Fork {
                why: format!(
                    "{}: is a block device, which cannot be copied for each clone; attach it read-only, or use a file",
                    disk.path.display()
                ),
            });
        }
        let frozen = folder.join(disk_name(index));
        copy(&disk.path, &frozen)?;
        disks.push(Some(frozen));
    }
    Ok(disks)
}

fn disk_name(index: usize) -> String {
    format!("disk{}.img", index + 1)
}

/// Copies a file: by reference where the file system can, else its data, holes left as holes.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), FleetError> {
    let source = File::open(from).map_err(io_error("read", from))?;
    let make = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)
    };
    let target = make().map_err(io_error("made", to))?;
    match ioctl_ficlone(&target, &source) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {
            copy_data(&source, &target).map_err(io_error("copied", to))
        }
        Err(error) => Err(io_error("copied", to)(error.into())),
    }
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut at = 0;
    while at < size {
        let data = match seek(source, SeekFrom::Data(at)) {
            Ok(data) => data,
            // No more data.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(source, SeekFrom::Hole(data))?.min(size);
        copy_range(source, target, data, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, mut at: u64, end: u64) -> io::Result<()> {
    while at < end {
        let (mut from, mut to) = (at, at);
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), left) {
            // It shrank meanwhile.
            Ok(0) => break,
            Ok(count) => at += count as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                return copy_by_hand(source, target, at, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, mut at: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut piece = vec![0; 1 << 20];
    while at < end {
        let wanted = piece.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let count = source.read_at(&mut piece[..wanted], at)?;
        if count == 0 {
            break;
        }
        target.write_all_at(&piece[..count], at)?;
        at += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_copy_has_the_same_bytes_and_leaves_holes_as_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"middle", 33 << 20).unwrap();
        copy(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 4 << 20);
        assert!(copy(&from, &to).is_err(), "what is there is not written over");
        let (source, target) = (
            File::open(&from).unwrap(),
            File::create(folder.path().join("hand")).unwrap(),
        );
        copy_by_hand(&source, &target, 0, 64 << 20).unwrap();
        assert!(fs::read(folder.path().join("hand")).unwrap() == fs::read(&from).unwrap());
    }
}
