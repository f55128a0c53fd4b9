//! Inodes of 256 bytes (ext4, "Index Nodes").

use super::super::super::tree::{Node, Time, device_number};
use super::super::bytes::Fields;
use super::layout::INODE_SIZE;
use super::{BLOCK, LINK_MAX};

const EXTENTS_FLAG: u32 = 0x80000;
const MAPPING: std::ops::Range<usize> = 40..100;
/// Fields behind the first 128 bytes.
const EXTRA: u16 = 32;
/// Where attributes in the inode begin.
const ATTRIBUTES: usize = 128 + EXTRA as usize;
const SECTORS: u64 = BLOCK / 512;
/// The times that 34 bits of seconds reach.
const FIRST_TIME: i64 = -(1 << 31);
const LAST_TIME: i64 = (1 << 34) - (1 << 31) - 1;

/// An inode.
pub(super) struct Inode {
    bytes: [u8; INODE_SIZE as usize],
    directory: bool,
    blocks: u64,
}

impl Inode {
    /// The inode of a node, without what it holds.
    pub(super) fn new(node: &Node, made: Time) -> Self {
        let meta = &node.meta;
        let mode = meta.mode | node.kind.type_bits();
        let mut inode = Self::bare(mode, meta.mtime.unwrap_or(made), made);
        inode.bytes.u16(2, meta.uid as u16);
        inode.bytes.u16(24, meta.gid as u16);
        inode.bytes.u16(120, (meta.uid >> 16) as u16);
        inode.bytes.u16(122, (meta.gid >> 16) as u16);
        inode
    }

    pub(super) fn directory(mode: u16, made: Time) -> Self {
        Self::bare(mode | libc::S_IFDIR as u16, made, made)
    }

    pub(super) fn journal(made: Time) -> Self {
        Self::bare(0o600 | libc::S_IFREG as u16, made, made)
    }

    fn bare(mode: u16, mtime: Time, made: Time) -> Self {
        let mut bytes = [0; INODE_SIZE as usize];
        bytes.u16(0, mode);
        bytes.u16(128, EXTRA);
        // Access and change have no time of their own in a source.
        for (low, high, time) in [
            (8, 140, mtime),
            (12, 132, mtime),
            (16, 136, mtime),
            (144, 148, made),
        ] {
            let seconds = time.seconds.clamp(FIRST_TIME, LAST_TIME);
            let epoch = (seconds - i64::from(seconds as i32)) >> 32;
            bytes.u32(low, seconds as u32);
            bytes.u32(high, time.nanos << 2 | epoch as u32 & 3);
        }
        Self {
            bytes,
            directory: mode & libc::S_IFMT as u16 == libc::S_IFDIR as u16,
            blocks: 0,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What says which blocks hold the file.
    pub(super) fn mapping(&self) -> [u8; 60] {
        let mut mapping = [0; 60];
        mapping.copy_from_slice(&self.bytes[MAPPING]);
        mapping
    }

    pub(super) fn links(&mut self, links: u32) {
        let links = if self.directory && links > LINK_MAX {
            1
        } else {
            links
        };
        self.bytes.u16(26, links as u16);
    }

    pub(super) fn extents(&mut self, root: &[u8; 60], blocks: u64, size: u64) {
        self.bytes.u32(32, EXTENTS_FLAG);
        self.bytes.bytes(MAPPING.start, root);
        self.size(size);
        self.add_blocks(blocks);
    }

    pub(super) fn fast_symlink(&mut self, target: &[u8]) {
        self.bytes.bytes(MAPPING.start, target);
        self.size(target.len() as u64);
    }

    /// A device's numbers: in the old form where they fit, in the new one where not.
    pub(super) fn device(&mut self, major: u32, minor: u32) {
        if major < 256 && minor < 256 {
            self.bytes.u32(MAPPING.start, major << 8 | minor);
        } else {
            self.bytes.u32(MAPPING.start + 4, device_number(major, minor));
        }
    }

    pub(super) fn attributes(&mut self, body: &[u8]) {
        self.bytes.bytes(ATTRIBUTES, body);
    }

    pub(super) fn attribute_block(&mut self, block: u64) {
        self.bytes.u32(104, block as u32);
        self.bytes.u16(118, (block >> 32) as u16);
        self.add_blocks(1);
    }

    fn size(&mut self, size: u64) {
        self.bytes.u32(4, size as u32);
        self.bytes.u32(108, (size >> 32) as u32);
    }

    fn add_blocks(&mut self, blocks: u64) {
        self.blocks += blocks;
        let sectors = self.blocks * SECTORS;
        self.bytes.u32(28, sectors as u32);
        self.bytes.u16(116, (sectors >> 32) as u16);
    }
}

/// How many bytes of attributes an inode has room for.
pub(super) const ATTRIBUTE_ROOM: usize = INODE_SIZE as usize - ATTRIBUTES;
