//! `berth console`: the user's terminal, or pipes, at a VM's serial line.

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::tcgetwinsize;
use serde_json::json;

use super::super::say::{complain, printed};
use super::args::ConsoleArgs;
use super::{code, open};
use crate::console::{ATTACHED_HELP, Escape, RawTerminal, Request, kept};
use crate::exit_code;
use crate::fleet::{Entry, FleetError, drive};
use crate::signals::{RESIZED, Signals};
use crate::unix;

/// How long the VM may take to notice that somebody leaves: one whose guest does not read what was typed may not.
const LEAVING: Duration = Duration::from_secs(1);

/// How a time at the console ends.
enum Leave {
    /// The user detached.
    Detached,
    /// The VM closed the line.
    Closed,
    /// A signal.
    Signal(i32),
}

pub(in super::super) fn console(args: ConsoleArgs) -> u8 {
    code(open(args.state).and_then(|fleet| {
        let entry = fleet.find(&args.vm)?;
        let (stream, sized) = match &args.port {
            None => (attach(&entry)?, false),
            Some(port) => attach_to_port(&entry, port)?,
        };
        let resized = || {
            if sized {
                tell_size(&entry);
            }
        };
        let left = match stay(&stream, resized) {
            // That of standard output: the console's own ends by being closed.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(printed(Err(error))),
            left => left.map_err(|error| refused(&entry, format!("its console is lost: {error}")))?,
        };
        match left {
            Leave::Detached => {
                complain(&format_args!(
                    "detached; berth console {} attaches again",
                    entry.name()
                ));
                Ok(exit_code::OK)
            }
            Leave::Closed => drive::wait(&entry),
            Leave::Signal(number) => Ok(exit_code::of_signal(number)),
        }
    }))
}

fn refused(entry: &Entry, cause: String) -> FleetError {
    FleetError::Refused {
        name: entry.name().to_owned(),
        cause,
        user: true,
    }
}

fn attach(entry: &Entry) -> Result<UnixStream, FleetError> {
    let status = entry.status()?;
    if !status.is_live() {
        return Err(FleetError::RunsNot {
            name: entry.name().to_owned(),
            state: status.state,
            what: "be attached to",
        });
    }
    if status.live.is_some_and(|live| !live.console) {
        return Err(refused(
            entry,
            "its console is where it was started, since it does not run in the background".to_owned(),
        ));
    }
    let mut stream = unix::connect(&entry.console_socket())
        .map_err(|error| refused(entry, format!("its console does not answer: {error}")))?;
    let mut greeting = [0];
    match stream.read_exact(&mut greeting) {
        Ok(()) if greeting == [kept::ATTACHED] => Ok(stream),
        Ok(()) if greeting == [kept::IN_USE] => Err(refused(
            entry,
            "somebody is attached to its console; berth logs --follow only looks".to_owned(),
        )),
        // It ended just now.
        Err(_) => Err(refused(entry, "its console is closed".to_owned())),
        Ok(()) => Err(refused(entry, "its console speaks another protocol".to_owned())),
    }
}

/// Connects to a port of the virtio console. Also says whether it is the one whose window has a size.
fn attach_to_port(entry: &Entry, port: &str) -> Result<(UnixStream, bool), FleetError> {
    let vm = drive::request(entry, "GET", "/berth/v1/vm", None, "be attached to")?;
    let none = Vec::new();
    let ports = vm["spec"]["consoles"].as_array().unwrap_or(&none);
    let number: Option<usize> = port.parse().ok();
    let found = (1..)
        .zip(ports)
        .find(|(at, found)| found["name"] == port || number == Some(*at));
    let Some((number, found)) = found else {
        return Err(refused(
            entry,
            format!(
                "its console has no port {port:?}; berth inspect {} lists them",
                entry.name()
            ),
        ));
    };
    let Some(socket) = found["socket"].as_str() else {
        return Err(refused(
            entry,
            format!("port {port} of its console leads to no socket, so nobody can attach to it"),
        ));
    };
    let stream = unix::connect(Path::new(socket)).map_err(|error| {
        refused(
            entry,
            format!("port {port} of its console does not answer: {error}"),
        )
    })?;
    Ok((stream, number == 1))
}

/// Tells the guest how large the window is, where there is one.
fn tell_size(entry: &Entry) {
    let stdout = io::stdout();
    if let Ok(size) = tcgetwinsize(&stdout)
        && size.ws_row != 0
    {
        let body = json!({ "rows": size.ws_row, "columns": size.ws_col });
        // A guest that does not hear of it shows its output all the same.
        let _ = drive::request(
            entry,
            "PATCH",
            "/berth/v1/console/1",
            Some(&body),
            "be told of it",
        );
    }
}

/// Passes bytes both ways until somebody leaves. Calls `resized` at the start and when the window has another size.
fn stay(stream: &UnixStream, resized: impl Fn()) -> io::Result<Leave> {
    let signals = Signals::take_with_resized()?;
    // Not before: a change in between would be missed.
    resized();
    let terminal = RawTerminal::take()?;
    let interactive = terminal.is_some();
    if interactive && io::stdout().is_terminal() {
        eprint!("Berth: attached; Ctrl-A d detaches, Ctrl-A h shows help\r\n");
    }
    let mut escape = Escape::attached();
    let stdin = io::stdin();
    let mut stdin_open = true;
    loop {
        let mut fds = vec![
            PollFd::new(&signals, PollFlags::IN),
            PollFd::new(stream, PollFlags::IN),
        ];
        if stdin_open {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if ready[0]
            && let Some(signal) = signals.next()
        {
            if signal == RESIZED {
                resized();
                continue;
            }
            return Ok(Leave::Signal(signal));
        }
        if ready[1] && !show(stream)? {
            return Ok(Leave::Closed);
        }
        if ready.get(2) == Some(&true) {
            let mut typed = [0; 4096];
            match rustix::io::read(stdin.as_fd(), &mut typed) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Output is still of interest.
                Ok(0) | Err(_) => stdin_open = false,
                Ok(count) => {
                    let mut guest = Vec::new();
                    let request = escape.filter(&typed[..count], &mut guest);
                    if (&*stream).write_all(&guest).is_err() {
                        return Ok(Leave::Closed);
                    }
                    match request {
                        Some(Request::Detach) => {
                            leave(stream)?;
                            return Ok(Leave::Detached);
                        }
                        Some(Request::Help) => eprint!("{ATTACHED_HELP}"),
                        _ => {}
                    }
                }
            }
        }
    }
}

/// Leaves the line: what was on its way is shown, and whoever comes next is not turned away because this one is still there.
fn leave(stream: &UnixStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let until = Instant::now() + LEAVING;
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).unwrap_or_default();
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(()),
            Ok(_) if !show(stream)? => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Shows what the guest says; false at its end.
fn show(stream: &UnixStream) -> io::Result<bool> {
    let mut said = [0; 16 << 10];
    match rustix::io::read(stream, &mut said) {
        Err(Errno::AGAIN | Errno::INTR) => Ok(true),
        Ok(0) | Err(Errno::CONNRESET) => Ok(false),
        Err(error) => Err(error.into()),
        Ok(count) => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&said[..count])?;
            stdout.flush()?;
            Ok(true)
        }
    }
}
