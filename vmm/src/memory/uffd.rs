//! Guest RAM whose pages another process brings, by the protocol of Firecracker's page-fault handlers.
//!
//! The handler listens on a Unix socket. Berth maps the RAM, registers it with a userfaultfd, connects, and sends that descriptor
//! with a JSON array that says which part of the memory file each mapping is. From then on whoever touches a page that is not there
//! yet waits until the handler has put it there.
//!
//! A handler that is gone leaves them waiting for ever, so Berth watches it: once its end of the connection is closed and its
//! process has ended, the VM ends with a fault.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use berth_devices::Memory;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::Serialize;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::pages::PAGE;
use super::{MemoryError, map};
use crate::exit_code;
use crate::stop::{StopCell, StopReason};

/// `struct uffdio_api` (linux/userfaultfd.h).
#[repr(C)]
#[derive(Default)]
struct Api {
    version: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Default)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

ioctl_iowr_nr!(UFFDIO_API, 0xaa, 0x3f, Api);
ioctl_iowr_nr!(UFFDIO_REGISTER, 0xaa, 0x00, Register);

/// The version of the interface.
const API: u64 = 0xaa;
/// Tell the handler of pages that were given back, which must then read as zeros (UFFD_FEATURE_EVENT_REMOVE).
const EVENT_REMOVE: u64 = 1 << 3;
/// Faults of pages that are not there (UFFDIO_REGISTER_MODE_MISSING).
const MISSING: u64 = 1;
/// How long the VM has to end in good order once its handler is gone.
const GRACE: Duration = Duration::from_secs(1);

/// What the handler is told of each mapping; the names are Firecracker's.
#[derive(Debug, Serialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: usize,
    offset: u64,
    page_size: usize,
    /// An old name of `page_size`, in bytes as well.
    page_size_kib: usize,
}

/// The process that brings pages. Dropped, pages that are not there are zeros.
#[derive(Debug)]
pub(crate) struct Handler {
    socket: PathBuf,
    _faults: OwnedFd,
    stream: UnixStream,
    /// The process that listens, if this host tells.
    process: Option<OwnedFd>,
}

/// Maps `size` bytes of RAM whose pages the handler that listens on `socket` brings.
pub(crate) fn map_handled(size: u64, socket: &Path) -> Result<(Arc<Memory>, Handler), MemoryError> {
    let wrong = |what: &'static str| {
        let path = socket.to_owned();
        move |cause: io::Error| MemoryError::Handler { path, what, cause }
    };
    let memory = map(size)?;
    // SAFETY: the descriptor concerns only memory that is registered with it, which is below.
    let faults = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }
        .map_err(io::Error::from)
        .map_err(wrong("this host gives no userfaultfd"))?;
    let mut api = Api {
        version: API,
        features: EVENT_REMOVE,
        ioctls: 0,
    };
    // SAFETY: the structure is what this request reads and writes.
    check(unsafe { ioctl_with_mut_ref(&faults, UFFDIO_API(), &mut api) })
        .map_err(wrong("this host's userfaultfd is another (UFFDIO_API)"))?;
    let mut mappings = Vec::new();
    let mut offset = 0;
    for region in memory.iter() {
        let len = region.len() as usize;
        let base = region.as_ptr().addr() as u64;
        let mut register = Register {
            start: base,
            len: region.len(),
            mode: MISSING,
            ioctls: 0,
        };
        // SAFETY: the structure is what this request reads and writes. The range is one live mapping that nobody has touched:
        // what its pages will hold is up to the handler, and all that reads guest memory takes it for hostile.
        check(unsafe { ioctl_with_mut_ref(&faults, UFFDIO_REGISTER(), &mut register) })
            .map_err(wrong("this host cannot pass on page faults (UFFDIO_REGISTER)"))?;
        mappings.push(Mapping {
            base_host_virt_addr: base,
            size: len,
            offset,
            page_size: PAGE,
            page_size_kib: PAGE,
        });
        offset += region.len();
    }
    let stream = UnixStream::connect(socket).map_err(wrong("no page-fault handler listens there"))?;
    let text = serde_json::to_string(&mappings)
        .map_err(io::Error::other)
        .map_err(wrong("the mappings cannot be written"))?;
    let told = stream.send_with_fd(text.as_bytes(), faults.as_raw_fd());
    let told = told.map_err(|error| io::Error::from_raw_os_error(error.errno()));
    if told.map_err(wrong("the page-fault handler cannot be told of the memory"))? != text.len() {
        return Err(wrong("the page-fault handler cannot be told of the memory")(
            io::ErrorKind::WriteZero.into(),
        ));
    }
    let process = socket_peercred(&stream)
        .and_then(|peer| pidfd_open(peer.pid, PidfdFlags::empty()))
        .ok();
    let handler = Handler {
        socket: socket.to_owned(),
        _faults: faults,
        stream,
        process,
    };
    Ok((memory, handler))
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

impl Handler {
    /// Ends the VM when the handler is gone.
    pub(crate) fn watch(&self, stop: Arc<StopCell>) -> io::Result<()> {
        let stream = self.stream.try_clone()?;
        let process = self.process.as_ref().map(OwnedFd::try_clone).transpose()?;
        let sentence = format!(
            "{}: the page-fault handler has ended, and with it the guest's memory",
            self.socket.display()
        );
        thread::Builder::new()
            .name("page-faults".to_owned())
            .spawn(move || {
                // A handler may close the connection and go on; one that another process listens for keeps it open.
                wait_for(&stream, PollFlags::RDHUP);
                if let Some(process) = &process {
                    wait_for(process, PollFlags::IN);
                }
                if stop.is_stopped() {
                    return;
                }
                stop.stop(StopReason::Fault(sentence.clone()));
                // Threads that wait for a page cannot be asked to end.
                thread::sleep(GRACE);
                let _ = writeln!(io::stderr(), "berth: {sentence}");
                std::process::exit(exit_code::FAULT.into());
            })?;
        Ok(())
    }
}

fn wait_for(fd: impl AsFd, flags: PollFlags) {
    let mut fds = [PollFd::new(&fd, flags)];
    while poll(&mut fds, None) == Err(Errno::INTR) {}
}
