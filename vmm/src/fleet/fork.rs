//! Forking: from one VM, running or saved, to many that go on from the same point.
//!
//! What they share lies in a folder of its own, `bases/ID` in the state directory: the snapshot and a frozen copy of each
//! disk that can be written. Memory is mapped from the snapshot, copy on write; a clone's disk is a reflink of the frozen
//! copy where the file system has that, and otherwise an overlay on it. A base goes when the last VM that came from it is
//! removed.

use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use berth_devices::storage::{DiskError, ImageFormat, Qcow2Disk};
use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;
use serde_json::json;

use super::error::io_error;
use super::{Entry, Fleet, FleetError, Manner, NewVm, State, drive};
use crate::events::Identity;
use crate::snapshot::Found;
use crate::spec::{DiskSpec, PmemSpec, SerialSpec, VmSpec, mac_text};

/// What clones have in common.
#[derive(Debug)]
pub struct Base {
    folder: PathBuf,
    snapshot: PathBuf,
    spec: VmSpec,
    /// Each disk, frozen.
    disks: Vec<Frozen>,
    /// Each file in memory that can be written, frozen.
    pmem: Vec<Option<PathBuf>>,
    /// The bases that those disks lie in, this one included.
    bases: Vec<PathBuf>,
}

/// A disk as it was.
#[derive(Debug)]
enum Frozen {
    /// Nobody writes it, or there is nothing to write.
    AsItIs,
    /// An image to take references of.
    Image(PathBuf),
    /// An image to put overlays on.
    Under(PathBuf),
    /// An overlay to copy.
    Overlay(PathBuf),
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
    /// The time limit of each in seconds.
    pub timeout: Option<u64>,
    /// How each is run.
    pub manner: Manner,
    /// Whether each is removed when it ends.
    pub remove: bool,
}

/// Where bases are.
pub(super) fn bases(root: &Path) -> PathBuf {
    root.join("bases")
}

