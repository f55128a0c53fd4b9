//! The service's side of TCP: smoltcp between the guest's segments and the requests in them.
//!
//! A guest can open any number of connections and send anything on them. There are never more than [`CONNECTIONS`]: one more
//! takes the place of the one that has been silent longest, so nobody is kept out for long. Frames for the guest wait in a
//! queue of [`FRAMES`]; while it is full the stack sends nothing more.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use rustix::rand::{GetRandomFlags, getrandom};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant as StackInstant};
use smoltcp::wire::{EthernetAddress, EthernetProtocol, HardwareAddress, IpCidr, Ipv4Cidr};

use super::counts::Event;
use super::http::{MmdsConfig, REQUEST_MAX, Service};
use super::link::{self, Taken};
use super::store::MetadataStore;
use crate::virtio::net::header::HEADER;

/// Connections at a time.
pub(super) const CONNECTIONS: usize = 16;
/// Frames that may wait for the guest to take them.
const FRAMES: usize = 32;
const PORT: u16 = 80;
/// How much of an answer may be on its way.
const SEND_BUFFER: usize = 16 << 10;
/// How long a guest may leave a segment unacknowledged.
const PATIENCE: Duration = Duration::from_secs(30);
/// Packets are no longer, whatever the backend could carry, and no shorter than IPv4 wants them.
const MTU: std::ops::RangeInclusive<u16> = 576..=1500;

/// TCP, and the service on it.
pub(super) struct Stack {
    address: Ipv4Addr,
    /// Where its work is counted.
    store: Arc<MetadataStore>,
    service: Service,
    link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    listener: SocketHandle,
    born: Instant,
}

/// A connection that was asked for.
struct Connection {
    socket: SocketHandle,
    request: Vec<u8>,
    answer: Vec<u8>,
    /// Bytes of the answer that the socket has.
    sent: usize,
    /// Nothing more is to be said.
    closing: bool,
    /// When it last got on.
    moved: StackInstant,
}

impl Stack {
    pub(super) fn new(config: MmdsConfig, store: Arc<MetadataStore>, mtu: u16) -> io::Result<Self> {
        let mut link = Link {
            guest: EthernetAddress::BROADCAST,
            mtu: mtu.clamp(*MTU.start(), *MTU.end()).into(),
            packet: Vec::new(),
            frames: VecDeque::new(),
        };
        let mut seed = [0; 8];
        getrandom(&mut seed, GetRandomFlags::empty())?;
        let mut own = Config::new(HardwareAddress::Ip);
        // First sequence numbers come of it.
        own.random_seed = u64::from_ne_bytes(seed);
        let mut interface = Interface::new(own, &mut link, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The whole of IPv4 is on this link: the guest's address may be any. There is room for one.
            let _ = addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(config.address, 0)));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let listener = listen(&mut sockets);
        Ok(Self {
            address: config.address,
            service: Service::new(config, store.clone())?,
            store,
            link,
            interface,
            sockets,
            connections: Vec::new(),
            listener,
            born: Instant::now(),
        })
    }

    /// Takes a frame that is for the service.
    pub(super) fn take(&mut self, frame: &[u8]) {
        self.store.count(Event::Accepted);
        let room = self.link.frames.len() < FRAMES;
        let taken = link::look(self.address, frame);
        self.store.count(match taken {
            Taken::Other => Event::Unusual,
            _ if room => Event::Received,
            _ => Event::Lost,
        });
        match taken {
            Taken::Arp(answer) if room => self.link.frames.push_back(answer),
            Taken::Tcp(from, packet) => {
                self.link.guest = from;
                self.link.packet.clear();
                self.link.packet.extend_from_slice(packet);
                self.poll();
            }
            Taken::Arp(_) | Taken::Other => {}
        }
    }

    /// The next frame for the guest, virtio's header before it.
    pub(super) fn take_frame(&mut self) -> Option<Vec<u8>> {
        let frame = self.link.frames.pop_front()?;
        self.store.count(Event::SentFrames);
        self.store.count_many(Event::SentBytes, frame.len() - HEADER);
        if self.link.frames.is_empty() {
            self.poll();
        }
        Some(frame)
    }

    /// Whether there is a frame for the guest.
    pub(super) fn has_frame(&self) -> bool {
        !self.link.frames.is_empty()
    }

    /// When to poll at the latest, if nothing else happens before.
    pub(super) fn wakes_after(&mut self) -> Option<std::time::Duration> {
        // While the queue is full, only its reader gets things going again.
        if self.link.frames.len() >= FRAMES {
            return None;
        }
        let now = self.now();
        let delay = self.interface.poll_delay(now, &self.sockets)?;
        Some(delay.into())
    }

    /// Does what there is to do now.
    pub(super) fn poll(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.link, &mut self.sockets);
        self.accept(now);
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut(connection.socket);
            if connection.serve(socket, &self.service) {
                connection.moved = now;
            }
        }
        self.interface.poll(now, &mut self.link, &mut self.sockets);
        let (sockets, store) = (&mut self.sockets, &self.store);
        self.connections.retain(|connection| {
            let ended = sockets.get::<tcp::Socket>(connection.socket).state() == tcp::State::Closed;
            if ended {
                sockets.remove(connection.socket);
                store.count(Event::Disconnected);
            }
            !ended
        });
    }

    /// Makes a connection of what listened, if somebody came, and listens on.
    fn accept(&mut self, now: StackInstant) {
        if self.sockets.get::<tcp::Socket>(self.listener).is_listening() {
            return;
        }
        if self.connections.len() >= CONNECTIONS {
            let silent = (0..self.connections.len()).min_by_key(|&at| self.connections[at].moved);
            let silent = self.connections.remove(silent.unwrap_or_default());
            // What it still sends is answered by a reset.
            self.sockets.remove(silent.socket);
            self.store.count(Event::Disconnected);
        }
        self.store.count(Event::Connected);
        self.connections.push(Connection {
            socket: self.listener,
            request: Vec::new(),
            answer: Vec::new(),
            sent: 0,
            closing: false,
            moved: now,
        });
        self.listener = listen(&mut self.sockets);
    }

    fn now(&self) -> StackInstant {
        StackInstant::from_micros(i64::try_from(self.born.elapsed().as_micros()).unwrap_or(i64::MAX))
    }
}

