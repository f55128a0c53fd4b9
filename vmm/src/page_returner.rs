//! How the host gets back what stands behind guest memory, by how that memory is mapped.

use std::io;

use berth_devices::Memory;
use berth_devices::virtio::balloon::PageReturner;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// Gives back pages of any guest memory: it looks at each region's mapping.
///
/// | mapping | what is done | why |
/// |---|---|---|
/// | private, anonymous | `MADV_DONTNEED` | |
/// | private, of a file | new anonymous pages are mapped over it | dropping them would bring back what the file holds |
/// | shared | `MADV_REMOVE` | the file or memfd keeps the pages otherwise |
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReturnPages;

impl PageReturner for ReturnPages {
    fn give_back(&self, memory: &Memory, addr: GuestAddress, len: u64) -> io::Result<()> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let region = memory.find_region(addr).ok_or_else(outside)?;
        let offset = addr.0 - region.start_addr().0;
        if len > region.len() - offset {
            return Err(outside());
        }
        let start = region.get_host_address(MemoryRegionAddress(offset));
        let start = start.map_err(io::Error::other)?.cast::<libc::c_void>();
        let len = len as usize;
        let flags = region.flags();
        let result = if flags & libc::MAP_SHARED != 0 {
            // SAFETY: see below; the call is on whole pages of one mapping of guest RAM.
            unsafe { libc::madvise(start, len, libc::MADV_REMOVE) }
        } else if flags & libc::MAP_ANONYMOUS != 0 {
            // SAFETY: see below.
            unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) }
        } else {
            let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: see below. The new mapping takes the place of a part of guest RAM's own, with the same rights, in one
            // step, and `munmap` of the whole range later takes it along.
            let mapped = unsafe { libc::mmap(start, len, prot, flags, -1, 0) };
            if mapped == libc::MAP_FAILED { -1 } else { 0 }
        };
        // SAFETY of all three: `start` and `len` lie within a region of `memory`, which was just checked and stays mapped
        // while it is borrowed. What they change is the contents of guest RAM, to which Rust has no references: it is read and
        // written by volatile accesses and system calls only, since the guest may change it at any moment.
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{Bytes, FileOffset, GuestRegionMmap};

    use super::*;

    const PAGE: usize = 4096;
    const BASE: u64 = 0x10_0000;

    fn memory(flags: i32, file: Option<std::fs::File>) -> Memory {
        let mut builder = MmapRegionBuilder::new(4 * PAGE)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags);
        if let Some(file) = file {
            builder = builder.with_file_offset(FileOffset::new(file, 0));
        }
        let region = GuestRegionMmap::new(builder.build().unwrap(), GuestAddress(BASE)).unwrap();
        Memory::from_regions(vec![region]).unwrap()
    }

    fn full_file() -> std::fs::File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0xcc; 4 * PAGE], 0).unwrap();
        file
    }

    #[test]
    fn what_is_given_back_reads_as_zeros_however_it_is_mapped() {
        for (name, flags, file) in [
            ("anonymous", libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None),
            ("a snapshot's file", libc::MAP_PRIVATE, Some(full_file())),
            ("shared", libc::MAP_SHARED, Some(full_file())),
        ] {
            let memory = memory(flags, file.as_ref().map(|file| file.try_clone().unwrap()));
            memory.write_slice(&[0xaa; 4 * PAGE], GuestAddress(BASE)).unwrap();
            let second = GuestAddress(BASE + PAGE as u64);
            for round in 0..2 {
                ReturnPages
                    .give_back(&memory, second, 2 * PAGE as u64)
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
                let mut found = vec![0; 4 * PAGE];
                memory.read_slice(&mut found, GuestAddress(BASE)).unwrap();
                assert_eq!(
                    found[PAGE..3 * PAGE],
                    [0; 2 * PAGE],
                    "{name}, {round}: what was given back"
                );
                assert_eq!(found[..PAGE], [0xaa; PAGE], "{name}: before it");
                assert_eq!(found[3 * PAGE..], [0xaa; PAGE], "{name}: after it");
                memory.write_slice(&[0xbb; 2 * PAGE], second).unwrap();
            }
            if flags == libc::MAP_PRIVATE {
                let mut found = vec![0; 4 * PAGE];
                file.unwrap().read_exact_at(&mut found, 0).unwrap();
                assert_eq!(found, [0xcc; 4 * PAGE], "the snapshot itself is left alone");
            }
        }
    }

    #[test]
    fn what_is_no_ram_is_refused() {
        let memory = memory(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None);
        for (addr, len) in [
            (BASE - PAGE as u64, PAGE),
            (BASE, 5 * PAGE),
            (BASE + 4 * PAGE as u64, PAGE),
        ] {
            assert!(
                ReturnPages
                    .give_back(&memory, GuestAddress(addr), len as u64)
                    .is_err()
            );
        }
    }
}
