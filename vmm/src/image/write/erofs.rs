//! EROFS, not compressed (the kernel's fs/erofs/erofs_fs.h).
//!
//! mkfs.erofs takes tar files only from erofs-utils 1.7 on, and from a directory only the owners and nodes that it has on the host; so
//! this is an own writer. Inodes come first, each with its attributes and the end of what it holds if that fits into its block; then
//! the other blocks, in the order of paths. Holes of files are holes of the image's file.

use std::collections::BTreeMap;
use std::fs::File;

use super::super::ImageError;
use super::super::contents::Contents;
use super::super::tree::{Kind, Node, ROOT, Walked, device_number};
use super::bytes::Fields;
use super::digest::Digest;
use super::xattr::split;
use super::{Job, put};

const BLOCK: u64 = 4096;
const BLOCK_BITS: u8 = 12;
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_LEN: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
/// The root has no more than 16 bits for its place, so inodes begin right behind the superblock's block.
const META: u64 = 1;
/// Inodes lie at multiples of this.
const SLOT: u64 = 32;
const INODE: usize = 64;
const DIRENT: usize = 12;
const XATTR_HEADER: usize = 12;
/// EROFS_FEATURE_COMPAT_MTIME: times in inodes are those of modification.
const COMPAT_MTIME: u32 = 2;
/// What `i_xattr_icount` has room for.
const XATTR_MAX: usize = (u16::MAX as usize - 1) * 4 + XATTR_HEADER;

/// Where a node and its blocks lie.
struct Place {
    /// Offset of the inode in bytes.
    inode: u64,
    attributes: Vec<u8>,
    size: u64,
    /// Whether the end of what it holds follows the inode.
    inline: bool,
    /// First block of the rest.
    first: u64,
}

impl Place {
    /// Bytes that stand in blocks of their own.
    fn in_blocks(&self) -> u64 {
        if self.inline {
            self.size / BLOCK * BLOCK
        } else {
            self.size
        }
    }

    fn nid(&self) -> u64 {
        (self.inode - META * BLOCK) / SLOT
    }

    fn tail_offset(&self) -> u64 {
        self.inode + (INODE + self.attributes.len()) as u64
    }
}

pub(super) fn write(job: &Job<'_>, file: &File) -> Result<[u8; 16], ImageError> {
    let mut places = places(job)?;
    let blocks = lay_blocks(job, &mut places)?;
    file.set_len(blocks * BLOCK).map_err(job.failed())?;
    let mut digest = Digest::new(job);
    for (number, entry) in (1..).zip(job.nodes()) {
        let place = &places[&entry.node];
        let node = job.tree.node(entry.node);
        let inode = inode(number, node, place, job.links[entry.node]);
        put(job, file, &inode, place.inode)?;
        put(job, file, &place.attributes, place.inode + INODE as u64)?;
        match &node.kind {
            Kind::Directory(_) => {
                let bytes = directory(job, entry, &places);
                spread(job, file, place, 0, &bytes)?;
            }
            Kind::Symlink(target) => spread(job, file, place, 0, target)?,
            Kind::File(contents) => contents.read(|offset, bytes| {
                digest.data(offset, bytes);
                spread(job, file, place, offset, bytes)
            })?,
            _ => {}
        }
    }
    let uuid = job.uuid(digest);
    let superblock = superblock(job, &places, blocks, uuid);
    put(job, file, &superblock, SUPERBLOCK)?;
    Ok(uuid)
}

