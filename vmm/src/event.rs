//! An event fd as a descriptor to poll, which vmm-sys-util's type is not.

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// Borrows the descriptor of `event`.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: `event` owns the descriptor, does not close it before it is dropped, and outlives the result.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
