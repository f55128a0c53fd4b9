//! ext4, written from the tree as it is (the kernel's Documentation/filesystems/ext4).
//!
//! mke2fs fills an image from a directory only with the owners and nodes that the directory has on the host (a tar file it takes from
//! e2fsprogs 1.47.1 on), and debugfs takes no names with line ends; so this is an own writer. Files lie in one piece where groups allow it,
//! the journal is there, and what is free are holes of the image's file.

mod directory;
mod extents;
mod inode;
mod layout;
mod superblock;
mod xattrs;

use std::collections::BTreeMap;
use std::fs::File;

use super::super::ImageError;
use super::super::contents::Contents;
use super::super::tree::{Kind, NodeId, ROOT, Walked};
use super::digest::Digest;
use super::{Job, put};
use crate::spec::ByteSize;
use extents::{Extent, Mapping};
use inode::Inode;
use layout::{Allocator, Layout, Need};
use xattrs::Place;

const BLOCK: u64 = 4096;
const ROOT_INODE: u32 = 2;
const JOURNAL_INODE: u32 = 8;
/// Where fsck puts what it finds.
const LOST_FOUND: &[u8] = b"lost+found";
const LOST_FOUND_INODE: u32 = 11;
const LOST_FOUND_BLOCKS: u64 = 4;
const FIRST_INODE: u32 = 12;
/// The most names that a file may have (EXT4_LINK_MAX); a directory with more says 1.
const LINK_MAX: u32 = 65000;
/// A symlink shorter than this stands in its inode.
const FAST_SYMLINK: usize = 60;
/// The largest file: block numbers in it have 32 bits.
const MAX_FILE: u64 = (1 << 44) - BLOCK;

pub(in super::super) fn write(job: &Job<'_>, file: &File) -> Result<[u8; 16], ImageError> {
    let writer = Writer::new(job, file)?;
    writer.run()
}

struct Writer<'a> {
    job: &'a Job<'a>,
    file: &'a File,
    layout: Layout,
    blocks: Allocator,
    /// The inode of each node.
    inodes: Vec<u32>,
    digest: Digest,
    lost_found: LostFound,
}

/// Whether the tree has a directory for what fsck finds.
enum LostFound {
    Node,
    Missing,
}

fn too_much() -> ImageError {
    ImageError::Option {
        field: "size",
        what: "an ext4 image has less than 16T, and what is to be in it needs more; leave something out"
            .to_owned(),
    }
}

impl<'a> Writer<'a> {
    fn new(job: &'a Job<'a>, file: &'a File) -> Result<Self, ImageError> {
        let lost_found = match job.walked.iter().find(|entry| entry.path == LOST_FOUND) {
            Some(entry) if matches!(job.tree.node(entry.node).kind, Kind::Directory(_)) => LostFound::Node,
            Some(_) => {
                let what = "it is no directory".to_owned();
                return Err(job.unfit(LOST_FOUND, what, "fsck keeps what it finds there; rename it"));
            }
            None => LostFound::Missing,
        };
        let mut inodes = vec![0; job.links.len()];
        let mut next = FIRST_INODE;
        for entry in job.nodes() {
            inodes[entry.node] = if entry.node == ROOT {
                ROOT_INODE
            } else if entry.path == LOST_FOUND {
                LOST_FOUND_INODE
            } else {
                next += 1;
                next - 1
            };
        }
        let need = Need {
            blocks: needed_blocks(job)?,
            inodes: u64::from(next - 1),
        };
        let layout = match job.size {
            None => Layout::fitting(need).ok_or_else(too_much)?,
            Some(size) if size / BLOCK > layout::MAX_BLOCKS => {
                return Err(ImageError::Option {
                    field: "size",
                    what: format!(
                        "{} is more than ext4 has here; give less than 16T",
                        ByteSize(size)
                    ),
                });
            }
            Some(size) if size % BLOCK != 0 => {
                return Err(ImageError::Option {
                    field: "size",
                    what: format!(
                        "{size} is not a multiple of {BLOCK}; take {}",
                        size.next_multiple_of(BLOCK)
                    ),
                });
            }
            Some(size) => match Layout::of_size(size / BLOCK, need) {
                Some(layout) => layout,
                None => {
                    return Err(ImageError::TooSmall {
                        size: ByteSize(size),
                        needs: ByteSize(Layout::least(need).ok_or_else(too_much)?.blocks * BLOCK),
                    });
                }
            },
        };
        Ok(Self {
            job,
            file,
            blocks: Allocator::new(&layout),
            layout,
            inodes,
            digest: Digest::new(job),
            lost_found,
        })
    }