/// Places every inode.
fn places(job: &Job<'_>) -> Result<BTreeMap<usize, Place>, ImageError> {
    let mut places = BTreeMap::new();
    let mut next = META * BLOCK;
    for entry in job.nodes() {
        let node = job.tree.node(entry.node);
        let size = match &node.kind {
            Kind::Directory(names) => directory_size(names.keys().map(Vec::len)),
            Kind::File(contents) => contents.size,
            Kind::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        let attributes = attributes(job, entry, node)?;
        let head = (INODE + attributes.len()) as u64;
        let tail = size % BLOCK;
        let inline = tail > 0 && ends_with_data(node) && head + tail <= BLOCK;
        let mut inode = next;
        // What follows the inode must not reach into another block.
        if inline && (inode + head) % BLOCK + tail > BLOCK {
            inode = inode.next_multiple_of(BLOCK);
        }
        next = (inode + head + if inline { tail } else { 0 }).next_multiple_of(SLOT);
        let place = Place {
            inode,
            attributes,
            size,
            inline,
            first: 0,
        };
        places.insert(entry.node, place);
    }
    Ok(places)
}

/// Whether the last part of what a node holds is worth a place beside its inode.
fn ends_with_data(node: &Node) -> bool {
    match &node.kind {
        Kind::File(Contents { size, pieces, .. }) => {
            let end = pieces.last().map_or(0, |piece| piece.offset + piece.len);
            end > size / BLOCK * BLOCK
        }
        _ => true,
    }
}

/// Places the blocks behind the inodes. Returns how many blocks there are in all.
fn lay_blocks(job: &Job<'_>, places: &mut BTreeMap<usize, Place>) -> Result<u64, ImageError> {
    let end = places
        .values()
        .map(|place| place.tail_offset() + if place.inline { place.size % BLOCK } else { 0 })
        .max();
    let mut next = end.unwrap_or(META * BLOCK).div_ceil(BLOCK);
    for entry in job.nodes() {
        let Some(place) = places.get_mut(&entry.node) else {
            continue;
        };
        let count = place.in_blocks().div_ceil(BLOCK);
        place.first = if count > 0 { next } else { 0 };
        next = next.saturating_add(count);
        if next > u64::from(u32::MAX) {
            let what = format!("{} bytes", place.size);
            return Err(job.unfit(&entry.path, what, "the image would pass 16 TiB; leave it out"));
        }
    }
    Ok(next)
}

/// Writes a part of what a node holds: into its blocks, and behind its inode.
fn spread(job: &Job<'_>, file: &File, place: &Place, offset: u64, bytes: &[u8]) -> Result<(), ImageError> {
    let border = place.in_blocks().saturating_sub(offset).min(bytes.len() as u64) as usize;
    let (in_blocks, tail) = bytes.split_at(border);
    put(job, file, in_blocks, place.first * BLOCK + offset)?;
    if tail.is_empty() {
        return Ok(());
    }
    let inside = offset + border as u64 - place.in_blocks();
    put(job, file, tail, place.tail_offset() + inside)
}

fn inode(number: u32, node: &Node, place: &Place, links: u32) -> [u8; INODE] {
    const EXTENDED: u16 = 1;
    const INLINE: u16 = 2 << 1;
    let meta = &node.meta;
    let mtime = meta.mtime.unwrap_or_default();
    let (major, minor) = node.kind.device();
    let mut inode = [0; INODE];
    inode.u16(0, EXTENDED | if place.inline { INLINE } else { 0 });
    if !place.attributes.is_empty() {
        inode.u16(2, ((place.attributes.len() - XATTR_HEADER) / 4 + 1) as u16);
    }
    inode.u16(4, meta.mode | node.kind.type_bits());
    inode.u64(8, place.size);
    let is_device = matches!(node.kind, Kind::CharDevice { .. } | Kind::BlockDevice { .. });
    let block = if is_device {
        device_number(major, minor)
    } else {
        place.first as u32
    };
    inode.u32(16, block);
    inode.u32(20, number);
    inode.u32(24, meta.uid);
    inode.u32(28, meta.gid);
    inode.u64(32, mtime.seconds as u64);
    inode.u32(40, mtime.nanos);
    inode.u32(44, links);
    inode
}

/// A node's attributes as they follow its inode.
fn attributes(job: &Job<'_>, entry: &Walked, node: &Node) -> Result<Vec<u8>, ImageError> {
    let mut body = Vec::new();
    for (full, value) in &node.meta.xattrs {
        let unfit = |instead| {
            let what = format!("the extended attribute {}", String::from_utf8_lossy(full));
            job.unfit(&entry.path, what, instead)
        };
        let (namespace, name) = split(full).ok_or_else(|| unfit("remove it"))?;
        let (Ok(name_len), Ok(value_len)) = (u8::try_from(name.len()), u16::try_from(value.len())) else {
            return Err(unfit("its name or value is too long"));
        };
        if body.is_empty() {
            body.resize(XATTR_HEADER, 0);
        }
        body.extend_from_slice(&[name_len, namespace]);
        body.extend_from_slice(&value_len.to_le_bytes());
        body.extend_from_slice(name);
        body.extend_from_slice(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    if body.len() > XATTR_MAX {
        let what = format!("{} bytes of extended attributes", body.len());
        return Err(job.unfit(&entry.path, what, "remove some"));
    }
    Ok(body)
}

/// How large a directory of such names is, `.` and `..` included.
fn directory_size(names: impl Iterator<Item = usize>) -> u64 {
    let mut fill = Fill::default();
    for name in [1, 2].into_iter().chain(names) {
        fill.add(name);
    }
    fill.full * BLOCK + fill.used as u64
}

/// How names fill blocks.
#[derive(Default)]
struct Fill {
    full: u64,
    used: usize,
}

impl Fill {
    /// Adds a name. Returns whether it begins a block.
    fn add(&mut self, name: usize) -> bool {
        let room = DIRENT + name;
        let begins = self.used + room > BLOCK as usize;
        if begins {
            self.full += 1;
            self.used = 0;
        }
        self.used += room;
        begins
    }
}

/// What a directory holds: in each block a table of names, then the names, sorted by their bytes over all of it.
fn directory(job: &Job<'_>, entry: &Walked, places: &BTreeMap<usize, Place>) -> Vec<u8> {
    let mut names: BTreeMap<&[u8], usize> = BTreeMap::from([(&b"."[..], entry.node), (b"..", entry.parent)]);
    if let Kind::Directory(own) = &job.tree.node(entry.node).kind {
        names.extend(own.iter().map(|(name, child)| (&name[..], child.node)));
    }
    let mut bytes = Vec::new();
    let mut fill = Fill::default();
    let mut block = Vec::new();
    for (name, node) in names {
        if fill.add(name.len()) {
            table(job, places, &block, &mut bytes);
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
            block.clear();
        }
        block.push((name, node));
    }
    table(job, places, &block, &mut bytes);
    bytes
}

fn table(job: &Job<'_>, places: &BTreeMap<usize, Place>, names: &[(&[u8], usize)], bytes: &mut Vec<u8>) {
    let mut at = names.len() * DIRENT;
    for (name, node) in names {
        let mut dirent = [0; DIRENT];
        dirent.u64(0, places.get(node).map_or(0, Place::nid));
        dirent.u16(8, at as u16);
        dirent[10] = job.tree.node(*node).kind.entry_type();
        bytes.extend_from_slice(&dirent);
        at += name.len();
    }
    for (name, _) in names {
        bytes.extend_from_slice(name);
    }
}

fn superblock(job: &Job<'_>, places: &BTreeMap<usize, Place>, blocks: u64, uuid: [u8; 16]) -> Vec<u8> {
    let mut block = vec![0; SUPERBLOCK_LEN];
    block.u32(0, MAGIC);
    block.u32(8, COMPAT_MTIME);
    block[12] = BLOCK_BITS;
    block.u16(14, places.get(&ROOT).map_or(0, Place::nid) as u16);
    block.u64(16, places.len() as u64);
    block.u64(24, job.made.seconds as u64);
    block.u32(32, job.made.nanos);
    block.u32(36, blocks as u32);
    block.u32(40, META as u32);
    block.bytes(48, &uuid);
    block.bytes(64, &job.label);
    block
}
