//! Warm starts of the shipped guest, and of others when asked: it boots once, is saved when its init is ready for work, and from then on it is restored.
//!
//! An entry of the cache is a snapshot in a folder named by a hash of its key, with the key beside it. The key is everything that
//! makes one booted guest differ from another: the program file, the shipped guest, the host's CPU, kernel and boot, and the
//! description but for what the guest is only told when it is ready (the command, its streams, the time limit). Guests that
//! were shown something of the outside world that may have changed since, disks that can be written above all, boot anew.
//!
//! The guest was saved before it drew a random number for anybody or knew a machine id; it gets both with its command
//! ([`words`]), and the time of day. Two runs share pages that neither has written, and nothing else.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_arch::hex;
use berth_arch::x86_64::kind::HostKind;
use serde::Serialize;

use crate::guest::{self, Streams};
use crate::snapshot::{HostFacts, SnapshotKind, SnapshotRequest, SnapshotTarget};
use crate::spec::{Fault, ReadySpec, SerialSpec, VmSpec};

/// Bytes of disk that all entries together may take; the ones used longest ago go first.
const MOST: u64 = 1 << 30;
/// Name of the key in an entry.
const KEY: &str = "key";

/// Where a booted guest is kept, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    folder: PathBuf,
    key: String,
}

#[derive(Serialize)]
struct Key<'a> {
    program: (u64, i64, i64),
    guest: &'a str,
    host: HostFacts,
    boot: String,
    files: Vec<(u64, u64, u64, i64, i64)>,
    spec: VmSpec,
}

/// The folder that holds all entries: `$BERTH_CACHE_DIR`, `$XDG_CACHE_HOME/berth` or `~/.cache/berth`. None if there is no home.
pub fn folder() -> Option<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = variable("BERTH_CACHE_DIR")
        .or_else(|| variable("XDG_CACHE_HOME").map(|path| path.join("berth")))
        .or_else(|| variable("HOME").map(|path| path.join(".cache/berth")))?;
    cache.is_absolute().then(|| cache.join("warm"))
}

/// Why a guest with a kernel of its own cannot be kept, if it cannot: a fault for each reason.
pub fn unfit(spec: &VmSpec) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (number, disk) in (1..).zip(&spec.disks) {
        if !disk.read_only || !disk.path.is_file() {
            faults.push(Fault::new(
                format!("disk {number}"),
                format!(
                    "{}: a guest that is started warm remembers what its disks held, so they must be image files that nobody writes; \
                     add ,ro or leave out --warm",
                    disk.path.display()
                ),
            ));
        }
    }
    for (number, pmem) in (1..).zip(&spec.pmem) {
        if !pmem.read_only || !pmem.path.is_file() {
            faults.push(Fault::new(
                format!("pmem {number}"),
                format!(
                    "{}: a guest that is started warm remembers what was in its memory, so it must be a file that nobody writes; add ,ro \
                     or leave out --warm",
                    pmem.path.display()
                ),
            ));
        }
    }
    for (number, _) in (1..).zip(&spec.nets).filter(|(_, net)| net.mac.is_none()) {
        faults.push(Fault::new(
            format!("net {number}"),
            "a guest that is started warm remembers its hardware address; give one, as in mac=02:00:00:00:00:01",
        ));
    }
    if spec.kernel.is_none() {
        faults.push(Fault::new(
            "warm",
            "the shipped guest starts warm by itself where it can; leave --warm out, or name a kernel",
        ));
    }
    if folder().is_none() {
        faults.push(Fault::new(
            "warm",
            "there is no folder for booted guests; set BERTH_CACHE_DIR or HOME to an absolute path",
        ));
    }
    faults
}

/// The entry for the guest that `spec` describes; none if it cannot be kept.
pub fn entry(spec: &VmSpec) -> Option<Entry> {
    let folder = folder()?;
    let key = serde_json::to_string(&key(spec)?).ok()?;
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    Some(Entry {
        folder: folder.join(format!("{:016x}", hasher.finish())),
        key,
    })
}