    fn run(mut self) -> Result<[u8; 16], ImageError> {
        self.file
            .set_len(self.layout.blocks * BLOCK)
            .map_err(self.job.failed())?;
        for entry in self.job.nodes() {
            self.node(entry)?;
        }
        if matches!(self.lost_found, LostFound::Missing) {
            self.make_lost_found()?;
        }
        let journal = self.journal()?;
        let used_inodes = self
            .inodes
            .iter()
            .copied()
            .max()
            .unwrap_or(0)
            .max(LOST_FOUND_INODE);
        let uuid = self.job.uuid(self.digest);
        let directories = directories_by_group(self.job, &self.inodes, &self.layout, &self.lost_found);
        superblock::write(&superblock::Facts {
            job: self.job,
            file: self.file,
            layout: &self.layout,
            blocks: &self.blocks,
            used_inodes,
            directories: &directories,
            journal,
            uuid,
        })?;
        Ok(uuid)
    }

    fn put(&self, bytes: &[u8], block: u64) -> Result<(), ImageError> {
        put(self.job, self.file, bytes, block * BLOCK)
    }

    fn node(&mut self, entry: &Walked) -> Result<(), ImageError> {
        let node = self.job.tree.node(entry.node);
        let mut inode = Inode::new(node, self.job.made);
        inode.links(self.job.links[entry.node]);
        match xattrs::place(self.job, &entry.path, &node.meta.xattrs)? {
            Place::None => {}
            Place::Inode(body) => inode.attributes(&body),
            Place::Block(body) => {
                let block = self.take_one();
                self.put(&body, block)?;
                inode.attribute_block(block);
            }
        }
        match &node.kind {
            Kind::Directory(names) => {
                let names = names.iter().map(|(name, child)| directory::Name {
                    bytes: name,
                    inode: self.inodes[child.node],
                    kind: self.job.tree.node(child.node).kind.entry_type(),
                });
                let lost_found = Some(directory::Name {
                    bytes: LOST_FOUND,
                    inode: LOST_FOUND_INODE,
                    kind: 2,
                })
                .filter(|_| entry.node == ROOT && matches!(self.lost_found, LostFound::Missing));
                if lost_found.is_some() {
                    inode.links(self.job.links[entry.node] + 1);
                }
                let bytes = directory::blocks(
                    self.inodes[entry.node],
                    self.inodes[entry.parent],
                    names.chain(lost_found),
                );
                self.whole(&mut inode, &bytes)?;
            }
            Kind::File(contents) => self.contents(&mut inode, contents)?,
            Kind::Symlink(target) if target.len() < FAST_SYMLINK => inode.fast_symlink(target),
            Kind::Symlink(target) => {
                self.whole(&mut inode, target)?;
            }
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                inode.device(*major, *minor);
            }
            Kind::Fifo => {}
        }
        self.inode(self.inodes[entry.node], &inode)
    }

    fn inode(&self, number: u32, inode: &Inode) -> Result<(), ImageError> {
        put(
            self.job,
            self.file,
            inode.bytes(),
            self.layout.inode_offset(number),
        )
    }

    fn take_one(&mut self) -> u64 {
        self.blocks.take(1).first().map_or(0, |run| run.start)
    }

    /// Writes bytes that fill blocks of their own.
    fn whole(&mut self, inode: &mut Inode, bytes: &[u8]) -> Result<(), ImageError> {
        let count = (bytes.len() as u64).div_ceil(BLOCK) as u32;
        let mapping = self.map(&[(0, count)]);
        for extent in &mapping.extents {
            let start = extent.logical as usize * BLOCK as usize;
            let end = bytes.len().min(start + extent.len as usize * BLOCK as usize);
            self.put(&bytes[start..end], extent.physical)?;
        }
        self.attach(inode, &mapping, bytes.len() as u64)
    }

    fn contents(&mut self, inode: &mut Inode, contents: &Contents) -> Result<(), ImageError> {
        let mapping = self.map(&runs(contents));
        let (job, file, digest) = (self.job, self.file, &mut self.digest);
        let mut at = 0;
        contents.read(|offset, mut bytes| {
            digest.data(offset, bytes);
            let mut offset = offset;
            while !bytes.is_empty() {
                let block = (offset / BLOCK) as u32;
                while !mapping.extents[at].holds(block) {
                    at += 1;
                }
                let extent = &mapping.extents[at];
                let end = (u64::from(extent.logical) + u64::from(extent.len)) * BLOCK;
                let len = bytes.len().min((end - offset) as usize);
                let inside = offset - u64::from(extent.logical) * BLOCK;
                put(job, file, &bytes[..len], extent.physical * BLOCK + inside)?;
                bytes = &bytes[len..];
                offset += len as u64;
            }
            Ok(())
        })?;
        self.attach(inode, &mapping, contents.size)
    }

    /// Gives out blocks for runs of a file.
    fn map(&mut self, runs: &[(u32, u32)]) -> Mapping {
        let mut extents = Vec::new();
        for (first, count) in runs {
            let mut logical = *first;
            for run in self.blocks.take(u64::from(*count)) {
                extents.push(Extent {
                    logical,
                    len: run.len as u32,
                    physical: run.start,
                });
                logical += run.len as u32;
            }
        }
        Mapping { extents }
    }

    /// Has the inode know its blocks, with as many blocks for the tree of extents as that takes.
    fn attach(&mut self, inode: &mut Inode, mapping: &Mapping, size: u64) -> Result<(), ImageError> {
        let tree = extents::tree(&mapping.extents, || self.take_one());
        for (block, bytes) in &tree.blocks {
            self.put(bytes, *block)?;
        }
        inode.extents(&tree.root, mapping.blocks() + tree.blocks.len() as u64, size);
        Ok(())
    }

    fn make_lost_found(&mut self) -> Result<(), ImageError> {
        let mut inode = Inode::directory(0o700, self.job.made);
        inode.links(2);
        let bytes = directory::empty(LOST_FOUND_INODE, ROOT_INODE, LOST_FOUND_BLOCKS);
        self.whole(&mut inode, &bytes)?;
        self.inode(LOST_FOUND_INODE, &inode)
    }

    /// Makes the journal. Returns the part of its inode that the superblock keeps a copy of, and its size.
    fn journal(&mut self) -> Result<Option<([u8; 60], u64)>, ImageError> {
        let blocks = self.layout.journal;
        if blocks == 0 {
            return Ok(None);
        }
        let mapping = self.map(&[(0, blocks as u32)]);
        let mut inode = Inode::journal(self.job.made);
        inode.links(1);
        self.attach(&mut inode, &mapping, blocks * BLOCK)?;
        if let Some(first) = mapping.extents.first() {
            self.put(&superblock::journal(blocks as u32), first.physical)?;
        }
        self.inode(JOURNAL_INODE, &inode)?;
        Ok(Some((inode.mapping(), blocks * BLOCK)))
    }
}

