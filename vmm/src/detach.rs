//! A process of its own: apart from the terminal and the session it was started from, with none of their files.

use std::io;

/// Leaves the caller's session and closes every descriptor but the standard ones. To be called first thing in `main`.
pub(crate) fn detach() -> io::Result<()> {
    // SAFETY: closes descriptors that the program was started with by mistake. It has only just begun and has opened none,
    // so no value owns one.
    let closed = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if closed != 0 {
        return Err(io::Error::last_os_error());
    }
    // Fails for the leader of a process group, which nobody makes a process that is started for this.
    rustix::process::setsid()?;
    Ok(())
}
