//! What a driver asks of the disk (virtio 1.3, section 5.2.6): from a chain to a command that fits the disk.

#![forbid(unsafe_code)]

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::storage::SECTOR;
use crate::virtio::queue::RequestChain;

/// Bytes of the header: type, reserved, sector.
pub(super) const HEADER: u32 = 16;
/// Bytes of a range to discard or zero.
const RANGE: u32 = 16;

/// Most sectors of one discard. Punching a hole takes time by its extents.
pub(super) const MAX_DISCARD: u32 = 1 << 20;
/// Most sectors of one write-zeroes, which may have to be written one by one.
pub(super) const MAX_WRITE_ZEROES: u32 = 1 << 16;

/// Longest piece of data in a request.
pub(super) const SIZE_MAX: u32 = 1 << 22;
/// Pieces of data in a request.
pub(super) const SEG_MAX: u32 = super::QUEUE_SIZE as u32 - 2;
/// Bytes of one request. It bounds how long one keeps the thread.
const MAX_LEN: u64 = SIZE_MAX as u64 * SEG_MAX as u64;

/// The answer's last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as isize,
    /// The disk could not, or the request does not fit the disk.
    IoError = VIRTIO_BLK_S_IOERR as isize,
    /// The device does not do such things.
    Unsupported = VIRTIO_BLK_S_UNSUPP as isize,
}

/// A command whose range lies within the disk. Offsets and lengths in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read { offset: u64, len: u32 },
    Write { offset: u64, len: u32 },
    Flush,
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
    Id,
}

/// What a command is measured against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Of the disk, in bytes.
    pub(super) size: u64,
    pub(super) read_only: bool,
    /// Negotiated.
    pub(super) features: u64,
}

impl Limits {
    fn has(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    /// The offset of `len` bytes from `sector` on, if they are whole sectors within the disk.
    fn fit(&self, sector: u64, len: u64) -> Result<u64, Status> {
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let end = offset.checked_add(len).ok_or(Status::IoError)?;
        if !len.is_multiple_of(SECTOR) || len > MAX_LEN || end > self.size {
            return Err(Status::IoError);
        }
        Ok(offset)
    }
}

impl Command {
    /// Reads a request that has at least a byte for its status.
    pub(super) fn parse(chain: &RequestChain, limits: Limits) -> Result<Self, Status> {
        let mut header = [0; HEADER as usize];
        if chain.read_at(0, &mut header) < header.len() {
            return Err(Status::IoError);
        }
        let (kind, sector) = (word(&header, 0), long(&header, 8));
        let to_write = chain.readable_len() - HEADER;
        let to_read = chain.writable_len() - 1;
        match kind {
            VIRTIO_BLK_T_IN => {
                let offset = limits.fit(sector, to_read.into())?;
                Ok(Self::Read { offset, len: to_read })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Self::Id),
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if limits.read_only => {
                Err(Status::IoError)
            }
            VIRTIO_BLK_T_OUT => {
                let offset = limits.fit(sector, to_write.into())?;
                Ok(Self::Write {
                    offset,
                    len: to_write,
                })
            }
            VIRTIO_BLK_T_DISCARD if limits.has(VIRTIO_BLK_F_DISCARD) => {
                let (offset, len, flags) = range(chain, limits, MAX_DISCARD)?;
                // Not even the unmap flag has a meaning here.
                if flags != 0 {
                    return Err(Status::Unsupported);
                }
                Ok(Self::Discard { offset, len })
            }
            VIRTIO_BLK_T_WRITE_ZEROES if limits.has(VIRTIO_BLK_F_WRITE_ZEROES) => {
                let (offset, len, flags) = range(chain, limits, MAX_WRITE_ZEROES)?;
                if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                    return Err(Status::Unsupported);
                }
                Ok(Self::WriteZeroes {
                    offset,
                    len,
                    unmap: flags != 0,
                })
            }
            _ => Err(Status::Unsupported),
        }
    }
}

/// The one range that a discard or write-zeroes may have: offset, length, flags.
fn range(chain: &RequestChain, limits: Limits, most: u32) -> Result<(u64, u64, u32), Status> {
    let mut range = [0; RANGE as usize];
    if chain.readable_len() != HEADER + RANGE || chain.read_at(HEADER, &mut range) < range.len() {
        return Err(Status::IoError);
    }
    let (sector, sectors, flags) = (long(&range, 0), word(&range, 8), word(&range, 12));
    if sectors > most {
        return Err(Status::IoError);
    }
    let len = u64::from(sectors) * SECTOR;
    Ok((limits.fit(sector, len)?, len, flags))
}

fn word(bytes: &[u8; 16], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn long(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}