fn key(spec: &VmSpec) -> Option<Key<'static>> {
    // The shipped kernel with another root or command line may have no init that knows the protocol, and another sign is not its init's.
    let own = spec.initrd.is_some() || spec.cmdline_replace.is_some() || spec.ready != ReadySpec::Port;
    if spec.kernel.is_none() && own {
        return None;
    }
    // An address that Berth makes is for one run only.
    if spec.nets.iter().any(|net| net.mac.is_none() && !net.user) {
        return None;
    }
    let disks = spec.disks.iter().map(|disk| (&disk.path, disk.read_only));
    let loaded = spec.kernel.iter().chain(&spec.initrd).map(|path| (path, true));
    let pmem = spec.pmem.iter().map(|pmem| (&pmem.path, pmem.read_only));
    let files = disks.chain(pmem).chain(loaded).map(|(path, read_only)| {
        let found = fs::metadata(path).ok()?;
        let fixed = read_only && found.is_file();
        fixed.then(|| {
            (
                found.dev(),
                found.ino(),
                found.len(),
                found.mtime(),
                found.mtime_nsec(),
            )
        })
    });
    let files = files.collect::<Option<_>>()?;
    let mut spec = spec.clone();
    spec.command = Vec::new();
    spec.serial = SerialSpec::default();
    spec.timeout = None;
    spec.warm = false;
    spec.take_paths_from(&std::env::current_dir().ok()?);
    let program = fs::metadata("/proc/self/exe").ok()?;
    Some(Key {
        program: (program.len(), program.mtime(), program.mtime_nsec()),
        guest: guest::ID,
        // Which kind of host it is does not change without the rest.
        host: HostFacts::here(HostKind::Native),
        boot: fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?,
        files,
        spec,
    })
}

impl Entry {
    /// Where its snapshot is, if it has one. It counts as used.
    pub(crate) fn snapshot(&self) -> Option<SnapshotTarget> {
        let key = self.folder.join(KEY);
        if fs::read_to_string(&key).ok()? != self.key {
            return None;
        }
        // An entry whose time cannot be set is only thrown away earlier.
        let _ = File::options()
            .append(true)
            .open(key)
            .and_then(|file| file.set_modified(SystemTime::now()));
        Some(SnapshotTarget::Directory(self.folder.clone()))
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// How to save a guest here. It need not outlast a crash of the host: the host's boot is part of the key.
    pub(crate) fn request(&self) -> io::Result<SnapshotRequest> {
        if let Some(parent) = self.folder.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        Ok(SnapshotRequest {
            target: SnapshotTarget::Directory(self.folder.clone()),
            kind: SnapshotKind::Full,
            durable: false,
        })
    }

    /// The guest was saved: the entry counts from now on. Older ones make room for it.
    pub(crate) fn keep(&self) -> io::Result<()> {
        fs::write(self.folder.join(KEY), &self.key)?;
        if let Some(parent) = self.folder.parent() {
            make_room(parent, MOST)?;
        }
        Ok(())
    }

    /// Forgets it.
    pub(crate) fn remove(&self) {
        // What is not there, or cannot be removed, will not be used: the key goes with it or does not match.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// An entry as `berth cache` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its folder.
    pub path: PathBuf,
    /// Bytes of disk it takes.
    pub bytes: u64,
    /// When it was last used, in seconds since 1970.
    pub used: u64,
}

/// All entries in `folder`, the one used last first.
pub fn list(folder: &Path) -> io::Result<Vec<Listed>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut list = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let mut bytes = 0;
        // One that goes meanwhile takes nothing.
        for file in fs::read_dir(&path).into_iter().flatten().flatten() {
            bytes += file.metadata().map_or(0, |found| found.blocks() * 512);
        }
        let used = fs::metadata(path.join(KEY)).and_then(|found| found.modified());
        let used = used.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        list.push(Listed {
            path,
            bytes,
            used: used.unwrap_or(Duration::ZERO).as_secs(),
        });
    }
    list.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.path.cmp(&b.path)));
    Ok(list)
}

