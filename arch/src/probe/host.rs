//! The host apart from KVM: devices, system calls, memory, control groups.
//!
//! What is read from files is read below a root, so that tests bring their own.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Fact, syscalls};

/// Every fact about the host apart from KVM.
pub fn facts(root: &Path) -> Vec<Fact> {
    let mut facts = vec![
        cpus(root),
        memory(root),
        huge_pages(root),
        transparent_huge_pages(root),
        tun(root),
        passt(std::env::var_os("PATH").as_deref()),
        io_uring(root, syscalls::io_uring()),
        userfaultfd(syscalls::userfaultfd(false), || syscalls::userfaultfd(true)),
        landlock(syscalls::landlock_abi()),
        cgroups(root),
    ];
    facts.extend(["vhost-net", "vhost-vsock"].map(|device| vhost(root, device)));
    facts
}

fn read(root: &Path, path: &str) -> io::Result<String> {
    fs::read_to_string(root.join(path))
}

fn cpus(root: &Path) -> Fact {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let info = read(root, "proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("of unknown model", |(_, model)| model.trim());
    Fact::ok("cpus", format!("{count} usable, {model}"))
}

/// A line of /proc/meminfo, in its own unit.
fn meminfo(info: &str, key: &str) -> Option<u64> {
    let line = info.lines().find(|line| line.split(':').next() == Some(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Memory that this host can give now, in bytes, if that can be known.
pub fn available_memory() -> Option<u64> {
    let info = read(Path::new("/"), "proc/meminfo").ok()?;
    meminfo(&info, "MemAvailable").map(|kib| kib << 10)
}

fn memory(root: &Path) -> Fact {
    const LITTLE_MIB: u64 = 256;
    let info = read(root, "proc/meminfo").unwrap_or_default();
    let mib = |key| meminfo(&info, key).map(|kib| kib / 1024);
    match (mib("MemTotal"), mib("MemAvailable")) {
        (Some(total), Some(available)) => {
            let detail = format!("{available} of {total} MiB available");
            if available < LITTLE_MIB {
                Fact::warning("memory", detail).advise("Free some memory, or give guests little of it.")
            } else {
                Fact::ok("memory", detail)
            }
        }
        _ => Fact::warning("memory", "unknown: /proc/meminfo cannot be read").advise("Mount /proc."),
    }
}

fn huge_pages(root: &Path) -> Fact {
    let info = read(root, "proc/meminfo").unwrap_or_default();
    let number = |key| meminfo(&info, key).unwrap_or(0);
    let (total, free, size) = (
        number("HugePages_Total"),
        number("HugePages_Free"),
        number("Hugepagesize") / 1024,
    );
    if total == 0 {
        return Fact::warning("huge-pages", "none reserved")
            .advise("Nothing to do: Berth does not back guests by reserved huge pages.");
    }
    Fact::ok("huge-pages", format!("{free} of {total} free, {size} MiB each"))
}

fn transparent_huge_pages(root: &Path) -> Fact {
    let name = "transparent-huge-pages";
    let modes = read(root, "sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let mode = modes
        .split_whitespace()
        .find_map(|mode| mode.strip_prefix('[')?.strip_suffix(']'));
    let advice =
        "Allow them (echo madvise > /sys/kernel/mm/transparent_hugepage/enabled): guests get faster memory.";
    match mode {
        Some(mode @ ("always" | "madvise")) => Fact::ok(name, format!("mode {mode}")),
        Some(mode) => Fact::warning(name, format!("mode {mode}")).advise(advice),
        None => Fact::warning(name, "not there")
            .advise("Use a kernel with CONFIG_TRANSPARENT_HUGEPAGE for faster guest memory."),
    }
}

fn tun(root: &Path) -> Fact {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .open(root.join("dev/net/tun"));
    match opened {
        Ok(_) => Fact::ok("tun", "/dev/net/tun can be opened"),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Fact::lacking("tun", "no right to use /dev/net/tun")
            .advise("Give your user rights to /dev/net/tun, and have root make the tap for it (ip tuntap add mode tap user $USER)."),
        Err(error) => Fact::lacking("tun", format!("/dev/net/tun cannot be opened: {error}"))
            .advise("Load the module (modprobe tun) if guests shall have a network by tap."),
    }
}

fn passt(path: Option<&OsStr>) -> Fact {
    let name = "passt";
    let found = path.iter().flat_map(std::env::split_paths).find(|folder| {
        fs::metadata(folder.join(name)).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0)
    });
    match found {
        Some(folder) => Fact::ok(name, format!("{} is there", folder.join(name).display())),
        None => Fact::warning(name, "not in PATH: no user-mode networks")
            .advise("Install the package passt if guests shall have a network without root's rights."),
    }
}

fn io_uring(root: &Path, made: io::Result<()>) -> Fact {
    let Err(error) = made else {
        return Fact::ok("io-uring", "can be used");
    };
    let disabled = read(root, "proc/sys/kernel/io_uring_disabled").is_ok_and(|mode| mode.trim() != "0");
    let advice = if disabled {
        "Allow it (sysctl kernel.io_uring_disabled=0) for faster disks; Berth uses threads meanwhile."
    } else if error.raw_os_error() == Some(libc::ENOSYS) {
        "Use a Linux kernel with io_uring for faster disks; Berth uses threads meanwhile."
    } else {
        "See whether a container's seccomp filter forbids it; Berth uses threads meanwhile."
    };
    Fact::warning("io-uring", format!("refused: {error}")).advise(advice)
}

fn userfaultfd(full: io::Result<()>, user_mode: impl FnOnce() -> io::Result<()>) -> Fact {
    let name = "userfaultfd";
    match (full, user_mode) {
        (Ok(()), _) => Fact::ok(name, "can be used"),
        (Err(error), user_mode) => match user_mode() {
            Ok(()) => Fact::warning(name, "for faults of user space only").advise(
                "Allow the rest (sysctl vm.unprivileged_userfaultfd=1) if snapshots shall be restored page by page as a plain user.",
            ),
            Err(_) => Fact::warning(name, format!("refused: {error}"))
                .advise("Use a kernel with CONFIG_USERFAULTFD if snapshots shall be restored page by page."),
        },
    }
}

fn landlock(abi: io::Result<i64>) -> Fact {
    match abi {
        Ok(abi) => Fact::ok("landlock", format!("ABI {abi}")),
        Err(error) => Fact::warning("landlock", format!("not there: {error}"))
            .advise("Nothing to do: Berth does not use it."),
    }
}

fn cgroups(root: &Path) -> Fact {
    let name = "cgroups";
    let list = |path| read(root, path).map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    if let Ok(controllers) = list("sys/fs/cgroup/cgroup.controllers") {
        return Fact::ok(name, format!("version 2: {controllers}"));
    }
    let enabled = read(root, "proc/cgroups").unwrap_or_default();
    let enabled: Vec<_> = enabled
        .lines()
        .filter(|line| !line.starts_with('#') && line.ends_with('1'))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    if enabled.is_empty() {
        return Fact::warning(name, "none")
            .advise("Mount cgroup2 at /sys/fs/cgroup if you limit VMs by cgroups; Berth itself makes none.");
    }
    let hybrid = list("sys/fs/cgroup/unified/cgroup.controllers").is_ok();
    let detail = format!(
        "version 1{}: {}",
        if hybrid {
            " (version 2 mounted beside it)"
        } else {
            ""
        },
        enabled.join(" ")
    );
    Fact::warning(name, detail)
        .advise("Boot with systemd.unified_cgroup_hierarchy=1 for version 2 if you limit VMs by cgroups; Berth itself makes none.")
}

fn vhost(root: &Path, device: &str) -> Fact {
    let path = format!("dev/{device}");
    match OpenOptions::new().read(true).write(true).open(root.join(&path)) {
        Ok(_) => Fact::ok(device, format!("/{path} can be opened")),
        Err(error) => Fact::warning(device, format!("/{path} cannot be opened: {error}"))
            .advise("Nothing to do: Berth has its own backend and does not use the kernel's."),
    }
}

#[cfg(test)]
mod tests;
