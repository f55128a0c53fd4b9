//! /dev/kvm: whether it is there, whether it may be used, what it offers.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind};

use kvm_ioctls::Kvm;

use super::{Fact, Status};
use crate::x86_64::kind::{self, HostKind};

/// The one version of the API there has been since 2007.
const API_VERSION: i32 = 12;

/// Why KVM cannot be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No such device.
    #[error(
        "/dev/kvm does not exist; load the module (modprobe kvm_intel or kvm_amd), switch virtualization on in the firmware, or, inside a \
         VM, ask its provider for nested virtualization"
    )]
    Missing,
    /// No right to it.
    #[error(
        "no right to use /dev/kvm; join its group (sudo usermod -aG kvm $USER) and log in again, or run as root"
    )]
    Denied,
    /// The device is there but nothing answers.
    #[error("/dev/kvm exists but has no driver; load the module (modprobe kvm_intel or kvm_amd)")]
    NoDriver,
    /// Something else.
    #[error("/dev/kvm cannot be opened: {0}")]
    Open(io::Error),
    /// Not the API that everyone uses.
    #[error("/dev/kvm speaks API version {0}, Berth needs {API_VERSION}; use another Linux kernel")]
    Version(i32),
    /// A capability that Berth cannot do without.
    #[error("this KVM lacks {0}; use a newer Linux kernel (5.10 or later)")]
    Lacks(&'static str),
}

/// Opens /dev/kvm and checks that it has what every guest needs.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| open_error(io::Error::from_raw_os_error(error.errno())))?;
    match kvm.get_api_version() {
        API_VERSION => {}
        other => return Err(KvmError::Version(other)),
    }
    match CAPABILITIES
        .iter()
        .find(|known| known.required && kvm.check_extension_raw(known.cap.into()) <= 0)
    {
        Some(lacking) => Err(KvmError::Lacks(lacking.name)),
        None => Ok(kvm),
    }
}

fn open_error(error: io::Error) -> KvmError {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::NotFound, _) => KvmError::Missing,
        (ErrorKind::PermissionDenied, _) => KvmError::Denied,
        (_, Some(libc::ENODEV | libc::ENXIO)) => KvmError::NoDriver,
        _ => KvmError::Open(error),
    }
}

/// A capability that Berth uses.
struct Known {
    cap: u32,
    name: &'static str,
    required: bool,
    /// What it is good for: completes "without it, …".
    without: &'static str,
}

const fn required(cap: u32, name: &'static str) -> Known {
    Known {
        cap,
        name,
        required: true,
        without: "no guest runs",
    }
}

const fn optional(cap: u32, name: &'static str, without: &'static str) -> Known {
    Known {
        cap,
        name,
        required: false,
        without,
    }
}

