//! A base and a difference, joined.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::copy::{copy_data, copy_range};
use super::{CHUNK, ChunkSum, Identity, Image, Tail, Written};

/// Writes `base` with the pages of `difference`, which has the same size, to the empty `file`.
pub(crate) fn merge(base: &Image, difference: &Image, file: &File, id: [u8; 16]) -> io::Result<Written> {
    let size = base.identity.size;
    let identity = Identity {
        id,
        size,
        difference: false,
    };
    let (_, pages) = Tail::read(&difference.file, size).map_err(io::Error::other)?;
    let (_, mut tail) = Tail::read(&base.file, size).map_err(io::Error::other)?;
    file.set_len(tail.file_size(size))?;
    copy_data(&base.file, file, size)?;
    let mut written = Written::default();
    let mut summed = None;
    let mut buffer = vec![0; CHUNK];
    let runs = pages.runs();
    for run in &runs {
        copy_range(&difference.file, file, run.start, run.end)?;
        written.bytes += run.end - run.start;
    }
    for number in runs
        .iter()
        .flat_map(|run| run.start / CHUNK as u64..=(run.end - 1) / CHUNK as u64)
    {
        if summed == Some(number) {
            continue;
        }
        summed = Some(number);
        let at = number * CHUNK as u64;
        let bytes = &mut buffer[..CHUNK.min((size - at) as usize)];
        file.read_exact_at(bytes, at)?;
        tail.sums[number as usize] = ChunkSum::of(bytes);
    }
    tail.write(file, identity)?;
    Ok(written)
}
