//! The superblock and its copies, group descriptors, bitmaps, and the journal's own superblock.

use std::collections::BTreeMap;
use std::fs::File;

use super::super::super::ImageError;
use super::super::bytes::Fields;
use super::super::{Job, put};
use super::layout::{Allocator, GROUP_BLOCKS, INODE_SIZE, Layout, has_superblock};
use super::{BLOCK, JOURNAL_INODE, LOST_FOUND_INODE};

/// has_journal, ext_attr, dir_index.
const COMPAT: u32 = 0x4 | 0x8 | 0x20;
const HAS_JOURNAL: u32 = 0x4;
/// filetype, extents.
const INCOMPAT: u32 = 0x2 | 0x40;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize.
const RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40;
/// user_xattr, acl.
const MOUNT_OPTIONS: u32 = 0xc;
const HALF_MD4: u8 = 1;
const UNSIGNED_HASH: u32 = 2;

/// What the superblock says.
pub(super) struct Facts<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) file: &'a File,
    pub(super) layout: &'a Layout,
    pub(super) blocks: &'a Allocator,
    /// The highest inode in use; all before it are.
    pub(super) used_inodes: u32,
    /// Directories by group.
    pub(super) directories: &'a BTreeMap<u64, u16>,
    /// The journal's mapping and size.
    pub(super) journal: Option<([u8; 60], u64)>,
    pub(super) uuid: [u8; 16],
}

impl Facts<'_> {
    fn put(&self, bytes: &[u8], block: u64) -> Result<(), ImageError> {
        put(self.job, self.file, bytes, block * BLOCK)
    }

    fn inodes_used(&self, group: u64) -> u64 {
        let per_group = self.layout.inodes_per_group;
        u64::from(self.used_inodes)
            .saturating_sub(group * per_group)
            .min(per_group)
    }
}

/// Writes all of it.
pub(super) fn write(facts: &Facts<'_>) -> Result<(), ImageError> {
    let layout = facts.layout;
    let mut table = vec![0; (layout.descriptor_blocks() * BLOCK) as usize];
    let mut free_blocks = 0;
    for (group, descriptor) in (0..layout.groups).zip(table.chunks_exact_mut(32)) {
        let bitmaps = layout.bitmaps(group);
        let len = layout.group_len(group);
        let used = facts.blocks.used(group);
        let inodes_used = facts.inodes_used(group);
        facts.put(&bitmap(used, len), bitmaps)?;
        facts.put(&bitmap(inodes_used, layout.inodes_per_group), bitmaps + 1)?;
        descriptor.u32(0, bitmaps as u32);
        descriptor.u32(4, bitmaps as u32 + 1);
        descriptor.u32(8, bitmaps as u32 + 2);
        descriptor.u16(12, (len - used) as u16);
        descriptor.u16(14, (layout.inodes_per_group - inodes_used) as u16);
        descriptor.u16(16, facts.directories.get(&group).copied().unwrap_or(0));
        free_blocks += len - used;
    }
    let mut superblock = superblock(facts, free_blocks);
    for group in (0..layout.groups).filter(|group| has_superblock(*group)) {
        superblock.u16(90, group as u16);
        let start = Layout::group_start(group);
        // The first one lies behind the boot sector's kilobyte.
        let offset = if group == 0 { 1024 } else { start * BLOCK };
        put(facts.job, facts.file, &superblock, offset)?;
        facts.put(&table, start + 1)?;
    }
    Ok(())
}

/// A bitmap whose first `used` bits are set, and all from `len` on, which stand for nothing.
fn bitmap(used: u64, len: u64) -> Vec<u8> {
    let mut bits = vec![0; BLOCK as usize];
    for bit in (0..used).chain(len..GROUP_BLOCKS) {
        bits[bit as usize / 8] |= 1 << (bit % 8);
    }
    bits
}

fn superblock(facts: &Facts<'_>, free_blocks: u64) -> Vec<u8> {
    let layout = facts.layout;
    let inodes = layout.groups * layout.inodes_per_group;
    let made = facts.job.made.unsigned();
    let mut block = vec![0; 1024];
    block.u32(0, inodes as u32);
    block.u32(4, layout.blocks as u32);
    block.u32(12, free_blocks as u32);
    block.u32(16, inodes as u32 - facts.used_inodes);
    block.u32(24, 2);
    block.u32(28, 2);
    block.u32(32, GROUP_BLOCKS as u32);
    block.u32(36, GROUP_BLOCKS as u32);
    block.u32(40, layout.inodes_per_group as u32);
    block.u32(48, made);
    // No check after so many mounts.
    block.u16(54, 0xffff);
    block.u16(56, 0xef53);
    block.u16(58, 1);
    block.u16(60, 1);
    block.u32(64, made);
    block.u32(76, 1);
    block.u32(84, LOST_FOUND_INODE);
    block.u16(88, INODE_SIZE as u16);
    let journal = if facts.journal.is_some() { HAS_JOURNAL } else { 0 };
    block.u32(92, COMPAT & !HAS_JOURNAL | journal);
    block.u32(96, INCOMPAT);
    block.u32(100, RO_COMPAT);
    block.bytes(104, &facts.uuid);
    block.bytes(120, &facts.job.label);
    block.bytes(236, &facts.uuid);
    block[252] = HALF_MD4;
    block.u32(256, MOUNT_OPTIONS);
    block.u32(264, made);
    block.u16(348, 32);
    block.u16(350, 32);
    block.u32(352, UNSIGNED_HASH);
    if let Some((mapping, size)) = &facts.journal {
        block.u32(224, JOURNAL_INODE);
        // A copy of the journal's mapping, for fsck.
        block[253] = 1;
        block.bytes(268, mapping);
        block.u32(268 + 60, (size >> 32) as u32);
        block.u32(268 + 64, *size as u32);
    }
    block
}

/// The superblock of an empty journal (the kernel's jbd2.h); its numbers have their high bytes first.
pub(super) fn journal(blocks: u32) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    for (at, value) in [
        (0, 0xc03b_3998_u32),
        (4, 4),
        (12, BLOCK as u32),
        (16, blocks),
        (20, 1),
        (24, 1),
        (64, 1),
    ] {
        block.bytes(at, &value.to_be_bytes());
    }
    block
}
