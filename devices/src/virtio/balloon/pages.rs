//! Pages that the guest gives up: from what a driver names to ranges of guest RAM.

#![forbid(unsafe_code)]

use std::io;
use std::ops::Range;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::{Memory, warn_guest};

/// Bytes of a balloon's page, whatever pages the guest has (virtio 1.3, section 5.5.6).
pub const PAGE: u64 = 4096;

/// How the host gets back what stands behind guest memory. Only who mapped it knows how.
pub trait PageReturner: Send {
    /// Gives the host what stands behind `len` bytes from `addr`: whole pages of one region of `memory`. They read as zeros
    /// until the guest writes to them again.
    fn give_back(&self, memory: &Memory, addr: GuestAddress, len: u64) -> io::Result<()>;
}

/// Turns page numbers into few ranges of addresses: sorted, each page once, neighbours together.
pub(super) fn ranges(pages: &mut [u32]) -> impl Iterator<Item = Range<u64>> {
    pages.sort_unstable();
    let mut pages = pages.iter().map(|page| u64::from(*page)).peekable();
    std::iter::from_fn(move || {
        let first = pages.next()?;
        let mut end = first + 1;
        while let Some(page) = pages.next_if(|page| *page <= end) {
            end = end.max(page + 1);
        }
        Some(first * PAGE..end * PAGE)
    })
}

/// Gives back the whole pages of `range` that are RAM; whatever else is in it is not the guest's to give.
pub(super) fn give_back(returner: &dyn PageReturner, memory: &Memory, range: &Range<u64>) {
    let start = range.start.next_multiple_of(PAGE);
    let end = range.end / PAGE * PAGE;
    let mut left = end.saturating_sub(start);
    for region in memory.iter() {
        let base = region.start_addr().0;
        let from = start.max(base);
        let to = end.min(base.saturating_add(region.len()));
        if from >= to {
            continue;
        }
        left -= to - from;
        if let Err(cause) = returner.give_back(memory, GuestAddress(from), to - from) {
            warn_guest!("virtio-balloon: the host does not take back memory: {cause}");
        }
    }
    if left > 0 {
        warn_guest!(
            "virtio-balloon: the guest gave up {left} bytes from {start:#x} on that are not its memory"
        );
    }
}
