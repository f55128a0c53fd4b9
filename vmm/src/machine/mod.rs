//! A machine from its description to its end: what the command line and the API drive.
//!
//! ```text
//!                   start()                    pause()
//!   NotStarted ───────────────▶ Running ◀──────────────────▶ Paused ◀── load()
//!       │  configure()             │        resume()            │  snapshot()
//!       └── the process ends ──────┴── the VM stops: StopReason ┴──▶ the process ends
//! ```
//! It lives on the control thread; other threads reach it by a [`ControlHandle`](crate::control::ControlHandle).
#![forbid(unsafe_code)]

mod ahead;
mod error;
mod metadata;
mod snapshot;
mod warm;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use error::MachineError;
pub(crate) use metadata::read as read_metadata;
pub use snapshot::{LoadRequest, Overrides, check};

use berth_devices::virtio::counters::DeviceCounts;
use berth_devices::virtio::net::mmds::MetadataStore;

use crate::console::{self, Console, RawTerminal, Stdio};
use crate::events::{EventHub, EventKind};
use crate::footprint;
use crate::guest::{Launch, Streams};
use crate::logging::LogLevel;
use crate::metrics::VcpuCounters;
use crate::ready::Awaited;
use crate::spec::{self, Limits, SerialSpec, ValidSpec, VmSpec};
use crate::stop::StopReason;
use crate::timing::Timing;
use crate::vm::{self, Built, DeviceHandles, Ended, Vm};
use crate::warm::Entry;

/// Where a machine is in its life, as its users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// It can still be configured.
    #[serde(rename = "not started")]
    NotStarted,
    /// The guest runs.
    Running,
    /// The guest stands still.
    Paused,
}

impl std::fmt::Display for MachineState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotStarted => "not started",
            Self::Running => "running",
            Self::Paused => "paused",
        })
    }
}

/// A machine.
pub struct Machine {
    spec: VmSpec,
    timing: Timing,
    events: EventHub,
    live: Option<Live>,
    log: Option<LogLevel>,
    /// What the guest can ask for where its description lets it.
    metadata: Arc<MetadataStore>,
    /// The guest boots and will be saved here when it is ready; then it is told what to run.
    warming: Option<Entry>,
    /// The shipped guest's console is a terminal although the standard streams are none.
    terminal: bool,
    /// Somebody waits for the guest to say that it is ready even if it was saved before.
    awaiting: bool,
    /// What it needs until it is ready is to be written down.
    record: Option<ahead::Record>,
    /// Somebody ended it before it was started.
    dismissed: bool,
}

/// What exists from the start on.
pub(crate) struct Live {
    pub(crate) vm: Vm,
    pub(crate) console: Console,
    /// Restores the user's terminal when it is dropped.
    pub(crate) terminal: Option<RawTerminal>,
    /// Where the guest is listened for, if it says by a connection that it is ready and has not yet.
    pub(crate) sign: Option<Awaited>,
    /// When the guest is to be ended as hung.
    pub(crate) deadline: Option<Instant>,
    /// When to give back what only the start needs, if that was not done.
    pub(crate) settled: Option<Instant>,
    /// What was built.
    spec: ValidSpec,
}

impl Machine {
    pub(crate) fn new(spec: VmSpec, timing: Timing, events: EventHub) -> Self {
        events.emit(EventKind::Created);
        Self {
            spec,
            timing,
            events,
            live: None,
            log: None,
            metadata: Arc::default(),
            warming: None,
            terminal: false,
            awaiting: false,
            record: None,
            dismissed: false,
        }
    }

    /// What the machine is, or will be.
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// How long the process has had it.
    pub fn uptime(&self) -> Duration {
        self.timing.start().elapsed()
    }

    /// What its vCPU threads count; nothing before it starts.
    pub(crate) fn vcpu_counters(&self) -> impl Iterator<Item = &Arc<VcpuCounters>> {
        self.live.iter().flat_map(|live| live.vm.vcpu_counters())
    }

    /// What its devices have done, each under the name of its kind; nothing before it starts.
    pub(crate) fn device_counts(&self) -> impl Iterator<Item = (&'static str, DeviceCounts)> {
        self.live.iter().flat_map(|live| live.vm.device_counts())
    }

    /// Where what happens to it is told.
    pub fn events(&self) -> &EventHub {
        &self.events
    }

