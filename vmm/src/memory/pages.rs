//! Which pages of guest memory this process has of its own, from `/proc/self/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
//!
//! A page of an anonymous mapping that was never written is not there; a page of a private file mapping that was never written
//! is the file's. So the pages that a snapshot must write are those that are in memory or in swap, and not a file's. This needs
//! no dirty log: KVM, devices and the assist all write by way of the page tables.
//!
//! Where a guest gave pages of a file mapping back, the file is not behind them any more (`page_returner`): nothing is, and they are
//! zeros, though they may never have been there. Which those are, `/proc/self/maps` says.
#![forbid(unsafe_code)]

use std::fs::{self, File};
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
        found: impl FnMut(Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let own = |entry: u64| entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0;
        self.runs(address, len, own, found)
    }

    /// The same for each run of pages that this process has mapped, whosever they are.
    pub(crate) fn touched(
        &self,
        address: usize,
        len: usize,
        found: impl FnMut(Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.runs(address, len, |entry| entry & (PRESENT | SWAPPED) != 0, found)
    }

    fn runs(
        &self,
        address: usize,
        len: usize,
        wanted: impl Fn(u64) -> bool,
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
                let own = wanted(entry);
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

/// The parts of `len` bytes from `address` on that no file stands behind, counted from `address`, in ascending order.
pub(crate) fn without_file(address: usize, len: usize) -> io::Result<Vec<Range<usize>>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let end = address + len;
    let found = maps.lines().filter_map(|line| {
        let (range, inode) = mapping(line)?;
        let (from, to) = (range.start.max(address), range.end.min(end));
        (inode == 0 && from < to).then(|| from - address..to - address)
    });
    Ok(found.collect())
}

/// What a line of `/proc/self/maps` says: `start-end rights offset device inode name` (proc_pid_maps(5)).
fn mapping(line: &str) -> Option<(Range<usize>, u64)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let inode = words.nth(3)?.parse().ok()?;
    Some((address(start)?..address(end)?, inode))
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

    #[test]
    fn mappings_are_read_as_the_kernel_writes_them() {
        for (line, expected) in [
            (
                "7f0000001000-7f0000003000 rw-p 00000000 fe:00 1234                       /a name",
                Some((0x7f00_0000_1000..0x7f00_0000_3000, 1234)),
            ),
            ("1000-2000 rw-p 00000000 00:00 0 ", Some((0x1000..0x2000, 0))),
            ("1000 rw-p", None),
            ("", None),
        ] {
            assert_eq!(mapping(line), expected, "{line}");
        }
    }
}
