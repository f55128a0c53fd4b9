//! An image and those that it stands on.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};

use super::header::{self, Backing, Header};
use super::{Layers, Qcow2Fault, Storage};
use crate::storage::DiskError;
use crate::storage::file;

/// Images that stand on one another, at most. Each takes an open file, and a read may pass through all of them.
const DEPTH_MAX: usize = 64;

/// A file by what it is, whatever its name: device and inode.
pub(super) type Identity = (u64, u64);

pub(super) struct Opened {
    pub(super) layers: Layers,
    pub(super) size: u64,
    /// Bytes of the disk that one second-level table stands for.
    pub(super) span: u64,
    pub(super) identity: Identity,
}

/// Opens the image at `path` and, only to read, all that it stands on. Each is locked.
pub(super) fn open(path: &Path, read_only: bool) -> Result<Opened, DiskError> {
    let mut above = Vec::new();
    let (file, header) = examine(path, read_only, &mut above)?;
    let identity = identity(&file, path)?;
    let layers = build(path, file, &header, read_only, &mut above)?;
    Ok(Opened {
        layers,
        size: header.size,
        span: header.span,
        identity,
    })
}

/// The header of the image at `path`, which a VM may have.
pub(super) fn peek(path: &Path) -> Result<Header, DiskError> {
    check(&file::open(path, true)?, path, true)
}

fn check(file: &std::fs::File, path: &Path, read_only: bool) -> Result<Header, DiskError> {
    let length = file::length(file).map_err(|cause| fault(path, cause))?;
    header::read(file, length, !read_only).map_err(|why| fault(path, why))
}

pub(super) fn fault(path: &Path, why: impl Into<Qcow2Fault>) -> DiskError {
    DiskError::Qcow2 {
        path: path.to_owned(),
        why: Box::new(why.into()),
    }
}

fn identity(file: &std::fs::File, path: &Path) -> Result<Identity, DiskError> {
    let found = file.metadata().map_err(|cause| fault(path, cause))?;
    Ok((found.dev(), found.ino()))
}

/// Opens a file and locks it. It must be none of `above`, which it joins.
fn lock(path: &Path, read_only: bool, above: &mut Vec<Identity>) -> Result<std::fs::File, DiskError> {
    let file = file::open(path, read_only)?;
    let identity = identity(&file, path)?;
    if above.contains(&identity) {
        return Err(fault(path, Qcow2Fault::Loop));
    }
    above.push(identity);
    file::lock(&file, path, read_only)?;
    Ok(file)
}

fn examine(
    path: &Path,
    read_only: bool,
    above: &mut Vec<Identity>,
) -> Result<(std::fs::File, Header), DiskError> {
    let file = lock(path, read_only, above)?;
    let header = check(&file, path, read_only)?;
    Ok((file, header))
}

fn build(
    path: &Path,
    file: std::fs::File,
    header: &Header,
    read_only: bool,
    above: &mut Vec<Identity>,
) -> Result<Layers, DiskError> {
    // From the bottom: a fault there is found before this image is touched.
    let below = match &header.backing {
        None => None,
        Some(backing) => Some(open_below(path, backing, above)?),
    };
    let image = storage(file, !read_only).and_then(|storage| {
        Qcow2::<Storage>::builder(storage)
            .backing(below)
            .data_file(None)
            .write(!read_only)
            .open(DenyImplicitOpenGate::default())
    });
    Ok(FormatAccess::new(image.map_err(|cause| fault(path, cause))?))
}

fn open_below(path: &Path, backing: &Backing, above: &mut Vec<Identity>) -> Result<Layers, DiskError> {
    let wrap = |cause: DiskError| fault(path, Qcow2Fault::Backing(cause));
    if above.len() >= DEPTH_MAX {
        return Err(fault(path, Qcow2Fault::Deep(DEPTH_MAX)));
    }
    let below = path.parent().unwrap_or(Path::new("")).join(&backing.name);
    if backing.qcow2 {
        let (file, header) = examine(&below, true, above).map_err(wrap)?;
        return build(&below, file, &header, true, above).map_err(wrap);
    }
    let file = lock(&below, true, above).map_err(wrap)?;
    let raw = storage(file, false).and_then(|storage| Raw::open_image(storage, false));
    Ok(FormatAccess::new(
        raw.map_err(|cause| wrap(fault(&below, cause)))?,
    ))
}

fn storage(file: std::fs::File, writable: bool) -> std::io::Result<Storage> {
    Storage::from_open_file(file, StorageOpenOptions::new().write(writable))
}
