//! The guest's first serial line and whoever is at its other end: the user's terminal or pipes, a file, a pseudo-terminal,
//! a socket.
//!
//! Output is written by the vCPU thread that makes it ([`output`]). Input is read by the control thread ([`input`]) when
//! the line has taken what was read before.

pub(crate) mod frames;
pub(crate) mod input;
pub(crate) mod kept;
pub(crate) mod output;
pub(crate) mod panic;

mod escape;
mod terminal;

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_devices::limiter::{BucketConfig, Meter};
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};

pub(crate) use self::escape::{ATTACHED_HELP, Escape, HELP, Request};
use self::input::{Input, Source};
use self::output::{Client, Limited, Pty, Stream};
pub(crate) use self::terminal::RawTerminal;
use crate::spec::SerialSpec;
use crate::stop::StopCell;
use crate::unmade;

/// Why a serial line has no other end.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The file cannot be written.
    #[error("serial: {}: {}", .path.display(), unmade::why(.path, .cause))]
    Path {
        /// The file or socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Something is at the socket's path already.
    #[error("serial: {}: something is there already; remove it or choose another path", .path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// The host refused a descriptor or a terminal's mode.
    #[error("serial: {what}: {cause}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}

/// A serial line's other end.
pub(crate) struct Console {
    /// What the guest's bytes are written to.
    pub(crate) output: Box<dyn Write + Send>,
    /// Where bytes for the guest come from.
    pub(crate) input: Input,
    /// What is to be removed when the VM is gone.
    _socket: Option<SocketFile>,
    /// What attends to a kept console.
    _keeper: Option<kept::Keeper>,
}

/// How the user's own standard streams look to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdio {
    /// A terminal both ways, of this many rows and columns.
    Terminal { rows: u16, columns: u16 },
    /// At least one of them is a pipe or a file.
    Piped,
}

/// What standard input and output are.
pub(crate) fn stdio() -> Stdio {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    if stdin.is_terminal() && stdout.is_terminal() {
        let size = tcgetwinsize(&stdout).ok();
        Stdio::Terminal {
            rows: size.map_or(0, |size| size.ws_row),
            columns: size.map_or(0, |size| size.ws_col),
        }
    } else {
        Stdio::Piped
    }
}

fn host(what: &'static str) -> impl Fn(io::Error) -> ConsoleError {
    move |cause| ConsoleError::Host { what, cause }
}

impl Console {
    /// Opens what `spec` names. `framed`: input is for a command in the shipped guest ([`frames`]), which standard output,
    /// if it leads there, is the purpose of.
    pub(crate) fn open(spec: &SerialSpec, framed: bool, stop: &Arc<StopCell>) -> Result<Self, ConsoleError> {
        let (mut socket, mut keeper) = (None, None);
        let (output, source): (Box<dyn Write + Send>, _) = match spec {
            SerialSpec::Null => (Box::new(io::sink()), Source::None),
            SerialSpec::Stdio => {
                let stdout = duplicate(io::stdout(), "standard output")?;
                let stdin = duplicate(io::stdin(), "standard input")?;
                let output = if framed {
                    Stream::essential(stdout, stop.clone(), "standard output")
                } else {
                    Stream::new(stdout, stop.clone())
                };
                (Box::new(output), Source::Stdin(stdin))
            }
            SerialSpec::File(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path);
                let file = file.map_err(|cause| ConsoleError::Path {
                    path: path.clone(),
                    cause,
                })?;
                (Box::new(Stream::new(file.into(), stop.clone())), Source::None)
            }
            SerialSpec::Pty => {
                let (controller, line) = open_pty().map_err(host("a pseudo-terminal"))?;
                let reader = controller.try_clone().map_err(host("a pseudo-terminal"))?;
                (
                    Box::new(Pty(controller)),
                    Source::Pty {
                        controller: reader,
                        _line: line,
                    },
                )
            }
            SerialSpec::Kept(folder) => {
                let kept = kept::open(folder).map_err(|(path, cause)| match cause.kind() {
                    io::ErrorKind::AddrInUse => ConsoleError::Taken { path },
                    _ => ConsoleError::Path { path, cause },
                })?;
                keeper = Some(kept.keeper);
                (Box::new(kept.output), Source::Stdin(kept.input.into()))
            }
            SerialSpec::Socket(path) => {
                let (listener, file) = listen(path)?;
                socket = Some(file);
                let client = Client::new(stop.clone());
                (
                    Box::new(client.clone()),
                    Source::Socket {
                        listener,
                        client,
                        connected: None,
                    },
                )
            }
        };
        Ok(Self {
            output,
            input: Input::new(source, framed),
            _socket: socket,
            _keeper: keeper,
        })
    }

    /// From now on only so much of the guest's output passes.
    pub(crate) fn limit(&mut self, limit: BucketConfig) {
        if let Some(meter) = Meter::new(limit) {
            let output = std::mem::replace(&mut self.output, Box::new(io::sink()));
            self.output = Box::new(Limited { output, meter });
        }
    }
}

fn duplicate(fd: impl AsFd, what: &'static str) -> Result<OwnedFd, ConsoleError> {
    fd.as_fd().try_clone_to_owned().map_err(host(what))
}

/// A pseudo-terminal, raw, and its line's end held open so that the controlling end never reads a hang-up. Says its name.
fn open_pty() -> io::Result<(OwnedFd, OwnedFd)> {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&controller)?;
    unlockpt(&controller)?;
    let name = ptsname(&controller, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let line = rustix::fs::open(&*name, flags, rustix::fs::Mode::empty())?;
    let mut raw = tcgetattr(&line)?;
    raw.make_raw();
    tcsetattr(&line, OptionalActions::Now, &raw)?;
    let flags = rustix::fs::fcntl_getfl(&controller)?;
    rustix::fs::fcntl_setfl(&controller, flags | OFlags::NONBLOCK)?;
    eprintln!("berth: the serial line is {}", name.to_string_lossy());
    Ok((controller, line))
}

/// The file of a listening socket; removed when dropped.
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Someone else may have removed it.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ConsoleError> {
    let listener = UnixListener::bind(path).map_err(|cause| match cause.kind() {
        io::ErrorKind::AddrInUse => ConsoleError::Taken {
            path: path.to_owned(),
        },
        _ => ConsoleError::Path {
            path: path.to_owned(),
            cause,
        },
    })?;
    let file = SocketFile(path.to_owned());
    listener.set_nonblocking(true).map_err(host("a socket"))?;
    Ok((listener, file))
}
