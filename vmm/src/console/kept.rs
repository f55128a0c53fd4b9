//! A console that outlives whoever looks at it: all output goes to a log file, and one client at a time attaches at a socket.
//!
//! The guest never waits for a client. What nobody has seen yet is kept, up to [`UNSEEN_MAX`] bytes, and is the first that
//! the next client gets; the log has all. A vCPU thread writes to the log and, as far as it takes it at once, to the
//! client; a thread of its own accepts clients, sends what they were too slow for, and reads what they type into a pipe,
//! from which the control thread takes it as it takes any other input.
//!
//! A client is greeted with one byte: [`ATTACHED`], or [`IN_USE`] before the socket is closed again.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::SocketFile;
use crate::event;
use crate::rotate::{Bound, RotatingFile};
use crate::unix;

/// The greeting of a client that is attached (ASCII ACK).
pub(crate) const ATTACHED: u8 = 0x06;
/// The greeting of a client that cannot be, since another is (ASCII NAK).
pub(crate) const IN_USE: u8 = 0x15;

/// The log, in its folder.
pub(crate) const LOG: &str = "console.log";
/// The socket, in its folder.
pub(crate) const SOCKET: &str = "console.sock";

/// As much as is kept for the next client.
const UNSEEN_MAX: usize = 256 << 10;
/// How large the log becomes before a new one is begun.
const LOG_BOUND: Bound = Bound {
    size: 32 << 20,
    keep: 1,
};
/// As much as is read from a client at once.
const CHUNK: usize = 4096;
/// How long a client may take for the last words of a VM that has ended.
const LAST_WORDS: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// What vCPU threads and the console's own thread share.
struct Shared {
    log: RotatingFile,
    unseen: VecDeque<u8>,
    /// How much of the unseen did not fit.
    lost: u64,
    client: Option<Arc<UnixStream>>,
}

impl Shared {
    /// Keeps `bytes` for a client, in place of the oldest if there is no room.
    fn keep(&mut self, bytes: &[u8]) {
        let bytes = if bytes.len() > UNSEEN_MAX {
            let (lost, kept) = bytes.split_at(bytes.len() - UNSEEN_MAX);
            self.lost += lost.len() as u64;
            kept
        } else {
            bytes
        };
        let over = (self.unseen.len() + bytes.len()).saturating_sub(UNSEEN_MAX);
        self.lost += over as u64;
        self.unseen.drain(..over);
        self.unseen.extend(bytes);
    }

    /// Sends the client what it has not seen, as far as it takes it. A client that is gone is forgotten.
    fn send(&mut self) {
        let Some(client) = self.client.clone() else { return };
        if self.lost > 0 {
            let note = format!(
                "\r\n[Berth: {} bytes left out; the console's log has them]\r\n",
                self.lost
            );
            self.lost = 0;
            for byte in note.bytes().rev() {
                self.unseen.push_front(byte);
            }
        }
        while !self.unseen.is_empty() {
            match rustix::io::write(&*client, self.unseen.as_slices().0) {
                Ok(count) => drop(self.unseen.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.client = None;
                    break;
                }
            }
        }
    }
}

