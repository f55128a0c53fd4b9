//! A disk that is another one until it is written: a base that nobody writes, and a sparse file with what has changed.
//!
//! ```text
//!   offset 0          header: magic, version, sizes; little-endian
//!   offset 4096       a bit for each cluster of 64 KiB: set if the overlay has it
//!   offset DATA       the clusters, each where it lies on the disk: those that the overlay does not have are holes
//! ```
//! A cluster is copied whole before a part of it is written. Its bit is set in memory when its data is in the file, and in
//! the file only when the guest flushes, or the disk is closed: after the data has reached the medium. So a crash loses
//! what was not flushed, as on any disk, and never shows a cluster that was not written.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::backend::{DiskBackend, Operation};
use super::file::{self, DiskError, FileOptions};
use super::format::{Image, ImageFormat};
use super::store;
use crate::virtio::queue::GuestIo;

/// What an overlay begins with.
const MAGIC: &[u8; 8] = b"BERTHOVL";
const VERSION: u32 = 1;
const HEADER: u64 = 4096;
/// The unit of what the overlay has.
const CLUSTER: u64 = 64 << 10;

/// A base and what has changed.
#[derive(Debug)]
pub struct OverlayDisk {
    path: PathBuf,
    base: Image,
    file: File,
    size: u64,
    /// Where the clusters begin.
    data: u64,
    present: Vec<u8>,
    /// The bytes of `present` that the file does not have yet.
    fresh: Option<(usize, usize)>,
    bounce: Vec<u8>,
}

impl OverlayDisk {
    /// Opens the overlay at `path` of the disk at `base`, which is of a format and locked against writers. An overlay that is
    /// not there is made.
    pub fn open(base: &Path, format: ImageFormat, path: &Path) -> Result<Self, DiskError> {
        let options = FileOptions {
            read_only: true,
            format,
            ..Default::default()
        };
        let base = Image::open(base, options)?;
        let size = base.size();
        let failed = |cause: io::Error| {
            let path = path.to_owned();
            let why = match cause.kind() {
                io::ErrorKind::NotFound => "the folder that it is to lie in does not exist; make it first",
                io::ErrorKind::PermissionDenied => "no permission to make or write it; choose another place",
                io::ErrorKind::StorageFull => "there is no room for it; choose another place",
                _ => return DiskError::Open { path, cause },
            };
            DiskError::Overlay { path, why }
        };
        let there = path.exists();
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let file = options.open(path).map_err(failed)?;
        file::lock(&file, path, false)?;
        let clusters = size.div_ceil(CLUSTER);
        let bytes = clusters.div_ceil(8);
        let data = (HEADER + bytes).next_multiple_of(CLUSTER);
        let mut present = vec![0; bytes as usize];
        let header = header(size);
        if file.metadata().map_err(failed)?.len() == 0 {
            // The header first: without it, what is left where there is no room would be no overlay.
            let made = file
                .write_all_at(&header, 0)
                .and_then(|()| file.set_len(data + clusters * CLUSTER));
            made.map_err(|cause| {
                // As it was before; the refusal stands whether or not this goes well.
                let _ = if there {
                    file.set_len(0)
                } else {
                    std::fs::remove_file(path)
                };
                failed(cause)
            })?;
        } else {
            check(&file, &header, path)?;
            file.read_exact_at(&mut present, HEADER).map_err(failed)?;
        }
        Ok(Self {
            path: path.to_owned(),
            base,
            file,
            size,
            data,
            present,
            fresh: None,
            bounce: vec![0; CLUSTER as usize],
        })
    }

    fn has(&self, cluster: u64) -> bool {
        self.present[(cluster / 8) as usize] & 1 << (cluster % 8) != 0
    }

    /// Notes that the overlay has a cluster, whose data is in the file.
    fn note(&mut self, cluster: u64) {
        let at = (cluster / 8) as usize;
        self.present[at] |= 1 << (cluster % 8);
        let (first, last) = self.fresh.unwrap_or((at, at));
        self.fresh = Some((first.min(at), last.max(at)));
    }