const CAPABILITIES: [Known; 19] = [
    required(kvm_bindings::KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"),
    required(kvm_bindings::KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"),
    required(kvm_bindings::KVM_CAP_IRQFD, "KVM_CAP_IRQFD"),
    required(kvm_bindings::KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"),
    required(kvm_bindings::KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"),
    required(kvm_bindings::KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"),
    required(kvm_bindings::KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"),
    required(kvm_bindings::KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"),
    optional(
        kvm_bindings::KVM_CAP_SPLIT_IRQCHIP,
        "KVM_CAP_SPLIT_IRQCHIP",
        "starting and ending a VM takes longer",
    ),
    optional(
        kvm_bindings::KVM_CAP_SET_TSS_ADDR,
        "KVM_CAP_SET_TSS_ADDR",
        "CPUs from before 2010 cannot run guests",
    ),
    optional(
        kvm_bindings::KVM_CAP_TSC_DEADLINE_TIMER,
        "KVM_CAP_TSC_DEADLINE_TIMER",
        "guests use a coarser timer",
    ),
    optional(
        kvm_bindings::KVM_CAP_GET_TSC_KHZ,
        "KVM_CAP_GET_TSC_KHZ",
        "guests are not told the TSC's frequency",
    ),
    optional(
        kvm_bindings::KVM_CAP_SYNC_REGS,
        "KVM_CAP_SYNC_REGS",
        "completing instructions takes more calls",
    ),
    optional(
        kvm_bindings::KVM_CAP_SET_GUEST_DEBUG,
        "KVM_CAP_SET_GUEST_DEBUG",
        "system calls cannot be completed on interpreted hosts",
    ),
    optional(
        kvm_bindings::KVM_CAP_VCPU_EVENTS,
        "KVM_CAP_VCPU_EVENTS",
        "snapshots and the assist do not work",
    ),
    optional(
        kvm_bindings::KVM_CAP_XSAVE,
        "KVM_CAP_XSAVE",
        "snapshots lose vector registers",
    ),
    optional(
        kvm_bindings::KVM_CAP_XSAVE2,
        "KVM_CAP_XSAVE2",
        "guests cannot use AMX",
    ),
    optional(
        kvm_bindings::KVM_CAP_ADJUST_CLOCK,
        "KVM_CAP_ADJUST_CLOCK",
        "restored guests see a jump in time",
    ),
    optional(
        kvm_bindings::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
        "differential snapshots take longer",
    ),
];

/// Facts about KVM, with the kind of host and its ring-0 speed where they could be found out.
pub fn facts() -> (Option<HostKind>, Option<u64>, Vec<Fact>) {
    match open() {
        Ok(kvm) => {
            let mut facts = vec![Fact::ok(
                "kvm",
                format!("/dev/kvm, API version {}", kvm.get_api_version()),
            )];
            facts.extend(
                CAPABILITIES
                    .iter()
                    .map(|known| capability(known, kvm.check_extension_raw(known.cap.into()))),
            );
            facts.push(limits(&kvm));
            let (kind, speed, fact) = ring0(&kvm);
            facts.push(fact);
            (kind, speed, facts)
        }
        Err(error) => {
            let text = error.to_string();
            let (detail, advice) = text
                .split_once("; ")
                .unwrap_or((&text, "see dmesg | grep -i kvm for the reason"));
            (
                None,
                None,
                vec![Fact::lacking("kvm", detail).advise(sentence(advice))],
            )
        }
    }
}

/// A clause as a sentence.
fn sentence(clause: &str) -> String {
    let mut chars = clause.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars).chain(['.']).collect()
}

fn capability(known: &Known, value: i32) -> Fact {
    let short = known
        .name
        .trim_start_matches("KVM_CAP_")
        .to_lowercase()
        .replace('_', "-");
    let name = format!("kvm-{short}");
    if value > 0 {
        return Fact::ok(&name, known.name);
    }
    let status = if known.required {
        Status::Lacking
    } else {
        Status::Warning
    };
    Fact::new(
        &name,
        status,
        format!("{} is not there: {}", known.name, known.without),
    )
    .advise("Use a newer Linux kernel.")
}

fn limits(kvm: &Kvm) -> Fact {
    Fact::ok(
        "kvm-limits",
        format!(
            "at most {} vCPUs and {} memory slots",
            kvm.get_max_vcpus(),
            kvm.get_nr_memslots()
        ),
    )
}

/// What runs ring 0, and how fast.
fn ring0(kvm: &Kvm) -> (Option<HostKind>, Option<u64>, Fact) {
    let name = "kvm-ring0";
    let (kind, speed) = match kind::host_kind(kvm) {
        Ok(kind) => (kind, kind::ring0_speed(kvm)),
        Err(error) => {
            let advice =
                "See whether another hypervisor holds the CPU's virtualization, and what dmesg says.";
            return (None, None, Fact::lacking(name, error.to_string()).advise(advice));
        }
    };
    let million = match &speed {
        Ok(speed) => format!(
            "{}.{} million instructions/s",
            speed / 1_000_000,
            speed / 100_000 % 10
        ),
        Err(error) => format!("speed unknown: {error}"),
    };
    let fact = match kind {
        HostKind::Native => Fact::ok(name, format!("guest kernels run natively ({million})")),
        HostKind::Interpreted => Fact::warning(name, format!("KVM interprets guest kernels ({million}); user space runs natively"))
            .advise("Use a host with VMX or SVM (a VM: with nested virtualization) where speed matters; Berth assists guests here by itself."),
    };
    (Some(kind), speed.ok(), fact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_not_to_open_has_its_own_sentence() {
        for (errno, beginning) in [
            (libc::ENOENT, "/dev/kvm does not exist; "),
            (libc::EACCES, "no right to use /dev/kvm; "),
            (libc::ENODEV, "/dev/kvm exists but has no driver; "),
            (libc::EMFILE, "/dev/kvm cannot be opened: Too many open files"),
        ] {
            let text = open_error(io::Error::from_raw_os_error(errno)).to_string();
            assert!(text.starts_with(beginning), "{text}");
        }
    }

    #[test]
    fn a_missing_capability_lacks_if_required_and_warns_if_not() {
        let status = |required| {
            capability(
                &Known {
                    required,
                    ..optional(kvm_bindings::KVM_CAP_IRQFD, "KVM_CAP_IRQFD", "x")
                },
                0,
            )
            .status
        };
        assert_eq!((status(true), status(false)), (Status::Lacking, Status::Warning));
        let present = capability(&required(kvm_bindings::KVM_CAP_IRQFD, "KVM_CAP_IRQFD"), 1);
        assert_eq!((present.name.as_str(), present.status), ("kvm-irqfd", Status::Ok));
    }
}
