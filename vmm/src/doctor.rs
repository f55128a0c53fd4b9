//! `berth doctor`: what this host offers to Berth, for people and for scripts.
//!
//! The facts are the probe's (`berth_arch::probe`); here they are only grouped and shown.
#![forbid(unsafe_code)]

use std::fmt::Write;

use berth_arch::probe::{Fact, Report, Status};
use berth_arch::x86_64::kind::HostKind;
use serde::Serialize;

use crate::exit_code;

/// Which facts stand under which heading, in order. A name ends with its first letters' group.
const GROUPS: [(&str, &[&str]); 4] = [
    ("KVM", &["kvm"]),
    (
        "Processors and memory",
        &["cpus", "memory", "huge-pages", "transparent-huge-pages"],
    ),
    ("Devices", &["tun", "passt", "vhost", "io-uring"]),
    ("Isolation and snapshots", &["landlock", "cgroups", "userfaultfd"]),
];

/// The heading for facts that belong to no group yet.
const REST: &str = "Other";

/// Whether the user's terminal shows letters outside ASCII, by its locale.
pub fn unicode(variable: impl Fn(&str) -> Option<String>) -> bool {
    // The first one that is set decides, as in setlocale(3).
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(variable)
        .find(|value| !value.is_empty());
    locale.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// 0 if guests can run on this host.
pub fn exit_code(report: &Report) -> u8 {
    if report.can_run() {
        exit_code::OK
    } else {
        exit_code::FAULT
    }
}

/// The report for people: a line per fact with a mark, what to do below it, and what it all means at the end.
pub fn text(report: &Report, unicode: bool) -> String {
    let mut text = String::new();
    let width = report
        .facts
        .iter()
        .map(|fact| fact.name.len())
        .max()
        .unwrap_or_default();
    for heading in GROUPS.iter().map(|(heading, _)| *heading).chain([REST]) {
        let mut facts = report
            .facts
            .iter()
            .filter(|fact| group(fact) == heading)
            .peekable();
        if facts.peek().is_some() {
            text.push_str(heading);
            text.push('\n');
        }
        for fact in facts {
            let mark = mark(fact.status, unicode);
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {mark} {:<width$}  {}", fact.name, fact.detail);
            if let Some(advice) = &fact.advice {
                let _ = writeln!(
                    text,
                    "    {:<width$}  {} {advice}",
                    "",
                    if unicode { "→" } else { "->" }
                );
            }
        }
    }
    text.push('\n');
    text.push_str(&summary(report));
    text.push('\n');
    text
}

/// The group whose names begin this one's.
fn group(fact: &Fact) -> &'static str {
    let of = |name: &str| {
        fact.name == name
            || fact
                .name
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('-'))
    };
    GROUPS
        .iter()
        .find(|(_, names)| names.iter().any(|name| of(name)))
        .map_or(REST, |(heading, _)| heading)
}

fn mark(status: Status, unicode: bool) -> &'static str {
    match (status, unicode) {
        (Status::Ok, true) => "✓",
        (Status::Warning, true) => "!",
        (Status::Lacking, true) => "✗",
        (Status::Ok, false) => "ok",
        (Status::Warning, false) => "! ",
        (Status::Lacking, false) => "x ",
    }
}

/// Whether guests can run here, and how fast.
pub(crate) fn summary(report: &Report) -> String {
    let lacking = |fact: &&Fact| fact.status == Status::Lacking;
    if !report.can_run() {
        let cause = report
            .facts
            .iter()
            .filter(lacking)
            .find(|fact| group(fact) == GROUPS[0].0);
        return match cause {
            Some(Fact {
                detail,
                advice: Some(advice),
                ..
            }) => format!("Guests cannot run here: {detail}. {advice}"),
            Some(Fact { detail, .. }) => format!("Guests cannot run here: {detail}."),
            None => "Guests cannot run here: nothing is known about KVM.".to_owned(),
        };
    }
    let mut text = match report.kind {
        Some(HostKind::Interpreted) => {
            let speed = report.ring0_speed.map_or_else(String::new, |speed| {
                format!(
                    " ({}.{} million instructions a second)",
                    speed / 1_000_000,
                    speed / 100_000 % 10
                )
            });
            format!(
                "Guests can run here. This KVM interprets guest kernels{speed}, so booting and system calls are slow; \
                 programs in the guest run at full speed in between."
            )
        }
        _ => "Guests can run here, at the processor's own speed.".to_owned(),
    };
    let names: Vec<_> = report
        .facts
        .iter()
        .filter(lacking)
        .map(|fact| fact.name.as_str())
        .collect();
    if !names.is_empty() {
        let _ = write!(text, " What needs {} will not work.", names.join(" or "));
    }
    text
}

/// The report for scripts.
pub fn json(report: &Report) -> String {
    #[derive(Serialize)]
    struct Output<'a> {
        can_run: bool,
        #[serde(flatten)]
        report: &'a Report,
    }
    let output = Output {
        can_run: report.can_run(),
        report,
    };
    // Strings and numbers only: nothing in it can fail.
    let mut text = serde_json::to_string_pretty(&output).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests;
