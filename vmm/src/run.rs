//! `berth run`: one machine in the foreground, from its start to the reason for its end.
//!
//! The calling thread becomes the control thread: it waits for the guest's end, signals, calls of other threads, input and
//! the time limit, all in one poll.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use berth_devices::virtio::net::mmds::MetadataStore;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::console::{self, Request};
use crate::control::{self, ControlHandle, Inbox};
use crate::event;
use crate::events::{EventHub, EventKind, Identity};
use crate::exit_code;
use crate::footprint;
use crate::logging::LogLevel;
use crate::machine::{Live, LoadRequest, Machine, MachineError};
use crate::signals::Signals;
use crate::snapshot::SnapshotRequest;
use crate::spec::VmSpec;
use crate::stop::StopReason;
use crate::timing::Timing;
use crate::warm;

/// How to run, apart from what the VM is.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct RunOptions {
    /// Whether to print how long each step to the first instruction took.
    pub boot_timing: bool,
    /// When the program started.
    pub start: Instant,
    /// Whether to wait for somebody to start the machine by the control handle, instead of starting it at once.
    pub wait: bool,
    /// Go on from this snapshot instead of starting the machine.
    pub load: Option<LoadRequest>,
    /// Whether the guest must boot, instead of going on with one that was booted before.
    pub cold: bool,
    /// Whether the shipped guest is to take the standard streams for a terminal whatever they are.
    pub terminal: bool,
    /// Save the machine so, and end it, when its guest says that it is ready.
    pub save_when_ready: Option<SnapshotRequest>,
    /// What changes the log's level, where it can change.
    pub log: Option<LogLevel>,
    /// Which VM it is; one without a name where this is not said.
    pub identity: Option<Identity>,
    /// What its guest can ask for, shared with whoever changes it.
    pub metadata: Arc<MetadataStore>,
}

impl RunOptions {
    /// A machine that starts at once, in a program that started at `start`.
    pub fn new(start: Instant) -> Self {
        Self {
            boot_timing: false,
            start,
            wait: false,
            load: None,
            cold: false,
            terminal: false,
            save_when_ready: None,
            log: None,
            identity: None,
            metadata: Arc::default(),
        }
    }
}

fn host(what: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |cause| MachineError::Host { what, cause }
}

/// Runs the machine that `spec` describes until it ends. `serve` is called first with the way to the control thread, for
/// threads that drive the machine; what it returns is dropped when the machine has ended.
pub fn run<S>(
    spec: VmSpec,
    options: RunOptions,
    serve: impl FnOnce(ControlHandle) -> Result<S, MachineError>,
) -> Result<StopReason, MachineError> {
    let mut timing = Timing::new(options.boot_timing, options.start);
    timing.mark("arguments");
    footprint::share_heap();
    // Before any thread is started: it concerns them all.
    let signals = Signals::take().map_err(host("a signal descriptor"))?;
    let identity = match options.identity {
        Some(identity) => identity,
        None => Identity::new().map_err(host("random bytes"))?,
    };
    let events = EventHub::new(identity);
    let (handle, inbox) = control::channel(events.clone()).map_err(host("an event descriptor"))?;
    let mut machine = Machine::new(spec, timing, events);
    machine.set_log(options.log);
    machine.set_metadata(options.metadata);
    machine.set_terminal(options.terminal);
    let served = serve(handle)?;
    machine.set_awaiting(options.save_when_ready.is_some());
    let cold = options.cold || options.save_when_ready.is_some();
    match &options.load {
        Some(load) => machine.load(load)?,
        None if options.wait => {}
        None if cold => machine.start()?,
        None => match warm_entry(machine.spec())? {
            Some(entry) => machine.start_warm(entry)?,
            None => machine.start()?,
        },
    }
    let mut save = options.save_when_ready;
    let (otherwise, failed) = match control(&mut machine, &inbox, &signals, &mut save) {
        Ok(reason) => (reason, None),
        Err(error) => (StopReason::Fault(error.to_string()), Some(error)),
    };
    let reason = match machine.finish(otherwise) {
        StopReason::Shutdown | StopReason::Exit(_) if save.is_some() => StopReason::Fault(
            "the guest ended before it said that it is ready, so nothing was saved; how it says so stands at --ready"
                .to_owned(),
        ),
        reason => reason,
    };
    tell_end(&machine, &reason);
    drop((inbox, served));
    // Whoever has closed standard error does not want the report.
    let _ = io::stderr().write_all(machine.timing_report().as_bytes());
    failed.map_or(Ok(reason), Err)
}

/// Where the guest is kept booted: the shipped one by itself where it can be, another one when asked.
fn warm_entry(spec: &VmSpec) -> Result<Option<warm::Entry>, MachineError> {
    if spec.warm {
        let faults = warm::unfit(spec);
        if !faults.is_empty() {
            return Err(MachineError::Faults(faults));
        }
    }
    let kept = spec.warm || spec.kernel.is_none();
    Ok(kept.then(|| warm::entry(spec)).flatten())
}

/// Tells everybody that the machine has ended, and how.
fn tell_end(machine: &Machine, reason: &StopReason) {
    if let StopReason::Panicked(message) = reason {
        machine.events().emit(EventKind::Panicked {
            message: message.clone(),
        });
    }
    let (exit_code, message) = exit_code::of(reason, machine.spec());
    machine.events().emit(EventKind::Stopped {
        reason: reason.word(),
        exit_code,
        message,
    });
}

