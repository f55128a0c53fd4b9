//! Extents: which blocks of the image hold which blocks of a file (ext4, "Extent Tree").

use super::super::bytes::Fields;
use super::BLOCK;

const MAGIC: u16 = 0xf30a;
const ENTRY: usize = 12;
/// Entries in an inode.
const IN_INODE: usize = 4;
/// Entries in a block.
const IN_BLOCK: usize = (BLOCK as usize - ENTRY) / ENTRY;

/// Blocks next to each other, in the file and in the image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) logical: u32,
    pub(super) len: u32,
    pub(super) physical: u64,
}

impl Extent {
    pub(super) fn holds(&self, block: u32) -> bool {
        block >= self.logical && block - self.logical < self.len
    }

    fn write(&self, entry: &mut [u8]) {
        entry.u32(0, self.logical);
        entry.u16(4, self.len as u16);
        entry.u16(6, (self.physical >> 32) as u16);
        entry.u32(8, self.physical as u32);
    }
}

/// All extents of a file.
pub(super) struct Mapping {
    pub(super) extents: Vec<Extent>,
}

impl Mapping {
    pub(super) fn blocks(&self) -> u64 {
        self.extents.iter().map(|extent| u64::from(extent.len)).sum()
    }
}

/// A file's tree of extents.
pub(super) struct Tree {
    /// What stands in the inode.
    pub(super) root: [u8; 60],
    /// Blocks of the tree, with where each lies.
    pub(super) blocks: Vec<(u64, Vec<u8>)>,
}

/// How many blocks beside the inode so many extents need at most.
pub(super) fn tree_blocks(extents: u64) -> u64 {
    let (mut level, mut total) = (extents, 0);
    while level > IN_INODE as u64 {
        level = level.div_ceil(IN_BLOCK as u64);
        total += level;
    }
    total
}

/// Builds the tree; `take` gives a block for a part of it.
pub(super) fn tree(extents: &[Extent], mut take: impl FnMut() -> u64) -> Tree {
    let mut entries: Vec<[u8; ENTRY]> = extents
        .iter()
        .map(|extent| {
            let mut entry = [0; ENTRY];
            extent.write(&mut entry);
            entry
        })
        .collect();
    let mut blocks = Vec::new();
    let mut depth = 0;
    while entries.len() > IN_INODE {
        let parts = entries.chunks(IN_BLOCK);
        let index = parts.map(|part| {
            let block = take();
            let mut bytes = vec![0; BLOCK as usize];
            node(&mut bytes, part, IN_BLOCK, depth);
            blocks.push((block, bytes));
            let mut entry = [0; ENTRY];
            // The first block of the file that lies below.
            entry[..4].copy_from_slice(&part[0][..4]);
            entry.u32(4, block as u32);
            entry.u16(8, (block >> 32) as u16);
            entry
        });
        entries = index.collect();
        depth += 1;
    }
    let mut root = [0; 60];
    node(&mut root, &entries, IN_INODE, depth);
    Tree { root, blocks }
}

fn node(bytes: &mut [u8], entries: &[[u8; ENTRY]], room: usize, depth: u16) {
    bytes.u16(0, MAGIC);
    bytes.u16(2, entries.len() as u16);
    bytes.u16(4, room as u16);
    bytes.u16(6, depth);
    for (entry, place) in entries.iter().zip(bytes[ENTRY..].chunks_exact_mut(ENTRY)) {
        place.copy_from_slice(entry);
    }
}