/// Where the guest's bytes go.
pub(crate) struct Output {
    shared: Arc<Mutex<Shared>>,
    wake: Arc<EventFd>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut shared = lock(&self.shared);
        // A disk that is full costs the log, not the guest.
        if let Err(error) = shared.log.write_all(bytes) {
            berth_devices::warn_guest!("the console's log cannot be written: {error}");
        }
        let waits = !shared.unseen.is_empty();
        shared.keep(bytes);
        if shared.client.is_some() && !waits {
            shared.send();
            if !shared.unseen.is_empty() || shared.client.is_none() {
                // The thread waits for the client from now on. Fails only when the counter is full: then it is awake.
                let _ = self.wake.write(1);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The console's thread, ended when this is dropped; a client gets what it has not seen before that.
pub(crate) struct Keeper {
    thread: Option<JoinHandle<()>>,
    wake: Arc<EventFd>,
    closing: Arc<std::sync::atomic::AtomicBool>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.closing.store(true, std::sync::atomic::Ordering::Release);
        // As above.
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            // It panics no more than the rest of the program, which ends by that.
            let _ = thread.join();
        }
    }
}

/// A console in its three parts.
pub(crate) struct Kept {
    /// For the guest to write to.
    pub(crate) output: Output,
    /// What clients have typed.
    pub(crate) input: PipeReader,
    /// To be kept as long as the VM lives.
    pub(crate) keeper: Keeper,
}

/// Opens the log in `folder` and listens there.
pub(crate) fn open(folder: &Path) -> Result<Kept, (PathBuf, io::Error)> {
    let named = |path: PathBuf| move |error| (path, error);
    let (log, socket) = (folder.join(LOG), folder.join(SOCKET));
    let log = RotatingFile::open(&log, LOG_BOUND).map_err(named(log))?;
    let listener = unix::bind(&socket).map_err(named(socket.clone()))?;
    let file = SocketFile(socket.clone());
    start(log, listener, file).map_err(named(socket))
}

fn start(log: RotatingFile, listener: UnixListener, file: SocketFile) -> io::Result<Kept> {
    listener.set_nonblocking(true)?;
    let (input, typed) = io::pipe()?;
    for end in [input.as_fd(), typed.as_fd()] {
        fcntl_setfl(end, fcntl_getfl(end)? | OFlags::NONBLOCK)?;
    }
    let shared = Arc::new(Mutex::new(Shared {
        log,
        unseen: VecDeque::new(),
        lost: 0,
        client: None,
    }));
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let closing = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut attendant = Attendant {
        shared: shared.clone(),
        wake: wake.clone(),
        closing: closing.clone(),
        listener,
        typed,
        untyped: Vec::new(),
        _file: file,
    };
    let thread = std::thread::Builder::new()
        .name("console".to_owned())
        .stack_size(64 << 10)
        .spawn(move || attendant.run())?;
    Ok(Kept {
        output: Output {
            shared,
            wake: wake.clone(),
        },
        input,
        keeper: Keeper {
            thread: Some(thread),
            wake,
            closing,
        },
    })
}

/// The thread that looks after clients.
struct Attendant {
    shared: Arc<Mutex<Shared>>,
    wake: Arc<EventFd>,
    closing: Arc<std::sync::atomic::AtomicBool>,
    listener: UnixListener,
    typed: PipeWriter,
    /// Read from the client, and the pipe had no room for it.
    untyped: Vec<u8>,
    _file: SocketFile,
}

impl Attendant {
    fn run(&mut self) {
        while !self.closing.load(std::sync::atomic::Ordering::Acquire) {
            if let Err(error) = self.turn() {
                tracing::warn!("the console takes no more clients: {error}");
                return;
            }
        }
        self.last_words();
    }

