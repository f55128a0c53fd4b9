//! Work beside the machine: a copy of this process, made in an instant, does it with the memory as it was then, while the guest
//! goes on. Pages that either writes meanwhile are copied by the kernel.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use rustix::process::{Pid, WaitOptions, waitpid};

/// A copy of this process that works.
#[derive(Debug)]
pub(crate) struct Beside {
    pid: Pid,
    said: io::PipeReader,
}

/// Has a copy of this process do `work`, for which it keeps the descriptors `keep` of all that it has. What `work` changes, it
/// changes in the copy alone.
///
/// The copy has this thread only. Nobody holds a lock that `work` needs for longer than that is inherited: the allocator's own are
/// seen to by the C library, and `work` must log nothing.
pub(crate) fn begin(keep: &[RawFd], work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<Beside> {
    let (said, mut teller) = io::pipe()?;
    let mut keep = keep.to_vec();
    keep.push(teller.as_raw_fd());
    keep.sort_unstable();
    // SAFETY: the copy runs what follows on this thread's stack, calls nothing that waits for another thread, and ends by `_exit`
    // without a destructor of anything that the other threads or this process still use.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let done = close_all_but(&keep).and_then(|()| work());
            let failed = match done {
                Ok(()) => 0,
                Err(error) => {
                    // Who does not listen sees the status.
                    let _ = teller.write_all(error.to_string().as_bytes());
                    1
                }
            };
            // SAFETY: ends the copy; nothing of it is used again.
            unsafe { libc::_exit(failed) }
        }
        pid => {
            // A process's number is positive.
            let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
            Ok(Beside { pid, said })
        }
    }
}

/// Closes what the copy does not need, so that whoever waits for the end of a descriptor waits for this process alone.
fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut first = 3;
    let ends = keep.iter().map(|fd| fd.cast_unsigned());
    for end in ends.chain([libc::c_uint::MAX]) {
        if end > first {
            let last = if end == libc::c_uint::MAX { end } else { end - 1 };
            // SAFETY: only the copy calls this, in which no value that owns one of these descriptors is used or dropped again.
            if unsafe { libc::close_range(first, last, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = first.max(end.saturating_add(1));
    }
    Ok(())
}

impl Beside {
    /// Waits until it is done.
    pub(crate) fn wait(mut self) -> io::Result<()> {
        let mut said = String::new();
        self.said.read_to_string(&mut said)?;
        let status = waitpid(Some(self.pid), WaitOptions::empty())?;
        if status.is_some_and(|(_, status)| status.exit_status() == Some(0)) {
            Ok(())
        } else if said.is_empty() {
            Err(io::Error::other("the process that did it was ended"))
        } else {
            Err(io::Error::other(said))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_with_memory_as_it_was_and_changes_nothing_here() {
        let mut file = tempfile::tempfile().unwrap();
        let mut text = "before".to_owned();
        let (gate, mut opener) = io::pipe().unwrap();
        let copy = {
            let text = &mut text;
            let (mut gate, mut file) = (&gate, &file);
            let keep = [gate.as_raw_fd(), file.as_raw_fd()];
            begin(&keep, &mut || {
                gate.read_exact(&mut [0])?;
                text.push_str(" and then");
                file.write_all(text.as_bytes())
            })
            .unwrap()
        };
        "after".clone_into(&mut text);
        opener.write_all(b"x").unwrap();
        copy.wait().unwrap();
        let mut written = String::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut written).unwrap();
        assert_eq!((written.as_str(), text.as_str()), ("before and then", "after"));
    }

    #[test]
    fn what_goes_wrong_is_said_and_descriptors_are_not_kept() {
        let (mut reader, writer) = io::pipe().unwrap();
        let fd = writer.as_raw_fd();
        let copy = begin(&[], &mut || {
            // SAFETY: asks about a number.
            let gone = unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1;
            Err(io::Error::other(format!("gone: {gone}")))
        });
        let copy = copy.unwrap();
        drop(writer);
        assert_eq!(copy.wait().unwrap_err().to_string(), "gone: true");
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}
