//! Page tables for what lies above the 5 GiB that the file's own tables map.
//!
//! Ring 3 writes them itself. What was not present is not cached, so nothing has to be flushed.

use crate::mem::{read64, write64};

const TABLE: u64 = 0x27; // present, writable, open to ring 3, accessed
const PAGE: u64 = 0xe7; // the same, written to, 2 MiB
const PRESENT: u64 = 1;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Maps device registers one to one; fails where the tables that are kept for this are used up.
pub fn map(at: u64, len: u64) -> Result<(), &'static str> {
    let first = at >> 21;
    let last = (at + len.max(1) - 1) >> 21;
    (first..=last).try_for_each(|page| map_page(page << 21))
}

fn map_page(at: u64) -> Result<(), &'static str> {
    let mut table = &raw const crate::pml4 as u64;
    for shift in [39, 30] {
        let entry = table + (at >> shift & 511) * 8;
        if read64(entry) & PRESENT == 0 {
            write64(entry, spare_table()? | TABLE);
        }
        table = read64(entry) & ADDRESS;
    }
    let entry = table + (at >> 21 & 511) * 8;
    if read64(entry) & PRESENT == 0 {
        write64(entry, at | PAGE);
    }
    Ok(())
}

/// An empty table: the first of those in the file that nothing was written to.
fn spare_table() -> Result<u64, &'static str> {
    let first = &raw const crate::spare_tables as u64;
    (0..crate::SPARE_TABLES)
        .map(|index| first + 4096 * index)
        .find(|table| (0..512).all(|entry| read64(table + 8 * entry) == 0))
        .ok_or("the device's registers lie in more places than can be mapped")
}
