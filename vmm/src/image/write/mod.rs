//! Writers: one for each kind of image.

mod bytes;
mod cpio;
mod digest;
mod erofs;
mod ext4;
mod squashfs;
mod tar;
#[cfg(test)]
mod tests;
mod xattr;

use std::fs::File;
use std::io::{self, BufWriter};
use std::os::unix::fs::FileExt;

use super::error::shown;
use super::output::Output;
use super::tree::{Time, Tree, Walked};
use super::{BuildOptions, ImageError, ImageFormat};
use digest::Digest;

pub(super) use cpio::write as write_cpio;
#[cfg(test)]
pub(super) use tar::{Records, write as write_tar};

/// What is to be written.
pub(super) struct Job<'a> {
    pub(super) tree: &'a Tree,
    pub(super) walked: Vec<Walked>,
    /// Links of each node, see [`Tree::links`].
    pub(super) links: Vec<u32>,
    /// When the image says that it was made.
    pub(super) made: Time,
    pub(super) label: [u8; 16],
    pub(super) uuid: Option<[u8; 16]>,
    /// Size asked for.
    pub(super) size: Option<u64>,
    pub(super) format: ImageFormat,
    /// What messages call the output.
    pub(super) name: String,
}

impl<'a> Job<'a> {
    /// A tree with no time later than `latest`, as it is written where nothing else is asked for.
    pub(super) fn new(tree: &'a mut Tree, latest: Option<i64>, format: ImageFormat, name: String) -> Self {
        let walked = tree.walk();
        let made = tree.settle_times(&walked, latest);
        Self {
            links: tree.links(&walked),
            walked,
            tree,
            made,
            label: [0; 16],
            uuid: None,
            size: None,
            format,
            name,
        }
    }

    fn failed(&self) -> impl Fn(io::Error) -> ImageError + '_ {
        |cause| ImageError::Io {
            name: self.name.clone(),
            cause,
        }
    }

    fn unfit(&self, path: &[u8], what: String, instead: &'static str) -> ImageError {
        ImageError::Unfit {
            path: if path.is_empty() {
                "/".to_owned()
            } else {
                shown(path)
            },
            what,
            format: self.format,
            instead,
        }
    }

    /// Nodes by the first path that leads to each.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Walked> {
        self.walked.iter().filter(|entry| !entry.again)
    }

    /// The UUID asked for, or the one that the contents determine.
    fn uuid(&self, digest: Digest) -> [u8; 16] {
        self.uuid.unwrap_or_else(|| digest.uuid())
    }
}

/// Writes the image. Returns its UUID, where it has one.
pub(super) fn write(job: &Job<'_>, output: &Output) -> Result<Option<[u8; 16]>, ImageError> {
    match job.format {
        ImageFormat::Ext4 => ext4::write(job, output.file()).map(Some),
        ImageFormat::Erofs => erofs::write(job, output.file()).map(Some),
        ImageFormat::Squashfs => squashfs::write(job, output).map(|()| None),
        _ => {
            let sink = BufWriter::with_capacity(256 << 10, output.file());
            cpio::write(job, sink).map(|_| None)
        }
    }
}

/// Refuses options that the kind of image has no use for.
pub(super) fn check(options: &BuildOptions, format: ImageFormat) -> Result<(), ImageError> {
    let has = |field, given: bool, kinds: &[ImageFormat]| {
        if given && !kinds.contains(&format) {
            let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
            return Err(ImageError::Option {
                field,
                what: format!("{format} images have none; it is for {}", names.join(" and ")),
            });
        }
        Ok(())
    };
    has("size", options.size.is_some(), &[ImageFormat::Ext4])?;
    let named = [ImageFormat::Ext4, ImageFormat::Erofs];
    has("uuid", options.uuid.is_some(), &named)?;
    has("label", options.label.is_some(), &named)
}

/// Writes at an offset.
fn put(job: &Job<'_>, file: &File, bytes: &[u8], offset: u64) -> Result<(), ImageError> {
    file.write_all_at(bytes, offset).map_err(job.failed())
}
