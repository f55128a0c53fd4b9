//! Running `berth` as a user would: with arguments, input, a terminal if asked; and waiting for what it says and its end.
//!
//! Every wait is on the program's own pipes and its pidfd, and has a deadline. A test that misses it ends the program and
//! fails with all that was said. At most as many programs run at once as the host has processors.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::netns::Netns;
pub use crate::outcome::Outcome;
use crate::{program, tools};

/// How long a program may run unless a test says otherwise. A boot of Linux takes seconds where guest kernels are interpreted.
const DEADLINE: Duration = Duration::from_secs(150);

/// A program about to be started.
pub struct Invocation {
    program: Option<PathBuf>,
    prefix: Vec<OsString>,
    arguments: Vec<OsString>,
    folder: Option<PathBuf>,
    deadline: Duration,
    input: Input,
    beside: bool,
}

enum Input {
    Nothing,
    Bytes(Vec<u8>),
    Open,
    Terminal,
}

/// `berth` with these arguments, with nothing on standard input.
pub fn berth<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Invocation {
    Invocation {
        program: None,
        prefix: Vec::new(),
        arguments: owned(arguments),
        folder: None,
        deadline: DEADLINE,
        input: Input::Nothing,
        beside: false,
    }
}

/// `berth run` with these further arguments.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Invocation {
    berth(["run"]).args(arguments)
}

/// `berth run` of the test guest doing `task`, see `guests/guest.c`.
pub fn tiny(task: &str) -> Invocation {
    run(["--memory", "64M", "--kernel"])
        .arg(crate::guests::tiny())
        .args(["--cmdline", &format!("do={task}")])
}

/// `berth run -- sh -c SCRIPT`: a script for the shipped guest.
pub fn script(script: &str) -> Invocation {
    run(Vec::<OsString>::new()).command(["sh", "-c", script])
}

fn owned<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Vec<OsString> {
    words.into_iter().map(|word| word.as_ref().to_owned()).collect()
}

impl Invocation {
    /// Another program than `berth`, with nothing on standard input.
    pub fn of(program: impl Into<PathBuf>) -> Self {
        berth::<&str>([]).program(program)
    }

    /// One more argument, before the guest's command if there is one.
    #[must_use]
    pub fn arg(self, argument: impl AsRef<OsStr>) -> Self {
        self.args([argument])
    }