    /// Whether the overlay has all of a range, or nothing of it; nothing where it has a part.
    fn uniform(&self, offset: u64, len: u64) -> Option<bool> {
        let mut clusters = offset / CLUSTER..(offset + len).div_ceil(CLUSTER);
        let first = self.has(clusters.next()?);
        clusters
            .all(|cluster| self.has(cluster) == first)
            .then_some(first)
    }

    fn run(&mut self, operation: Operation<'_>) -> io::Result<()> {
        match operation {
            Operation::Read { offset, to } => self.read(offset, to),
            Operation::Write { offset, from } => self.write(offset, from),
            Operation::Flush => self.flush(),
            Operation::Discard { offset, len } => self.discard(offset, len),
            Operation::WriteZeroes { offset, len, .. } => self.zero(offset, len),
        }
    }

    fn read(&mut self, offset: u64, mut to: GuestIo<'_>) -> io::Result<()> {
        match (self.uniform(offset, to.len()), &self.base) {
            (Some(true), _) => to.read_exact_at(self.file.as_fd(), self.data + offset),
            (Some(false), Image::Raw(base)) => to.read_exact_at(base.file().as_fd(), offset),
            _ => {
                let mut bounce = std::mem::take(&mut self.bounce);
                let result = pieces(offset, to.len()).try_for_each(|(at, len)| {
                    let piece = &mut bounce[..len];
                    self.read_piece(at, piece)?;
                    to.copy_from(piece);
                    Ok(())
                });
                self.bounce = bounce;
                result
            }
        }
    }

    fn write(&mut self, offset: u64, mut from: GuestIo<'_>) -> io::Result<()> {
        if self.uniform(offset, from.len()) == Some(true) {
            return from.write_all_at(self.file.as_fd(), self.data + offset);
        }
        let mut piece = vec![0; CLUSTER as usize];
        for (at, len) in pieces(offset, from.len()) {
            let piece = &mut piece[..len];
            from.copy_to(piece);
            self.write_piece(at, piece)?;
        }
        Ok(())
    }

    /// Reads what the disk holds at `offset`, for whoever looks at it when no VM has it. Past its end is an error.
    pub fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(to.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = to;
        for (at, len) in pieces(offset, rest.len() as u64) {
            let (piece, behind) = rest.split_at_mut(len);
            self.read_piece(at, piece)?;
            rest = behind;
        }
        Ok(())
    }

    /// Reads within one cluster.
    fn read_piece(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        if self.has(offset / CLUSTER) {
            self.file.read_exact_at(to, self.data + offset)
        } else {
            self.base.read_at(offset, to)
        }
    }

    /// Writes within one cluster.
    fn write_piece(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        let cluster = offset / CLUSTER;
        if !self.has(cluster) {
            self.bring(cluster, offset, from.len() as u64)?;
        }
        self.file.write_all_at(from, self.data + offset)?;
        if !self.has(cluster) {
            self.note(cluster);
        }
        Ok(())
    }

    /// Copies a cluster from the base, unless all of it is about to be written.
    fn bring(&mut self, cluster: u64, offset: u64, len: u64) -> io::Result<()> {
        let start = cluster * CLUSTER;
        let whole = (self.size - start).min(CLUSTER);
        if offset == start && len >= whole {
            return Ok(());
        }
        let mut bounce = std::mem::take(&mut self.bounce);
        let piece = &mut bounce[..whole as usize];
        let copied = self
            .base
            .read_at(start, piece)
            .and_then(|()| self.file.write_all_at(piece, self.data + start));
        self.bounce = bounce;
        copied
    }

