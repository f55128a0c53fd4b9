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
//! | 40 | 8 | 1 for a difference: what is a hole is the base's, not zero |
//! | 48 | 4 | CRC-32 of the sums |
//! | 4096 | 4 per MiB | a CRC-32 of each MiB: of the index (2 bytes) and the bytes of every page that is not all zeros |
//!
//! All numbers are little endian. The trailer is written last.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use berth_devices::Memory;
use rustix::fs::{SeekFrom, copy_file_range, seek};
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::pages::{PAGE, PageMap};

const MAGIC: &[u8; 16] = b"berth-memory 1\0\0";
/// Bytes that one sum is for.
const CHUNK: usize = 1 << 20;
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

/// What a memory file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: [u8; 16],
    /// Bytes of RAM.
    pub(crate) size: u64,
    /// Whether holes stand for the base's bytes.
    pub(crate) difference: bool,
}

/// What writing did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    /// Bytes of RAM that were written.
    pub bytes: u64,
    /// Bytes that were all zeros and became holes.
    pub zeros: u64,
}

/// The sums of a memory file.
struct Sums(Vec<u32>);

impl Sums {
    fn new(size: u64) -> Self {
        Self(vec![0; (size as usize).div_ceil(CHUNK)])
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|sum| sum.to_le_bytes()).collect()
    }
}

/// Where the trailer's sums begin.
fn sums_at(size: u64) -> u64 {
    size + PAGE as u64
}

/// Bytes of a memory file for `size` bytes of RAM.
fn file_size(size: u64) -> u64 {
    sums_at(size) + 4 * (size as usize).div_ceil(CHUNK) as u64
}

fn trailer(identity: Identity, sums: &[u8]) -> Vec<u8> {
    let mut trailer = Vec::with_capacity(PAGE);
    trailer.extend_from_slice(MAGIC);
    trailer.extend_from_slice(&identity.id);
    trailer.extend_from_slice(&identity.size.to_le_bytes());
    trailer.extend_from_slice(&u64::from(identity.difference).to_le_bytes());
    trailer.extend_from_slice(&crc32fast::hash(sums).to_le_bytes());
    trailer.resize(PAGE, 0);
    trailer
}

/// Reads the trailer of `file`, which should be a memory of `size` bytes.
fn read_trailer(file: &File, size: u64) -> Result<(Identity, Sums), ImageError> {
    let read = |cause: io::Error| ImageError::Read(cause.to_string());
    let found = file.metadata().map_err(read)?.len();
    if found != file_size(size) {
        return Err(ImageError::Size { size, found });
    }
    let mut head = vec![0; PAGE];
    file.read_exact_at(&mut head, size).map_err(read)?;
    let mut sums = vec![0; (found - sums_at(size)) as usize];
    file.read_exact_at(&mut sums, sums_at(size)).map_err(read)?;
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap_or_default());
    let mut id = [0; 16];
    id.copy_from_slice(&head[16..32]);
    let identity = Identity {
        id,
        size: word(32),
        difference: word(40) == 1,
    };
    if identity.size != size || trailer(identity, &sums) != head {
        return Err(ImageError::Trailer);
    }
    let sums = sums
        .chunks_exact(4)
        .map(|sum| u32::from_le_bytes(sum.try_into().unwrap_or_default()));
    Ok((identity, Sums(sums.collect())))
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
        let (identity, _) = read_trailer(&file, size)?;
        if identity.id == id {
            Ok(Self { file, identity })
        } else {
            Err(ImageError::Foreign)
        }
    }

    /// Reads all of it and compares the sums.
    pub(crate) fn verify(&self) -> Result<(), ImageError> {
        let (_, sums) = read_trailer(&self.file, self.identity.size)?;
        let mut bytes = vec![0; CHUNK];
        for (number, expected) in (0..).zip(&sums.0) {
            let at = number * CHUNK as u64;
            let len = CHUNK.min((self.identity.size - at) as usize);
            let bytes = &mut bytes[..len];
            self.file
                .read_exact_at(bytes, at)
                .map_err(|cause| ImageError::Read(cause.to_string()))?;
            let mut sum = ChunkSum::default();
            for (index, page) in (0..).zip(bytes.chunks(PAGE)) {
                if !is_zero(page) {
                    sum.add(index, page);
                }
            }
            if sum.finish() != *expected {
                return Err(ImageError::Damaged { at });
            }
        }
        Ok(())
    }
}

/// The sum of one MiB, page by page in ascending order.
#[derive(Default)]
struct ChunkSum(crc32fast::Hasher);

