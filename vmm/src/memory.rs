//! Guest RAM: one private anonymous mapping per region, given to KVM as one memory slot each.
//!
//! Slots are set before any interrupt controller exists: afterwards each waits out a grace period of milliseconds.

use std::sync::Arc;

use berth_arch::x86_64::layout;
use berth_devices::Memory;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

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
    /// KVM refused the slot.
    #[error("KVM refused guest memory at {base:#x} (KVM_SET_USER_MEMORY_REGION): {cause}")]
    Slot {
        /// Guest physical base of the region.
        base: u64,
        /// What KVM said.
        cause: kvm_ioctls::Error,
    },
}

/// Maps `size` bytes of RAM, laid out around the MMIO gap.
pub(crate) fn map(size: u64) -> Result<Arc<Memory>, MemoryError> {
    let refused = |len: u64, cause: &dyn std::fmt::Display| MemoryError::Map {
        mib: len >> 20,
        cause: cause.to_string(),
    };
    let mut regions = Vec::new();
    for (base, len) in layout::ram_regions(size) {
        let mapping = MmapRegionBuilder::new(len as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| refused(len, &error))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(base))
            .ok_or_else(|| refused(len, &"the region ends past the address space"))?;
        regions.push(region);
    }
    Memory::from_regions(regions)
        .map(Arc::new)
        .map_err(|error| refused(size, &error))
}

/// Gives every region of `memory` to the VM as a slot.
///
/// The VM must be closed before the last reference to `memory` is dropped.
pub(crate) fn set_slots(vm: &VmFd, memory: &Memory) -> Result<(), MemoryError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let base = region.start_addr().0;
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: base,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is one live mapping of exactly this size, made by `map` above and no other slot; the guest
        // may write all of it, and Rust code reaches it only through volatile accesses. The caller keeps the mapping
        // until the VM is gone.
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