    /// What changes the log's level, where it can change.
    pub fn log(&self) -> Option<&LogLevel> {
        self.log.as_ref()
    }

    /// Has requests change the log's level by `log`.
    pub(crate) fn set_log(&mut self, log: Option<LogLevel>) {
        self.log = log;
    }

    /// What its guest can ask for where its description lets it. It is no part of a snapshot.
    pub fn metadata(&self) -> &Arc<MetadataStore> {
        &self.metadata
    }

    /// Has its guest ask for what is in `metadata`.
    pub(crate) fn set_metadata(&mut self, metadata: Arc<MetadataStore>) {
        self.metadata = metadata;
    }

    /// Has the shipped guest take the standard streams for a terminal.
    pub(crate) fn set_terminal(&mut self, terminal: bool) {
        self.terminal = terminal;
    }

    /// Has a restored guest be listened for as well, where its sign of being ready is a connection.
    pub(crate) fn set_awaiting(&mut self, awaiting: bool) {
        self.awaiting = awaiting;
    }

    /// Where it is in its life.
    pub fn state(&self) -> MachineState {
        match &self.live {
            None => MachineState::NotStarted,
            Some(live) if live.vm.is_paused() => MachineState::Paused,
            Some(_) => MachineState::Running,
        }
    }

    /// Changes the description of a machine that has not started. What it then says is checked at the start.
    pub fn configure<T>(&mut self, change: impl FnOnce(&mut VmSpec) -> T) -> Result<T, MachineError> {
        self.need("be configured", MachineState::NotStarted)?;
        Ok(change(&mut self.spec))
    }

    /// Notes in the description what was changed of a running machine, and leaves it one that can be run.
    pub(crate) fn note(&mut self, change: impl Fn(&mut VmSpec)) {
        change(&mut self.spec);
        if let Some(live) = &mut self.live {
            live.spec.note(change);
        }
    }

    /// Builds the machine and lets its guest run.
    pub fn start(&mut self) -> Result<(), MachineError> {
        self.boot(false)
    }

    /// The same; with `wait` the shipped guest is told what to run when it is ready.
    fn boot(&mut self, wait: bool) -> Result<(), MachineError> {
        self.need("be started", MachineState::NotStarted)?;
        self.spec.fill_in().map_err(|cause| MachineError::Host {
            what: "random bytes",
            cause,
        })?;
        let spec = spec::validate(&self.spec, Limits::of_host(&self.spec)).map_err(MachineError::Faults)?;
        metadata::load(&spec, &self.metadata)?;
        let sign = Awaited::of(&spec).map_err(|fault| MachineError::Faults(vec![fault]))?;
        let launch = Launch {
            streams: self.streams(&spec),
            wait,
        };
        let Built { mut vm, mut console } = vm::build(&spec, launch, &self.metadata, &mut self.timing)?;
        let terminal = take_terminal(&spec, &mut console)?;
        if wait {
            console.input.hold();
        }
        vm.start()?;
        self.live = Some(Live {
            vm,
            console,
            terminal,
            sign,
            deadline: deadline(&spec, self.timing.start()),
            settled: settled(),
            spec,
        });
        self.events.emit(EventKind::Started);
        Ok(())
    }

    /// Stops the guest where it is.
    pub fn pause(&mut self) -> Result<(), MachineError> {
        let vm = &mut self.live("be paused")?.vm;
        if !vm.is_paused() {
            vm.pause();
            self.events.emit(EventKind::Paused);
        }
        Ok(())
    }

    /// Lets a paused guest go on.
    pub fn resume(&mut self) -> Result<(), MachineError> {
        let vm = &mut self.live("be resumed")?.vm;
        if vm.is_paused() {
            vm.resume();
            self.events.emit(EventKind::Resumed);
        }
        Ok(())
    }

    /// The ways to the devices of a machine that has started.
    pub fn devices(&mut self) -> Result<&DeviceHandles, MachineError> {
        Ok(self.live("have its devices changed")?.vm.handles())
    }

    /// Presses the power button; a guest with ACPI shuts down.
    pub fn press_power_button(&mut self) -> Result<(), MachineError> {
        self.live("have its power button pressed")?
            .vm
            .press_power_button();
        Ok(())
    }

    /// Sends Ctrl-Alt-Del; the shipped guest ends its command and itself, others do what they do at that.
    pub fn send_ctrl_alt_del(&mut self) -> Result<(), MachineError> {
        self.live("be sent Ctrl-Alt-Del")?.vm.send_ctrl_alt_del();
        Ok(())
    }

