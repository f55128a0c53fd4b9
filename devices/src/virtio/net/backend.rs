//! What stands behind a network device: something that frames go to and come from.

use std::io;
use std::os::fd::BorrowedFd;

use super::header::Header;
use crate::virtio::queue::{Datagram, GuestIo};

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

    /// Sends one frame, without waiting. [`WouldBlock`](io::ErrorKind::WouldBlock) keeps it for when the descriptor is
    /// writable; any other error loses it.
    fn send(&mut self, header: &Header, frame: &mut GuestIo) -> io::Result<()> {
        frame.send(self.fd(), header.bytes())
    }
}