    /// The data first, then what says that it is there.
    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        let Some((first, last)) = self.fresh else {
            return Ok(());
        };
        self.file
            .write_all_at(&self.present[first..=last], HEADER + first as u64)?;
        self.file.sync_data()?;
        self.fresh = None;
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        for (at, len) in pieces(offset, len) {
            let whole = len as u64 == (self.size - at).min(CLUSTER) && at.is_multiple_of(CLUSTER);
            // What is the base's stays there; what it reads as does not matter.
            if whole && self.has(at / CLUSTER) {
                self.clear(at, len as u64)?;
            }
        }
        Ok(())
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        for (at, len) in pieces(offset, len) {
            let cluster = at / CLUSTER;
            if !self.has(cluster) {
                self.bring(cluster, at, len as u64)?;
            }
            self.clear(at, len as u64)?;
            if !self.has(cluster) {
                self.note(cluster);
            }
        }
        Ok(())
    }

    /// Makes a range of the overlay's own data zero, without space where the file system can.
    fn clear(&self, offset: u64, len: u64) -> io::Result<()> {
        store::write_zeroes(&self.file, self.data + offset, len, true)
    }
}

/// A range in pieces that lie in one cluster each.
fn pieces(mut offset: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
    let end = offset + len;
    std::iter::from_fn(move || {
        let here = offset;
        let next = (here / CLUSTER * CLUSTER + CLUSTER).min(end);
        offset = next;
        (here < end).then(|| (here, (next - here) as usize))
    })
}

fn header(size: u64) -> [u8; 32] {
    let mut header = [0; 32];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&(CLUSTER as u32).to_le_bytes());
    header[16..24].copy_from_slice(&size.to_le_bytes());
    header
}

fn check(file: &File, expected: &[u8; 32], path: &Path) -> Result<(), DiskError> {
    let refused = |why| DiskError::Overlay {
        path: path.to_owned(),
        why,
    };
    let mut found = [0; 32];
    if file.read_exact_at(&mut found, 0).is_err() || found[..8] != *MAGIC {
        return Err(refused(
            "is no overlay of Berth's; name a file that is one, or none",
        ));
    }
    if found[8..16] != expected[8..16] {
        return Err(refused("is an overlay of another version of Berth"));
    }
    if found != *expected {
        return Err(refused("is the overlay of a disk of another size"));
    }
    Ok(())
}

impl DiskBackend for OverlayDisk {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn writable(&self) -> bool {
        true
    }

    fn submit(&mut self, _: u16, operation: Operation<'_>) -> Option<io::Result<()>> {
        Some(self.run(operation))
    }

    fn settle(&mut self) -> io::Result<()> {
        if self.fresh.is_some() {
            self.flush()
        } else {
            Ok(())
        }
    }
}

