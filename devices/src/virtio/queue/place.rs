//! A ring in guest memory, found once: looking an address up for every index that is read or written costs more than the access.

#![allow(unsafe_code)]

use std::sync::Arc;

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileSlice};

use crate::Memory;

/// `len` bytes of guest memory.
#[derive(Clone)]
pub(super) struct Place {
    memory: Arc<Memory>,
    addr: GuestAddress,
    len: usize,
    /// Where they are in our own address space; null if they lie in more than one region.
    host: *mut u8,
}

// SAFETY: `host` points into the guest memory that `memory` keeps mapped, wherever the value goes, and guest memory may be touched by any
// thread.
unsafe impl Send for Place {}

impl Place {
    pub(super) fn new(memory: &Arc<Memory>, addr: GuestAddress, len: usize) -> Self {
        let slice = memory.get_slice(addr, len);
        Self {
            memory: memory.clone(),
            addr,
            len,
            host: slice.map_or(std::ptr::null_mut(), |slice| slice.ptr_guard_mut().as_ptr()),
        }
    }

    pub(super) fn addr(&self) -> GuestAddress {
        self.addr
    }

    /// `len` bytes from `offset` on. Those that lie in two regions are not to be had.
    pub(super) fn slice(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if inside && !self.host.is_null() {
            // SAFETY: `host` and the `self.len` bytes from there on are one slice of `memory`, which `new` was given by it and which it
            // keeps mapped as long as `self` lives, and these are among them. All access to guest memory is volatile.
            return Ok(unsafe { VolatileSlice::new(self.host.wrapping_add(offset), len) });
        }
        let addr = self.addr.checked_add(offset as u64);
        let addr = addr.ok_or(GuestMemoryError::GuestAddressOverflow)?;
        self.memory.get_slice(addr, len)
    }
}
