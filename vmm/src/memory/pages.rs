//! Which pages of guest memory this process has of its own, from `/proc/self/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
//!
//! A page of an anonymous mapping that was never written is not there; a page of a private file mapping that was never written
//! is the file's. So the pages that a snapshot must write are those that are in memory or in swap, and not a file's. This needs
//! no dirty log: KVM, devices and the assist all write by way of the page tables.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page belongs to a file (or is shared), so it is not this process's own.
const OF_FILE: u64 = 1 << 61;
/// Entries read at once.
const BATCH: usize = 8192;

/// The page map of this process.
pub(crate) struct PageMap(File);

impl PageMap {
    pub(crate) fn open() -> io::Result<Self> {
        File::open("/proc/self/pagemap").map(Self)
    }

    /// Calls `found` for each run of own pages in `len` bytes from `address` on, both multiples of the page size: the run's
    /// bytes, counted from `address`.
    pub(crate) fn own(
        &self,
        address: usize,
        len: usize,
        mut found: impl FnMut(Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let pages = len / PAGE;
        let mut entries = vec![0; BATCH * 8];
        let mut run: Option<Range<usize>> = None;
        let mut page = 0;
        while page < pages {
            let count = BATCH.min(pages - page);
            let bytes = &mut entries[..count * 8];
            self.0
                .read_exact_at(bytes, ((address / PAGE + page) * 8) as u64)?;
            for (at, entry) in (page..).zip(bytes.chunks_exact(8)) {
                // A chunk has 8 bytes.
                let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
                let own = entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0;
                match &mut run {
                    Some(run) if own => run.end = (at + 1) * PAGE,
                    None if own => run = Some(at * PAGE..(at + 1) * PAGE),
                    _ => {
                        if let Some(run) = run.take() {
                            found(run)?;
                        }
                    }
                }
            }
            page += count;
        }
        run.map_or(Ok(()), found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_devices::Memory;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    #[test]
    fn only_written_pages_are_own() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        let address = memory.get_host_address(GuestAddress(0)).unwrap() as usize;
        for at in [0, PAGE, 40 << 20, (64 << 20) - PAGE] {
            memory.write_obj(1u8, GuestAddress(at as u64)).unwrap();
        }
        let mut runs = Vec::new();
        let map = PageMap::open().unwrap();
        map.own(address, 64 << 20, |run| {
            runs.push(run);
            Ok(())
        })
        .unwrap();
        let page = |at| at..at + PAGE;
        assert_eq!(runs, [0..2 * PAGE, page(40 << 20), page((64 << 20) - PAGE)]);
    }
}
