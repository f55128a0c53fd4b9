//! What a kernel says on its console when something has gone wrong in it, by the words that Linux has for it.
#![forbid(unsafe_code)]

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pattern::Pattern;

/// A fault that the kernel itself reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KernelFault {
    /// `Kernel panic - not syncing`.
    Panic,
    /// An exception in the kernel: `Oops`, `BUG`, `general protection fault`.
    Oops,
    /// A CPU that has not scheduled for too long.
    SoftLockup,
    /// A CPU that has not even served interrupts.
    HardLockup,
    /// A task that has waited for too long.
    HungTask,
    /// A CPU that keeps RCU's grace periods from ending.
    RcuStall,
}

impl KernelFault {
    /// What to call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Panic => "kernel panic",
            Self::Oops => "kernel oops",
            Self::SoftLockup => "soft lockup",
            Self::HardLockup => "hard lockup",
            Self::HungTask => "hung task",
            Self::RcuStall => "RCU stall",
        }
    }

    /// As it is written in a test file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Oops => "oops",
            Self::SoftLockup => "soft-lockup",
            Self::HardLockup => "hard-lockup",
            Self::HungTask => "hung-task",
            Self::RcuStall => "rcu-stall",
        }
    }
}

/// What the kernel's message of each begins with.
const SIGNS: [(KernelFault, &str); 10] = [
    (KernelFault::Panic, "Kernel panic - not syncing"),
    (KernelFault::Oops, "Oops: "),
    (KernelFault::Oops, "BUG: unable to handle"),
    (KernelFault::Oops, "BUG: kernel NULL pointer"),
    (KernelFault::Oops, "general protection fault"),
    (KernelFault::Oops, "kernel BUG at "),
    (KernelFault::SoftLockup, "BUG: soft lockup"),
    (KernelFault::HardLockup, "Watchdog detected hard LOCKUP"),
    (KernelFault::HungTask, "INFO: task .{1,64} blocked for more than"),
    (
        KernelFault::RcuStall,
        r"INFO: rcu_[a-z]{1,16} (self-)?detected (expedited )?stall",
    ),
];

/// Where a message begins: at a line's beginning or behind a time stamp, which may follow a prompt; `watchdog: ` and the like
/// may stand before the words. A panic ends the VM wherever it is said, and so it is one here.
const BEGIN: &str = r"(^|\] ?|^<[0-9]{1,3}>)(watchdog: |NMI |rcu: |traps: ){0,2}";

/// Looks at whole lines.
#[derive(Debug)]
pub struct FaultFinder {
    signs: Vec<(KernelFault, Pattern)>,
}

impl FaultFinder {
    /// Looks for all but those in `allowed`.
    pub fn new(allowed: &[KernelFault]) -> Self {
        let signs = SIGNS.iter().filter(|(fault, _)| !allowed.contains(fault));
        // They are constants, which the tests below have read.
        let pattern = |fault, text| match fault {
            KernelFault::Panic => Pattern::plain(text).ok(),
            _ => Pattern::regex(&format!("{BEGIN}({text})")).ok(),
        };
        Self {
            signs: signs
                .filter_map(|(fault, text)| Some((*fault, pattern(*fault, text)?)))
                .collect(),
        }
    }

    /// The fault that a line tells of.
    pub fn look(&self, line: &[u8]) -> Option<KernelFault> {
        let found = self.signs.iter().find(|(_, pattern)| pattern.is_in(line));
        found.map(|(fault, _)| *fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sign_is_a_pattern() {
        let finder = FaultFinder::new(&[]);
        assert_eq!(finder.signs.len(), SIGNS.len());
    }

    #[test]
    fn what_linux_says_is_called_by_its_name() {
        let finder = FaultFinder::new(&[]);
        for (line, expected) in [
            (
                "[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs",
                KernelFault::Panic,
            ),
            ("login: Kernel panic - not syncing: x", KernelFault::Panic),
            ("login: [    9.1] Oops: 0002 [#1] PREEMPT SMP", KernelFault::Oops),
            (
                "[    3.1][    T1] BUG: kernel NULL pointer dereference, address: 0",
                KernelFault::Oops,
            ),
            ("<1>[ 3.1] Oops: 0002 [#1] PREEMPT SMP", KernelFault::Oops),
            (
                "[   28.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]",
                KernelFault::SoftLockup,
            ),
            (
                "[   28.0] NMI watchdog: Watchdog detected hard LOCKUP on cpu 0",
                KernelFault::HardLockup,
            ),
            (
                "[  242.6] INFO: task kworker/0:1:12 blocked for more than 120 seconds.",
                KernelFault::HungTask,
            ),
            (
                "[   60.0] rcu: INFO: rcu_sched self-detected stall on CPU",
                KernelFault::RcuStall,
            ),
        ] {
            assert_eq!(finder.look(line.as_bytes()), Some(expected), "{line}");
        }
    }

    #[test]
    fn other_talk_is_no_fault_and_what_is_allowed_is_none() {
        let finder = FaultFinder::new(&[KernelFault::Oops]);
        for line in [
            "a program says Oops: in its middle",
            "[    0.1] Oops: 0002 [#1]",
            "[    0.1] WARNING: CPU: 0 PID: 1",
            "INFO: task list",
            "",
        ] {
            assert_eq!(finder.look(line.as_bytes()), None, "{line}");
        }
    }
}
