//! What an assist completed, by kind.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use iced_x86::Mnemonic;

/// How often an assist completed what. Counts of several vCPUs add up; shown, they are one line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AssistCounts {
    /// SYSCALL from ring 3.
    pub system_calls: u64,
    /// Page faults that were seen, since they share a handler with system calls, and passed on.
    pub page_faults: u64,
    /// How often KVM was switched to single steps: over a breakpoint, or for what interpreting left to it.
    pub steps: u64,
    /// Debug exceptions that were the guest's own and passed on.
    pub debug_exceptions: u64,
    /// Faults that completed instructions raised.
    pub faults: u64,
    /// Instructions of ring 0 that were interpreted here, since KVM takes longer.
    pub interpreted: u64,
    /// Instructions, by mnemonic, that KVM cannot do.
    pub instructions: BTreeMap<Mnemonic, u64>,
}

impl AssistCounts {
    /// Whether nothing was completed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl AddAssign for AssistCounts {
    fn add_assign(&mut self, other: Self) {
        *self += &other;
    }
}

impl AddAssign<&Self> for AssistCounts {
    fn add_assign(&mut self, other: &Self) {
        self.system_calls += other.system_calls;
        self.page_faults += other.page_faults;
        self.steps += other.steps;
        self.debug_exceptions += other.debug_exceptions;
        self.faults += other.faults;
        self.interpreted += other.interpreted;
        for (mnemonic, count) in &other.instructions {
            *self.instructions.entry(*mnemonic).or_default() += count;
        }
    }
}

impl fmt::Display for AssistCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [
            (self.system_calls, "system calls"),
            (self.page_faults, "page faults passed on"),
            (self.steps, "switches to single steps"),
            (self.debug_exceptions, "debug exceptions passed on"),
            (self.faults, "faults raised"),
            (self.interpreted, "instructions interpreted"),
        ];
        let named = named.into_iter().map(|(count, name)| (count, name.to_owned()));
        let instructions = self
            .instructions
            .iter()
            .map(|(mnemonic, count)| (*count, format!("{mnemonic:?}").to_ascii_lowercase()));
        let mut separator = "";
        for (count, name) in named.chain(instructions).filter(|(count, _)| *count != 0) {
            write!(f, "{separator}{count} {name}")?;
            separator = ", ";
        }
        if separator.is_empty() {
            f.write_str("nothing")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_two_vcpus_add_up_and_show_as_one_line() {
        let mut total = AssistCounts::default();
        assert_eq!(total.to_string(), "nothing");
        let mut other = AssistCounts {
            system_calls: 2,
            ..AssistCounts::default()
        };
        other.instructions.insert(Mnemonic::Popcnt, 3);
        total += &other;
        total += &other;
        assert_eq!(total.to_string(), "4 system calls, 6 popcnt");
        assert!(!total.is_empty());
    }
}
