//! Extended attributes: in the inode where they fit, in a block of their own where not (ext4, "Extended Attributes").

use std::collections::BTreeMap;

use super::super::super::ImageError;
use super::super::Job;
use super::super::bytes::Fields;
use super::super::xattr::{ACL, split};
use super::BLOCK;
use super::inode::ATTRIBUTE_ROOM;

const MAGIC: u32 = 0xea02_0000;
const ENTRY: usize = 16;
const BLOCK_HEADER: usize = 32;
/// What ends the list of entries.
const END: usize = 4;

/// Where a node's attributes go.
pub(super) enum Place {
    /// It has none.
    None,
    /// Into the inode.
    Inode(Vec<u8>),
    /// Into a block of their own.
    Block(Vec<u8>),
}

struct Attribute<'a> {
    namespace: u8,
    name: &'a [u8],
    value: Vec<u8>,
}

impl Attribute<'_> {
    fn room(&self) -> usize {
        (ENTRY + self.name.len()).next_multiple_of(4) + self.value.len().next_multiple_of(4)
    }

    /// The hash of name and value (ext4_xattr_hash_entry).
    fn hash(&self) -> u32 {
        let mut hash = 0_u32;
        for byte in self.name {
            hash = hash.rotate_left(5) ^ u32::from(*byte);
        }
        for word in self.value.chunks(4) {
            let mut padded = [0; 4];
            padded[..word.len()].copy_from_slice(word);
            hash = hash.rotate_left(16) ^ u32::from_le_bytes(padded);
        }
        hash
    }
}

/// Finds the place of a node's attributes and writes them.
pub(super) fn place(
    job: &Job<'_>,
    path: &[u8],
    xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
) -> Result<Place, ImageError> {
    if xattrs.is_empty() {
        return Ok(Place::None);
    }
    let mut attributes = Vec::new();
    for (full, value) in xattrs {
        let unfit = |instead| {
            let what = format!("the extended attribute {}", String::from_utf8_lossy(full));
            job.unfit(path, what, instead)
        };
        let (namespace, name) = split(full).ok_or_else(|| unfit("remove it"))?;
        let value = if ACL.contains(&namespace) {
            access_list(value).ok_or_else(|| unfit("it is no access control list; remove it"))?
        } else {
            value.clone()
        };
        if name.len() > 255 {
            return Err(unfit("its name is longer than 255 bytes"));
        }
        attributes.push(Attribute {
            namespace,
            name,
            value,
        });
    }
    attributes.sort_by_key(|attribute| (attribute.namespace, attribute.name.len(), attribute.name));
    let room: usize = attributes.iter().map(Attribute::room).sum::<usize>() + END;
    if 4 + room <= ATTRIBUTE_ROOM {
        let mut body = vec![0; ATTRIBUTE_ROOM];
        body.u32(0, MAGIC);
        // In an inode, offsets of values count from the first entry.
        write(&mut body[4..], 0, &attributes);
        return Ok(Place::Inode(body));
    }
    if BLOCK_HEADER + room > BLOCK as usize {
        let what = format!("{room} bytes of extended attributes");
        return Err(job.unfit(path, what, "it takes one block of them; use erofs"));
    }
    let mut body = vec![0; BLOCK as usize];
    body.u32(0, MAGIC);
    body.u32(4, 1);
    body.u32(8, 1);
    body.u32(
        12,
        attributes
            .iter()
            .fold(0, |hash: u32, attribute| hash.rotate_left(16) ^ attribute.hash()),
    );
    write(&mut body, BLOCK_HEADER, &attributes);
    Ok(Place::Block(body))
}

/// Writes entries from `start` on and values from the end down.
fn write(body: &mut [u8], start: usize, attributes: &[Attribute<'_>]) {
    let (mut at, mut end) = (start, body.len());
    for attribute in attributes {
        let len = attribute.value.len();
        if len > 0 {
            end -= len.next_multiple_of(4);
            body.bytes(end, &attribute.value);
        }
        let entry = &mut body[at..];
        entry[0] = attribute.name.len() as u8;
        entry[1] = attribute.namespace;
        entry.u16(2, if len > 0 { end as u16 } else { 0 });
        entry.u32(8, len as u32);
        entry.u32(12, attribute.hash());
        entry.bytes(ENTRY, attribute.name);
        at += (ENTRY + attribute.name.len()).next_multiple_of(4);
    }
}

/// An access control list as ext4 stores it, from what system calls have: who is named by the tag alone has no number.
fn access_list(value: &[u8]) -> Option<Vec<u8>> {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    let entries = value.strip_prefix(&2_u32.to_le_bytes())?;
    if entries.len() % 8 != 0 {
        return None;
    }
    let mut list = 1_u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let named = [USER, GROUP].contains(&u16::from_le_bytes([entry[0], entry[1]]));
        list.extend_from_slice(if named { entry } else { &entry[..4] });
    }
    Some(list)
}