/// Removes every entry in `folder`; returns the bytes that this freed.
pub fn clear(folder: &Path) -> io::Result<u64> {
    make_room(folder, 0)
}

fn make_room(folder: &Path, most: u64) -> io::Result<u64> {
    let (mut kept, mut freed) = (0, 0);
    for entry in list(folder)? {
        if kept + entry.bytes <= most && most > 0 {
            kept += entry.bytes;
            continue;
        }
        match fs::remove_dir_all(&entry.path) {
            Ok(()) => freed += entry.bytes,
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(freed)
}

/// The line that a guest which waits is told: what to run and how, and what makes it one of its own.
pub(crate) fn words(spec: &VmSpec, streams: Streams) -> io::Result<String> {
    let mut random = [0; 48];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let (entropy, machine_id) = random.split_at(32);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    Ok(format!(
        "entropy={} machine-id={} time={}.{:09} {}\n",
        hex::text(entropy),
        hex::text(machine_id),
        now.as_secs(),
        now.subsec_nanos(),
        guest::init_words(spec, streams),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ByteSize, DiskSpec};

    fn text(spec: &VmSpec) -> Option<String> {
        key(spec).map(|key| serde_json::to_string(&key).unwrap())
    }

    #[test]
    fn what_a_guest_is_told_when_it_is_ready_does_not_count() {
        let spec = VmSpec::default();
        let told = VmSpec {
            command: vec!["true".to_owned()],
            serial: SerialSpec::Null,
            timeout: Some(5),
            ..VmSpec::default()
        };
        assert_eq!(text(&spec), text(&told));
        let larger = VmSpec {
            memory: ByteSize(1 << 30),
            ..VmSpec::default()
        };
        assert_ne!(text(&spec), text(&larger));
    }

    #[test]
    fn only_guests_that_saw_nothing_that_may_change_are_kept() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let with = |read_only| VmSpec {
            disks: vec![DiskSpec {
                read_only,
                ..DiskSpec::from_option(file.path().as_os_str()).unwrap()
            }],
            ..VmSpec::default()
        };
        assert_eq!(text(&with(false)), None);
        let before = text(&with(true)).expect("a disk that is only read");
        file.as_file().set_len(512).unwrap();
        assert_ne!(text(&with(true)).unwrap(), before);
        let foreign = VmSpec {
            kernel: Some("/nonexistent/vmlinux".into()),
            ..VmSpec::default()
        };
        assert_eq!(text(&foreign), None);
        let foreign = |spec| VmSpec {
            kernel: Some(file.path().to_owned()),
            ..spec
        };
        assert!(unfit(&foreign(with(true))).is_empty());
        assert!(text(&foreign(with(true))).is_some());
        let faults = unfit(&foreign(with(false)));
        assert_eq!(
            (faults.len(), text(&foreign(with(false)))),
            (1, None),
            "{faults:?}"
        );
    }

    #[test]
    fn the_entries_used_last_are_kept_within_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        for (name, used) in [("a", 3), ("b", 1), ("c", 2)] {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("memory"), vec![1; 8192]).unwrap();
            let key = File::create(path.join(KEY)).unwrap();
            key.set_modified(UNIX_EPOCH + Duration::from_secs(used)).unwrap();
        }
        let names = || -> Vec<_> {
            let list = list(folder.path()).unwrap();
            list.iter()
                .map(|entry| entry.path.file_name().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(), ["a", "c", "b"]);
        make_room(folder.path(), 2 * 8192).unwrap();
        assert_eq!(names(), ["a", "c"]);
        clear(folder.path()).unwrap();
        assert!(names().is_empty());
        assert_eq!(list(&folder.path().join("none")).unwrap(), []);
    }

    #[test]
    fn no_two_guests_are_told_the_same() {
        let spec = VmSpec {
            command: vec!["true".to_owned()],
            ..VmSpec::default()
        };
        let words = || words(&spec, Streams::Piped).unwrap();
        let (one, other) = (words(), words());
        assert!(one.ends_with(" piped run=true\n"), "{one}");
        assert_ne!(one[..72], other[..72]);
    }
}
