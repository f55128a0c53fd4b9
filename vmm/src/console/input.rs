//! Input for a serial line: read when the line has room, never before, so that whoever sends too fast waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use rustix::io::Errno;

use super::escape::{Escape, Request};
use super::frames;
use super::output::Client;

/// Where input comes from.
pub(crate) enum Source {
    /// Nowhere.
    None,
    /// Standard input.
    Stdin(OwnedFd),
    /// The controlling end of a pseudo-terminal.
    Pty {
        controller: OwnedFd,
        /// Kept open.
        _line: OwnedFd,
    },
    /// One client at a time.
    Socket {
        listener: UnixListener,
        client: Client,
        connected: Option<Arc<OwnedFd>>,
    },
}

/// A source, and what was read from it and has not gone to the line yet.
pub(crate) struct Input {
    source: Source,
    /// Keys for Berth, where the source is a terminal in raw mode.
    escape: Option<Escape>,
    framed: bool,
    /// Nothing goes to the line before Berth has said something itself.
    held: bool,
    pending: Vec<u8>,
}

/// As much as is read at once.
const CHUNK: usize = 4096;
/// As much as may be typed while the guest takes nothing. More is read only when it does.
const TYPED_AHEAD: usize = 1024;

impl Input {
    pub(super) fn new(source: Source, framed: bool) -> Self {
        let mut input = Self {
            source,
            escape: None,
            framed,
            held: false,
            pending: Vec::new(),
        };
        if matches!(input.source, Source::None) {
            input.end();
        }
        input
    }

    /// Looks for keys that are for Berth from now on.
    pub(crate) fn watch_keys(&mut self) {
        self.escape = Some(Escape::default());
    }

    /// What to wait for, unless something waits for room or the source has ended. Where Berth's own keys come from, some
    /// input may wait: a guest that takes nothing must not keep the user from leaving it.
    pub(crate) fn source(&self) -> Option<BorrowedFd<'_>> {
        let may_wait = if self.escape.is_some() { TYPED_AHEAD } else { 0 };
        if self.pending.len() > may_wait {
            return None;
        }
        match &self.source {
            Source::None => None,
            Source::Stdin(fd) | Source::Pty { controller: fd, .. } => Some(fd.as_fd()),
            Source::Socket {
                connected: Some(fd), ..
            } => Some(fd.as_fd()),
            Source::Socket { listener, .. } => Some(listener.as_fd()),
        }
    }

    /// Reads what the source has. Call it when the source is ready.
    pub(crate) fn read(&mut self) -> Option<Request> {
        if let Source::Socket {
            listener,
            client,
            connected: connected @ None,
        } = &mut self.source
        {
            // A client that left before it was accepted is none.
            if let Ok((stream, _)) = listener.accept() {
                let fd = Arc::new(OwnedFd::from(stream));
                client.set(Some(fd.clone()));
                *connected = Some(fd);
            }
            return None;
        }
        let mut chunk = [0; CHUNK];
        let fd = self.source()?;
        let count = match rustix::io::read(fd, &mut chunk) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return None,
            Err(error) => {
                tracing::debug!("the serial line's input ended: {}", io::Error::from(error));
                0
            }
        };
        if count == 0 {
            self.end_of_source();
            return None;
        }
        self.accept(&chunk[..count])
    }

    /// Keeps input back until [`say`](Self::say): the guest is to hear from Berth first.
    pub(crate) fn hold(&mut self) {
        self.held = true;
    }

    /// Gives the line `bytes` of Berth's own, before any input that has not gone to it.
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.held = false;
        self.pending.splice(0..0, bytes.iter().copied());
    }

    fn accept(&mut self, bytes: &[u8]) -> Option<Request> {
        let mut request = None;
        let mut typed = Vec::new();
        let bytes = match &mut self.escape {
            Some(escape) => {
                request = escape.filter(bytes, &mut typed);
                typed.as_slice()
            }
            None => bytes,
        };
        if self.framed {
            frames::encode(bytes, &mut self.pending);
        } else {
            self.pending.extend_from_slice(bytes);
        }
        request
    }

    fn end_of_source(&mut self) {
        if let Source::Socket {
            client, connected, ..
        } = &mut self.source
        {
            client.set(None);
            *connected = None;
        } else {
            self.source = Source::None;
            self.end();
        }
    }

    fn end(&mut self) {
        if self.framed {
            frames::end(&mut self.pending);
        }
    }

    /// Gives the line as much as it takes: `take` returns how many bytes it took.
    pub(crate) fn deliver(&mut self, take: impl Fn(&[u8]) -> usize) {
        if self.held {
            return;
        }
        let taken = take(&self.pending);
        self.pending.drain(..taken.min(self.pending.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn piped(framed: bool) -> (Input, io::PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        (Input::new(Source::Stdin(reader.into()), framed), writer)
    }

    fn taken(input: &mut Input) -> Vec<u8> {
        let taken = std::cell::RefCell::new(Vec::new());
        input.deliver(|bytes| {
            taken.borrow_mut().extend_from_slice(bytes);
            bytes.len()
        });
        taken.into_inner()
    }

    #[test]
    fn the_source_waits_until_the_line_has_taken_what_was_read() {
        let (mut input, mut writer) = piped(false);
        writer.write_all(b"hello").unwrap();
        assert!(input.source().is_some());
        input.read();
        assert!(input.source().is_none());
        input.deliver(|_| 2);
        assert!(input.source().is_none());
        assert_eq!(taken(&mut input), b"llo");
        assert!(input.source().is_some());
    }

    #[test]
    fn a_command_is_told_where_its_input_ends() {
        let (mut input, mut writer) = piped(true);
        writer.write_all(b"ab").unwrap();
        input.read();
        assert_eq!(taken(&mut input), [2, b'a', b'b']);
        drop(writer);
        input.read();
        assert_eq!(taken(&mut input), [0]);
        assert!(input.source().is_none());
        assert_eq!(
            taken(&mut Input::new(Source::None, true)),
            [0],
            "no source is an input that has ended"
        );
    }

    #[test]
    fn keys_for_berth_are_heard_while_the_guest_takes_nothing() {
        let (mut input, mut writer) = piped(false);
        input.watch_keys();
        writer.write_all(b"typed too early").unwrap();
        assert_eq!(input.read(), None);
        input.deliver(|_| 0);
        writer.write_all(b"\x01x").unwrap();
        assert_eq!(input.read(), Some(Request::Quit));
        assert_eq!(taken(&mut input), b"typed too early");
        writer.write_all(&[b'a'; 2 * TYPED_AHEAD]).unwrap();
        input.read();
        assert!(input.source().is_none());
    }

    #[test]
    fn input_that_came_early_goes_to_the_line_after_what_berth_says() {
        let (mut input, mut writer) = piped(true);
        input.hold();
        writer.write_all(b"ab").unwrap();
        input.read();
        assert_eq!(taken(&mut input), b"");
        input.say(b"words\n");
        assert_eq!(taken(&mut input), b"words\n\x02ab");
    }

    #[test]
    fn keys_for_berth_do_not_reach_the_guest() {
        let (mut input, mut writer) = piped(false);
        input.watch_keys();
        writer.write_all(b"a\x01hb\x01x").unwrap();
        assert_eq!(input.read(), Some(Request::Quit));
        assert_eq!(taken(&mut input), b"ab");
    }
}
