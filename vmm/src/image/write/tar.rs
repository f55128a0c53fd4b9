//! The tree as a tar file with POSIX's extensions, for programs that make images from one.

use std::io::{self, Write};

use tar::{Builder, EntryType, Header};

use super::super::ImageError;
use super::super::tree::{Kind, Walked};
use super::Job;

/// Writes the tree, all but the root.
pub(in super::super) fn write(
    job: &Job<'_>,
    sink: impl Write,
    failed: &dyn Fn(io::Error) -> ImageError,
) -> Result<(), ImageError> {
    let mut builder = Builder::new(sink);
    let mut first: Vec<Option<&[u8]>> = vec![None; job.links.len()];
    for entry in job.walked.iter().filter(|entry| !entry.path.is_empty()) {
        let link = *first[entry.node].get_or_insert(&entry.path);
        let link = Some(link).filter(|_| entry.again);
        write_entry(job, entry, link, &mut builder, failed)?;
    }
    builder.finish().map_err(failed)
}

fn write_entry<W: Write>(
    job: &Job<'_>,
    entry: &Walked,
    link: Option<&[u8]>,
    builder: &mut Builder<W>,
    failed: &dyn Fn(io::Error) -> ImageError,
) -> Result<(), ImageError> {
    let node = job.tree.node(entry.node);
    let meta = &node.meta;
    let mtime = meta.mtime.unwrap_or_default();
    let mut records = Records::default();
    let mut header = Header::new_ustar();
    let (kind, size) = match &node.kind {
        _ if link.is_some() => (EntryType::Link, 0),
        Kind::Directory(_) => (EntryType::Directory, 0),
        Kind::File(contents) => (EntryType::Regular, contents.size),
        Kind::Symlink(_) => (EntryType::Symlink, 0),
        Kind::CharDevice { .. } => (EntryType::Char, 0),
        Kind::BlockDevice { .. } => (EntryType::Block, 0),
        Kind::Fifo => (EntryType::Fifo, 0),
    };
    header.set_entry_type(kind);
    header.set_mode(meta.mode.into());
    header.set_uid(meta.uid.into());
    header.set_gid(meta.gid.into());
    header.set_size(size);
    header.set_mtime(mtime.seconds.max(0) as u64);
    if mtime.nanos > 0 || mtime.seconds < 0 {
        records.add(b"mtime", mtime.decimal().as_bytes());
    }
    let (major, minor) = node.kind.device();
    header.set_device_major(major).map_err(failed)?;
    header.set_device_minor(minor).map_err(failed)?;
    let target = match &node.kind {
        _ if link.is_some() => link,
        Kind::Symlink(target) => Some(&target[..]),
        _ => None,
    };
    let path = match &node.kind {
        Kind::Directory(_) => [&entry.path[..], b"/"].concat(),
        _ => entry.path.clone(),
    };
    let old = header.as_old_mut();
    if !place(&mut old.name, &path) {
        records.add(b"path", &path);
    }
    let long_link = !place(&mut old.linkname, target.unwrap_or_default());
    for (name, value) in meta.xattrs.iter().filter(|_| link.is_none()) {
        records.add(&[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    let sink = builder.get_mut();
    if let Some(target) = target.filter(|_| long_link) {
        // Not by a record: sqfstar 4.5 takes leading .. and / away from those.
        let mut extension = Header::new_gnu();
        extension.set_entry_type(EntryType::GNULongLink);
        extend(sink, extension, &[target, b"\0"].concat(), failed)?;
    }
    if !records.0.is_empty() {
        let mut extension = Header::new_ustar();
        extension.set_entry_type(EntryType::XHeader);
        extend(sink, extension, &records.0, failed)?;
    }
    put(sink, &mut header, failed)?;
    if let (Kind::File(contents), None) = (&node.kind, link) {
        contents.stream(sink, failed)?;
        pad(sink, contents.size, failed)?;
    }
    Ok(())
}

fn put(
    sink: &mut dyn Write,
    header: &mut Header,
    failed: &dyn Fn(io::Error) -> ImageError,
) -> Result<(), ImageError> {
    header.set_cksum();
    sink.write_all(header.as_bytes()).map_err(failed)
}

fn pad(sink: &mut dyn Write, len: u64, failed: &dyn Fn(io::Error) -> ImageError) -> Result<(), ImageError> {
    let padding = len.next_multiple_of(512) - len;
    sink.write_all(&[0; 512][..padding as usize]).map_err(failed)
}

/// Puts text into a header's field. Returns whether all of it fits.
fn place(field: &mut [u8; 100], text: &[u8]) -> bool {
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text[..len]);
    len == text.len()
}

/// Writes what says more about the next entry.
fn extend(
    sink: &mut dyn Write,
    mut header: Header,
    data: &[u8],
    failed: &dyn Fn(io::Error) -> ImageError,
) -> Result<(), ImageError> {
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    put(sink, &mut header, failed)?;
    sink.write_all(data).map_err(failed)?;
    pad(sink, data.len() as u64, failed)
}

/// Records of an extended header.
#[derive(Default)]
pub(in super::super) struct Records(pub(in super::super) Vec<u8>);

impl Records {
    pub(in super::super) fn add(&mut self, key: &[u8], value: &[u8]) {
        // The length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while rest + len.to_string().len() != len {
            len = rest + len.to_string().len();
        }
        self.0.extend_from_slice(format!("{len} ").as_bytes());
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}
