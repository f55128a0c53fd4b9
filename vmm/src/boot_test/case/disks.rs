//! The disks of a case: the guest writes to overlays, gets other images while it runs, and leaves what is looked at afterwards.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use berth_devices::storage::{ImageFormat, NO_MEDIUM};
use serde_json::json;

use super::{Run, Stop, excerpt};
use crate::boot_test::image::Image;
use crate::boot_test::plan::{FileCheck, ImageRef};
use crate::boot_test::verdict::Kind;
use crate::spec::VmSpec;

impl Run<'_> {
    /// What was in the drive stays what is looked at afterwards.
    pub(super) fn detach(&mut self, disk: usize, limit: Instant) -> Result<(), Stop> {
        self.change(disk, Path::new(NO_MEDIUM), limit)
    }

    fn change(&mut self, disk: usize, image: &Path, limit: Instant) -> Result<(), Stop> {
        let id = self.spec.disks[disk].name(disk + 1);
        let body = json!({ "drive_id": id, "path_on_host": image });
        self.call("PATCH", &format!("/drives/{id}"), Some(&body), limit)
            .map(drop)
    }

    pub(super) fn attach(&mut self, disk: usize, image: &Path, limit: Instant) -> Result<(), Stop> {
        let spec = &self.spec.disks[disk];
        let id = spec.name(disk + 1);
        let image = if spec.read_only {
            std::path::absolute(image)?
        } else {
            // The guest may write it, and the image is to stay as it is.
            let copy = self
                .around
                .folder
                .join(format!("attached-{id}-{}", self.commands));
            self.commands += 1;
            fs::copy(image, &copy)?;
            copy
        };
        self.change(disk, &image, limit)?;
        self.attached[disk] = Some(image);
        Ok(())
    }

    fn open(&self, image: &ImageRef) -> Result<Image, Stop> {
        let opened = match image {
            ImageRef::File(path) => Image::open(path, ImageFormat::Raw, None),
            ImageRef::Disk(at) => match &self.attached[*at] {
                Some(path) => Image::open(path, self.spec.disks[*at].format.image(), None),
                None => Image::open(
                    &self.spec.disks[*at].path,
                    self.spec.disks[*at].format.image(),
                    self.spec.disks[*at].overlay.as_deref(),
                ),
            },
        };
        opened.map_err(|why| Stop::failed(Kind::Content, why))
    }

    pub(super) fn file(&self, image: &ImageRef, path: &str, check: &FileCheck) -> Result<(), Stop> {
        let wrong = |why: String| Err(Stop::failed(Kind::Content, why));
        let found = self
            .open(image)?
            .file(path)
            .map_err(|why| Stop::failed(Kind::Content, why))?;
        match (check, found) {
            (FileCheck::Absent, None) | (FileCheck::There, Some(_)) => Ok(()),
            (FileCheck::Absent, Some(_)) => wrong(format!("{path} is there and should not be")),
            (_, None) => wrong(format!("{path} is not there")),
            (FileCheck::Contains(text), Some(bytes)) => {
                let has = bytes
                    .windows(text.len().max(1))
                    .any(|window| window == text.as_bytes());
                if has || text.is_empty() {
                    return Ok(());
                }
                let holds = excerpt(&String::from_utf8_lossy(&bytes));
                wrong(format!("{path} does not hold {text:?}{holds}"))
            }
            (FileCheck::Matches(pattern), Some(bytes)) if !pattern.is_in(&bytes) => {
                let holds = excerpt(&String::from_utf8_lossy(&bytes));
                wrong(format!("{path} does not match {pattern}{holds}"))
            }
            (FileCheck::Matches(_), Some(_)) => Ok(()),
        }
    }

    pub(super) fn bytes(&self, image: &ImageRef, offset: u64, wanted: &[u8]) -> Result<(), Stop> {
        let mut found = vec![0; wanted.len()];
        self.open(image)?.read_at(offset, &mut found).map_err(|error| {
            Stop::failed(
                Kind::Content,
                format!("the bytes at {offset} cannot be read: {error}"),
            )
        })?;
        if found == wanted {
            return Ok(());
        }
        let message = format!(
            "at {offset} there is \"{}\" instead of \"{}\"",
            found.escape_ascii(),
            wanted.escape_ascii()
        );
        Err(Stop::failed(Kind::Content, message))
    }
}

/// The VM with absolute paths, and with overlays in `folder` for disks and copies of files in memory that the guest may write: the
/// images stay as they are.
pub(super) fn own(spec: &VmSpec, folder: &Path) -> io::Result<VmSpec> {
    let mut spec = spec.clone();
    spec.take_paths_from(&std::env::current_dir()?);
    for (number, disk) in (1..).zip(&mut spec.disks) {
        if !disk.read_only && disk.overlay.is_none() && disk.has_medium() {
            disk.overlay = Some(folder.join(format!("disk{number}.overlay")));
        }
    }
    for (number, pmem) in (1..).zip(&mut spec.pmem) {
        if !pmem.read_only {
            let copy = folder.join(format!("pmem{number}.img"));
            let named = |cause: io::Error| io::Error::other(format!("{}: {cause}", pmem.path.display()));
            fs::copy(&pmem.path, &copy).map_err(named)?;
            pmem.path = copy;
        }
    }
    Ok(spec)
}
