//! From a KVM exit to a bus access or an end.

use berth_devices::bus::Bus;
use kvm_bindings::{
    KVM_EXIT_IO_OUT, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::metrics::{Exit, VcpuCounters};
use crate::stop::StopReason;

/// What one KVM_RUN came to.
pub(crate) enum Outcome {
    /// Done with; enter the guest again.
    Handled,
    /// A kick or a spurious return: look at the control state.
    Interrupted,
    /// A port access, described in `kvm_run`; see [`port_access`].
    Port,
    /// A guest-debug stop, for the assist.
    Debug,
    /// An instruction that KVM's interpreter does not know, for the assist.
    Unemulated,
    /// The guest is over.
    Stop(StopReason),
}

/// Runs the guest until it needs something, and serves MMIO from `mmio`.
pub(crate) fn enter(vcpu: &mut VcpuFd, mmio: &Bus, counters: &VcpuCounters) -> Outcome {
    let (why, outcome) = run(vcpu, mmio);
    counters.exit(why);
    outcome
}

fn run(vcpu: &mut VcpuFd, mmio: &Bus) -> (Exit, Outcome) {
    match vcpu.run() {
        Ok(VcpuExit::IoIn(..)) => (Exit::PortRead, Outcome::Port),
        Ok(VcpuExit::IoOut(..)) => (Exit::PortWrite, Outcome::Port),
        Ok(VcpuExit::MmioRead(address, data)) => {
            mmio.read(address, data);
            (Exit::MmioRead, Outcome::Handled)
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            mmio.write(address, data);
            (Exit::MmioWrite, Outcome::Handled)
        }
        // Our lines are pulses; nothing waits for the end of an interrupt.
        Ok(VcpuExit::IoapicEoi(_)) => (Exit::EndOfInterrupt, Outcome::Handled),
        Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {
            (Exit::Interrupted, Outcome::Interrupted)
        }
        Ok(VcpuExit::Debug(_)) => (Exit::Debug, Outcome::Debug),
        Ok(VcpuExit::InternalError) => (Exit::Unemulated, Outcome::Unemulated),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            (Exit::Interrupted, Outcome::Interrupted)
        }
        last => (Exit::Other, end(last)),
    }
}

/// What an exit comes to after which the guest cannot go on.
fn end(exit: Result<VcpuExit<'_>, kvm_ioctls::Error>) -> Outcome {
    match exit {
        Ok(VcpuExit::Shutdown) => Outcome::Stop(StopReason::TripleFault),
        Ok(VcpuExit::SystemEvent(kind, _)) => Outcome::Stop(system_event(kind)),
        Ok(VcpuExit::FailEntry(reason, cpu)) => fault(format!(
            "the processor refused to enter the guest (hardware reason {reason:#x}, host CPU {cpu})"
        )),
        Ok(other) => fault(format!(
            "KVM left the guest for a reason Berth does not know: {other:?}"
        )),
        Err(error) => match error.errno() {
            libc::EFAULT => fault("KVM could not reach the guest's memory (KVM_RUN: EFAULT)".to_owned()),
            _ => fault(format!("KVM_RUN failed: {error}")),
        },
    }
}

fn fault(sentence: String) -> Outcome {
    Outcome::Stop(StopReason::Fault(sentence))
}

fn system_event(kind: u32) -> StopReason {
    match kind {
        KVM_SYSTEM_EVENT_SHUTDOWN => StopReason::Shutdown,
        KVM_SYSTEM_EVENT_RESET => StopReason::Reset,
        KVM_SYSTEM_EVENT_CRASH => StopReason::Panicked(None),
        other => StopReason::Fault(format!("the guest raised the unknown system event {other}")),
    }
}

/// Serves the port access that `kvm_run` describes: `count` accesses of `size` bytes each (string instructions).
pub(crate) fn port_access(vcpu: &mut VcpuFd, ports: &Bus) {
    let run = vcpu.get_kvm_run();
    // SAFETY: KVM_RUN has just returned with exit reason IO (the caller's `Outcome::Port`), so `io` is the active member.
    let io = unsafe { run.__bindgen_anon_1.io };
    let (size, count) = (usize::from(io.size), io.count as usize);
    let base = (&raw mut *run).cast::<u8>();
    // SAFETY: KVM keeps the data of an IO exit at this offset in the mapping that holds `run`
    // (Documentation/virt/kvm/api.rst, KVM_EXIT_IO).
    let data = unsafe { base.add(io.data_offset as usize) };
    // SAFETY: the data is size × count bytes long (ibid.). The mapping outlives the borrow of `vcpu`, and KVM writes it only
    // inside KVM_RUN, which is not running.
    let data = unsafe { std::slice::from_raw_parts_mut(data, size * count) };
    let out = u32::from(io.direction) == KVM_EXIT_IO_OUT;
    for access in data.chunks_exact_mut(size.max(1)) {
        if out {
            ports.write(u64::from(io.port), access);
        } else {
            ports.read(u64::from(io.port), access);
        }
    }
}

/// A sentence for KVM_EXIT_INTERNAL_ERROR: what KVM says and where the guest was.
pub(crate) fn internal_error(vcpu: &mut VcpuFd) -> String {
    // SAFETY: KVM_RUN has just returned with exit reason INTERNAL_ERROR (the caller's `Outcome::Unemulated`), so
    // `internal` is the active member.
    let internal = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    let at = vcpu.get_regs().map_or_else(
        |_| "an unknown address".to_owned(),
        |regs| format!("{:#x}", regs.rip),
    );
    match internal.suberror {
        1 => {
            // Word 0: flags (bit 0: bytes are there); then a length byte and up to 15 instruction bytes.
            let words: Vec<u8> = internal.data[1..3]
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect();
            let bytes = if internal.ndata >= 3 && internal.data[0] & 1 != 0 {
                let len = usize::from(words[0]).min(15);
                format!(" with the bytes {:02x?}", &words[1..=len])
            } else {
                String::new()
            };
            format!("KVM could not emulate the guest's instruction at {at}{bytes}")
        }
        other => format!("KVM gave up on the guest at {at} (KVM_EXIT_INTERNAL_ERROR, suberror {other})"),
    }
}