/// Runs of blocks that a file's pieces touch.
fn runs(contents: &Contents) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for piece in &contents.pieces {
        let first = (piece.offset / BLOCK) as u32;
        let end = (piece.offset + piece.len).div_ceil(BLOCK) as u32;
        match runs.last_mut() {
            Some((start, count)) if *start + *count >= first => *count = (*count).max(end - *start),
            _ => runs.push((first, end - first)),
        }
    }
    runs
}

/// Blocks that nodes take at most, however groups split them.
fn needed_blocks(job: &Job<'_>) -> Result<u64, ImageError> {
    let mut total = LOST_FOUND_BLOCKS;
    for entry in job.nodes() {
        let node = job.tree.node(entry.node);
        if job.links[entry.node] > LINK_MAX && !matches!(node.kind, Kind::Directory(_)) {
            let what = format!("a file with {} names", job.links[entry.node]);
            return Err(job.unfit(&entry.path, what, "give it fewer hard links"));
        }
        if matches!(
            xattrs::place(job, &entry.path, &node.meta.xattrs)?,
            Place::Block(_)
        ) {
            total += 1;
        }
        total += match &node.kind {
            Kind::Directory(names) => {
                let sizes = names.keys().map(Vec::len);
                let more = (entry.node == ROOT).then_some(LOST_FOUND.len());
                with_tree(directory::count(sizes.chain(more)), 1)
            }
            Kind::File(contents) if contents.size > MAX_FILE => {
                let what = format!("a file of {} bytes", contents.size);
                return Err(job.unfit(&entry.path, what, "leave it out"));
            }
            Kind::File(contents) => {
                let runs = runs(contents);
                let blocks = runs.iter().map(|(_, count)| u64::from(*count)).sum();
                with_tree(blocks, runs.len() as u64)
            }
            Kind::Symlink(target) if target.len() as u64 >= BLOCK => {
                let what = format!("a symlink of {} bytes", target.len());
                return Err(job.unfit(&entry.path, what, "Linux takes 4095 at most"));
            }
            Kind::Symlink(target) if target.len() >= FAST_SYMLINK => 1,
            _ => 0,
        };
    }
    Ok(total)
}

/// Blocks of data in so many runs, and of the tree of extents that they may need.
fn with_tree(blocks: u64, runs: u64) -> u64 {
    blocks + extents::tree_blocks(layout::pieces(blocks) + runs)
}

/// How many directories have their inode in each group.
fn directories_by_group(
    job: &Job<'_>,
    inodes: &[u32],
    layout: &Layout,
    lost_found: &LostFound,
) -> BTreeMap<u64, u16> {
    let mut count = BTreeMap::new();
    let is_directory = |id: &NodeId| matches!(job.tree.node(*id).kind, Kind::Directory(_));
    let own = job.nodes().map(|entry| entry.node).filter(is_directory);
    let made = Some(LOST_FOUND_INODE).filter(|_| matches!(lost_found, LostFound::Missing));
    for inode in own.map(|id| inodes[id]).chain(made) {
        *count.entry(layout.inode_group(inode)).or_default() += 1;
    }
    count
}