impl ChunkSum {
    fn add(&mut self, index: u16, page: &[u8]) {
        self.0.update(&index.to_le_bytes());
        self.0.update(page);
    }

    fn finish(self) -> u32 {
        self.0.finalize()
    }
}

fn is_zero(page: &[u8]) -> bool {
    // Once the first bytes are zero, the others are if each equals the one 16 before it: a comparison of memory, which is fast.
    let (head, tail) = page.split_at(16.min(page.len()));
    head.iter().all(|byte| *byte == 0) && page[..tail.len()] == *tail
}

/// Where memory came from: what is not this process's own is there.
#[derive(Debug)]
pub(crate) enum Origin {
    /// Fresh memory: what was never written is zero.
    Nothing,
    /// A private mapping of this file.
    Image(Image),
}

/// Writes `memory`, which stands still, to the empty `file`; a difference takes only what is this process's own.
pub(crate) fn write(
    memory: &Memory,
    origin: &Origin,
    file: &File,
    identity: Identity,
) -> io::Result<Written> {
    file.set_len(file_size(identity.size))?;
    let mut sums = Sums::new(identity.size);
    let whole = match origin {
        Origin::Image(image) if !identity.difference => {
            copy_data(&image.file, file, identity.size)?;
            sums = read_trailer(&image.file, identity.size)
                .map_err(io::Error::other)?
                .1;
            true
        }
        _ => false,
    };
    let chunks = own_chunks(memory)?;
    let writer = Writer {
        memory,
        file,
        whole,
        keep_zeros: whole || identity.difference,
    };
    let mut written = Written::default();
    for (chunk, done) in chunks.iter().zip(writer.write_all(&chunks)?) {
        sums.0[chunk.number()] = done.sum;
        written.bytes += done.written.bytes;
        written.zeros += done.written.zeros;
    }
    let sums = sums.bytes();
    file.write_all_at(&sums, sums_at(identity.size))?;
    file.write_all_at(&trailer(identity, &sums), identity.size)?;
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

/// Every MiB with pages of our own. Regions end at whole MiBs, but for the last.
fn own_chunks(memory: &Memory) -> io::Result<Vec<Chunk>> {
    let map = PageMap::open()?;
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut base = 0;
    for region in memory.iter() {
        let len = region.len() as usize;
        let mut add = |run: Range<usize>| {
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
            Ok(())
        };
        map.own(region.as_ptr().addr(), len, &mut add)?;
        base += len as u64;
    }
    Ok(chunks)
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
    /// Zeros cover something and must be written.
    keep_zeros: bool,
}

impl Writer<'_> {
    /// Writes the chunks, on two threads if there are many.
    fn write_all(&self, chunks: &[Chunk]) -> io::Result<Vec<Done>> {
        let some = |chunks: &[Chunk]| {
            let mut buffer = vec![0; CHUNK];
            let done = chunks.iter().map(|chunk| self.write(chunk, &mut buffer));
            done.collect::<io::Result<Vec<_>>>()
        };
        if chunks.len() < MANY {
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
        let mut from = run.start;
        for at in run.clone().step_by(PAGE) {
            if !self.keep_zeros && is_zero(&buffer[at..at + PAGE]) {
                self.flush(offset, from..at, buffer, written)?;
                written.zeros += PAGE as u64;
                from = at + PAGE;
            }
        }
        self.flush(offset, from..run.end, buffer, written)
    }

    fn flush(&self, offset: u64, run: Range<usize>, buffer: &[u8], written: &mut Written) -> io::Result<()> {
        if !run.is_empty() {
            written.bytes += run.len() as u64;
            self.file
                .write_all_at(&buffer[run.clone()], offset + run.start as u64)?;
        }
        Ok(())
    }
}

/// Copies what is not a hole in the first `size` bytes of `from`, by reference where the file system can.
fn copy_data(from: &File, to: &File, size: u64) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let Ok(data) = seek(from, SeekFrom::Data(at)) else {
            return Ok(());
        };
        let hole = seek(from, SeekFrom::Hole(data))?.min(size);
        copy_range(from, to, data, hole)?;
        at = hole.max(data + 1);
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut write) = (start, start);
    while read < end {
        let left = (end - read) as usize;
        match copy_file_range(from, Some(&mut read), to, Some(&mut write), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            // Not between these two: by way of this process, then.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let mut buffer = vec![0; CHUNK];
                while read < end {
                    let buffer = &mut buffer[..CHUNK.min((end - read) as usize)];
                    from.read_exact_at(buffer, read)?;
                    to.write_all_at(buffer, read)?;
                    read += buffer.len() as u64;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
