//! A network by a stream of frames: each one after its length in four bytes, most significant first. QEMU's stream sockets and
//! passt speak it.
//!
//! ```text
//!   receive:  socket ──read──▶ Incoming ──copy──▶ the guest's buffers       one read brings many frames
//!   send:     the guest's buffers ──writev──▶ socket                        the end of a frame that was cut waits in `unsent`
//! ```
//! A stream cannot lose its place: once a frame's beginning is written, its end follows before anything else. What claims to be
//! longer than any frame ends the stream, and the guest sees its cable pulled.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;

use super::backend::{BEGIN_MAX, NetBackend};
use super::header::{HEADER, Header, LONGEST};
use crate::virtio::queue::{Datagram, GuestIo};

/// Bytes of a frame's length.
const PREFIX: usize = 4;
/// Lengths of a frame: an Ethernet header at least, and what passt takes at most.
const SHORTEST_FRAME: usize = 14;
const LONGEST_FRAME: usize = 65535;
/// Room for received bytes: the longest frame and a good many short ones.
const ROOM: usize = 1 << 17;
/// The largest packet, its Ethernet header aside, as passt tells its guests by DHCP: a multiple of 4.
const MTU: u16 = 65520;

/// What came by the stream and is not the guest's yet.
pub(super) struct Incoming {
    /// Before a frame there is room for a virtio header where its length and older bytes were.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// A stream that says something impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it announced a frame of {0} bytes, and one has {SHORTEST_FRAME} to {LONGEST_FRAME}")]
pub(super) struct NoFrame(usize);

impl Incoming {
    /// Where the first byte goes: the length that comes first is part of the room for a header.
    const FIRST: usize = HEADER - PREFIX;

    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; ROOM].into_boxed_slice(),
            start: Self::FIRST,
            end: Self::FIRST,
        }
    }

    /// The next frame that is there as a whole, with an empty virtio header before it.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, NoFrame> {
        let Some((prefix, rest)) = self.bytes[self.start..self.end].split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*prefix) as usize;
        if !(SHORTEST_FRAME..=LONGEST_FRAME).contains(&len) {
            return Err(NoFrame(len));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let frame = self.start + PREFIX;
        self.start = frame + len;
        let with_header = &mut self.bytes[frame - HEADER..frame + len];
        with_header[..HEADER].fill(0);
        Ok(Some(with_header))
    }

    /// Has `read` bring more. `next` must have found nothing, so that there is room.
    pub(super) fn fill(&mut self, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<()> {
        // What is left is the beginning of one frame.
        if self.start > Self::FIRST {
            self.bytes.copy_within(self.start..self.end, Self::FIRST);
            self.end -= self.start - Self::FIRST;
            self.start = Self::FIRST;
        }
        match read(&mut self.bytes[self.end..])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.end += count;
                Ok(())
            }
        }
    }
}

/// A stream of frames over a Unix socket.
pub struct Stream {
    socket: UnixStream,
    incoming: Incoming,
    /// The end of a frame whose beginning was written.
    unsent: Vec<u8>,
    /// So much of it was written since.
    sent: usize,
    /// The other side is gone, or talks nonsense.
    ended: bool,
}

impl Stream {
    /// A network behind `socket`. It fails only if the socket cannot be made not to wait.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            incoming: Incoming::new(),
            unsent: Vec::new(),
            sent: 0,
            ended: false,
        })
    }

    /// Writes what is left of the last frame.
    fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.unsent.len() {
            match self.socket.write(&self.unsent[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        self.unsent.clear();
        self.sent = 0;
        Ok(())
    }

    fn take(&mut self, to: &mut GuestIo, spill: &mut [u8]) -> io::Result<Datagram> {
        loop {
            let found = self.incoming.next();
            if let Some(frame) = found.map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))? {
                let in_place = to.copy_from(frame);
                let rest = &frame[in_place..];
                // A spill holds any frame.
                let spilt = rest.len().min(spill.len());
                spill[..spilt].copy_from_slice(&rest[..spilt]);
                return Ok(Datagram {
                    len: in_place + spilt,
                    in_place,
                });
            }
            let socket = &mut self.socket;
            self.incoming.fill(|room| socket.read(room))?;
        }
    }

    fn put(&mut self, begin: &[u8], frame: &mut GuestIo) -> io::Result<()> {
        self.flush()?;
        let len = begin.len() as u64 + frame.len();
        let Some(prefix) = u32::try_from(len).ok().filter(|&len| len <= LONGEST_FRAME as u32) else {
            return Err(Errno::MSGSIZE.into());
        };
        let mut head = [0; PREFIX + BEGIN_MAX];
        let head_len = PREFIX + begin.len();
        head[..PREFIX].copy_from_slice(&prefix.to_be_bytes());
        head[PREFIX..head_len].copy_from_slice(begin);
        let head = &head[..head_len];
        let written = frame.send_part(self.socket.as_fd(), head)?;
        self.unsent
            .extend_from_slice(head.get(written..).unwrap_or_default());
        let at = self.unsent.len();
        self.unsent.resize(at + frame.len() as usize, 0);
        frame.copy_to(&mut self.unsent[at..]);
        Ok(())
    }
}

/// Whether nothing can come of it any more.
fn is_end(cause: &io::Error) -> bool {
    !matches!(
        cause.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    ) && Errno::from_io_error(cause) != Some(Errno::MSGSIZE)
}

impl NetBackend for Stream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn features(&self) -> u64 {
        0
    }

    fn mtu(&self) -> u16 {
        MTU
    }

    fn start(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn on_ready(&mut self) {
        // What is wrong shows when the next frame is sent or received.
        let _ = self.flush();
    }

    fn receive(&mut self, to: &mut GuestIo, spill: &mut [u8]) -> io::Result<Datagram> {
        if self.ended {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let taken = self.take(to, spill);
        if let Err(cause) = &taken {
            self.ended = is_end(cause);
        }
        taken
    }

    fn send(&mut self, _: &Header, begin: &[u8], frame: &mut GuestIo) -> io::Result<()> {
        // As a tap that is down: nobody is at fault.
        let nowhere = || io::Error::from(Errno::IO);
        if self.ended {
            return Err(nowhere());
        }
        match self.put(begin, frame) {
            Err(cause) if is_end(&cause) => {
                self.ended = true;
                Err(nowhere())
            }
            result => result,
        }
    }
}

const _: () = assert!(ROOM > Incoming::FIRST + PREFIX + LONGEST_FRAME && LONGEST_FRAME <= LONGEST as usize);
