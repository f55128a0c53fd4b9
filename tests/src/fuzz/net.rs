//! A network card whose other end is a pair of sockets: the fuzzer makes the frames for it and the requests to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use berth_devices::virtio::conformance;
use berth_devices::virtio::net::{Net, NetBackend, Steering};

/// What the card is told it may leave to its backend: checksums, TCP segments, both ways.
const OFFLOADS: u64 = 0b1111_1000_0011;

pub(super) struct Pair {
    card: UnixDatagram,
}

impl Pair {
    /// The card's backend and its other end, which must be kept.
    pub(super) fn new() -> (Self, UnixDatagram) {
        let (card, host) = UnixDatagram::pair().expect("the host gives a pair of sockets");
        for socket in [&card, &host] {
            socket.set_nonblocking(true).expect("a socket can be nonblocking");
        }
        (Self { card }, host)
    }
}

impl NetBackend for Pair {
    fn fd(&self) -> BorrowedFd<'_> {
        self.card.as_fd()
    }

    fn features(&self) -> u64 {
        OFFLOADS
    }

    fn start(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn receives_by(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }

    fn sends_by(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }
}

/// Spreads nothing: what comes by which pair of queues is the input's affair.
struct Anywhere;

impl Steering for Anywhere {
    fn spread(&mut self, _: u16) -> io::Result<()> {
        Ok(())
    }
}

/// The first byte says how many frames wait for the guest, and how many pairs of queues its card has; each frame is a length and as many
/// of the bytes that follow.
pub(super) fn run(data: &[u8]) {
    let (pair, host) = Pair::new();
    let (count, several, mut rest) = data
        .split_first()
        .map_or((0, 0, data), |(first, rest)| (first % 5, first / 5 % 3, rest));
    for _ in 0..count {
        let Some((head, after)) = rest.split_first_chunk::<2>() else {
            break;
        };
        let len = usize::from(u16::from_le_bytes(*head));
        let (bytes, after) = after.split_at(after.len().min(40));
        let mut frame = bytes.to_vec();
        frame.resize(len, 0x5a);
        // A queue that is full drops it, as networks do.
        let _ = host.send(&frame);
        rest = after;
    }
    let mac = [2, 0, 0, 0, 0, 1];
    let (others, _hosts): (Vec<_>, Vec<_>) = (0..several).map(|_| Pair::new()).unzip();
    let net = if others.is_empty() {
        Net::new(Box::new(pair), mac)
    } else {
        let all = std::iter::once(pair).chain(others);
        let all = all.map(|pair| Box::new(pair) as Box<dyn NetBackend>);
        Net::with_pairs(all.collect(), Box::new(Anywhere), mac)
    };
    conformance::fuzz_queue(Box::new(net), rest);
}
