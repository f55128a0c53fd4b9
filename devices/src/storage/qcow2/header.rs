//! What a qcow2 image says of itself, checked before anything is made of it.
//!
//! <https://www.qemu.org/docs/master/interop/qcow2.html>. Numbers are big-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Qcow2Fault, refcounts};
use crate::storage::SECTOR;
use crate::storage::format::QCOW2_MAGIC;

/// Bytes of the header of version 2, and of version 3 at least.
const HEADER_2: usize = 72;
pub(super) const HEADER_3: usize = 104;
/// Bytes of the longest name of a backing file.
const NAME_MAX: u32 = 1023;
/// Bytes of the tables that are kept in memory whole; what QEMU takes at most.
const L1_MAX: u64 = 32 << 20;
const REFCOUNTS_MAX: u64 = 8 << 20;

/// Header extensions.
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// Incompatible features.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// What is used of a header that is all right.
#[derive(Debug)]
pub(super) struct Header {
    /// Of the disk, in bytes: whole sectors.
    pub(super) size: u64,
    /// Bytes of the disk that one second-level table stands for.
    pub(super) span: u64,
    pub(super) backing: Option<Backing>,
}

/// The image that shows where this one has nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Backing {
    /// As it is written: a relative name starts from the image's folder.
    pub(super) name: String,
    pub(super) qcow2: bool,
}

/// Bytes of the file, with zeros behind its end.
pub(super) struct Bytes<'a>(&'a File);

impl Bytes<'_> {
    pub(super) fn get<const N: usize>(&self, offset: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, offset)?;
        Ok(bytes)
    }

    pub(super) fn fill(&self, mut to: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !to.is_empty() {
            match self.0.read_at(to, offset) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    to = &mut to[read..];
                    offset += read as u64;
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .fold(0, |word, byte| word << 8 | u32::from(*byte))
}

pub(super) fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) << 32 | u64::from(word(bytes, at + 4))
}

pub(super) fn damaged<T>(what: &'static str) -> Result<T, Qcow2Fault> {
    Err(Qcow2Fault::Damaged(what))
}

/// Reads the header of `file`, which has `length` bytes. If it is to be written, the tables are looked at too.
pub(super) fn read(file: &File, length: u64, writable: bool) -> Result<Header, Qcow2Fault> {
    let file = Bytes(file);
    let header: [u8; HEADER_3] = file.get(0)?;
    if header[..4] != QCOW2_MAGIC {
        return Err(Qcow2Fault::Magic);
    }
    let version = word(&header, 4);
    if !(2..=3).contains(&version) {
        return Err(Qcow2Fault::Version(version));
    }
    let cluster_bits = word(&header, 20);
    if !(9..=21).contains(&cluster_bits) {
        return damaged("the size of its clusters is none of 512 bytes to 2 MiB");
    }
    let cluster = 1_u64 << cluster_bits;
    // The encryption's kind tells more than the features do.
    if word(&header, 32) != 0 {
        return Err(Qcow2Fault::Encrypted);
    }
    let end = if version == 2 {
        HEADER_2 as u64
    } else {
        version_3(&header, cluster)?
    };
    let size = long(&header, 24);
    tables(&header, cluster, size, length)?;
    if writable {
        refcounts::check(&file, &header, cluster, length)?;
    }
    let format = extension(&file, end, cluster)?;
    Ok(Header {
        size,
        span: cluster * (cluster / 8),
        backing: backing(&file, &header, cluster, format.as_deref())?,
    })
}

