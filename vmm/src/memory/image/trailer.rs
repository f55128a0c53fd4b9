//! What follows the RAM in a memory file.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{ImageError, PAGE};

const MAGIC: &[u8; 16] = b"berth-memory 1\0\0";
/// Bytes that one sum is for.
pub(super) const CHUNK: usize = 1 << 20;

/// What a memory file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: [u8; 16],
    /// Bytes of RAM.
    pub(crate) size: u64,
    /// Whether pages that it does not have are the base's.
    pub(crate) difference: bool,
}

/// The sums of a memory file, and for a difference which pages it has.
pub(super) struct Tail {
    pub(super) sums: Vec<u32>,
    /// A bit per page; empty for what is whole.
    pages: Vec<u8>,
}

impl Tail {
    /// That of an empty file.
    pub(super) fn new(identity: Identity) -> Self {
        let bits = if identity.difference {
            pages_len(identity.size)
        } else {
            0
        };
        Self {
            sums: vec![0; chunks(identity.size)],
            pages: vec![0; bits],
        }
    }

    /// Bytes of the memory file for `size` bytes of RAM.
    pub(super) fn file_size(&self, size: u64) -> u64 {
        file_size(size, !self.pages.is_empty())
    }

    /// Says of a difference that it has the pages in these bytes.
    pub(super) fn add_pages(&mut self, bytes: Range<u64>) {
        for page in bytes.step_by(PAGE).map(|at| at as usize / PAGE) {
            if let Some(byte) = self.pages.get_mut(page / 8) {
                *byte |= 1 << (page % 8);
            }
        }
    }

    /// Which pages a difference has, by runs of bytes.
    pub(super) fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (number, bits) in (0_u64..).zip(&self.pages) {
            for bit in (0..8).filter(|bit| bits >> bit & 1 == 1) {
                let at = (number * 8 + bit) * PAGE as u64;
                match runs.last_mut() {
                    Some(run) if run.end == at => run.end += PAGE as u64,
                    _ => runs.push(at..at + PAGE as u64),
                }
            }
        }
        runs
    }

    fn bytes(&self) -> Vec<u8> {
        let sums = self.sums.iter().flat_map(|sum| sum.to_le_bytes());
        sums.chain(self.pages.iter().copied()).collect()
    }

    /// Writes it behind the RAM in `file`.
    pub(super) fn write(&self, file: &File, identity: Identity) -> io::Result<()> {
        let bytes = self.bytes();
        file.write_all_at(&bytes, identity.size + PAGE as u64)?;
        file.write_all_at(&head(identity, &bytes), identity.size)
    }

    /// Reads that of `file`, which should be a memory of `size` bytes.
    pub(super) fn read(file: &File, size: u64) -> Result<(Identity, Self), ImageError> {
        let read = |cause: io::Error| ImageError::Read(cause.to_string());
        let found = file.metadata().map_err(read)?.len();
        let difference = found == file_size(size, true);
        if !difference && found != file_size(size, false) {
            return Err(ImageError::Size { size, found });
        }
        let mut start = vec![0; PAGE];
        file.read_exact_at(&mut start, size).map_err(read)?;
        let mut bytes = vec![0; (found - size) as usize - PAGE];
        file.read_exact_at(&mut bytes, size + PAGE as u64).map_err(read)?;
        let mut id = [0; 16];
        id.copy_from_slice(&start[16..32]);
        let identity = Identity { id, size, difference };
        if head(identity, &bytes) != start {
            return Err(ImageError::Trailer);
        }
        let (sums, pages) = bytes.split_at(4 * chunks(size));
        let sums = sums
            .chunks_exact(4)
            .map(|sum| u32::from_le_bytes(sum.try_into().unwrap_or_default()));
        let tail = Self {
            sums: sums.collect(),
            pages: pages.to_vec(),
        };
        Ok((identity, tail))
    }
}

fn chunks(size: u64) -> usize {
    (size as usize).div_ceil(CHUNK)
}

/// Bytes that say which pages a difference has.
fn pages_len(size: u64) -> usize {
    (size as usize / PAGE).div_ceil(8)
}

fn file_size(size: u64, difference: bool) -> u64 {
    let pages = if difference { pages_len(size) } else { 0 };
    size + (PAGE + 4 * chunks(size) + pages) as u64
}

/// The trailer's first page, of which `bytes` are the rest.
fn head(identity: Identity, bytes: &[u8]) -> Vec<u8> {
    let mut head = Vec::with_capacity(PAGE);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&identity.id);
    head.extend_from_slice(&identity.size.to_le_bytes());
    head.extend_from_slice(&u64::from(identity.difference).to_le_bytes());
    head.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    head.resize(PAGE, 0);
    head
}

/// The sum of one MiB, page by page in ascending order.
#[derive(Default)]
pub(super) struct ChunkSum(crc32fast::Hasher);

impl ChunkSum {
    /// The sum of a MiB with these bytes.
    pub(super) fn of(bytes: &[u8]) -> u32 {
        let mut sum = Self::default();
        for (index, page) in (0..).zip(bytes.chunks(PAGE)) {
            if !is_zero(page) {
                sum.add(index, page);
            }
        }
        sum.finish()
    }

    pub(super) fn add(&mut self, index: u16, page: &[u8]) {
        self.0.update(&index.to_le_bytes());
        self.0.update(page);
    }

    pub(super) fn finish(self) -> u32 {
        self.0.finalize()
    }
}

pub(super) fn is_zero(page: &[u8]) -> bool {
    // Once the first bytes are zero, the others are if each equals the one 16 before it: a comparison of memory, which is fast.
    let (head, tail) = page.split_at(16.min(page.len()));
    head.iter().all(|byte| *byte == 0) && page[..tail.len()] == *tail
}