impl Drop for OverlayDisk {
    fn drop(&mut self) {
        if let Err(error) = self.settle() {
            tracing::error!("{}: what was written last is lost: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::FileDisk;

    /// A base of some clusters and a piece.
    const SIZE: u64 = 5 * CLUSTER + 3 * 512;

    fn base(folder: &Path) -> (PathBuf, Vec<u8>) {
        let path = folder.join("base");
        let bytes: Vec<u8> = (0..SIZE).map(|at| (at / 512 * 7 % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        (path, bytes)
    }

    fn contents(disk: &OverlayDisk) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        for (at, len) in pieces(0, SIZE) {
            disk.read_piece(at, &mut bytes[at as usize..][..len]).unwrap();
        }
        bytes
    }

    fn write(disk: &mut OverlayDisk, offset: u64, bytes: &[u8]) {
        for (at, len) in pieces(offset, bytes.len() as u64) {
            disk.write_piece(at, &bytes[(at - offset) as usize..][..len])
                .unwrap();
        }
    }

    #[test]
    fn what_was_not_flushed_before_a_crash_is_the_bases_and_nothing_else_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (base, mut model) = base(folder.path());
        let path = folder.path().join("overlay");
        let mut disk = OverlayDisk::open(&base, ImageFormat::Raw, &path).unwrap();
        write(&mut disk, 1024, &[1; 512]);
        disk.flush().unwrap();
        model[1024..1536].fill(1);
        write(&mut disk, 3 * CLUSTER, &[2; 4096]);
        // As a crash would: nothing is settled, and the lock goes.
        disk.fresh = None;
        drop(disk);
        assert!(contents(&OverlayDisk::open(&base, ImageFormat::Raw, &path).unwrap()) == model);
    }

    #[test]
    fn the_base_is_never_written_and_two_overlays_share_it() {
        let folder = tempfile::tempdir().unwrap();
        let (base, bytes) = base(folder.path());
        let open = |name| OverlayDisk::open(&base, ImageFormat::Raw, &folder.path().join(name)).unwrap();
        let (mut one, mut other) = (open("one"), open("other"));
        write(&mut one, 0, &[1; 512]);
        write(&mut other, 0, &[2; 512]);
        assert_eq!((contents(&one)[0], contents(&other)[0]), (1, 2));
        assert!(std::fs::read(&base).unwrap() == bytes);
        assert!(matches!(
            FileDisk::open(&base, false),
            Err(DiskError::InUse { .. })
        ));
        drop((one, other));
        assert_eq!(contents(&open("one"))[0], 1, "closing is flushing");
    }

    #[test]
    fn what_is_no_overlay_of_this_disk_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (base, _) = base(folder.path());
        let path = folder.path().join("overlay");
        let refusal = || {
            OverlayDisk::open(&base, ImageFormat::Raw, &path)
                .unwrap_err()
                .to_string()
        };
        std::fs::write(&path, b"something else").unwrap();
        assert!(refusal().contains("is no overlay of Berth's"), "{}", refusal());
        assert_eq!(std::fs::read(&path).unwrap(), b"something else");
        let mut other = header(SIZE + 512).to_vec();
        other.resize(HEADER as usize, 0);
        std::fs::write(&path, &other).unwrap();
        assert!(
            refusal().contains("is the overlay of a disk of another size"),
            "{}",
            refusal()
        );
        other[8] = 9;
        std::fs::write(&path, &other).unwrap();
        assert!(
            refusal().contains("is an overlay of another version"),
            "{}",
            refusal()
        );
    }

    /// Something done to a disk, in sectors.
    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, u64, u8),
        Zero(u64, u64),
        Flush,
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        let range =
            || (0..SIZE / 512).prop_flat_map(|first| (Just(first), 1..=(SIZE / 512 - first).min(300)));
        prop_oneof![
            4 => (range(), any::<u8>()).prop_map(|((first, count), byte)| Step::Write(first, count, byte)),
            2 => range().prop_map(|(first, count)| Step::Zero(first, count)),
            1 => Just(Step::Flush),
            1 => Just(Step::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn an_overlay_is_a_plain_disk_to_whoever_uses_it(steps in proptest::collection::vec(step(), 1..24)) {
            let folder = tempfile::tempdir().unwrap();
            let (base, mut model) = base(folder.path());
            let path = folder.path().join("overlay");
            let mut disk = OverlayDisk::open(&base, ImageFormat::Raw, &path).unwrap();
            for step in steps {
                match step {
                    Step::Write(first, count, byte) => {
                        let bytes = vec![byte; (count * 512) as usize];
                        write(&mut disk, first * 512, &bytes);
                        model[(first * 512) as usize..][..bytes.len()].copy_from_slice(&bytes);
                    }
                    Step::Zero(first, count) => {
                        disk.zero(first * 512, count * 512).unwrap();
                        model[(first * 512) as usize..][..(count * 512) as usize].fill(0);
                    }
                    Step::Flush => disk.flush().unwrap(),
                    Step::Reopen => {
                        drop(disk);
                        disk = OverlayDisk::open(&base, ImageFormat::Raw, &path).unwrap();
                    }
                }
                prop_assert!(contents(&disk) == model);
            }
        }
    }
}
