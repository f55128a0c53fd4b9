//! Files in a guest's memory: opened, given their places behind RAM one after the other, mapped.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use berth_arch::x86_64::{cpuid, layout};
use berth_devices::storage::{DiskBackend, DiskError, FileDisk};
use berth_devices::virtio::pmem::{ALIGNMENT, Pmem};

use crate::memory::files::{self, MappedFile, Place};
use crate::spec::{ByteSize, PmemSpec};

/// Why a file cannot be in a guest's memory. Displays as a sentence that names it.
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// It cannot be opened.
    #[error(transparent)]
    File(#[from] DiskError),
    /// What the guest wrote behind its end would be lost.
    #[error(
        "{path}: size {size} is not a multiple of 2 MiB, and what the guest wrote behind the file's end would be lost; pad it, for \
         example with truncate -s {padded} {path}, or attach it read-only",
        path = .path.display(),
        padded = .size.next_multiple_of(ALIGNMENT)
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// No addresses for it.
    #[error(
        "{path}: with its {size} the guest's memory would end past the {end} that a guest on this host can address; leave it out or \
         make it smaller",
        path = .path.display()
    )]
    Space {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: ByteSize,
        /// What there is.
        end: ByteSize,
    },
    /// It cannot be mapped.
    #[error("{path}: cannot be mapped into memory: {cause}", path = .path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// Says whether what `spec` names can be in the memory of a guest that has `memory` of RAM.
pub(crate) fn try_pmem(spec: &PmemSpec, memory: ByteSize) -> Result<(), PmemError> {
    Space::behind(memory.0).open(spec).map(drop)
}

/// The addresses for files in the memory of one guest.
pub(super) struct Space {
    next: u64,
    end: u64,
}

impl Space {
    /// What there is behind `memory` bytes of RAM.
    pub(super) fn behind(memory: u64) -> Self {
        Self {
            next: layout::device_memory(memory),
            end: cpuid::physical_end(),
        }
    }

    /// The place of the next file, of `size` bytes.
    fn take(&mut self, size: u64) -> Option<u64> {
        let base = self.next;
        let end = base.checked_add(size).filter(|end| *end <= self.end)?;
        self.next = end.next_multiple_of(layout::DEVICE_MEMORY_ALIGNMENT);
        Some(base)
    }

    /// Opens and maps what `spec` names.
    pub(super) fn open(&mut self, spec: &PmemSpec) -> Result<(Pmem, MappedFile), PmemError> {
        let path = || spec.path.clone();
        let disk = FileDisk::open(&spec.path, spec.read_only)?;
        let len = disk.size();
        if !spec.read_only && !len.is_multiple_of(ALIGNMENT) {
            return Err(PmemError::Size {
                path: path(),
                size: len,
            });
        }
        let place = len
            .checked_next_multiple_of(ALIGNMENT)
            .and_then(|size| Some((self.take(size)?, size)));
        let Some((base, size)) = place else {
            return Err(PmemError::Space {
                path: path(),
                size: ByteSize(len),
                end: ByteSize(self.end),
            });
        };
        let place = Place {
            base,
            size,
            writable: !spec.read_only,
        };
        let mapped =
            files::map(disk.file(), len, place).map_err(|cause| PmemError::Map { path: path(), cause })?;
        Ok((Pmem::new(Box::new(disk), base, size), mapped))
    }
}

#[cfg(test)]
mod tests {
    use tempfile::NamedTempFile;
    use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

    use super::*;

    fn file(len: u64) -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(len).unwrap();
        file
    }

    fn spec(file: &NamedTempFile, read_only: bool) -> PmemSpec {
        PmemSpec {
            path: file.path().to_owned(),
            read_only,
            ..PmemSpec::default()
        }
    }

    #[test]
    fn files_follow_each_other_behind_ram_and_are_padded_where_they_are_only_read() {
        let mut space = Space::behind(5 << 30);
        let place = |region: &GuestRegionMmap| (region.start_addr().0, region.len());
        let (first, second) = (file(4 << 20), file(512));
        let (_, mapped) = space.open(&spec(&first, false)).unwrap();
        assert_eq!(place(&mapped.region), (6 << 30, 4 << 20));
        let (_, mapped) = space.open(&spec(&second, true)).unwrap();
        assert_eq!(place(&mapped.region), (7 << 30, 2 << 20));
    }

    #[test]
    fn what_cannot_be_in_memory_is_a_sentence() {
        let odd = file(3 << 20);
        let refused = |space: &mut Space, spec: &PmemSpec| space.open(spec).err().unwrap().to_string();
        let said = refused(&mut Space::behind(1 << 20), &spec(&odd, false));
        assert!(said.contains("truncate -s 4194304"), "{said}");
        let mut full = Space {
            next: 6 << 30,
            end: 6 << 30,
        };
        let said = refused(&mut full, &spec(&odd, true));
        assert!(
            said.contains("with its 3M") && said.contains("past the 6G"),
            "{said}"
        );
        let gone = PmemSpec {
            path: "/none".into(),
            ..PmemSpec::default()
        };
        assert!(refused(&mut full, &gone).contains("there is no such file"));
    }
}
