//! The metadata service on a network card: what a guest sends to one link-local address is answered here and goes no further
//! (Firecracker's MMDS, after EC2's instance metadata service).
//!
//! ```text
//!   guest ──▶ transmit ──▶ Mmds ──▶ the backend: all other frames
//!                           │ ▲
//!                      ARP  ▼ │  answers come before the backend's frames, on the receive queue
//!                      Stack: TCP, a few connections ──▶ http: requests ──▶ MetadataStore
//! ```
//! Every frame for the address is taken, whatever is in it: on a cloud's machine the same address leads to the host's own
//! metadata. What decides is copied before it is looked at, and the copy is what is sent, so a guest cannot change it between.

#![forbid(unsafe_code)]

mod counts;
mod http;
mod link;
mod stack;
mod store;
mod token;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;

use super::backend::NetBackend;
use super::header::Header;
use crate::timer::Timer;
use crate::virtio::queue::{Datagram, GuestIo};
use counts::Event;
use link::{DECIDES, is_for, is_frame};
use stack::Stack;

pub use counts::MMDS_COUNTS;
pub use http::MmdsConfig;
pub use store::{DEFAULT_LIMIT, MetadataError, MetadataStore};

/// Where the service is if nobody says otherwise.
pub const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Whether the service can be at `address`: a link-local one that nothing else has a claim to (RFC 3927, section 2.1).
pub fn is_possible_address(address: Ipv4Addr) -> bool {
    let [_, _, third, _] = address.octets();
    address.is_link_local() && third != 0 && third != 255
}

/// A backend with the metadata service before it.
pub struct Mmds {
    backend: Box<dyn NetBackend>,
    address: Ipv4Addr,
    store: Arc<MetadataStore>,
    stack: Stack,
    timer: Timer,
    /// The frame that is being looked at.
    frame: Vec<u8>,
}

impl Mmds {
    /// Puts the service before `backend`. It fails only if the host has no descriptor or no random bytes to give.
    pub fn new(
        backend: Box<dyn NetBackend>,
        config: MmdsConfig,
        store: Arc<MetadataStore>,
    ) -> io::Result<Self> {
        Ok(Self {
            address: config.address,
            stack: Stack::new(config, store.clone(), backend.mtu())?,
            store,
            backend,
            timer: Timer::new()?,
            frame: Vec::new(),
        })
    }

    fn set_timer(&mut self) {
        match self.stack.wakes_after() {
            Some(after) => self.timer.once(after),
            None => self.timer.stop(),
        }
    }
}

impl NetBackend for Mmds {
    fn fd(&self) -> BorrowedFd<'_> {
        self.backend.fd()
    }

    fn features(&self) -> u64 {
        self.backend.features()
    }

    fn mtu(&self) -> u16 {
        self.backend.mtu()
    }

    fn start(&mut self, features: u64) -> io::Result<()> {
        self.backend.start(features)
    }

    fn on_ready(&mut self) {
        self.backend.on_ready();
    }

    fn timer(&self) -> Option<RawFd> {
        Some(self.timer.fd())
    }

    fn on_timer(&mut self) {
        if self.timer.rang() {
            self.stack.poll();
            self.set_timer();
        }
    }

    fn has_frame(&self) -> bool {
        self.stack.has_frame()
    }

    fn receives_by(&self) -> Option<BorrowedFd<'_>> {
        if self.stack.has_frame() {
            return None;
        }
        self.backend.receives_by()
    }

    fn receive(&mut self, to: &mut GuestIo, spill: &mut [u8]) -> io::Result<Datagram> {
        let Some(frame) = self.stack.take_frame() else {
            return self.backend.receive(to, spill);
        };
        self.set_timer();
        self.store.count(Event::Sent);
        let in_place = to.copy_from(&frame);
        let rest = &frame[in_place..];
        // A spill holds any frame.
        let spilt = rest.len().min(spill.len());
        if spilt < rest.len() {
            self.store.count(Event::SendError);
        }
        spill[..spilt].copy_from_slice(&rest[..spilt]);
        Ok(Datagram {
            len: in_place + spilt,
            in_place,
        })
    }

    fn send(&mut self, header: &Header, begin: &[u8], frame: &mut GuestIo) -> io::Result<()> {
        // Two services before one backend: the outer one has copied already.
        let mut copy = [0; DECIDES];
        let begin = if begin.is_empty() {
            let len = frame.copy_to(&mut copy);
            &copy[..len]
        } else {
            begin
        };
        if !is_for(self.address, begin) {
            if !is_frame(begin) {
                self.store.count(Event::BadEthernet);
            }
            // Tried again here: what was copied is not in `frame` any more.
            loop {
                match self.backend.send(header, begin, frame) {
                    Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                    result => return result,
                }
            }
        }
        self.frame.clear();
        self.frame.extend_from_slice(begin);
        let rest = usize::try_from(frame.len()).unwrap_or_default();
        self.frame.resize(begin.len() + rest, 0);
        frame.copy_to(&mut self.frame[begin.len()..]);
        self.stack.take(&self.frame);
        self.set_timer();
        Ok(())
    }
}
