//! Files in a guest's physical address space: what virtio-pmem devices stand on.
//!
//! A file that the guest may write is mapped shared, so what it writes is in the host's page cache at once and in the file when
//! that is flushed. One that it may only read is mapped without the right to write, and KVM gets a slot that cannot be written:
//! neither the guest nor Berth can change it. Behind a file's end are zeros up to the end of the region.
//!
//! A file that is cut while it is mapped takes the VM with it, as a snapshot's memory does: nothing is behind its pages any more.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryRegion, GuestRegionMmap};

/// A file that is mapped.
pub(crate) struct MappedFile {
    pub(crate) region: Arc<GuestRegionMmap>,
    pub(crate) writable: bool,
}

/// Where a file goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The guest physical address.
    pub(crate) base: u64,
    /// Bytes of the region, no fewer than the file has.
    pub(crate) size: u64,
    pub(crate) writable: bool,
}

/// Maps the first `len` bytes of `file`.
pub(crate) fn map(file: &File, len: u64, place: Place) -> io::Result<MappedFile> {
    let Place { base, size, writable } = place;
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    if len == 0 || len > size {
        return Err(invalid());
    }
    let rights = if writable {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        libc::PROT_READ
    };
    // First the whole region, for the zeros behind the file's end; it also takes the file's mapping along when it goes.
    let region = MmapRegionBuilder::new(size as usize)
        .with_mmap_prot(rights)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
        .map_err(io::Error::other)?;
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the range is the beginning of the mapping just made, at least as long (`len` was compared with `size`), which nobody else
    // knows yet. The new mapping takes the place of that part, and `munmap` of the whole range later takes it along.
    let mapped = unsafe {
        libc::mmap(
            region.as_ptr().cast(),
            len as usize,
            rights,
            flags,
            file.as_raw_fd(),
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let region = GuestRegionMmap::new(region, GuestAddress(base)).ok_or_else(invalid)?;
    debug_assert_eq!(region.len(), size);
    Ok(MappedFile {
        region: Arc::new(region),
        writable,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::Bytes;

    use super::*;
    use crate::memory::{self, GuestMemory};

    const SIZE: u64 = 2 << 20;
    const BASE: u64 = 4 << 30;

    fn file(len: usize) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![7; len], 0).unwrap();
        file
    }

    fn place(writable: bool) -> Place {
        Place {
            base: BASE,
            size: SIZE,
            writable,
        }
    }

    #[test]
    fn what_is_written_to_the_memory_is_in_the_file() {
        let file = file(SIZE as usize);
        let mapped = map(&file, SIZE, place(true)).unwrap();
        let memory = GuestMemory::new(memory::map(1 << 20).unwrap(), vec![mapped]).unwrap();
        let address = GuestAddress(BASE + 5000);
        assert_eq!(memory.reach.read_obj::<u8>(address).unwrap(), 7);
        memory.reach.write_obj(9_u8, address).unwrap();
        let mut found = [0];
        file.read_exact_at(&mut found, 5000).unwrap();
        assert_eq!(found, [9]);
        // It is no RAM: no snapshot holds it.
        assert!(memory.ram.read_obj::<u8>(address).is_err());
    }

    #[test]
    fn a_file_that_is_only_read_is_out_of_the_devices_reach_and_ends_in_zeros() {
        let mapped = map(&file(10_000), 10_000, place(false)).unwrap();
        let memory = GuestMemory::new(memory::map(1 << 20).unwrap(), vec![mapped]).unwrap();
        for (offset, expected) in [(0, 7), (9999, 7), (10_000, 0), (SIZE - 1, 0)] {
            let address = GuestAddress(BASE + offset);
            assert_eq!(
                memory.read_only.read_obj::<u8>(address).unwrap(),
                expected,
                "{offset}"
            );
            assert!(memory.reach.read_obj::<u8>(address).is_err());
        }
    }

    #[test]
    fn a_file_longer_than_its_place_is_refused() {
        assert!(map(&file(10), SIZE + 1, place(true)).is_err());
        assert!(map(&file(10), 0, place(true)).is_err());
    }
}
