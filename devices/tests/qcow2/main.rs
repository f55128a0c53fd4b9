//! qcow2 disks against QEMU's tools.
//!
//! A program of its own: a process that is being started has the locks of all open images for a moment, which would keep other tests
//! from theirs.

mod damage;
mod images;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestAddress};

use berth_devices::Memory;
use berth_devices::storage::{
    DiskBackend, DiskError, Engine, FileOptions, ImageFormat, Operation, Qcow2Disk,
};
use berth_devices::virtio::queue::{Buffer, GuestIo, Segments};

const OPTIONS: FileOptions = FileOptions {
    read_only: false,
    direct: false,
    engine: Engine::Auto,
    format: ImageFormat::Qcow2,
};

/// A folder with images that QEMU's tools make and check.
struct Images(
    tempfile::TempDir,
    #[expect(dead_code, reason = "held")] MutexGuard<'static, ()>,
);

impl Images {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self(tempfile::tempdir().unwrap(), alone)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs qemu-img in the folder with the words of `line`.
    fn qemu(&self, line: &str) {
        let (good, said) = self.try_qemu(line);
        assert!(good, "qemu-img {line}: {said}");
    }

    fn try_qemu(&self, line: &str) -> (bool, String) {
        let ran = Command::new("qemu-img")
            .args(line.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .expect("qemu-img is there (tests/packages)");
        let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
        (ran.status.success(), said)
    }

    /// A raw file of bytes that differ from place to place.
    fn raw(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn open(&self, name: &str) -> Qcow2Disk {
        Qcow2Disk::open(&self.path(name), OPTIONS).unwrap()
    }

    fn refusal(&self, name: &str) -> String {
        let said = Qcow2Disk::open(&self.path(name), OPTIONS)
            .unwrap_err()
            .to_string();
        said.replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// Bytes by their place and `seed`.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut noise = Noise(seed);
    (0..len / 8).flat_map(|_| noise.next().to_le_bytes()).collect()
}

/// Numbers that look random and are the same each time (SplitMix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Guest memory of one buffer, to have a disk do something with it.
struct Guest {
    memory: Arc<Memory>,
    segments: Segments,
}

impl Guest {
    const LEN: usize = 4 << 20;

    fn new() -> Self {
        let ranges = [(GuestAddress(0), Self::LEN)];
        Self {
            memory: Arc::new(Memory::from_ranges(&ranges).unwrap()),
            segments: Segments::new(),
        }
    }

    fn io(&mut self, len: usize) -> GuestIo<'_> {
        let mut io = self.segments.start(&self.memory);
        // Two pieces, the first of them odd.
        let first = ((len / 3) | 1).min(len);
        let buffer = |addr: usize, len: usize| Buffer {
            addr: GuestAddress(addr as u64),
            len: len as u32,
        };
        io.add(&[buffer(0, first), buffer(first, len - first)], 0, len as u64);
        io
    }

    fn write(&mut self, disk: &mut Qcow2Disk, offset: u64, data: &[u8]) -> io::Result<()> {
        self.put(data);
        let from = self.io(data.len());
        now(disk, Operation::Write { offset, from })
    }

    fn read(&mut self, disk: &mut Qcow2Disk, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let to = self.io(len);
        now(disk, Operation::Read { offset, to })?;
        Ok(self.get(len))
    }

    fn put(&self, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(0)).unwrap();
    }

    fn get(&self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(0)).unwrap();
        data
    }
}

/// Has a disk that was not told of an event do something.
fn now(disk: &mut Qcow2Disk, operation: Operation<'_>) -> io::Result<()> {
    disk.submit(0, operation).expect("it is done at once")
}

fn contents(disk: &Qcow2Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Sets bytes of a file.
fn poke(path: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}
