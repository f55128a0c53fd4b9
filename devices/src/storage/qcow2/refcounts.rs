//! What an image says of which clusters are in use, checked before it is written.
//!
//! A cluster that holds a table, and is said to be free, would be given to the guest's data. Only what keeps the tables safe is looked at;
//! whether the guest's data is all right is its own affair, and `qemu-img check`'s.

use std::collections::HashSet;

use super::Qcow2Fault;
use super::header::{Bytes, HEADER_3, damaged, long, word};

/// The offset in an entry of either kind of table.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

struct Counts<'a> {
    file: &'a Bytes<'a>,
    /// Offsets of the blocks of counts.
    table: Vec<u64>,
    cluster: u64,
    /// A count has two to this bits.
    order: u32,
}

impl Counts<'_> {
    fn in_use(&self, cluster: u64) -> Result<bool, Qcow2Fault> {
        let in_block = (self.cluster * 8) >> self.order;
        let block = usize::try_from(cluster / in_block)
            .ok()
            .and_then(|at| self.table.get(at));
        let Some(block) = block.filter(|block| **block != 0) else {
            return Ok(false);
        };
        let bit = (cluster % in_block) << self.order;
        let bytes: [u8; 8] = self.file.get(block + bit / 8)?;
        if self.order < 3 {
            let mask = (1_u16 << (1 << self.order)) - 1;
            return Ok(u16::from(bytes[0] >> (bit % 8)) & mask != 0);
        }
        Ok(bytes[..1 << (self.order - 3)].iter().any(|byte| *byte != 0))
    }
}

/// Checks that each cluster that holds a table is in use, and by that table alone. The header was checked; the file has `length` bytes.
pub(super) fn check(
    file: &Bytes<'_>,
    header: &[u8; HEADER_3],
    cluster: u64,
    length: u64,
) -> Result<(), Qcow2Fault> {
    let read_table = |at: u64, bytes: u64| -> Result<Vec<u64>, Qcow2Fault> {
        let mut table = vec![0; bytes as usize];
        file.fill(&mut table, at)?;
        Ok(table
            .chunks_exact(8)
            .map(|entry| long(entry, 0) & OFFSET)
            .collect())
    };
    let (l1_at, l1_len) = (long(header, 40), u64::from(word(header, 36)) * 8);
    let (table_at, table_len) = (long(header, 48), u64::from(word(header, 56)) * cluster);
    let counts = Counts {
        file,
        table: read_table(table_at, table_len)?,
        cluster,
        order: if word(header, 4) == 2 { 4 } else { word(header, 96) },
    };
    let l1 = read_table(l1_at, l1_len)?;
    let range = |at: u64, len: u64| at / cluster..(at + len).div_ceil(cluster);
    let whole = [range(0, 1), range(l1_at, l1_len), range(table_at, table_len)];
    let mut seen = HashSet::new();
    let blocks = counts.table.iter().chain(&l1).filter(|offset| **offset != 0);
    for offset in blocks.clone() {
        if !offset.is_multiple_of(cluster) || *offset >= length {
            return damaged("one of its tables is not within the file");
        }
    }
    for at in whole
        .into_iter()
        .flatten()
        .chain(blocks.map(|offset| offset / cluster))
    {
        if !seen.insert(at) {
            return damaged("two of its tables lie in the same place");
        }
        if !counts.in_use(at)? {
            return damaged("one of its tables lies where it says that nothing is");
        }
    }
    Ok(())
}