/// What the control thread waits for, and what of it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signal,
    Call,
    Stop,
    Room,
    Input,
    Sign,
}

/// Serves calls, input and signals until there is a reason to stop.
fn control(
    machine: &mut Machine,
    inbox: &Inbox,
    signals: &Signals,
    save_when_ready: &mut Option<SnapshotRequest>,
) -> Result<StopReason, MachineError> {
    let events = machine.events().clone();
    loop {
        let ready = wait(machine.live_mut(), inbox, signals).map_err(|cause| MachineError::Host {
            what: "to wait for events",
            cause: cause.into(),
        })?;
        let Some(ready) = ready else {
            return Ok(StopReason::TimedOut);
        };
        if let Some(reason) = machine.live_mut().and_then(|live| live.vm.stop_cell().reason()) {
            return Ok(reason);
        }
        for source in ready {
            match (source, machine.live_mut()) {
                (Source::Signal, _) => {
                    if let Some(signal) = signals.next() {
                        return Ok(StopReason::Killed(Some(signal)));
                    }
                }
                (Source::Call, _) => {
                    inbox.serve(machine);
                    if machine.is_dismissed() {
                        return Ok(StopReason::Killed(None));
                    }
                }
                (Source::Room, Some(live)) => {
                    // Only its readiness matters: there is room on the line.
                    let _ = live.vm.com1().input_space().read();
                }
                (Source::Input, Some(live)) => {
                    let request = live.console.input.read();
                    if let Some(reason) = request.and_then(|request| obey(request, live, &events)) {
                        return Ok(reason);
                    }
                }
                (Source::Stop, Some(live)) => {
                    // Read first, asked after: neither an end nor the guest's being ready is missed.
                    let _ = live.vm.stop_cell().wake().read();
                    if let Some(reason) = live.vm.stop_cell().reason() {
                        return Ok(reason);
                    }
                    if live.vm.stop_cell().take_ready() {
                        events.emit(EventKind::Ready);
                        machine.record_working_set();
                        if let Some(request) = save_when_ready.take() {
                            machine.pause()?;
                            machine.snapshot(&request)?;
                            return Ok(StopReason::Shutdown);
                        }
                        machine.guest_is_ready()?;
                    }
                }
                (Source::Sign, Some(live)) => {
                    if live.sign.take_if(|sign| sign.has_come()).is_some() {
                        live.vm.stop_cell().tell_ready();
                    }
                }
                (Source::Stop | Source::Room | Source::Input | Source::Sign, None) => {}
            }
        }
    }
}

/// Waits for whatever comes first; nothing if that is the end of the guest's time.
fn wait(live: Option<&mut Live>, inbox: &Inbox, signals: &Signals) -> Result<Option<Vec<Source>>, Errno> {
    let event = |fd| PollFd::from_borrowed_fd(event::borrow(fd), PollFlags::IN);
    let mut fds = vec![PollFd::new(signals, PollFlags::IN), event(inbox.wake())];
    let mut sources = vec![Source::Signal, Source::Call];
    let mut timeout = None;
    if let Some(live) = live {
        let Live {
            vm,
            console,
            sign,
            deadline,
            settled,
            ..
        } = live;
        console.input.deliver(|bytes| vm.com1().enqueue(bytes));
        fds.extend([event(vm.stop_cell().wake()), event(vm.com1().input_space())]);
        sources.extend([Source::Stop, Source::Room]);
        if let Some(source) = console.input.source() {
            fds.push(PollFd::from_borrowed_fd(source, PollFlags::IN));
            sources.push(Source::Input);
        }
        if let Some(sign) = sign {
            fds.push(PollFd::new(sign, PollFlags::IN));
            sources.push(Source::Sign);
        }
        timeout = match deadline.map(remaining) {
            Some(None) => return Ok(None),
            Some(Some(left)) => Some(left),
            None => None,
        };
        match settled.map(remaining) {
            Some(None) => {
                *settled = None;
                footprint::drop_start_up_pages();
            }
            Some(Some(left)) => timeout = Some(timeout.map_or(left, |timeout| timeout.min(left))),
            None => {}
        }
    }
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error),
    }
    let ready = sources
        .iter()
        .zip(&fds)
        .filter(|(_, fd)| !fd.revents().is_empty());
    Ok(Some(ready.map(|(source, _)| *source).collect()))
}

/// Does what the user's keys ask for; says if that is to end the VM.
fn obey(request: Request, live: &mut Live, events: &EventHub) -> Option<StopReason> {
    match request {
        Request::Quit => return Some(StopReason::Killed(None)),
        Request::Help => tell(console::HELP),
        // Only who is attached can leave.
        Request::Detach => {}
        Request::PowerButton => live.vm.press_power_button(),
        Request::CtrlAltDel => live.vm.send_ctrl_alt_del(),
        Request::Pause if live.vm.is_paused() => {
            live.vm.resume();
            events.emit(EventKind::Resumed);
            tell("\r\nBerth: the VM goes on.\r\n");
        }
        Request::Pause => {
            live.vm.pause();
            events.emit(EventKind::Paused);
            tell("\r\nBerth: the VM is paused; Ctrl-A p lets it go on.\r\n");
        }
    }
    None
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
