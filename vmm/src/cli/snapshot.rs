//! `berth snapshot`: what is in a snapshot, and a difference joined with its base.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::args::{SnapshotInfoArgs, SnapshotMergeArgs, SnapshotVerb};
use super::say::{complain, print, print_json};
use crate::events;
use crate::exit_code;
use crate::machine;
use crate::snapshot::{self, Body, Found, SnapshotError};
use crate::spec::VmSpec;

/// Runs it. Returns the exit code.
pub(super) fn run(verb: &SnapshotVerb) -> u8 {
    match verb {
        SnapshotVerb::Info(args) => info(args),
        SnapshotVerb::Merge(args) => merge(args),
    }
}

fn refuse(error: &SnapshotError) -> u8 {
    complain(error);
    exit_code::USER
}

fn merge(args: &SnapshotMergeArgs) -> u8 {
    match snapshot::merge(&args.base, &args.difference, &args.out) {
        Ok(_) => exit_code::OK,
        Err(error) => refuse(&error),
    }
}

/// What `info --json` prints.
#[derive(Serialize)]
struct Info<'a> {
    id: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    created: String,
    berth: &'a str,
    host: &'a snapshot::HostFacts,
    /// Bytes of RAM.
    memory: u64,
    /// Bytes that the memory file takes.
    stored: u64,
    /// Whether all sums were looked at.
    verified: bool,
    restorable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_not: Option<String>,
    shipped_guest: bool,
    components: Vec<ComponentInfo<'a>>,
    spec: &'a VmSpec,
}

#[derive(Serialize)]
struct ComponentInfo<'a> {
    name: &'a str,
    version: u32,
}

fn info(args: &SnapshotInfoArgs) -> u8 {
    let found = match Found::open(&args.directory) {
        Ok(found) => found,
        Err(error) => return refuse(&error),
    };
    let looked = if args.verify {
        found.verify()
    } else {
        found.check_memory()
    };
    if let Err(error) = looked {
        return refuse(&error);
    }
    let info = Info::of(&found, args.verify);
    if args.json {
        print_json(&info)
    } else {
        print(&info.text(&found.body))
    }
}

impl<'a> Info<'a> {
    fn of(found: &'a Found, verified: bool) -> Self {
        let body = &found.body;
        let why_not = machine::check(found).err().map(|error| error.to_string());
        Self {
            id: body.id.to_string(),
            kind: if body.base.is_some() { "diff" } else { "full" },
            base: body.base.map(|base| base.to_string()),
            created: UNIX_EPOCH
                .checked_add(Duration::from_secs(body.created))
                .map_or_else(|| body.created.to_string(), events::timestamp),
            berth: &body.berth,
            host: &body.host,
            memory: body.memory,
            stored: std::fs::metadata(&found.memory).map_or(0, |data| data.blocks() * 512),
            verified,
            restorable: why_not.is_none(),
            why_not,
            shipped_guest: body.guest.is_some(),
            components: body
                .components
                .names()
                .map(|(name, version)| ComponentInfo { name, version })
                .collect(),
            spec: &body.spec,
        }
    }

    fn text(&self, body: &Body) -> String {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let spec = self.spec;
        let mut text = String::new();
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<11} {value}");
        };
        line("id", &self.id);
        match &self.base {
            Some(base) => line("kind", &format_args!("a difference from {base}")),
            None => line("kind", &"full"),
        }
        line("taken", &format_args!("{} by Berth {}", self.created, self.berth));
        let kind = match body.host.kind {
            berth_arch::x86_64::kind::HostKind::Native => "kernel run by the CPU",
            berth_arch::x86_64::kind::HostKind::Interpreted => "kernel interpreted",
        };
        line(
            "on",
            &format_args!("{}, Linux {}, {kind}", self.host.cpu, self.host.kernel),
        );
        let check = if self.verified {
            ", all checksums right"
        } else {
            ""
        };
        line(
            "memory",
            &format_args!("{} MiB, {} MiB stored{check}", mib(self.memory), mib(self.stored)),
        );
        line("vCPUs", &spec.cpus);
        match &spec.kernel {
            Some(kernel) => line("kernel", &kernel.display()),
            None => line("guest", &"the one that ships with Berth"),
        }
        for disk in &spec.disks {
            let access = if disk.read_only { " (read-only)" } else { "" };
            line("disk", &format_args!("{}{access}", disk.path.display()));
        }
        for pmem in &spec.pmem {
            let access = if pmem.read_only { " (read-only)" } else { "" };
            line("pmem", &format_args!("{}{access}", pmem.path.display()));
        }
        for net in &spec.nets {
            line("net", &net.describe());
        }
        let names = self.components.iter();
        let names: Vec<_> = names
            .map(|component| format!("{} ({})", component.name, component.version))
            .collect();
        line("components", &names.join(", "));
        match &self.why_not {
            None => line("here", &"can be restored"),
            Some(why) => line("here", &format_args!("cannot be restored: {why}")),
        }
        text
    }
}
