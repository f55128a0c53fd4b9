//! The threads of a VM: how many do I/O, how long they look for work, which host CPUs they run on.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rustix::thread::CpuSet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most I/O threads.
const MAX_IO: u32 = 16;
/// Longest time to look for work, in microseconds.
const MAX_POLL_US: u32 = 10_000;

/// The threads that run a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ThreadsSpec {
    /// How many threads do I/O, 1 to 16. A device belongs to the one that it names, counted from 0, else to the first.
    #[schemars(range(min = 1, max = 16))]
    pub io: u32,
    /// How many microseconds, at most, an I/O thread looks for more work by itself where that comes quickly, before it sleeps. 0 is never.
    #[schemars(range(max = 10_000))]
    pub poll_us: u32,
    /// The host CPUs of each virtual CPU, as `2` or `0-3,8`, in order; one for all of them is enough.
    pub vcpu_cpus: Vec<CpuList>,
    /// The host CPUs of each I/O thread, likewise.
    pub io_cpus: Vec<CpuList>,
}

impl Default for ThreadsSpec {
    fn default() -> Self {
        Self {
            io: 1,
            poll_us: 50,
            vcpu_cpus: Vec::new(),
            io_cpus: Vec::new(),
        }
    }
}

/// Host CPUs, written as `0-3,8`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct CpuList(Vec<(u16, u16)>);

/// Why a text is no list of host CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no list of host CPUs; write it as 2, 0-3 or 0-3,8 with numbers below {max}", max = CpuSet::MAX_CPU)]
pub struct CpuListError(String);

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Self, CpuListError> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let number: u16 = digits.then(|| text.parse().ok())??;
            (usize::from(number) < CpuSet::MAX_CPU).then_some(number)
        };
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some((first, last))
        };
        let ranges = text.split(',').map(range).collect::<Option<_>>();
        ranges.map(Self).ok_or_else(|| CpuListError(text.to_owned()))
    }
}

impl TryFrom<String> for CpuList {
    type Error = CpuListError;

    fn try_from(text: String) -> Result<Self, CpuListError> {
        text.parse()
    }
}

impl From<CpuList> for String {
    fn from(list: CpuList) -> Self {
        list.to_string()
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

impl CpuList {
    /// As the host's calls take it.
    pub(crate) fn set(&self) -> CpuSet {
        let mut set = CpuSet::new();
        for cpu in self.cpus() {
            set.set(cpu);
        }
        set
    }

    fn cpus(&self) -> impl Iterator<Item = usize> {
        self.0
            .iter()
            .flat_map(|&(first, last)| usize::from(first)..=usize::from(last))
    }
}

impl ThreadsSpec {
    /// How long an I/O thread looks for work.
    pub(crate) fn poll(&self) -> Duration {
        Duration::from_micros(self.poll_us.into())
    }

    /// Whether any host CPUs are said.
    pub(super) fn names_cpus(&self) -> bool {
        !self.vcpu_cpus.is_empty() || !self.io_cpus.is_empty()
    }

    /// The host CPUs of virtual CPU `index`, if they are said.
    pub(crate) fn of_vcpu(&self, index: u32) -> Option<CpuSet> {
        one(&self.vcpu_cpus, index)
    }

    /// The host CPUs of I/O thread `index`, if they are said.
    pub(crate) fn of_io(&self, index: u32) -> Option<CpuSet> {
        one(&self.io_cpus, index)
    }

    /// What is wrong with them in a VM of so many virtual CPUs, where the process may use no host CPUs but those `allowed`.
    pub(super) fn faults(&self, vcpus: u32, allowed: Option<&CpuSet>) -> Vec<String> {
        let mut faults = Vec::new();
        if !(1..=MAX_IO).contains(&self.io) {
            faults.push(format!(
                "io: {} is not 1 to {MAX_IO}; one is enough for most",
                self.io
            ));
        }
        if self.poll_us > MAX_POLL_US {
            let us = self.poll_us;
            faults.push(format!(
                "poll_us: {us} is more than {MAX_POLL_US}; 50 is a good value, 0 is never"
            ));
        }
        for (field, lists, count) in [
            ("vcpu_cpus", &self.vcpu_cpus, vcpus),
            ("io_cpus", &self.io_cpus, self.io),
        ] {
            if lists.len() > 1 && lists.len() != count as usize {
                let lists = lists.len();
                faults.push(format!(
                    "{field}: has {lists} lists for {count} threads; give one for each, or one for all"
                ));
            }
            let mut cpus = lists.iter().flat_map(CpuList::cpus);
            if let Some(cpu) = cpus.find(|cpu| allowed.is_some_and(|allowed| !allowed.is_set(*cpu))) {
                faults.push(format!(
                    "{field}: host CPU {cpu} is not there or not allowed; `taskset -p $$` shows those that are"
                ));
            }
        }
        faults
    }
}

fn one(lists: &[CpuList], index: u32) -> Option<CpuSet> {
    let index = if lists.len() == 1 { 0 } else { index as usize };
    lists.get(index).map(CpuList::set)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_of_cpus_are_numbers_and_ranges() {
        let list: CpuList = "0-3,8".parse().unwrap();
        assert_eq!(list.cpus().collect::<Vec<_>>(), [0, 1, 2, 3, 8]);
        for text in [
            "", "x", "1-", "-1", "3-1", "1,,2", "+1", "70000", "1024", "0-99999", " 1",
        ] {
            assert_eq!(
                text.parse::<CpuList>(),
                Err(CpuListError(text.to_owned())),
                "{text:?}"
            );
        }
    }

    #[test]
    fn each_fault_names_its_field() {
        let mut allowed = CpuSet::new();
        allowed.set(0);
        let threads = ThreadsSpec {
            io: 0,
            poll_us: 20_000,
            vcpu_cpus: vec!["0".parse().unwrap(), "0".parse().unwrap()],
            io_cpus: vec!["0-1".parse().unwrap()],
        };
        let faults = threads.faults(3, Some(&allowed));
        let fields: Vec<_> = faults
            .iter()
            .map(|fault| fault.split(':').next().unwrap())
            .collect();
        assert_eq!(fields, ["io", "poll_us", "vcpu_cpus", "io_cpus"]);
        assert_eq!(
            ThreadsSpec::default().faults(1, Some(&allowed)),
            Vec::<String>::new()
        );
    }

    #[test]
    fn one_list_is_for_all_threads_and_several_are_in_order() {
        let mut threads = ThreadsSpec {
            vcpu_cpus: vec!["1".parse().unwrap()],
            ..ThreadsSpec::default()
        };
        assert!(threads.of_vcpu(5).unwrap().is_set(1));
        threads.vcpu_cpus.push("2".parse().unwrap());
        assert!(threads.of_vcpu(1).unwrap().is_set(2));
        assert!(threads.of_vcpu(2).is_none() && threads.of_io(0).is_none());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_as_it_was(ranges in proptest::collection::vec((0..1000_u16, 0..20_u16), 1..6)) {
            let list = CpuList(ranges.into_iter().map(|(first, more)| (first, first + more)).collect());
            prop_assert_eq!(list.to_string().parse(), Ok(list));
        }
    }
}