    /// More arguments, before the guest's command if there is one.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        let end = self
            .arguments
            .iter()
            .position(|word| word == "--")
            .unwrap_or(self.arguments.len());
        self.arguments.splice(end..end, owned(arguments));
        self
    }

    /// What the shipped guest is to run.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.arguments.push("--".into());
        self.arguments.extend(owned(words));
        self
    }

    /// Starts this copy of the program.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
        self
    }

    /// Starts it behind another program, which must become it.
    #[must_use]
    pub fn behind<S: AsRef<OsStr>>(mut self, prefix: impl IntoIterator<Item = S>) -> Self {
        self.prefix.extend(owned(prefix));
        self
    }

    /// Starts it in a network namespace.
    #[must_use]
    pub fn inside(self, netns: &Netns) -> Self {
        self.behind(netns.prefix())
    }

    /// Starts it in this folder.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Gives it another deadline.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Gives it these bytes on standard input, and then its end.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Gives it a pipe on standard input, which [`Running::send`] fills.
    #[must_use]
    pub fn open_input(mut self) -> Self {
        self.input = Input::Open;
        self
    }

    /// Runs it on a terminal of its own, standard error included.
    #[must_use]
    pub fn on_terminal(mut self) -> Self {
        self.input = Input::Terminal;
        self
    }

    /// Does not count it among those that run at once: it asks a VM that runs already.
    #[must_use]
    pub fn beside(mut self) -> Self {
        self.beside = true;
        self
    }

    /// Starts it and waits for its end.
    pub fn finish(self) -> Outcome {
        self.start().finish()
    }

    /// Starts it.
    pub fn start(self) -> Running {
        let permit = (!self.beside).then(Permit::take);
        let mut words = self.prefix.clone();
        let terminal = matches!(self.input, Input::Terminal).then(Terminal::new);
        if terminal.is_some() {
            // Becomes a session's leader with the terminal as its own, then the program.
            words.extend(owned(["setsid", "--ctty"]));
        }
        words.push(self.program.unwrap_or_else(|| program::berth().to_owned()).into());
        words.extend(self.arguments);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        // Tests start from a guest that one of them has booted, and from none that the user has.
        command.env("BERTH_CACHE_DIR", program::cache());
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        if let Some(terminal) = &terminal {
            command
                .stdin(terminal.end())
                .stdout(terminal.end())
                .stderr(terminal.end());
        } else {
            let nothing = matches!(self.input, Input::Nothing);
            command.stdin(if nothing { Stdio::null() } else { Stdio::piped() });
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let started = Instant::now();
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| tools::missing(&words[0].to_string_lossy(), &error));
        let pidfd = pidfd_open(pid(&child), PidfdFlags::empty()).expect("the child has not been waited for");
        let mut input = child.stdin.take().map(OwnedFd::from);
        let mut output = Stream::new(child.stdout.take().map(OwnedFd::from));
        if let Some(terminal) = &terminal {
            input = Some(terminal.controller());
            output = Stream::new(Some(terminal.controller()));
        }
        let errors = Stream::new(child.stderr.take().map(OwnedFd::from));
        if let Some(fd) = &input {
            set_nonblocking(fd);
        }
        let (queued, closing) = match self.input {
            Input::Bytes(bytes) => (bytes, true),
            _ => (Vec::new(), false),
        };
        let shown = words
            .iter()
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        Running {
            child,
            pidfd,
            input,
            queued,
            closing,
            output,
            errors,
            terminal,
            shown,
            started,
            deadline: started + self.deadline,
            ended: None,
            _permit: permit,
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn set_nonblocking(fd: &OwnedFd) {
    let flags = fcntl_getfl(fd).expect("an open descriptor has flags");
    fcntl_setfl(fd, flags | OFlags::NONBLOCK).expect("an open descriptor takes flags");
}

/// A pipe from the program and all that came through it.
struct Stream {
    fd: Option<OwnedFd>,
    bytes: Vec<u8>,
    /// Up to where [`Running::wait_for`] has seen it.
    seen: usize,
}

impl Stream {
    fn new(fd: Option<OwnedFd>) -> Self {
        Self {
            fd,
            bytes: Vec::new(),
            seen: 0,
        }
    }

    /// What has come since this was last asked, up to `text`, if that is there.
    fn see(&mut self, text: &str) -> Option<String> {
        let fresh = &self.bytes[self.seen..];
        let at = find(fresh, text.as_bytes())? + text.len();
        let said = String::from_utf8_lossy(&fresh[..at]).into_owned();
        self.seen += at;
        Some(said)
    }

    fn read(&mut self) {
        let Some(fd) = &self.fd else { return };
        let mut buffer = [0; 8192];
        match rustix::io::read(fd, &mut buffer) {
            // A terminal whose other end is closed says EIO.
            Ok(0) | Err(rustix::io::Errno::IO) => self.fd = None,
            Ok(n) => self.bytes.extend_from_slice(&buffer[..n]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => (),
            Err(error) => panic!("reading from the program: {error}"),
        }
    }
}

/// A running program. Dropped, it is killed.
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
    input: Option<OwnedFd>,
    queued: Vec<u8>,
    /// The input ends when the queue is empty.
    closing: bool,
    output: Stream,
    errors: Stream,
    terminal: Option<Terminal>,
    shown: String,
    started: Instant,
    deadline: Instant,
    ended: Option<(ExitStatus, Duration)>,
    _permit: Option<Permit>,
}

impl Running {
    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its standard input.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.queued.extend_from_slice(bytes.as_ref());
    }

    /// Waits until it has read what was sent, but for what a pipe holds.
    pub fn wait_until_read(&mut self) {
        self.wait("it reads its input", |running| {
            running.queued.is_empty().then_some(())
        });
    }

    /// Ends its standard input once all has been written.
    pub fn end_input(&mut self) {
        self.closing = true;
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        assert!(self.ended.is_none(), "the program has ended");
        kill_process(pid(&self.child), signal).expect("the child has not been waited for");
    }

    /// Waits until its standard output, from the last such wait on, holds `text`; gives what came up to there.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait(&format!("standard output holds {text:?}"), |running| {
            running.output.see(text)
        })
    }

    /// The same for standard error.
    pub fn wait_for_error(&mut self, text: &str) -> String {
        self.wait(&format!("standard error holds {text:?}"), |running| {
            running.errors.see(text)
        })
    }

    /// Waits for its end, but for no more output.
    pub fn wait_for_end(&mut self) {
        self.wait("it ends", |running| running.ended.map(drop));
    }

    /// The terminal it runs on.
    ///
    /// # Panics
    /// If it does not run on one.
    pub fn terminal(&self) -> &Terminal {
        self.terminal
            .as_ref()
            .expect("the program was started on a terminal")
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Outcome {
        let on_terminal = self.terminal.is_some();
        self.wait("it ends", |running| {
            let drained = on_terminal || running.output.fd.is_none() && running.errors.fd.is_none();
            (running.ended.is_some() && drained).then_some(())
        });
        let (status, elapsed) = self.ended.expect("waited for");
        if on_terminal {
            self.drain_terminal();
        }
        Outcome {
            status,
            elapsed,
            stdout: std::mem::take(&mut self.output.bytes),
            stderr: std::mem::take(&mut self.errors.bytes),
            shown: std::mem::take(&mut self.shown),
        }
    }

    /// Reads what is left; our own open end keeps the terminal from saying that it is over.
    fn drain_terminal(&mut self) {
        loop {
            let before = self.output.bytes.len();
            let Some(fd) = &self.output.fd else { return };
            set_nonblocking(fd);
            self.output.read();
            if self.output.bytes.len() == before {
                return;
            }
        }
    }

    /// Serves the pipes until `done` gives something.
    fn wait<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        loop {
            if let Some(value) = done(self) {
                return value;
            }
            let over = self.ended.is_some() && self.output.fd.is_none() && self.errors.fd.is_none();
            let left = self.deadline.saturating_duration_since(Instant::now());
            if over || left.is_zero() {
                let why = if over { "it ended" } else { "the deadline passed" };
                let text = format!(
                    "waiting until {what}, but {why}: {}\n--- status {:?}, after {:.1?}\n--- standard output\n{}\n--- standard error\n{}",
                    self.shown,
                    self.ended.map(|(status, _)| status),
                    self.started.elapsed(),
                    String::from_utf8_lossy(&self.output.bytes),
                    String::from_utf8_lossy(&self.errors.bytes),
                );
                panic!("{text}");
            }
            self.serve(left);
        }
    }

    /// Waits for the next event and handles it.
    fn serve(&mut self, left: Duration) {
        if self.queued.is_empty() && self.closing {
            self.input = None;
        }
        let wanted = [
            (Some(&self.pidfd).filter(|_| self.ended.is_none()), PollFlags::IN),
            (self.output.fd.as_ref(), PollFlags::IN),
            (self.errors.fd.as_ref(), PollFlags::IN),
            (
                self.input.as_ref().filter(|_| !self.queued.is_empty()),
                PollFlags::OUT,
            ),
        ];
        let (places, mut fds): (Vec<_>, Vec<_>) = wanted
            .iter()
            .enumerate()
            .filter_map(|(place, (fd, flags))| {
                Some((place, PollFd::from_borrowed_fd((*fd)?.as_fd(), *flags)))
            })
            .unzip();
        let timeout = rustix::event::Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(error) => panic!("poll: {error}"),
        }
        let mut ready = [false; 4];
        for (place, fd) in places.into_iter().zip(&fds) {
            ready[place] = !fd.revents().is_empty();
        }
        let [process, output, errors, input] = ready;
        if output {
            self.output.read();
        }
        if errors {
            self.errors.read();
        }
        if input {
            self.write_input();
        }
        if process {
            let status = self.child.wait().expect("the child is ours");
            self.ended = Some((status, self.started.elapsed()));
        }
    }

    fn write_input(&mut self) {
        let Some(fd) = &self.input else { return };
        match rustix::io::write(fd, &self.queued) {
            Ok(n) => drop(self.queued.drain(..n)),
            // It closed its input; what it makes of that is seen elsewhere.
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::IO) => {
                self.queued.clear();
                self.input = None;
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => (),
            Err(error) => panic!("writing to the program: {error}"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// A pseudo-terminal.
pub struct Terminal {
    controller: OwnedFd,
    end: OwnedFd,
    /// Its settings before any program had it.
    before: Termios,
}

impl Terminal {
    fn new() -> Self {
        let make = || -> io::Result<Self> {
            let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            grantpt(&controller)?;
            unlockpt(&controller)?;
            let name = ptsname(&controller, Vec::new())?;
            let end = rustix::fs::open(
                name,
                OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )?;
            let before = tcgetattr(&end)?;
            Ok(Self {
                controller,
                end,
                before,
            })
        };
        make().unwrap_or_else(|error| panic!("the host gives no pseudo-terminal: {error}"))
    }

    /// The end that a program has.
    fn end(&self) -> OwnedFd {
        self.end.try_clone().expect("descriptors are not used up")
    }

    fn controller(&self) -> OwnedFd {
        self.controller.try_clone().expect("descriptors are not used up")
    }

    fn settings(&self) -> Termios {
        tcgetattr(&self.end).expect("it is a terminal")
    }

    /// Gives its window another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.controller, size).expect("it is a terminal");
    }

    /// Fails unless its settings are what they were before the program had it.
    #[track_caller]
    pub fn expect_as_before(&self) {
        assert_eq!(format!("{:?}", self.settings()), format!("{:?}", self.before));
    }

    /// Whether it passes every byte on as it is, or edits lines and echoes.
    pub fn is_raw(&self) -> bool {
        !self
            .settings()
            .local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO)
    }
}

/// The right to run one program.
struct Permit;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

impl Permit {
    fn take() -> Self {
        // Two even where there is one processor: some tests need two at once, which is why they take turns.
        let most = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        while *running >= most {
            running = ENDED.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
        Self
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}
