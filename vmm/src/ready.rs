//! Signs that a guest is ready, beside the port that is for it: a line that it says, a connection that it makes.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;

use crate::api::{SocketError, SocketFile, listen};
use crate::boot_test::escapes::Escapes;
use crate::boot_test::pattern::{Pattern, Search};
use crate::spec::{Fault, ValidSpec};

/// Passes a serial line's output on until something in it is the sign, byte by byte, so that it does not depend on how the
/// output is cut. Commands to a terminal are not part of the text.
pub(crate) struct LineWatch<W> {
    inner: W,
    looking: Option<Looking>,
}

struct Looking {
    escapes: Escapes,
    search: Search,
    found: Box<dyn Fn() + Send>,
}

impl<W: Write> LineWatch<W> {
    /// Calls `found` once when `pattern` is complete.
    pub(crate) fn new(inner: W, pattern: Pattern, found: impl Fn() + Send + 'static) -> Self {
        Self {
            inner,
            looking: Some(Looking {
                escapes: Escapes::new(),
                search: Search::new(pattern, None),
                found: Box::new(found),
            }),
        }
    }
}

impl Looking {
    /// Whether the sign is complete somewhere in what comes now.
    fn is_over(&mut self, bytes: &[u8]) -> bool {
        let mut text = bytes.iter().filter(|byte| self.escapes.passes(**byte));
        text.any(|byte| self.search.feed(&[*byte]).is_some())
    }
}

impl<W: Write> Write for LineWatch<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.inner.write(bytes);
        // What could not be written was said nevertheless.
        let said = *result.as_ref().unwrap_or(&bytes.len());
        if let Some(looking) = &mut self.looking
            && looking.is_over(&bytes[..said])
        {
            (looking.found)();
            self.looking = None;
        }
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A socket on which the guest's one connection is waited for. It goes when it was made, or with the machine.
pub(crate) struct Awaited {
    listener: UnixListener,
    _file: SocketFile,
}

impl Awaited {
    /// Listens where the guest of `spec` is to connect to, if that is its sign.
    pub(crate) fn of(spec: &ValidSpec) -> Result<Option<Self>, Fault> {
        let Some(path) = spec.ready.socket(spec) else {
            return Ok(None);
        };
        let shown = path.display();
        let (listener, file) = listen(&path).map_err(|error| {
            let why = match error {
                SocketError::TooLong { length, .. } => format!("the path has {length} bytes, more than Linux allows"),
                SocketError::Busy(_) => {
                    "another program listens there, but the guest's sign is for Berth; end it or choose another port".to_owned()
                }
                SocketError::Taken(_) => {
                    "something that is not a socket is there; remove it or choose another port".to_owned()
                }
                SocketError::Bind { cause, .. } => cause.to_string(),
            };
            Fault::new("ready", format!("{shown}: {why}"))
        })?;
        Ok(Some(Self {
            listener,
            _file: file,
        }))
    }

    /// Whether the guest has connected. The connection is closed: that there was one is all it says.
    pub(crate) fn has_come(&self) -> bool {
        self.listener.accept().is_ok()
    }
}

impl AsFd for Awaited {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// How often the sign was seen after each piece.
    fn seen(pattern: &str, pieces: &[&[u8]]) -> Vec<usize> {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let found = move || {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let mut watch = LineWatch::new(Vec::new(), Pattern::regex(pattern).unwrap(), found);
        let mut counts = Vec::new();
        for piece in pieces {
            watch.write_all(piece).unwrap();
            counts.push(count.load(Ordering::Relaxed));
        }
        assert_eq!(watch.inner, pieces.concat());
        counts
    }

    #[test]
    fn a_line_is_seen_when_it_is_complete_and_once() {
        assert_eq!(seen("login: ", &[b"log", b"in", b": ", b"login: "]), [0, 0, 1, 1]);
        assert_eq!(
            seen("^ready$", &[b"not ready\r\n", b"ready", b"\r\nready\r\n"]),
            [0, 0, 1]
        );
    }

    #[test]
    fn colours_hide_no_text() {
        assert_eq!(seen("^up$", &[b"\x1b[1;32mu", b"\x1b[", b"0mp\n"]), [0, 0, 1]);
    }

    #[test]
    fn lines_without_end_take_no_memory() {
        let megabyte = vec![b'x'; 1 << 20];
        assert_eq!(seen("x+y", &[&megabyte, b"y"]), [0, 1]);
    }

    proptest! {
        #[test]
        fn how_output_is_cut_makes_no_difference(text in "[ab\n]{0,40}", cuts in proptest::collection::vec(0..40_usize, 0..6)) {
            let whole = seen("a+b$", &[text.as_bytes()]);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(seen("a+b$", &pieces).pop(), whole.last().copied());
        }
    }
}
