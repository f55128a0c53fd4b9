//! Initramfs: the newc format (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Written here and not by the crate `cpio`, which takes no names but UTF-8. It has no place for attributes; a kernel's initramfs has
//! none either, so that they are left out.

use std::io::{self, Write};

use super::super::ImageError;
use super::super::compress::Packer;
use super::super::tree::{Kind, Walked};
use super::Job;

const MAGIC: &[u8] = b"070701";
const END: &[u8] = b"TRAILER!!!";
/// Entries are padded to this; so are archives, that another may be put behind them.
const ALIGN: usize = 4;
const BLOCK: u64 = 512;

pub(in super::super) fn write<W: Write>(job: &Job<'_>, sink: W) -> Result<W, ImageError> {
    let failed = job.failed();
    let packer = Packer::new(job.format, sink).map_err(&failed)?;
    let mut archive = Archive {
        sink: packer,
        written: 0,
    };
    let numbers = numbers(job);
    let last = last_names(job);
    for (at, entry) in job.walked.iter().enumerate() {
        // The root is there before an initramfs is unpacked.
        if !entry.path.is_empty() {
            archive.entry(job, entry, numbers[entry.node], last[entry.node] == at)?;
        }
    }
    archive.end().map_err(&failed)?;
    let mut sink = archive.sink.finish().map_err(&failed)?;
    sink.flush().map_err(failed)?;
    Ok(sink)
}

/// Inode numbers, which tell the kernel that names are of the same file.
fn numbers(job: &Job<'_>) -> Vec<u32> {
    let mut numbers = vec![0; job.links.len()];
    for (number, entry) in (1..).zip(job.nodes()) {
        numbers[entry.node] = number;
    }
    numbers
}

/// The last path that leads to each node: by custom, only that one comes with what the file holds.
fn last_names(job: &Job<'_>) -> Vec<usize> {
    let mut last = vec![0; job.links.len()];
    for (at, entry) in job.walked.iter().enumerate() {
        last[entry.node] = at;
    }
    last
}

struct Archive<W> {
    sink: W,
    written: u64,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, job: &Job<'_>, entry: &Walked, number: u32, last: bool) -> Result<(), ImageError> {
        let failed = job.failed();
        let node = job.tree.node(entry.node);
        let size = match &node.kind {
            Kind::File(contents) if last => contents.size,
            Kind::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        let Ok(size) = u32::try_from(size) else {
            return Err(job.unfit(&entry.path, format!("a file of {size} bytes"), "use ext4 for it"));
        };
        let (major, minor) = node.kind.device();
        let header = Header {
            number,
            mode: u32::from(node.meta.mode | node.kind.type_bits()),
            uid: node.meta.uid,
            gid: node.meta.gid,
            links: job.links[entry.node],
            mtime: node.meta.mtime.unwrap_or_default().unsigned(),
            size,
            major,
            minor,
        };
        self.header(&header, &entry.path).map_err(&failed)?;
        match &node.kind {
            Kind::File(contents) if last => {
                contents.stream(&mut self.sink, &failed)?;
                self.written += contents.size;
            }
            Kind::Symlink(target) => self.put(target).map_err(&failed)?,
            _ => {}
        }
        self.pad(ALIGN as u64).map_err(failed)
    }

    fn header(&mut self, header: &Header, name: &[u8]) -> io::Result<()> {
        self.put(MAGIC)?;
        let fields = [
            header.number,
            header.mode,
            header.uid,
            header.gid,
            header.links,
            header.mtime,
            header.size,
            0,
            0,
            header.major,
            header.minor,
            name.len() as u32 + 1,
            0,
        ];
        for field in fields {
            self.put(format!("{field:08x}").as_bytes())?;
        }
        self.put(name)?;
        self.put(&[0])?;
        self.pad(ALIGN as u64)
    }

    fn end(&mut self) -> io::Result<()> {
        let header = Header {
            links: 1,
            ..Header::default()
        };
        self.header(&header, END)?;
        self.pad(BLOCK)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.sink.write_all(bytes)
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        let padding = self.written.next_multiple_of(to) - self.written;
        self.put(&[0; BLOCK as usize][..padding as usize])
    }
}

#[derive(Default)]
struct Header {
    number: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    mtime: u32,
    size: u32,
    major: u32,
    minor: u32,
}
