//! Counters of a vCPU thread: why it left the guest, and what its assist did.

use std::sync::atomic::{AtomicU64, Ordering};

use berth_arch::x86_64::assist::AssistCounts;
use schemars::JsonSchema;
use serde::Serialize;

use super::add;

/// Why a vCPU left the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Exit {
    PortRead,
    PortWrite,
    MmioRead,
    MmioWrite,
    EndOfInterrupt,
    Interrupted,
    Debug,
    Unemulated,
    Other,
}

/// Names of the exits, in the order of [`Exit`].
pub(crate) const EXITS: [&str; 9] = [
    "port_read",
    "port_write",
    "mmio_read",
    "mmio_write",
    "end_of_interrupt",
    "interrupted",
    "debug",
    "unemulated",
    "other",
];

/// Names of what an assist counts.
pub(crate) const ASSISTS: [&str; 6] = [
    "system_calls",
    "page_faults",
    "steps",
    "debug_exceptions",
    "faults",
    "interpreted",
];

/// What one vCPU thread counts. Only it writes here.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct VcpuCounters {
    exits: [AtomicU64; EXITS.len()],
    assists: [AtomicU64; ASSISTS.len()],
}

/// The counters of one vCPU at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct VcpuReport {
    /// How often it left the guest to have a port read.
    pub(crate) port_read: u64,
    /// How often it left the guest to have a port written.
    pub(crate) port_write: u64,
    /// How often it left the guest to have a device's register read.
    pub(crate) mmio_read: u64,
    /// How often it left the guest to have a device's register written.
    pub(crate) mmio_write: u64,
    /// How often it left the guest since an interrupt was done with.
    pub(crate) end_of_interrupt: u64,
    /// How often it left the guest to look whether it is to stop.
    pub(crate) interrupted: u64,
    /// How often it left the guest at a breakpoint or a step of the assist.
    pub(crate) debug: u64,
    /// How often it left the guest at an instruction that KVM cannot interpret.
    pub(crate) unemulated: u64,
    /// How often it left the guest for another reason.
    pub(crate) other: u64,
    /// What the assist did: system calls, page faults, steps, debug exceptions and faults passed on, instructions interpreted.
    pub(crate) assist: [u64; ASSISTS.len()],
}

impl VcpuCounters {
    /// The vCPU left the guest.
    pub(crate) fn exit(&self, why: Exit) {
        add(&self.exits[why as usize], 1);
    }

    /// The assist has done all this so far.
    pub(crate) fn assisted(&self, counts: &AssistCounts) {
        let values = [
            counts.system_calls,
            counts.page_faults,
            counts.steps,
            counts.debug_exceptions,
            counts.faults,
            counts.interpreted,
        ];
        for (counter, value) in self.assists.iter().zip(values) {
            counter.store(value, Ordering::Relaxed);
        }
    }

    /// The counters at this moment.
    pub(crate) fn report(&self) -> VcpuReport {
        let [
            port_read,
            port_write,
            mmio_read,
            mmio_write,
            end_of_interrupt,
            interrupted,
            debug,
            unemulated,
            other,
        ] = std::array::from_fn(|index| self.exits[index].load(Ordering::Relaxed));
        VcpuReport {
            port_read,
            port_write,
            mmio_read,
            mmio_write,
            end_of_interrupt,
            interrupted,
            debug,
            unemulated,
            other,
            assist: std::array::from_fn(|index| self.assists[index].load(Ordering::Relaxed)),
        }
    }
}

impl VcpuReport {
    /// The exits, in the order of [`EXITS`].
    pub(crate) fn exits(&self) -> [u64; EXITS.len()] {
        [
            self.port_read,
            self.port_write,
            self.mmio_read,
            self.mmio_write,
            self.end_of_interrupt,
            self.interrupted,
            self.debug,
            self.unemulated,
            self.other,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exit_is_counted_under_its_own_name() {
        let counters = VcpuCounters::default();
        counters.exit(Exit::PortWrite);
        counters.exit(Exit::Unemulated);
        counters.exit(Exit::Unemulated);
        counters.exit(Exit::Other);
        let report = counters.report();
        assert_eq!((report.port_write, report.unemulated, report.other), (1, 2, 1));
        let json = serde_json::to_value(&report).unwrap();
        for (name, count) in EXITS.iter().zip(report.exits()) {
            assert_eq!(json[name], count, "{name}");
        }
    }
}