impl Base {
    /// Saves a VM, which stands still only until its state is saved and its disks are frozen.
    pub fn of_vm(fleet: &Fleet, entry: &Entry) -> Result<Self, FleetError> {
        let folder = new_folder(fleet)?;
        let base = save(entry, &folder);
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
            Ok((disks, pmem)) => Ok(Self {
                bases: vec![folder.clone()],
                folder,
                snapshot: snapshot.to_owned(),
                spec,
                disks,
                pmem,
            }),
            Err(error) => {
                let _ = fs::remove_dir_all(&folder);
                Err(error)
            }
        }
    }

    /// Makes the clones; they do not run yet.
    pub fn clone_vms(&self, fleet: &Fleet, clones: &Clones) -> Result<Vec<Entry>, FleetError> {
        let nets = self.spec.nets.iter().filter(|net| !net.user).count();
        if nets == 0 && !clones.taps.is_empty() {
            return Err(FleetError::Fork {
                why: "the VM has no network interface on a tap; leave --tap out".to_owned(),
            });
        }
        if clones.taps.len() != nets {
            return Err(FleetError::Fork {
                why: format!(
                    "the VM has {nets} network interface(s) on taps, and a tap serves one VM; give --tap that often, with {{}} for the \
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
        spec.timeout = clones.timeout;
        let mut taps = clones.taps.iter();
        for (index, net) in spec.nets.iter_mut().enumerate() {
            if net.user {
                // The parent has its ports.
                net.publish.clear();
            } else if let Some(tap) = taps.next() {
                net.tap = tap.replace("{}", &number.to_string());
                net.create = true;
                net.mac = Some(mac(fleet.root(), &name, index));
            }
        }
        for (index, port) in spec.consoles.iter_mut().enumerate() {
            if port.socket.is_some() {
                port.socket = Some(home.join(format!("port{}.sock", index + 1)));
            }
            if port.file.is_some() {
                port.file = Some(home.join(format!("port{}.log", index + 1)));
            }
        }
        if let Some(vsock) = &mut spec.vsock {
            vsock.path = home.join("vsock.sock");
            vsock.cid = vsock.cid.saturating_add(number).min(u32::MAX - 1);
        }
        let mut copies = Vec::new();
        for (index, (disk, frozen)) in spec.disks.iter_mut().zip(&self.disks).enumerate() {
            let (image, overlay) = (home.join(image_name(index)), home.join(overlay_name(index)));
            match frozen {
                Frozen::AsItIs => {}
                Frozen::Image(from) => {
                    copies.push((from, image.clone()));
                    disk.path = image;
                }
                Frozen::Under(base) => {
                    disk.path.clone_from(base);
                    disk.overlay = Some(overlay);
                }
                Frozen::Overlay(from) => {
                    copies.push((from, overlay.clone()));
                    disk.overlay = Some(overlay);
                }
            }
        }
        for (index, (pmem, frozen)) in spec.pmem.iter_mut().zip(&self.pmem).enumerate() {
            if let Some(from) = frozen {
                pmem.path = home.join(pmem_name(index));
                copies.push((from, pmem.path.clone()));
            }
        }
        let entry = fleet.create(&NewVm {
            name: Some(&name),
            spec,
            manner: clones.manner.clone(),
            restore: Some(self.snapshot.clone()),
            bases: self.bases.clone(),
            remove: clones.remove,
            durable: false,
        })?;
        for (from, to) in copies {
            if let Err(error) = copy(from, &to) {
                // What cannot be removed can still be seen.
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

/// Saves a VM, which goes on as soon as it can.
fn save(entry: &Entry, folder: &Path) -> Result<Base, FleetError> {
    let snapshot = folder.join("snapshot");
    let runs = entry.status()?.state == State::Running;
    let spec = running_spec(entry)?;
    // Frozen disks and memory must be of one moment.
    let only_read =
        spec.disks.iter().all(|disk| disk.read_only) && spec.pmem.iter().all(|pmem| pmem.read_only);
    if runs && !only_read {
        drive::ask(entry, "pause", "be forked")?;
    }
    let (disks, pmem) = freeze(&spec, folder).inspect_err(|_| go_on(entry, runs))?;
    let body = json!({ "path": snapshot, "kind": "full", "resume": runs, "durable": false, "beside": true });
    drive::request(entry, "POST", "/berth/v1/snapshot", Some(&body), "be forked")
        .inspect_err(|_| go_on(entry, runs))?;
    let mut bases = entry.meta().bases.clone();
    bases.push(folder.to_owned());
    Ok(Base {
        bases,
        folder: folder.to_owned(),
        spec: saved_spec(&snapshot)?,
        snapshot,
        disks,
        pmem,
    })
}

/// Lets a VM that ran go on, if it does not.
fn go_on(entry: &Entry, ran: bool) {
    if ran {
        // What went wrong before is what is said.
        let _ = drive::ask(entry, "resume", "be resumed");
    }
}

/// What a VM that runs is now.
fn running_spec(entry: &Entry) -> Result<VmSpec, FleetError> {
    let mut vm = drive::request(entry, "GET", "/berth/v1/vm", None, "be forked")?;
    serde_json::from_value(vm["spec"].take()).map_err(|cause| FleetError::Refused {
        name: entry.name().to_owned(),
        user: false,
        cause: format!("its description cannot be read: {cause}"),
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

/// A copy of an image lies in another folder, where it must find what it stands on.
fn stands_anywhere(disk: &DiskSpec) -> Result<(), FleetError> {
    let failed = |cause: DiskError| FleetError::Fork {
        why: cause.to_string(),
    };
    let format = disk.format.image();
    // The VM that has it has checked the rest.
    if format.of(&disk.path).map_err(failed)? != ImageFormat::Qcow2 {
        return Ok(());
    }
    match Qcow2Disk::backing_name(&disk.path).map_err(failed)? {
        Some(name) if name.is_relative() => Err(FleetError::Fork {
            why: format!(
                "{}: its backing file {} is named from its own folder, where a copy for clones does not lie; name it in full with qemu-img rebase -u, or attach the disk with an overlay",
                disk.path.display(),
                name.display()
            ),
        }),
        _ => Ok(()),
    }
}

/// Freezes every disk, and every file in memory, that can be written.
fn freeze(spec: &VmSpec, folder: &Path) -> Result<(Vec<Frozen>, Vec<Option<PathBuf>>), FleetError> {
    Ok((freeze_disks(spec, folder)?, freeze_pmem(spec, folder)?))
}

/// Freezes every disk that can be written, as it is now.
fn freeze_disks(spec: &VmSpec, folder: &Path) -> Result<Vec<Frozen>, FleetError> {
    let freeze_one = |(index, disk): (usize, &DiskSpec)| {
        if disk.read_only || !disk.has_medium() {
            return Ok(Frozen::AsItIs);
        }
        if let Some(overlay) = &disk.overlay {
            let frozen = folder.join(overlay_name(index));
            copy(overlay, &frozen)?;
            return Ok(Frozen::Overlay(frozen));
        }
        copyable(&disk.path, "attach it read-only or with an overlay")?;
        stands_anywhere(disk)?;
        let frozen = folder.join(image_name(index));
        copy(&disk.path, &frozen)?;
        // Bases and VMs lie in one file system.
        let probe = folder.join("probe");
        let shares = copy_by_reference(&frozen, &probe)?.is_some();
        fs::remove_file(&probe).map_err(io_error("removed", &probe))?;
        Ok(if shares {
            Frozen::Image(frozen)
        } else {
            Frozen::Under(frozen)
        })
    };
    spec.disks.iter().enumerate().map(freeze_one).collect()
}

/// Freezes every file in memory that can be written. Clones have copies of their own: one mapped by two of them would be written by
/// both.
fn freeze_pmem(spec: &VmSpec, folder: &Path) -> Result<Vec<Option<PathBuf>>, FleetError> {
    let freeze_one = |(index, pmem): (usize, &PmemSpec)| {
        if pmem.read_only {
            return Ok(None);
        }
        copyable(&pmem.path, "attach it read-only")?;
        let frozen = folder.join(pmem_name(index));
        copy(&pmem.path, &frozen)?;
        Ok(Some(frozen))
    };
    spec.pmem.iter().enumerate().map(freeze_one).collect()
}

/// Refuses what cannot be copied, and says what to do `instead`.
fn copyable(path: &Path, instead: &str) -> Result<(), FleetError> {
    let data = fs::metadata(path).map_err(io_error("read", path))?;
    if data.file_type().is_block_device() {
        return Err(FleetError::Fork {
            why: format!(
                "{}: is a block device, which cannot be copied for clones; {instead}",
                path.display()
            ),
        });
    }
    Ok(())
}

/// The hardware address of a clone's network interface: the same for the same name in the same state directory, and locally
/// administered.
fn mac(root: &Path, name: &str, index: usize) -> String {
    let mut hasher = DefaultHasher::new();
    (root, name, index).hash(&mut hasher);
    let [first, second, third, fourth, fifth, ..] = hasher.finish().to_le_bytes();
    mac_text([0x02, first, second, third, fourth, fifth])
}

fn image_name(index: usize) -> String {
    format!("disk{}.img", index + 1)
}

fn pmem_name(index: usize) -> String {
    format!("pmem{}.img", index + 1)
}

fn overlay_name(index: usize) -> String {
    format!("disk{}.overlay", index + 1)
}

/// Copies a file: by reference where the file system can, else its data, holes left as holes.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), FleetError> {
    if copy_by_reference(from, to)?.is_none() {
        let source = File::open(from).map_err(io_error("read", from))?;
        let target = OpenOptions::new()
            .write(true)
            .open(to)
            .map_err(io_error("written", to))?;
        copy_data(&source, &target).map_err(io_error("copied", to))?;
    }
    Ok(())
}

/// Makes `to` a file that shares `from`'s data; an empty one, and nothing is returned, where the file system cannot.
fn copy_by_reference(from: &Path, to: &Path) -> Result<Option<()>, FleetError> {
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
        Ok(()) => Ok(Some(())),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => Ok(None),
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
