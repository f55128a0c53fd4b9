//! Guest memory in a file.
//!
//! ```text
//!   0 ─ RAM, regions one after the other by ascending address; what is zero may be a hole ─ size ─ trailer, one page and the sums
//! ```
//! The trailer comes last so that whoever maps the file from its start needs to know nothing of it:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 16 | `berth-memory 1` and zeros |
//! | 16 | 16 | the snapshot's id, which its description has too |
//! | 32 | 8 | size of the RAM in bytes |
//! | 40 | 8 | 1 for a difference, of which only some pages count; the others are the base's |
//! | 48 | 4 | CRC-32 of all that follows |
//! | 4096 | 4 per MiB | a CRC-32 of each MiB: of the index (2 bytes) and the bytes of every page that is not all zeros |
//! | then | 1 per 8 pages | for a difference: which pages it has, the lowest bit first |
//!
//! All numbers are little endian. The trailer is written last.

mod copy;
mod merge;
mod trailer;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use berth_devices::Memory;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::pages::{PAGE, PageMap, without_file};
use super::uffd::Handler;
use copy::copy_data;
pub(crate) use merge::merge;
pub(crate) use trailer::Identity;
use trailer::{CHUNK, ChunkSum, Tail, is_zero};

/// Chunks from which on a second thread pays.
const MANY: usize = 16;

/// Why a memory file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Not one of ours, or cut short.
    #[error("it is no memory of {size} bytes with its trailer: it has {found} bytes")]
    Size {
        /// What the snapshot says of the RAM.
        size: u64,
        /// The file's size.
        found: u64,
    },
    /// The trailer is not what it should be.
    #[error("its trailer is damaged, or it is no memory of a snapshot")]
    Trailer,
    /// The memory of another snapshot.
    #[error("it belongs to another snapshot than the description beside it")]
    Foreign,
    /// Bytes have changed.
    #[error("its bytes from {at:#x} on have changed since it was written")]
    Damaged {
        /// Offset of the MiB.
        at: u64,
    },
    /// It cannot be read.
    #[error("{0}")]
    Read(String),
}

/// What writing did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    /// Bytes of RAM that were written.
    pub bytes: u64,
    /// Bytes that were all zeros and became holes.
    pub zeros: u64,
}

/// A memory file, opened and found to be what it should be. Its pages are read when they are needed.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) file: File,
    pub(crate) identity: Identity,
}

impl Image {
    /// Opens `file` as the memory of the snapshot `id` with `size` bytes of RAM.
    pub(crate) fn open(file: File, id: [u8; 16], size: u64) -> Result<Self, ImageError> {
        let (identity, _) = Tail::read(&file, size)?;
        if identity.id == id {
            Ok(Self { file, identity })
        } else {
            Err(ImageError::Foreign)
        }
    }

    /// Reads all of it and compares the sums.
    pub(crate) fn verify(&self) -> Result<(), ImageError> {
        let (_, tail) = Tail::read(&self.file, self.identity.size)?;
        let mut bytes = vec![0; CHUNK];
        for (number, expected) in (0..).zip(&tail.sums) {
            let at = number * CHUNK as u64;
            let len = CHUNK.min((self.identity.size - at) as usize);
            let bytes = &mut bytes[..len];
            self.file
                .read_exact_at(bytes, at)
                .map_err(|cause| ImageError::Read(cause.to_string()))?;
            if ChunkSum::of(bytes) != *expected {
                return Err(ImageError::Damaged { at });
            }
        }
        Ok(())
    }
}

/// Where memory came from: what is not this process's own is there.
#[derive(Debug)]
pub(crate) enum Origin {
    /// Fresh memory: what was never written is zero.
    Nothing,
    /// A private mapping of this file.
    Image(Image),
    /// A process that brings the pages.
    Handler(Handler),
}

/// Writes `memory`, which stands still, to the empty `file`; a difference takes only what is this process's own. A process that
/// has but one thread left may want no second one.
pub(crate) fn write(
    memory: &Memory,
    origin: &Origin,
    file: &File,
    identity: Identity,
    alone: bool,
) -> io::Result<Written> {
    let mut tail = Tail::new(identity);
    file.set_len(tail.file_size(identity.size))?;
    let whole = match origin {
        Origin::Image(image) if !identity.difference => {
            copy_data(&image.file, file, identity.size)?;
            let (_, copied) = Tail::read(&image.file, identity.size).map_err(io::Error::other)?;
            tail.sums = copied.sums;
            true
        }
        _ => false,
    };
    // Pages that nobody has touched are the handler's to bring.
    let extent = match origin {
        Origin::Handler(_) => Extent::All,
        Origin::Image(_) => Extent::OwnAndReplaced,
        Origin::Nothing => Extent::Own,
    };
    let chunks = own_chunks(memory, extent)?;
    let writer = Writer {
        memory,
        file,
        whole,
        keep_zeros: identity.difference,
    };
    let mut written = Written::default();
    for (chunk, done) in chunks.iter().zip(writer.write_all(&chunks, alone)?) {
        tail.sums[chunk.number()] = done.sum;
        for run in &chunk.own {
            tail.add_pages(chunk.offset + run.start as u64..chunk.offset + run.end as u64);
        }
        written.bytes += done.written.bytes;
        written.zeros += done.written.zeros;
    }
    tail.write(file, identity)?;
    Ok(written)
}

/// The part of a MiB of the file that must be written.
struct Chunk {
    /// Where the MiB begins in the file.
    offset: u64,
    /// Where it begins in the guest.
    address: u64,
    /// Its length: a MiB, or what is left of a region.
    len: usize,
    /// What of it is to be written.
    own: Vec<Range<usize>>,
}

