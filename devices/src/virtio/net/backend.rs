//! What stands behind a network device: something that frames go to and come from.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use super::header::{HEADER, Header};
use crate::virtio::queue::{Datagram, GuestIo};

/// The most bytes of a frame that are sent from a copy.
pub const BEGIN_MAX: usize = 64;

/// Takes the guest's frames and has frames for it. Each frame has a virtio header of [`HEADER`](super::HEADER) bytes before it.
pub trait NetBackend: Send {
    /// Readable when a frame may be received, writable when one may be sent.
    fn fd(&self) -> BorrowedFd<'_>;

    /// The checksum and segmentation features that it can carry (virtio 1.3, section 5.1.3).
    fn features(&self) -> u64;

    /// Largest packet that a frame carries, its Ethernet header aside.
    fn mtu(&self) -> u16 {
        1500
    }

    /// A driver negotiated these features: from now on, frames for it need no more of it than they say.
    fn start(&mut self, features: u64) -> io::Result<()>;

    /// Receives one frame with its header, without waiting. What `to` has no room for goes to `spill`.
    fn receive(&mut self, to: &mut GuestIo, spill: &mut [u8]) -> io::Result<Datagram> {
        to.receive(self.fd(), spill)
    }

    /// Sends one frame, without waiting: the bytes of `begin`, [`BEGIN_MAX`] at most, then what `frame` holds.
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) keeps it for when the descriptor is writable; any other error loses it.
    fn send(&mut self, header: &Header, begin: &[u8], frame: &mut GuestIo) -> io::Result<()> {
        send_frame(self.fd(), header, begin, frame)
    }

    /// The descriptor, if to receive a frame now is nothing but one read from it: then many may be received by one system call.
    fn receives_by(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The descriptor, if to send a frame is nothing but one write to it.
    fn sends_by(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The descriptor is readable or writable: time for what the backend itself has left to do.
    fn on_ready(&mut self) {}

    /// A timer after which there may be frames that [`fd`](Self::fd) does not announce.
    fn timer(&self) -> Option<RawFd> {
        None
    }

    /// The timer may be due.
    fn on_timer(&mut self) {}

    /// Whether a frame may be received whatever [`fd`](Self::fd) says: after one was sent, or by the timer.
    fn has_frame(&self) -> bool {
        false
    }
}

/// Spreads the frames for a guest over the backends of a card with several pairs of queues.
pub trait Steering: Send {
    /// From now on frames come by the first `pairs` backends only; on an error by no more than that.
    fn spread(&mut self, pairs: u16) -> io::Result<()>;
}

/// Sends a header, the beginning of a frame and the rest of it as one datagram.
pub(super) fn send_frame(
    fd: BorrowedFd<'_>,
    header: &Header,
    begin: &[u8],
    frame: &mut GuestIo,
) -> io::Result<()> {
    if begin.is_empty() {
        return frame.send(fd, header.bytes());
    }
    let mut head = [0; HEADER + BEGIN_MAX];
    let len = HEADER + begin.len();
    head[..HEADER].copy_from_slice(header.bytes());
    head[HEADER..len].copy_from_slice(begin);
    frame.send(fd, &head[..len])
}
