//! What the guest tells of its memory (virtio 1.3, section 5.5.6.3).

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::virtio::queue::RequestChain;

/// Bytes of one statistic: its tag and its value.
const ENTRY: usize = 10;
/// Tags that a driver may name before the rest is left unread: more than there are, each several times.
const MOST: usize = 64;

/// What a guest last told of its memory. What it did not tell is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BalloonStats {
    /// Bytes swapped in.
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that needed I/O.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Bytes that nothing uses.
    pub free_memory: Option<u64>,
    /// Bytes of memory, the balloon's not among them.
    pub total_memory: Option<u64>,
    /// Bytes that a new program could have without swapping.
    pub available_memory: Option<u64>,
    /// Bytes of files kept in memory.
    pub disk_caches: Option<u64>,
    /// Huge pages that were had.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that were not to be had.
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait.
    pub alloc_stall: Option<u64>,
    /// Pages looked at in the background.
    pub async_scan: Option<u64>,
    /// Pages looked at by who wanted some.
    pub direct_scan: Option<u64>,
    /// Pages reclaimed in the background.
    pub async_reclaim: Option<u64>,
    /// Pages reclaimed by who wanted some.
    pub direct_reclaim: Option<u64>,
}

impl BalloonStats {
    /// Takes over what `request` says; later entries of a tag go before earlier ones, and unknown tags are left.
    pub(super) fn update(&mut self, request: &RequestChain) {
        for index in 0..MOST {
            let mut entry = [0; ENTRY];
            if request.read_at((index * ENTRY) as u32, &mut entry) < ENTRY {
                return;
            }
            let [t0, t1, value @ ..] = entry;
            if let Some(slot) = self.slot(u16::from_le_bytes([t0, t1])) {
                *slot = Some(u64::from_le_bytes(value));
            }
        }
    }

    fn slot(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_memory,
            5 => &mut self.total_memory,
            6 => &mut self.available_memory,
            7 => &mut self.disk_caches,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            10 => &mut self.oom_kill,
            11 => &mut self.alloc_stall,
            12 => &mut self.async_scan,
            13 => &mut self.direct_scan,
            14 => &mut self.async_reclaim,
            15 => &mut self.direct_reclaim,
            _ => return None,
        })
    }
}