    /// Waits for something to do and does it.
    fn turn(&mut self) -> Result<(), Errno> {
        let (client, unseen) = {
            let shared = lock(&self.shared);
            (shared.client.clone(), !shared.unseen.is_empty())
        };
        let mut fds = vec![
            PollFd::from_borrowed_fd(event::borrow(&self.wake), PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        if !self.untyped.is_empty() {
            fds.push(PollFd::new(&self.typed, PollFlags::OUT));
        }
        if let Some(client) = &client {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, self.untyped.is_empty());
            wanted.set(PollFlags::OUT, unseen);
            fds.push(PollFd::new(&**client, wanted));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let ready: Vec<_> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        if !ready[0].is_empty() {
            // Only its readiness matters.
            let _ = self.wake.read();
        }
        if !ready[1].is_empty() {
            self.accept();
        }
        self.pass_on();
        if let Some(client) = client {
            let ready = ready.last().copied().unwrap_or(PollFlags::empty());
            if ready.intersects(PollFlags::OUT) {
                lock(&self.shared).send();
            }
            // A hang-up is seen by reading too, and by nothing else while the pipe is full.
            if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && self.untyped.is_empty() {
                self.read(&client);
            } else if ready.intersects(PollFlags::HUP | PollFlags::ERR) {
                lock(&self.shared).client = None;
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let mut shared = lock(&self.shared);
        // A fresh socket has room for a byte; a client that has left already gets none.
        if shared.client.is_some() {
            let _ = (&stream).write_all(&[IN_USE]);
        } else if (&stream).write_all(&[ATTACHED]).is_ok() {
            shared.client = Some(Arc::new(stream));
            shared.send();
        }
    }

    fn read(&mut self, client: &Arc<UnixStream>) {
        let mut chunk = [0; CHUNK];
        match rustix::io::read(&**client, &mut chunk) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) | Err(_) => {
                let mut shared = lock(&self.shared);
                if shared
                    .client
                    .as_ref()
                    .is_some_and(|current| Arc::ptr_eq(current, client))
                {
                    shared.client = None;
                }
            }
            Ok(count) => {
                self.untyped.extend_from_slice(&chunk[..count]);
                self.pass_on();
            }
        }
    }

    /// Gives the pipe what it takes.
    fn pass_on(&mut self) {
        while !self.untyped.is_empty() {
            match rustix::io::write(&self.typed, &self.untyped) {
                Ok(count) => drop(self.untyped.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Nobody reads any more: the VM ends.
                Err(_) => self.untyped.clear(),
            }
        }
    }

    fn last_words(&mut self) {
        let mut shared = lock(&self.shared);
        shared.send();
        while let Some(client) = shared.client.clone().filter(|_| !shared.unseen.is_empty()) {
            let mut fds = [PollFd::new(&*client, PollFlags::OUT)];
            if !matches!(poll(&mut fds, Some(&LAST_WORDS)), Ok(1)) {
                return;
            }
            shared.send();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn attach(folder: &Path) -> UnixStream {
        let mut client = unix::connect(&folder.join(SOCKET)).unwrap();
        let mut greeting = [0];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting, [ATTACHED]);
        client
    }

    fn hear(client: &mut UnixStream, expected: &str) {
        let mut heard = vec![0; expected.len()];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(String::from_utf8_lossy(&heard), expected);
    }

    /// Waits until the console has noticed that nobody is attached.
    fn wait_detached(kept: &Kept) {
        while lock(&kept.output.shared).client.is_some() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn nothing_is_lost_between_clients_and_all_is_in_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = open(folder.path()).unwrap();
        kept.output.write_all(b"boot ").unwrap();
        let mut first = attach(folder.path());
        hear(&mut first, "boot ");
        kept.output.write_all(b"seen ").unwrap();
        hear(&mut first, "seen ");
        drop(first);
        wait_detached(&kept);
        kept.output.write_all(b"unseen").unwrap();
        let mut second = attach(folder.path());
        hear(&mut second, "unseen");
        drop(kept);
        let mut rest = String::new();
        second.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        let log = std::fs::read_to_string(folder.path().join(LOG)).unwrap();
        assert_eq!(log, "boot seen unseen");
        assert!(!folder.path().join(SOCKET).exists());
    }

    #[test]
    fn a_second_client_is_told_that_the_console_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let _kept = open(folder.path()).unwrap();
        let _first = attach(folder.path());
        let mut second = unix::connect(&folder.path().join(SOCKET)).unwrap();
        let mut all = Vec::new();
        second.read_to_end(&mut all).unwrap();
        assert_eq!(all, [IN_USE]);
    }

    #[test]
    fn a_client_that_does_not_read_holds_up_nobody_and_hears_what_it_missed() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = open(folder.path()).unwrap();
        let mut client = attach(folder.path());
        let line = [b'x'; 1024];
        for _ in 0..4096 {
            kept.output.write_all(&line).unwrap();
        }
        kept.output.write_all(b"the end").unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            client.read_to_end(&mut all).unwrap();
            all
        });
        while !lock(&kept.output.shared).unseen.is_empty() {
            std::thread::yield_now();
        }
        drop(kept);
        let all = String::from_utf8(reader.join().unwrap()).unwrap();
        assert!(
            all.ends_with("the end") && all.contains("bytes left out"),
            "{}",
            all.len()
        );
    }

    #[test]
    fn what_is_typed_comes_through_the_pipe_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = open(folder.path()).unwrap();
        let mut client = attach(folder.path());
        let typed: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let sent = typed.clone();
        let writer = std::thread::spawn(move || client.write_all(&sent).map(|()| client));
        let mut heard = Vec::new();
        while heard.len() < typed.len() {
            let mut fds = [PollFd::new(&kept.input, PollFlags::IN)];
            poll(&mut fds, None).unwrap();
            let mut chunk = [0; 1024];
            let count = kept.input.read(&mut chunk).unwrap();
            heard.extend_from_slice(&chunk[..count]);
        }
        assert!(heard == typed);
        drop(writer.join().unwrap().unwrap());
    }
}
