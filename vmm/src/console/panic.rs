//! Notices a Linux panic on the console, since most kernels have no other way to tell.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// What Linux prints first when it panics (`kernel/panic.c`).
const MARK: &[u8] = b"Kernel panic - not syncing: ";
/// What it prints last if it is to stay where it is.
const END: &[u8] = b"---[ end Kernel panic";
/// As much of a line as is kept.
const LINE_MAX: usize = 256;

/// The panic's message once there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct PanicMessage(Arc<Mutex<Option<String>>>);

impl PanicMessage {
    /// The message, if the guest has panicked.
    pub(crate) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, message: String) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(message);
    }
}

/// Passes a console's output on and reads it along the way.
pub(crate) struct PanicWatch<W> {
    inner: W,
    message: PanicMessage,
    /// Called when a panicked kernel has said its last word and will stay where it is.
    ended: Box<dyn Fn() + Send>,
    line: Vec<u8>,
}

impl<W: Write> PanicWatch<W> {
    pub(crate) fn new(inner: W, message: PanicMessage, ended: impl Fn() + Send + 'static) -> Self {
        Self {
            inner,
            message,
            ended: Box::new(ended),
            line: Vec::with_capacity(LINE_MAX),
        }
    }

    fn look(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' {
                self.end_of_line();
                self.line.clear();
            } else if self.line.len() < LINE_MAX {
                self.line.push(byte);
            }
        }
    }

    fn end_of_line(&self) {
        if find(&self.line, END).is_some() {
            if self.message.get().is_some() {
                (self.ended)();
            }
        } else if let Some(at) = find(&self.line, MARK) {
            let message = &self.line[at + MARK.len()..];
            let plain = |byte: u8| {
                if byte.is_ascii_graphic() || byte == b' ' {
                    char::from(byte)
                } else {
                    '?'
                }
            };
            self.message.set(
                message
                    .iter()
                    .map(|&byte| plain(byte))
                    .collect::<String>()
                    .trim()
                    .to_owned(),
            );
        }
    }
}

fn find(line: &[u8], text: &[u8]) -> Option<usize> {
    line.windows(text.len()).position(|window| window == text)
}

impl<W: Write> Write for PanicWatch<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.inner.write(bytes);
        // What could not be written was said nevertheless.
        let said = *result.as_ref().unwrap_or(&bytes.len());
        self.look(&bytes[..said]);
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn watch(output: &[u8]) -> (Option<String>, usize) {
        let message = PanicMessage::default();
        let ended = Arc::new(AtomicUsize::new(0));
        let count = ended.clone();
        let mut watch = PanicWatch::new(Vec::new(), message.clone(), move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        for byte in output {
            watch.write_all(&[*byte]).unwrap();
        }
        assert_eq!(watch.inner, output);
        (message.get(), ended.load(Ordering::Relaxed))
    }

    #[test]
    fn a_panic_is_noticed_byte_by_byte_with_its_message() {
        let text = b"[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs\r\nCPU: 0\r\n";
        assert_eq!(watch(text), (Some("VFS: Unable to mount root fs".to_owned()), 0));
    }

    #[test]
    fn the_end_mark_counts_only_after_a_panic() {
        let end = "---[ end Kernel panic - not syncing: x ]---\n";
        assert_eq!(watch(end.as_bytes()).1, 0);
        assert_eq!(
            watch(format!("Kernel panic - not syncing: x\n{end}").as_bytes()),
            (Some("x".to_owned()), 1)
        );
    }

    #[test]
    fn endless_lines_and_control_characters_are_survived() {
        assert_eq!(watch(&vec![b'x'; 1 << 16]), (None, 0));
        assert_eq!(
            watch(b"Kernel panic - not syncing: a\x1b[2Jb\n").0.as_deref(),
            Some("a?[2Jb")
        );
    }
}