    /// How the shipped guest's streams lead to the host's.
    fn streams(&self, spec: &ValidSpec) -> Streams {
        if self.terminal {
            Streams::Terminal { rows: 0, columns: 0 }
        } else {
            streams(spec)
        }
    }

    /// Ends the VM whatever the guest does. The control thread, and the process, end with it.
    pub fn kill(&mut self) {
        match &self.live {
            Some(live) => live.vm.stop_cell().stop(StopReason::Killed(None)),
            None => self.dismissed = true,
        }
    }

    /// Whether somebody has ended it before it was started.
    pub(crate) fn is_dismissed(&self) -> bool {
        self.dismissed
    }

    /// What exists from the start on, for the control thread.
    pub(crate) fn live_mut(&mut self) -> Option<&mut Live> {
        self.live.as_mut()
    }

    /// Writes down what the machine has needed so far, if that is to be done and was not yet.
    pub(crate) fn record_working_set(&mut self) {
        if let (Some(record), Some(live)) = (self.record.take(), &self.live) {
            record.make(&live.vm);
        }
    }

    /// Ends the machine for good and says why it ended: the first reason anybody gave, or `otherwise`.
    pub(crate) fn finish(&mut self, otherwise: StopReason) -> StopReason {
        self.record_working_set();
        let Some(live) = self.live.take() else {
            return otherwise;
        };
        let first_run = live.vm.first_run();
        let Ended { reason, assist } = live.vm.stop(otherwise);
        drop(live.terminal);
        if let Some(counts) = &assist {
            tracing::info!("assist: {counts}");
        }
        if let Some(first_run) = first_run {
            self.timing.mark_at("vCPU thread", first_run);
        }
        reason
    }

    /// How long each step of the start took, a line each; empty unless asked for.
    pub(crate) fn timing_report(&self) -> String {
        self.timing.report()
    }

    fn live(&mut self, what: &'static str) -> Result<&mut Live, MachineError> {
        self.live.as_mut().ok_or(MachineError::State {
            what,
            state: MachineState::NotStarted,
        })
    }

    fn need(&self, what: &'static str, state: MachineState) -> Result<(), MachineError> {
        let found = self.state();
        if found == state {
            Ok(())
        } else {
            Err(MachineError::State { what, state: found })
        }
    }
}

/// When the guest's time is over. A limit past the end of time is none.
fn deadline(spec: &ValidSpec, start: Instant) -> Option<Instant> {
    let seconds = spec.timeout.filter(|&seconds| seconds > 0)?;
    start.checked_add(Duration::from_secs(seconds))
}

/// When a machine that starts now no longer needs what only a start does.
fn settled() -> Option<Instant> {
    Instant::now().checked_add(footprint::SETTLED)
}

/// How the shipped guest's streams lead to the host's.
fn streams(spec: &ValidSpec) -> Streams {
    let terminal = Streams::Terminal { rows: 0, columns: 0 };
    match spec.serial {
        // Only the shipped guest knows of streams.
        _ if spec.kernel.is_some() => terminal,
        SerialSpec::Stdio => match console::stdio() {
            Stdio::Terminal { rows, columns } => Streams::Terminal { rows, columns },
            Stdio::Piped => Streams::Piped,
        },
        SerialSpec::Pty | SerialSpec::Socket(_) | SerialSpec::Kept(_) => terminal,
        SerialSpec::Null | SerialSpec::File(_) if spec.command.is_empty() => terminal,
        SerialSpec::Null | SerialSpec::File(_) => Streams::Piped,
    }
}

/// Makes the user's terminal raw if the guest's console is on it, and looks for Berth's keys from then on.
fn take_terminal(spec: &ValidSpec, console: &mut Console) -> Result<Option<RawTerminal>, MachineError> {
    let on_terminal = spec.serial == SerialSpec::Stdio
        && (spec.kernel.is_some() || matches!(console::stdio(), Stdio::Terminal { .. }));
    if !on_terminal {
        return Ok(None);
    }
    let terminal = RawTerminal::take().map_err(|cause| MachineError::Host {
        what: "a raw terminal",
        cause,
    })?;
    if terminal.is_some() {
        console.input.watch_keys();
    }
    Ok(terminal)
}
