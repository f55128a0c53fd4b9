//! Where things lie: groups, their bitmaps and tables, and the blocks left for files.

use std::cmp::Ordering;

use super::{BLOCK, FIRST_INODE};

/// A bitmap is one block.
pub(super) const GROUP_BLOCKS: u64 = BLOCK * 8;
pub(super) const INODE_SIZE: u64 = 256;
const INODES_PER_BLOCK: u64 = BLOCK / INODE_SIZE;
const DESCRIPTOR: u64 = 32;
/// A last group with fewer blocks for files than this is left away, as mke2fs does.
const SMALLEST_GROUP: u64 = 50;
/// As mke2fs: one inode for this many bytes.
const BYTES_PER_INODE: u64 = 16384;
const MIB: u64 = (1 << 20) / BLOCK;
/// What a computed size leaves free at least.
const ROOM: u64 = 16 * MIB;
/// Where block numbers of 32 bits end.
pub(super) const MAX_BLOCKS: u64 = u32::MAX as u64;

/// What an image must have room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    /// Blocks of files and directories.
    pub(super) blocks: u64,
    /// The highest inode number.
    pub(super) inodes: u64,
}

/// The shape of a file system.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) blocks: u64,
    pub(super) groups: u64,
    pub(super) inodes_per_group: u64,
    /// Blocks of the journal.
    pub(super) journal: u64,
}

/// Blocks next to each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Layout {
    /// A layout of so many blocks, if what is needed fits.
    pub(super) fn of_size(blocks: u64, need: Need) -> Option<Self> {
        Self::shape(blocks, need).filter(|layout| layout.has_room(need.blocks))
    }

    /// The smallest one that does, with some room; nothing if none is large enough.
    pub(super) fn fitting(need: Need) -> Option<Self> {
        Self::search(need, need.blocks + ROOM.max(need.blocks / 10))
    }

    /// The smallest one that does; nothing if none is large enough.
    pub(super) fn least(need: Need) -> Option<Self> {
        Self::search(need, need.blocks)
    }

    fn search(need: Need, wanted: u64) -> Option<Self> {
        let mut blocks = wanted.next_multiple_of(MIB);
        while blocks <= MAX_BLOCKS {
            match Self::shape(blocks, need) {
                Some(layout) if layout.has_room(wanted) => return Some(layout),
                // Each step brings blocks for files, until there are enough.
                Some(layout) => {
                    let short = (wanted + layout.journal).saturating_sub(layout.capacity());
                    blocks += short.max(1).next_multiple_of(MIB);
                }
                None => blocks += MIB,
            }
        }
        None
    }

    fn has_room(&self, blocks: u64) -> bool {
        self.capacity() >= blocks + self.journal
    }

    fn shape(blocks: u64, need: Need) -> Option<Self> {
        if blocks > MAX_BLOCKS {
            return None;
        }
        let inodes =
            (blocks * BLOCK / BYTES_PER_INODE).max(need.inodes + need.inodes / 4 + u64::from(FIRST_INODE));
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        let inodes_per_group = inodes.div_ceil(groups.max(1)).next_multiple_of(INODES_PER_BLOCK);
        let mut layout = Self {
            blocks,
            groups,
            inodes_per_group,
            journal: journal_blocks(blocks),
        };
        let last = groups.checked_sub(1)?;
        if layout.overhead(last) + SMALLEST_GROUP > layout.group_len(last) {
            layout.groups = last;
            layout.blocks = last * GROUP_BLOCKS;
            let inodes_per_group = inodes.div_ceil(last.max(1)).next_multiple_of(INODES_PER_BLOCK);
            layout.inodes_per_group = inodes_per_group;
        }
        (layout.groups > 0 && layout.inodes_per_group <= GROUP_BLOCKS).then_some(layout)
    }

    pub(super) fn table_blocks(&self) -> u64 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    pub(super) fn descriptor_blocks(&self) -> u64 {
        (self.groups * DESCRIPTOR).div_ceil(BLOCK)
    }

    pub(super) fn group_start(group: u64) -> u64 {
        group * GROUP_BLOCKS
    }

    pub(super) fn group_len(&self, group: u64) -> u64 {
        (self.blocks - Self::group_start(group)).min(GROUP_BLOCKS)
    }

    /// Where a group's block bitmap lies; the inode bitmap and the inode table lie behind it.
    pub(super) fn bitmaps(&self, group: u64) -> u64 {
        let copy = if has_superblock(group) {
            1 + self.descriptor_blocks()
        } else {
            0
        };
        Self::group_start(group) + copy
    }

    /// How many blocks at a group's start are not for files.
    pub(super) fn overhead(&self, group: u64) -> u64 {
        self.bitmaps(group) - Self::group_start(group) + 2 + self.table_blocks()
    }

    fn capacity(&self) -> u64 {
        (0..self.groups)
            .map(|group| self.group_len(group).saturating_sub(self.overhead(group)))
            .sum()
    }

    pub(super) fn inode_group(&self, inode: u32) -> u64 {
        (u64::from(inode) - 1) / self.inodes_per_group
    }

    /// Where an inode lies, in bytes.
    pub(super) fn inode_offset(&self, inode: u32) -> u64 {
        let group = self.inode_group(inode);
        let index = (u64::from(inode) - 1) % self.inodes_per_group;
        (self.bitmaps(group) + 2) * BLOCK + index * INODE_SIZE
    }
}

