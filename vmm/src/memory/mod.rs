//! Guest RAM: one private mapping per region, given to KVM as one memory slot each. Fresh RAM is anonymous; that of a restored
//! VM is its snapshot's file, of which only the pages that are touched are ever read ([`image`]), or what another process brings
//! ([`uffd`]).
//!
//! Slots are set before any interrupt controller exists: afterwards each waits out a grace period of milliseconds.

pub(crate) mod files;
pub(crate) mod image;
mod pages;
pub(crate) mod uffd;
pub(crate) mod working_set;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use berth_arch::x86_64::layout;
use berth_devices::Memory;
use files::MappedFile;
use image::Image;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

/// Why guest RAM cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error("memory: the host refused to map {mib} MiB of guest memory: {cause}")]
    Map {
        /// Size of the region in MiB.
        mib: u64,
        /// What the system said.
        cause: String,
    },
    /// No page-fault handler.
    #[error("{}: {what}: {cause}", .path.display())]
    Handler {
        /// Its socket.
        path: PathBuf,
        /// What went wrong.
        what: &'static str,
        /// What the system said.
        cause: io::Error,
    },
    /// KVM refused the slot.
    #[error("KVM refused guest memory at {base:#x} (KVM_SET_USER_MEMORY_REGION): {cause}")]
    Slot {
        /// Guest physical base of the region.
        base: u64,
        /// What KVM said.
        cause: kvm_ioctls::Error,
    },
}

/// All that a guest has in its physical address space and need not ask a device for.
#[derive(Clone)]
pub(crate) struct GuestMemory {
    /// RAM: what a snapshot holds.
    pub(crate) ram: Arc<Memory>,
    /// RAM and the files that the guest may write: what devices reach.
    pub(crate) reach: Arc<Memory>,
    /// The files that it may only read.
    pub(crate) read_only: Arc<Memory>,
}

impl GuestMemory {
    /// RAM, and files behind it.
    pub(crate) fn new(ram: Arc<Memory>, files: Vec<MappedFile>) -> Result<Self, MemoryError> {
        let (mut reach, mut read_only) = (ram.clone(), Arc::<Memory>::default());
        for MappedFile { region, writable } in files {
            let (base, len) = (region.start_addr().0, region.len());
            let place = if writable { &mut reach } else { &mut read_only };
            let more = place.insert_region(region);
            *place = Arc::new(more.map_err(|cause| MemoryError::Map {
                mib: len >> 20,
                cause: format!("{base:#x}: {cause}"),
            })?);
        }
        Ok(Self {
            ram,
            reach,
            read_only,
        })
    }
}

/// Maps `size` bytes of RAM, laid out around the MMIO gap.
pub(crate) fn map(size: u64) -> Result<Arc<Memory>, MemoryError> {
    map_regions(size, |len, _| {
        MmapRegionBuilder::new(len as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
    })
}

/// Maps the RAM in `image`, privately: nothing is read before it is touched, and what is written is this process's own.
pub(crate) fn map_image(image: &Image) -> Result<Arc<Memory>, MemoryError> {
    let file = Arc::new(image.file.try_clone().map_err(|cause| MemoryError::Map {
        mib: image.identity.size >> 20,
        cause: cause.to_string(),
    })?);
    map_regions(image.identity.size, |len, offset| {
        MmapRegionBuilder::new(len as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(file.clone(), offset))
            .build()
    })
}

/// Maps each region by `map`, which gets its length and what the regions before it have taken.
fn map_regions(
    size: u64,
    map: impl Fn(u64, u64) -> Result<MmapRegion, MmapRegionError>,
) -> Result<Arc<Memory>, MemoryError> {
    let refused = |len: u64, cause: &dyn std::fmt::Display| MemoryError::Map {
        mib: len >> 20,
        cause: cause.to_string(),
    };
    let mut regions = Vec::new();
    let mut offset = 0;
    for (base, len) in layout::ram_regions(size) {
        let mapping = map(len, offset).map_err(|error| refused(len, &error))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(base))
            .ok_or_else(|| refused(len, &"the region ends past the address space"))?;
        regions.push(region);
        offset += len;
    }
    Memory::from_regions(regions)
        .map(Arc::new)
        .map_err(|error| refused(size, &error))
}

/// Gives every region of `memory` to the VM as a slot.
///
/// The VM must be closed before the last reference to `memory` is dropped.
pub(crate) fn set_slots(vm: &VmFd, memory: &GuestMemory) -> Result<(), MemoryError> {
    let writable = memory.reach.iter().map(|region| (region, 0));
    let read_only = memory.read_only.iter().map(|region| (region, KVM_MEM_READONLY));
    for (slot, (region, flags)) in (0..).zip(writable.chain(read_only)) {
        let base = region.start_addr().0;
        let slot = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: base,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is one live mapping of exactly this size, made by `map` above or `files::map` and no other slot; the
        // guest may write all of it, or none where the slot says so, and Rust code reaches it only through volatile accesses. The
        // caller keeps the mapping until the VM is gone.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|cause| MemoryError::Slot { base, cause })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_past_the_gap_continues_at_4_gib() {
        let memory = map(5 << 30).unwrap();
        assert_eq!(memory.iter().map(GuestMemoryRegion::len).sum::<u64>(), 5 << 30);
        memory.write_obj(7u8, GuestAddress(1 << 32)).unwrap();
        assert!(memory.write_obj(7u8, GuestAddress(layout::MMIO_GAP)).is_err());
    }
}
