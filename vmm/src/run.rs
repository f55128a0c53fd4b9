//! `berth run`: one VM in the foreground, from its start to the reason for its end.
//!
//! The calling thread becomes the control thread: it waits for the guest's end, signals, input and the time limit, all in
//! one poll.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::console::{self, Console, RawTerminal, Request, Stdio};
use crate::guest::Streams;
use crate::signals::Signals;
use crate::spec::{SerialSpec, ValidSpec};
use crate::stop::StopReason;
use crate::timing::Timing;
use crate::vm::{self, BuildError, Built, Vm};
use crate::{event, footprint};

/// How to run, apart from what the VM is.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// Whether to print how long each step to the first instruction took.
    pub boot_timing: bool,
    /// When the program started.
    pub start: Instant,
}

/// Why a VM could not be run. Displays as a sentence.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The VM could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The control thread cannot do its work.
    #[error("the host refused {what}: {cause}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}

impl RunError {
    /// Whether what the user asked for is wrong, and not the host or Berth.
    pub fn is_user(&self) -> bool {
        match self {
            Self::Build(error) => error.is_user(),
            Self::Host { .. } => false,
        }
    }
}

fn host(what: &'static str) -> impl Fn(io::Error) -> RunError {
    move |cause| RunError::Host { what, cause }
}

/// Runs the VM that `spec` describes until it ends.
pub fn run(spec: &ValidSpec, options: RunOptions) -> Result<StopReason, RunError> {
    let mut timing = Timing::new(options.boot_timing, options.start);
    timing.mark("arguments");
    let signals = Signals::take().map_err(host("a signal descriptor"))?;
    let Built { mut vm, mut console } = vm::build(spec, streams(spec), &mut timing)?;
    let terminal = take_terminal(spec, &mut console)?;
    vm.start()?;
    footprint::drop_start_up_pages();
    let deadline = spec.timeout.filter(|&seconds| seconds > 0).map(|seconds| {
        let limit = Duration::from_secs(seconds);
        // A limit past the end of time is none.
        options.start.checked_add(limit)
    });
    let otherwise = control(&mut vm, &mut console, &signals, deadline.flatten());
    let first_run = vm.first_run();
    let ended = vm.stop(otherwise.unwrap_or_else(|cause| {
        StopReason::Fault(format!("the control thread cannot wait for events: {cause}"))
    }));
    drop(terminal);
    if let Some(counts) = &ended.assist {
        tracing::info!("assist: {counts}");
    }
    if let Some(first_run) = first_run {
        timing.mark_at("vCPU thread", first_run);
    }
    // Whoever has closed standard error does not want the report.
    let _ = io::stderr().write_all(timing.report().as_bytes());
    Ok(ended.reason)
}

/// How the shipped guest's streams lead to the host's.
fn streams(spec: &ValidSpec) -> Streams {
    let terminal = Streams::Terminal { rows: 0, columns: 0 };
    match spec.serial {
        SerialSpec::Stdio => match console::stdio() {
            Stdio::Terminal { rows, columns } => Streams::Terminal { rows, columns },
            Stdio::Piped => Streams::Piped,
        },
        SerialSpec::Pty | SerialSpec::Socket(_) => terminal,
        SerialSpec::Null | SerialSpec::File(_) if spec.command.is_empty() => terminal,
        SerialSpec::Null | SerialSpec::File(_) => Streams::Piped,
    }
}

/// Makes the user's terminal raw if the guest's console is on it, and looks for Berth's keys from then on.
fn take_terminal(spec: &ValidSpec, console: &mut Console) -> Result<Option<RawTerminal>, RunError> {
    let on_terminal = spec.serial == SerialSpec::Stdio
        && (spec.kernel.is_some() || matches!(console::stdio(), Stdio::Terminal { .. }));
    if !on_terminal {
        return Ok(None);
    }
    let terminal = RawTerminal::take().map_err(host("a raw terminal"))?;
    if terminal.is_some() {
        console.input.watch_keys();
    }
    Ok(terminal)
}

/// Serves input and signals until there is a reason to stop.
fn control(
    vm: &mut Vm,
    console: &mut Console,
    signals: &Signals,
    deadline: Option<Instant>,
) -> Result<StopReason, Errno> {
    let (stop, com1) = (vm.stop_cell().clone(), vm.com1().clone());
    loop {
        console.input.deliver(|bytes| com1.enqueue(bytes));
        let source = console.input.source();
        let mut fds = vec![
            PollFd::from_borrowed_fd(event::borrow(stop.wake()), PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
            PollFd::from_borrowed_fd(event::borrow(com1.input_space()), PollFlags::IN),
        ];
        if let Some(source) = source {
            fds.push(PollFd::from_borrowed_fd(source, PollFlags::IN));
        }
        let timeout = match deadline.map(remaining) {
            Some(None) => return Ok(StopReason::TimedOut),
            Some(Some(left)) => Some(left),
            None => None,
        };
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if let Some(reason) = stop.reason() {
            return Ok(reason);
        }
        if ready[1]
            && let Some(signal) = signals.next()
        {
            return Ok(StopReason::Killed(Some(signal)));
        }
        if ready[2] {
            // Only its readiness matters: there is room on the line.
            let _ = com1.input_space().read();
        }
        if ready.get(3) == Some(&true) {
            match console.input.read() {
                Some(Request::Quit) => return Ok(StopReason::Killed(None)),
                Some(Request::Help) => tell(console::HELP),
                Some(Request::PowerButton) => vm.press_power_button(),
                Some(Request::Pause) if vm.is_paused() => {
                    vm.resume();
                    tell("\r\nBerth: the VM goes on.\r\n");
                }
                Some(Request::Pause) => {
                    vm.pause();
                    tell("\r\nBerth: the VM is paused; Ctrl-A p lets it go on.\r\n");
                }
                None => {}
            }
        }
    }
}

/// What is left until `deadline`; nothing once it is past.
fn remaining(deadline: Instant) -> Option<Timespec> {
    let left = deadline
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())?;
    Timespec::try_from(left).ok()
}

fn tell(text: &str) {
    let mut stdout = io::stdout();
    // A terminal that is gone is told nothing.
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