fn listen(sockets: &mut SocketSet<'static>) -> SocketHandle {
    let buffer = |size| tcp::SocketBuffer::new(vec![0; size]);
    let mut socket = tcp::Socket::new(buffer(REQUEST_MAX), buffer(SEND_BUFFER));
    socket.set_timeout(Some(PATIENCE));
    // Requests are short and answers are written whole.
    socket.set_ack_delay(None);
    socket.set_nagle_enabled(false);
    // A new socket is closed and the port is not zero.
    let _ = socket.listen(PORT);
    sockets.add(socket)
}

impl Connection {
    /// Reads, answers and sends as far as the socket goes; whether it went at all.
    fn serve(&mut self, socket: &mut tcp::Socket<'_>, service: &Service) -> bool {
        let mut moved = false;
        if socket.state() == tcp::State::SynReceived {
            return moved;
        }
        loop {
            if self.sent < self.answer.len() {
                let sent = socket.send_slice(&self.answer[self.sent..]).unwrap_or(0);
                moved |= sent > 0;
                self.sent += sent;
                if self.sent < self.answer.len() {
                    return moved;
                }
                // A large answer's room is not kept.
                self.answer = Vec::new();
                self.sent = 0;
            }
            if self.closing {
                socket.close();
                return moved;
            }
            moved |= self.read(socket);
            match service.serve(&self.request) {
                Some(served) => {
                    self.request.drain(..served.len);
                    self.answer = served.answer;
                    self.closing = served.close;
                }
                // What a client left unfinished is nobody's request.
                None if !socket.may_recv() => self.closing = true,
                None => return moved,
            }
        }
    }

    fn read(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let had = self.request.len();
        while self.request.len() < REQUEST_MAX && socket.can_recv() {
            let room = REQUEST_MAX - self.request.len();
            let read = socket.recv(|bytes| {
                let len = bytes.len().min(room);
                self.request.extend_from_slice(&bytes[..len]);
                (len, len)
            });
            if !matches!(read, Ok(1..)) {
                break;
            }
        }
        self.request.len() > had
    }
}

/// The card as smoltcp's device. Checksums of the guest's packets are taken as right: they come through memory, and are often
/// left for a device to fill in. For the same reason a segment may be longer than any frame.
struct Link {
    /// Where answers go: to where the last question came from.
    guest: EthernetAddress,
    mtu: usize,
    /// A packet of the guest's; empty if there is none.
    packet: Vec<u8>,
    frames: VecDeque<Vec<u8>>,
}

impl Device for Link {
    type RxToken<'a> = Incoming<'a>;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        if self.packet.is_empty() || self.frames.len() >= FRAMES {
            // A packet that cannot be answered is lost, as on any network.
            self.packet.clear();
            return None;
        }
        let outgoing = Outgoing {
            guest: self.guest,
            frames: &mut self.frames,
        };
        Some((Incoming(&mut self.packet), outgoing))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Outgoing<'_>> {
        (self.frames.len() < FRAMES).then_some(Outgoing {
            guest: self.guest,
            frames: &mut self.frames,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

/// A packet of the guest's, gone when it was looked at.
struct Incoming<'a>(&'a mut Vec<u8>);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        let result = look(self.0);
        self.0.clear();
        result
    }
}

/// Room for a frame for the guest.
struct Outgoing<'a> {
    guest: EthernetAddress,
    frames: &'a mut VecDeque<Vec<u8>>,
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let (frame, result) = link::frame(self.guest, EthernetProtocol::Ipv4, len, fill);
        self.frames.push_back(frame);
        result
    }
}
