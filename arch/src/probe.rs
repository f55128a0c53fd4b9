//! What this host offers to Berth: `berth doctor`'s facts, and the part of them that every start checks.
//!
//! A [`Fact`] is a sentence about one thing, with what to do where it lacks. Nothing here needs a right, changes the host, or fails:
//! what cannot be found out is a fact as well. Every start uses [`kvm::open`] and, once it has a vCPU,
//! [`kind_of_vcpu`](crate::x86_64::kind::kind_of_vcpu); only `doctor` asks for the rest.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::x86_64::kind::HostKind;

pub mod host;
pub mod kvm;
mod syscalls;

/// How a fact bears on Berth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As Berth wants it.
    Ok,
    /// Berth works, but something is slower or not to be had.
    Warning,
    /// Something Berth needs, for all or for a named purpose, is not there.
    Lacking,
}

/// One thing about the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it is about: short, stable, for scripts to select by.
    pub name: String,
    /// How it bears on Berth.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do about it, one sentence, where there is something to do.
    pub advice: Option<String>,
}

impl Fact {
    fn new(name: &str, status: Status, detail: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            status,
            detail: detail.into(),
            advice: None,
        }
    }

    fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Ok, detail)
    }

    fn warning(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Warning, detail)
    }

    fn lacking(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Lacking, detail)
    }

    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// All that `berth doctor` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What runs ring 0; `None` where KVM is not to be had or did neither.
    pub kind: Option<HostKind>,
    /// Ring-0 instructions per second, measured with a loop of two.
    pub ring0_speed: Option<u64>,
    /// The facts, KVM first.
    pub facts: Vec<Fact>,
}

impl Report {
    /// Whether guests can run here: nothing about KVM lacks.
    pub fn can_run(&self) -> bool {
        self.kind.is_some()
            && !self
                .facts
                .iter()
                .any(|fact| fact.name.starts_with("kvm") && fact.status == Status::Lacking)
    }
}

/// Looks at everything. Takes some 0.1 s, most of it measuring ring 0.
pub fn report() -> Report {
    let (kind, ring0_speed, mut facts) = kvm::facts();
    facts.extend(host::facts(Path::new("/")));
    Report {
        kind,
        ring0_speed,
        facts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_that_is_not_ok_says_what_to_do_and_names_are_unique() {
        let report = report();
        let mut names: Vec<_> = report.facts.iter().map(|fact| fact.name.clone()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), report.facts.len());
        for fact in report.facts.iter().filter(|fact| fact.status != Status::Ok) {
            assert!(fact.advice.is_some(), "{fact:?}");
        }
    }

    #[test]
    fn guests_can_run_only_if_nothing_about_kvm_lacks() {
        let report = |kind, facts: Vec<Fact>| Report {
            kind,
            ring0_speed: None,
            facts,
        };
        assert!(report(Some(HostKind::Native), vec![Fact::lacking("tun", "")]).can_run());
        assert!(!report(Some(HostKind::Native), vec![Fact::lacking("kvm-irqchip", "")]).can_run());
        assert!(!report(None, vec![]).can_run());
    }
}
