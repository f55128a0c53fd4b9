//! vCPU threads: each owns its vCPU and does nothing but run it, hand exits to the buses and answer its controller.

mod control;
mod exits;

use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use berth_arch::x86_64::assist::{AssistCounts, AssistError, VcpuAssist};
use berth_devices::bus::Bus;
use kvm_ioctls::VcpuFd;
use rustix::thread::{CpuSet, sched_setaffinity};
use vmm_sys_util::signal::Killable;

pub(crate) use control::install_kick_handler;
use control::{ImmediateExit, Next, VcpuControl, kick_signal};
use exits::Outcome;

use crate::memory::GuestMemory;
use crate::metrics::VcpuCounters;
use crate::stop::{StopCell, StopReason};

/// What a vCPU thread works with.
pub(crate) struct VcpuParts {
    /// Number of the vCPU, from 0.
    pub(crate) index: u32,
    /// The host CPUs to run on, if they are said.
    pub(crate) cpus: Option<CpuSet>,
    /// The vCPU, its registers set.
    pub(crate) vcpu: VcpuFd,
    /// The guest's RAM, so that it stays mapped as long as the vCPU may run.
    pub(crate) _memory: GuestMemory,
    /// Port I/O.
    pub(crate) ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub(crate) mmio: Arc<Bus>,
    /// Where the end of the VM is told.
    pub(crate) stop: Arc<StopCell>,
    /// What the thread counts.
    pub(crate) counters: Arc<VcpuCounters>,
    /// Completes what an interpreting KVM cannot; none where guest code runs natively.
    pub(crate) assist: Option<VcpuAssist>,
}

/// What a paused vCPU thread does for others: only it may touch its vCPU.
type Work = Box<dyn FnOnce(&mut VcpuParts) + Send>;

/// A running vCPU thread.
pub(crate) struct VcpuThread {
    control: Arc<VcpuControl<Work>>,
    thread: JoinHandle<Option<AssistCounts>>,
}

impl VcpuThread {
    /// Starts the thread; the guest runs at once unless it is `paused`. The first thread to enter it tells `first_run` when.
    pub(crate) fn spawn(
        parts: VcpuParts,
        first_run: Arc<OnceLock<Instant>>,
        paused: bool,
    ) -> std::io::Result<Self> {
        let control = Arc::new(VcpuControl::new(paused));
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{}", parts.index))
            .spawn({
                let control = control.clone();
                move || run(parts, &control, &first_run)
            })?;
        Ok(Self { control, thread })
    }

    /// Asks the thread to leave the guest. Ask every vCPU first, then wait for each.
    pub(crate) fn pause(&self) {
        self.control.pause();
        self.kick();
    }

    /// Waits until the thread has left the guest.
    pub(crate) fn wait_paused(&self) {
        self.control.wait_paused();
    }

    /// Has the paused thread run `work` and waits for the result; `None` if the thread has ended.
    pub(crate) fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut VcpuParts) -> R + Send + 'static,
    ) -> Option<R> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let work: Work = Box::new(move |parts| {
            // Nobody waits any more: then nobody wants to know.
            let _ = sender.send(work(parts));
        });
        self.control.give(work).ok()?;
        receiver.recv().ok()
    }

    /// Lets the thread enter the guest again.
    pub(crate) fn resume(&self) {
        self.control.resume();
    }

    /// Asks the thread to end. Ask every vCPU first, then join each.
    pub(crate) fn stop(&self) {
        self.control.stop();
        self.kick();
    }

    /// Waits for the thread's end and returns what its assist did.
    pub(crate) fn join(self) -> Option<AssistCounts> {
        // A panic on the thread was reported by the panic hook; there is nothing left to count.
        self.thread.join().ok().flatten()
    }

    fn kick(&self) {
        // Fails only when the thread has ended, and then there is nobody to kick.
        let _ = self.thread.kill(kick_signal());
    }
}

/// The thread: runs until the guest or the controller ends it.
fn run(
    mut parts: VcpuParts,
    control: &VcpuControl<Work>,
    first_run: &OnceLock<Instant>,
) -> Option<AssistCounts> {
    if let Some(cpus) = &parts.cpus
        && let Err(cause) = sched_setaffinity(None, cpus)
    {
        tracing::warn!("vCPU {} runs on any host CPU: {cause}", parts.index);
    }
    let kick = ImmediateExit::new(&mut parts.vcpu);
    while control.next(|work| work(&mut parts)) == Next::Run {
        first_run.get_or_init(Instant::now);
        if let Err(reason) = run_until_kicked(&mut parts) {
            parts.stop.stop(reason);
            break;
        }
        kick.clear();
    }
    control.ended();
    parts.assist.map(|assist| assist.counts().clone())
}

/// Runs the guest until a kick. Whatever KVM_RUN was asked to complete is complete then, so state may be read.
fn run_until_kicked(parts: &mut VcpuParts) -> Result<(), StopReason> {
    loop {
        if let Some(assist) = &mut parts.assist {
            assist
                .before_run(&mut parts.vcpu)
                .map_err(|error| fault(&error))?;
            parts.counters.assisted(assist.counts());
        }
        match exits::enter(&mut parts.vcpu, &parts.mmio, &parts.counters) {
            Outcome::Handled => {}
            Outcome::Port => {
                exits::port_access(&mut parts.vcpu, &parts.ports);
                // A guest that has just ended itself must not run on until the control thread gets to it: Linux would
                // say on its console that the power is still on.
                if let Some(reason) = ended(&parts.stop) {
                    return Err(reason);
                }
            }
            Outcome::Interrupted => return Ok(()),
            Outcome::Debug => match &mut parts.assist {
                Some(assist) => assist.on_debug(&mut parts.vcpu).map_err(|error| fault(&error))?,
                None => {
                    return Err(StopReason::Fault(
                        "KVM reported a debug stop nobody asked for".to_owned(),
                    ));
                }
            },
            Outcome::Unemulated => match &mut parts.assist {
                Some(assist) => assist
                    .on_unemulated(&mut parts.vcpu)
                    .map_err(|error| fault(&error))?,
                None => return Err(StopReason::Fault(exits::internal_error(&mut parts.vcpu))),
            },
            Outcome::Stop(reason) => return Err(reason),
        }
    }
}

/// The reason for the end of the VM, if there is one.
fn ended(stop: &StopCell) -> Option<StopReason> {
    if stop.is_stopped() { stop.reason() } else { None }
}

fn fault(error: &AssistError) -> StopReason {
    StopReason::Fault(error.to_string())
}
