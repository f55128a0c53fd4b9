//! Directories as lists of names (ext4, "Linear Directories"); Linux makes its index when one grows.

use super::super::bytes::Fields;
use super::BLOCK;

const HEADER: usize = 8;

/// A name and what it leads to.
pub(super) struct Name<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) inode: u32,
    pub(super) kind: u8,
}

fn room(name: usize) -> usize {
    (HEADER + name).next_multiple_of(4)
}

/// How many blocks names of these lengths take.
pub(super) fn count(names: impl Iterator<Item = usize>) -> u64 {
    let (mut blocks, mut used) = (1, room(1) + room(2));
    for name in names {
        if used + room(name) > BLOCK as usize {
            blocks += 1;
            used = 0;
        }
        used += room(name);
    }
    blocks
}

/// The blocks of a directory.
pub(super) fn blocks<'a>(own: u32, parent: u32, names: impl Iterator<Item = Name<'a>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let fixed = [(&b"."[..], own), (b"..", parent)];
    let fixed = fixed.map(|(bytes, inode)| Name {
        bytes,
        inode,
        kind: 2,
    });
    let mut last = 0;
    for entry in fixed.into_iter().chain(names) {
        let in_block = bytes.len() % BLOCK as usize;
        if in_block + room(entry.bytes.len()) > BLOCK as usize {
            close(&mut bytes, last);
        }
        last = bytes.len();
        let len = room(entry.bytes.len());
        bytes.resize(last + len, 0);
        let place = &mut bytes[last..];
        place.u32(0, entry.inode);
        place.u16(4, len as u16);
        place[6] = entry.bytes.len() as u8;
        place[7] = entry.kind;
        place.bytes(HEADER, entry.bytes);
    }
    close(&mut bytes, last);
    bytes
}

/// A directory of nothing with room for names in so many blocks.
pub(super) fn empty(own: u32, parent: u32, count: u64) -> Vec<u8> {
    let mut bytes = blocks(own, parent, std::iter::empty());
    for _ in 1..count {
        let start = bytes.len();
        bytes.resize(start + BLOCK as usize, 0);
        bytes[start..].u16(4, BLOCK as u16);
    }
    bytes
}

/// Has the entry at `last` reach to the end of its block.
fn close(bytes: &mut Vec<u8>, last: usize) {
    let end = bytes.len().next_multiple_of(BLOCK as usize);
    bytes.resize(end, 0);
    bytes[last..].u16(4, (end - last) as u16);
}
