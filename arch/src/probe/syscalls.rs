//! System calls that neither the standard library nor rustix wraps safely. Each only asks and leaves nothing behind.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// The version of Landlock (`Documentation/userspace-api/landlock.rst`).
pub(super) fn landlock_abi() -> io::Result<i64> {
    const VERSION: libc::c_long = 1;
    // SAFETY: with a null attribute, size 0 and this flag the call reads no memory and returns a number.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, VERSION) };
    if abi < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(abi)
    }
}

/// Makes the smallest io_uring and drops it.
pub(super) fn io_uring() -> io::Result<()> {
    // struct io_uring_params: 120 bytes, zero = no options; the kernel fills it.
    let mut params = [0u64; 15];
    // SAFETY: `params` is writable, aligned and as long as the kernel's structure.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    close(fd)
}

/// Makes a userfaultfd and drops it; `user_mode` = one for faults of user space only, which needs no right.
pub(super) fn userfaultfd(user_mode: bool) -> io::Result<()> {
    const USER_MODE_ONLY: libc::c_int = 1;
    let flags = libc::O_CLOEXEC | if user_mode { USER_MODE_ONLY } else { 0 };
    // SAFETY: the call takes one number and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    close(fd)
}

fn close(fd: libc::c_long) -> io::Result<()> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(())
}