/// Checks what only version 3 has. Returns where the extensions begin.
fn version_3(header: &[u8; HEADER_3], cluster: u64) -> Result<u64, Qcow2Fault> {
    let features = long(header, 72);
    for (feature, fault) in [
        (CORRUPT, Qcow2Fault::Corrupt),
        (DIRTY, Qcow2Fault::Dirty),
        (DATA_FILE, Qcow2Fault::DataFile),
        (COMPRESSION, Qcow2Fault::Compression),
        (EXTENDED_L2, Qcow2Fault::ExtendedL2),
    ] {
        if features & feature != 0 {
            return Err(fault);
        }
    }
    if features != 0 {
        return Err(Qcow2Fault::Features(features));
    }
    if word(header, 96) > 6 {
        return damaged("its reference counts are wider than 64 bits");
    }
    let end = u64::from(word(header, 100));
    if end < HEADER_3 as u64 || end > cluster || !end.is_multiple_of(8) {
        return damaged("its header has an impossible length");
    }
    Ok(end)
}

/// Checks where the tables lie and that they are large enough.
fn tables(header: &[u8; HEADER_3], cluster: u64, size: u64, length: u64) -> Result<(), Qcow2Fault> {
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(Qcow2Fault::Size(size));
    }
    let within = |offset: u64, bytes: u64| {
        offset != 0
            && offset.is_multiple_of(cluster)
            && offset.checked_add(bytes).is_some_and(|end| end <= length)
    };
    let l1 = u64::from(word(header, 36)) * 8;
    // An entry of the first table stands for a table of a cluster, and each of its entries for a cluster.
    let needed = size.div_ceil(cluster * (cluster / 8)).saturating_mul(8);
    if needed > L1_MAX {
        return Err(Qcow2Fault::Size(size));
    }
    if l1 < needed {
        return damaged("its L1 table is too small for its size");
    }
    if l1 > L1_MAX || !within(long(header, 40), l1) {
        return damaged("its L1 table is not within the file");
    }
    let refcounts = u64::from(word(header, 56)) * cluster;
    if refcounts == 0 || refcounts > REFCOUNTS_MAX || !within(long(header, 48), refcounts) {
        return damaged("its refcount table is not within the file");
    }
    Ok(())
}

/// The format of the backing file, where an extension says it.
fn extension(file: &Bytes<'_>, mut at: u64, cluster: u64) -> Result<Option<Vec<u8>>, Qcow2Fault> {
    while at + 8 <= cluster {
        let head: [u8; 8] = file.get(at)?;
        let (kind, len) = (word(&head, 0), u64::from(word(&head, 4)));
        at += 8;
        if kind == END {
            return Ok(None);
        }
        if len > cluster - at {
            break;
        }
        if kind == BACKING_FORMAT {
            let mut format = vec![0; len as usize];
            file.fill(&mut format, at)?;
            return Ok(Some(format));
        }
        at += len.next_multiple_of(8);
    }
    damaged("its header's extensions are longer than a cluster")
}

fn backing(
    file: &Bytes<'_>,
    header: &[u8; HEADER_3],
    cluster: u64,
    format: Option<&[u8]>,
) -> Result<Option<Backing>, Qcow2Fault> {
    let (at, len) = (long(header, 8), word(header, 16));
    if at == 0 {
        return Ok(None);
    }
    if len == 0 || len > NAME_MAX || at.checked_add(len.into()).is_none_or(|end| end >= cluster) {
        return damaged("the name of its backing file is not in its first cluster");
    }
    let mut name = vec![0; len as usize];
    file.fill(&mut name, at)?;
    let name = String::from_utf8(name)
        .ok()
        .filter(|name| !name.contains(char::is_control));
    let Some(name) = name else {
        return damaged("the name of its backing file is not UTF-8");
    };
    // QEMU takes what is before a colon for a protocol, unless a folder's name ends before it.
    if let Some((protocol, _)) = name.split_once(':').filter(|(before, _)| !before.contains('/')) {
        return Err(Qcow2Fault::BackingProtocol {
            protocol: protocol.to_owned(),
        });
    }
    let qcow2 = match format {
        Some(b"qcow2") => true,
        Some(b"raw") => false,
        Some(format) => {
            return Err(Qcow2Fault::BackingFormat {
                format: String::from_utf8_lossy(format).into_owned(),
                name,
            });
        }
        None => return Err(Qcow2Fault::BackingFormatMissing { name }),
    };
    Ok(Some(Backing { name, qcow2 }))
}