/// Whether a group has a copy of the superblock (`sparse_super`): 0, 1 and the powers of 3, 5 and 7.
pub(super) fn has_superblock(group: u64) -> bool {
    let power_of = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || power_of(3) || power_of(5) || power_of(7)
}

/// How large a journal mke2fs gives a file system.
fn journal_blocks(blocks: u64) -> u64 {
    match blocks {
        0..2048 => 0,
        2048..32768 => 1024,
        32768..262_144 => 4096,
        262_144..524_288 => 8192,
        524_288..4_194_304 => 16384,
        _ => 32768,
    }
}

/// Into how many pieces groups may split so many blocks.
pub(super) fn pieces(blocks: u64) -> u64 {
    // At least half of a group is for files, as inode tables take 2048 blocks at most and copies of descriptors far fewer.
    blocks / (GROUP_BLOCKS / 2) + 1
}

/// Gives out blocks one after another.
pub(super) struct Allocator {
    layout: Layout,
    group: u64,
    next: u64,
}

impl Allocator {
    pub(super) fn new(layout: &Layout) -> Self {
        Self {
            next: layout.overhead(0),
            group: 0,
            layout: layout.clone(),
        }
    }

    /// Takes `count` blocks. The layout has room for all that is asked for.
    pub(super) fn take(&mut self, count: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut left = count;
        while left > 0 {
            let end = Layout::group_start(self.group) + self.layout.group_len(self.group);
            let len = left.min(end - self.next);
            if len > 0 {
                runs.push(Run {
                    start: self.next,
                    len,
                });
                self.next += len;
                left -= len;
            }
            if self.next == end && self.group + 1 < self.layout.groups {
                self.group += 1;
                self.next = Layout::group_start(self.group) + self.layout.overhead(self.group);
            } else if left > 0 && self.next == end {
                break;
            }
        }
        runs
    }

    /// How many blocks of a group are in use, from its start.
    pub(super) fn used(&self, group: u64) -> u64 {
        match group.cmp(&self.group) {
            Ordering::Less => self.layout.group_len(group),
            Ordering::Equal => self.next - Layout::group_start(group),
            Ordering::Greater => self.layout.overhead(group),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn copies_of_the_superblock_lie_where_linux_looks_for_them() {
        let with: Vec<_> = (0..130).filter(|group| has_superblock(*group)).collect();
        assert_eq!(with, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    proptest! {
        #[test]
        fn a_computed_layout_has_room_and_a_smaller_one_than_the_least_has_not(
            blocks in 0_u64..3_000_000, inodes in 12_u64..2_000_000,
        ) {
            let need = Need { blocks, inodes };
            let least = Layout::least(need).unwrap();
            let found = Layout::of_size(least.blocks, need);
            prop_assert!(found.is_some());
            prop_assert!(Layout::fitting(need).unwrap().blocks >= least.blocks);
            prop_assert!(u32::try_from(least.groups * least.inodes_per_group).is_ok());
            prop_assert!(least.groups * least.inodes_per_group >= inodes);
        }

        #[test]
        fn blocks_are_given_out_once_and_never_those_of_groups_own_structures(
            sizes in proptest::collection::vec(1_u64..70_000, 1..20),
        ) {
            let need = Need { blocks: sizes.iter().sum(), inodes: 12 };
            let layout = Layout::least(need).unwrap();
            let mut blocks = Allocator::new(&layout);
            let mut end = 0;
            for size in sizes {
                let runs = blocks.take(size);
                prop_assert_eq!(runs.iter().map(|run| run.len).sum::<u64>(), size);
                prop_assert!(runs.len() as u64 <= pieces(size) + 1);
                for run in runs {
                    prop_assert!(run.start >= end);
                    end = run.start + run.len;
                    let group = run.start / GROUP_BLOCKS;
                    prop_assert!(run.start - Layout::group_start(group) >= layout.overhead(group));
                    prop_assert_eq!((end - 1) / GROUP_BLOCKS, group);
                }
            }
            prop_assert!(end <= layout.blocks);
        }
    }
}
