//! The process of a test's VM: `berth run` once more, with its console on pipes and its API on a socket. Whatever becomes of it,
//! the test goes on.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use vmm_sys_util::eventfd::EventFd;

use super::driven::DrivenEnd;
use crate::event;
use crate::exit_code;
use crate::fleet::launch::program;
use crate::unix;

/// As much as is read at once.
const CHUNK: usize = 64 << 10;
/// The API's socket, in the test's folder.
const API: &str = "api.sock";
/// How long a VM that is to end may take before it is killed.
const ORDERLY: Duration = Duration::from_secs(3);

/// What a VM begins with.
pub(super) enum Begin<'a> {
    /// A boot of the VM in this file; or, where that may be, a warm start.
    Boot { spec: &'a Path, cold: bool },
    /// The snapshot in this folder.
    Restore { from: &'a Path },
}

/// How a VM's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// As VMs end.
    Vm(DrivenEnd),
    /// It would not have the VM, and said why.
    Refused(String),
    /// Without a word.
    Crashed(String),
}

/// Why a wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// The guest said something, has ended, or took what was typed.
    Guest,
    /// Somebody else wants attention.
    Other,
    /// Time is over.
    Time,
}

/// A VM's process.
pub(super) struct Process {
    child: Child,
    pidfd: OwnedFd,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    /// Typed, and the pipe had no room for it.
    typed: VecDeque<u8>,
    folder: PathBuf,
    /// By which it reaches its socket, where the path is too long for one.
    _folder: Option<File>,
    number: u32,
    end: Option<End>,
}

impl Process {
    /// Starts process `number` of the test that has `folder`.
    pub(super) fn start(folder: &Path, number: u32, begin: &Begin<'_>) -> io::Result<Self> {
        let named = |name: &str| folder.join(format!("{name}{}", suffix(number)));
        let mut command = Command::new(program());
        command.arg0("berth").arg("run");
        match begin {
            Begin::Boot { spec, cold } => {
                command.arg("--config").arg(spec);
                if *cold {
                    command.arg("--cold");
                }
            }
            Begin::Restore { from } => {
                command.arg("--restore").arg(from);
            }
        }
        let (api, lent) = unix::lend(&folder.join(API))?;
        let mut child = command
            .arg("--driven")
            .arg(named("end.json"))
            .arg("--api-sock")
            .arg(api)
            .arg("--log-file")
            .arg(folder.join("berth.log"))
            .env("TERM", "dumb")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(named("stderr"))?)
            // Ctrl-C is for the test, which ends its VMs itself.
            .process_group(0)
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let fds = [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd)];
        for fd in fds.into_iter().flatten() {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        // Its number is its own until it is waited for.
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self {
            child,
            pidfd,
            stdin,
            stdout,
            typed: VecDeque::new(),
            folder: folder.to_owned(),
            _folder: lent,
            number,
            end: None,
        })
    }

    /// How many processes of the test there were before.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// The number of the process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its API listens.
    pub(super) fn api(&self) -> PathBuf {
        self.folder.join(API)
    }

    /// Types `bytes`, as the guest takes them.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.typed.extend(bytes);
        self.pass_on();
    }

    fn pass_on(&mut self) {
        while let Some(stdin) = self.stdin.as_mut().filter(|_| !self.typed.is_empty()) {
            match stdin.write(self.typed.as_slices().0) {
                Ok(count) => drop(self.typed.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Nobody reads any more: the VM ends.
                Err(_) => {
                    self.stdin = None;
                    self.typed.clear();
                }
            }
        }
    }

    /// How it ended, once all it said has been read.
    pub(super) fn ended(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Waits until `time` for the guest to say something, which `hear` gets, or for `other` to be readable.
    pub(super) fn wait(
        &mut self,
        time: Instant,
        other: &[&EventFd],
        mut hear: impl FnMut(&[u8]),
    ) -> io::Result<Woken> {
        let mut fds: Vec<_> = other
            .iter()
            .map(|fd| PollFd::from_borrowed_fd(event::borrow(fd), PollFlags::IN))
            .collect();
        match &self.stdout {
            Some(stdout) => fds.push(PollFd::new(stdout, PollFlags::IN)),
            None => fds.push(PollFd::new(&self.pidfd, PollFlags::IN)),
        }
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.typed.is_empty()) {
            fds.push(PollFd::new(stdin, PollFlags::OUT));
        }
        let left = time.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(Woken::Time),
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Woken::Guest),
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if ready[..other.len()].contains(&true) {
            return Ok(Woken::Other);
        }
        self.pass_on();
        if ready[other.len()] {
            self.read(&mut hear)?;
        }
        Ok(Woken::Guest)
    }

    fn read(&mut self, hear: &mut impl FnMut(&[u8])) -> io::Result<()> {
        if let Some(stdout) = &mut self.stdout {
            let mut chunk = vec![0; CHUNK];
            return match stdout.read(&mut chunk) {
                Ok(0) => {
                    self.stdout = None;
                    Ok(())
                }
                Ok(count) => {
                    hear(&chunk[..count]);
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                Err(error) => Err(error),
            };
        }
        if self.end.is_none() {
            let status = self.child.wait()?;
            let said = self.said();
            let file = self.folder.join(format!("end.json{}", suffix(self.number)));
            self.end = Some(match (DrivenEnd::read(&file), status.code()) {
                (Some(end), _) => End::Vm(end),
                (None, Some(code)) if code == i32::from(exit_code::USER) => End::Refused(said),
                (None, _) => {
                    let how = match (status.signal(), said.is_empty()) {
                        (Some(signal), true) => format!("by signal {signal}"),
                        (Some(signal), false) => format!("by signal {signal}: {said}"),
                        (None, true) => format!("with {status}"),
                        (None, false) => format!("and said: {said}"),
                    };
                    End::Crashed(how)
                }
            });
        }
        Ok(())
    }

    /// What it said on standard error.
    fn said(&self) -> String {
        let path = self.folder.join(format!("stderr{}", suffix(self.number)));
        let text = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines = text
            .lines()
            .map(|line| line.strip_prefix("berth: ").unwrap_or(line));
        lines.collect::<Vec<_>>().join("; ")
    }

    /// Ends it: in order if it can.
    pub(super) fn kill(&mut self, mut hear: impl FnMut(&[u8])) {
        for (signal, patience) in [(Signal::TERM, ORDERLY), (Signal::KILL, ORDERLY)] {
            // It may have ended already.
            let _ = pidfd_send_signal(&self.pidfd, signal);
            let deadline = Instant::now() + patience;
            while self.end.is_none() {
                match self.wait(deadline, &[], &mut hear) {
                    Ok(Woken::Time) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            if self.end.is_some() {
                return;
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.end.is_none() {
            self.kill(|_| ());
        }
    }
}

/// The first process has the plain names.
fn suffix(number: u32) -> String {
    match number {
        0 => String::new(),
        number => format!(".{number}"),
    }
}