impl Chunk {
    fn number(&self) -> usize {
        self.offset as usize / CHUNK
    }
}

/// Which pages must be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// Those of our own.
    Own,
    /// Those, and those that are no longer the file's.
    OwnAndReplaced,
    /// All.
    All,
}

/// Every MiB with pages that must be written. Regions end at whole MiBs, but for the last.
fn own_chunks(memory: &Memory, extent: Extent) -> io::Result<Vec<Chunk>> {
    let map = PageMap::open()?;
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut base = 0;
    for region in memory.iter() {
        let len = region.len() as usize;
        let (address, mut runs) = (region.as_ptr().addr(), Vec::new());
        if extent == Extent::All {
            runs.push(0..len);
        } else {
            map.own(address, len, |run| {
                runs.push(run);
                Ok(())
            })?;
        }
        if extent == Extent::OwnAndReplaced {
            runs.extend(without_file(address, len)?);
        }
        for run in joined(runs) {
            let mut at = run.start;
            while at < run.end {
                let start = at - at % CHUNK;
                let offset = base + start as u64;
                let end = run.end.min(start + CHUNK);
                if chunks.last().is_none_or(|chunk| chunk.offset != offset) {
                    chunks.push(Chunk {
                        offset,
                        address: region.start_addr().0 + start as u64,
                        len: CHUNK.min(len - start),
                        own: Vec::new(),
                    });
                }
                if let Some(chunk) = chunks.last_mut() {
                    chunk.own.push(at - start..end - start);
                }
                at = end;
            }
        }
        base += len as u64;
    }
    Ok(chunks)
}

/// The same runs in ascending order, none of which meets another.
fn joined(mut runs: Vec<Range<usize>>) -> Vec<Range<usize>> {
    runs.sort_unstable_by_key(|run| run.start);
    let mut joined: Vec<Range<usize>> = Vec::with_capacity(runs.len());
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => joined.push(run),
        }
    }
    joined
}

/// What became of a chunk.
#[derive(Clone, Copy, Default)]
struct Done {
    sum: u32,
    written: Written,
}

struct Writer<'a> {
    memory: &'a Memory,
    file: &'a File,
    /// The file has other bytes where pages are not our own, and they count for the sum.
    whole: bool,
    /// Zeros are pages of a difference and must be written.
    keep_zeros: bool,
}

impl Writer<'_> {
    /// Writes the chunks, on two threads if there are many.
    fn write_all(&self, chunks: &[Chunk], alone: bool) -> io::Result<Vec<Done>> {
        let some = |chunks: &[Chunk]| {
            let mut buffer = vec![0; CHUNK];
            let done = chunks.iter().map(|chunk| self.write(chunk, &mut buffer));
            done.collect::<io::Result<Vec<_>>>()
        };
        if alone || chunks.len() < MANY {
            return some(chunks);
        }
        let (first, second) = chunks.split_at(chunks.len() / 2);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| some(second));
            let mut done = some(first)?;
            let other = other
                .join()
                .map_err(|_| io::Error::other("a writing thread ended early"))?;
            done.extend(other?);
            Ok(done)
        })
    }

    fn write(&self, chunk: &Chunk, buffer: &mut [u8]) -> io::Result<Done> {
        let buffer = &mut buffer[..chunk.len];
        let all = std::iter::once(0..buffer.len());
        let summed: Vec<Range<usize>> = if self.whole {
            all.collect()
        } else {
            chunk.own.clone()
        };
        let mut sum = ChunkSum::default();
        for run in &summed {
            let from = GuestAddress(chunk.address + run.start as u64);
            self.memory
                .read_slice(&mut buffer[run.clone()], from)
                .map_err(io::Error::other)?;
            for at in run.clone().step_by(PAGE) {
                let page = &buffer[at..at + PAGE];
                if !is_zero(page) {
                    sum.add((at / PAGE) as u16, page);
                }
            }
        }
        let mut written = Written::default();
        for run in &chunk.own {
            self.write_run(chunk.offset, run.clone(), buffer, &mut written)?;
        }
        Ok(Done {
            sum: sum.finish(),
            written,
        })
    }

    fn write_run(
        &self,
        offset: u64,
        run: Range<usize>,
        buffer: &[u8],
        written: &mut Written,
    ) -> io::Result<()> {
        let is_hole = |at: usize| !self.keep_zeros && is_zero(&buffer[at..at + PAGE]);
        let mut from = run.start;
        while from < run.end {
            let hole = is_hole(from);
            let mut end = from + PAGE;
            while end < run.end && is_hole(end) == hole {
                end += PAGE;
            }
            if hole {
                if self.whole {
                    // The file has what was there before.
                    clear(self.file, offset + from as u64, (end - from) as u64)?;
                }
                written.zeros += (end - from) as u64;
            } else {
                self.flush(offset, from..end, buffer, written)?;
            }
            from = end;
        }
        Ok(())
    }

    fn flush(&self, offset: u64, run: Range<usize>, buffer: &[u8], written: &mut Written) -> io::Result<()> {
        written.bytes += run.len() as u64;
        self.file
            .write_all_at(&buffer[run.clone()], offset + run.start as u64)
    }
}

/// Makes `len` bytes of the file zeros: a hole where the file system can.
fn clear(file: &File, at: u64, len: u64) -> io::Result<()> {
    match fallocate(
        file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        at,
        len,
    ) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.write_all_at(&vec![0; len as usize], at),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
