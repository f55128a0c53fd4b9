//! What the fuzzers feed: one function per target, any bytes in, no panic and no hang out.
//!
//! `tests/fuzz` drives them with libFuzzer; `tests/corpus.rs` drives them with seeded pseudo-random input on stable Rust.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use berth::boot_test::expand::{self, Outside};
use berth::boot_test::file::Source;
use berth::spec::{self, Format, Limits};
use berth_boot::{BootRequest, CommandLine, EntryPolicy, KernelSource};
use berth_devices::Memory;
use berth_devices::storage::FileDisk;
use berth_devices::virtio::balloon::{Balloon, BalloonConfig, PageReturner};
use berth_devices::virtio::blk::{Block, BlockConfig};
use berth_devices::virtio::conformance;
use berth_devices::virtio::console::{Console, NullPort};
use berth_devices::virtio::pmem::{self as persistent, Pmem};
use berth_devices::virtio::rng::Rng;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::signal::register_signal_handler;

use crate::{formats, guests};

mod assist;
mod image;
mod mmds;
mod net;
mod ports;
mod qcow2;
mod snapshot;
mod stream;
mod vsock;

/// A fuzz target.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Feeds it.
    pub run: fn(&[u8]),
    /// Good inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    target("kernel", kernel, kernels),
    target("assist", assist, assist::seeds),
    target("chain", chain, Vec::new),
    target("mmio", mmio, Vec::new),
    target("rng", rng, Vec::new),
    target("config", config, configs),
    target("boot_test", boot_test, boot_tests),
    target("net", net, Vec::new),
    target("mmds", mmds, mmds::seeds),
    target("stream", stream, stream::seeds),
    target("block", block, Vec::new),
    target("pmem", pmem, Vec::new),
    target("vsock", vsock, vsock::seeds),
    target("balloon", balloon, Vec::new),
    target("console", console, Vec::new),
    target("ports", ports, Vec::new),
    target("snapshot", snapshot, snapshot::seeds),
    target("tar", tar, image::tars),
    target("image", image, image::images),
    target("qcow2", qcow2, qcow2::seeds),
];

const fn target(name: &'static str, run: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target { name, run, seeds }
}

/// Makes libFuzzer's program, whose `main` is not Rust's, one such as Berth is: a pipe without a reader is an error and no signal, and a
/// panic that Berth catches is no crash. Called once, before the first input.
pub fn begin() {
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(libc::SIGPIPE, nothing).expect("a signal that can be handled");
    let crash = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !berth_devices::contained::is_here() {
            crash(panic);
        }
    }));
}

/// Guest RAM for loading: small, so that lies about sizes are soon out of it.
const RAM: usize = 4 << 20;

/// Loads arbitrary bytes as a kernel, by each entry policy.
pub fn kernel(data: &[u8]) {
    let Some((&choice, file)) = data.split_first() else {
        return;
    };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).expect("the host has 4 MiB");
    let mut cmdline = CommandLine::new();
    cmdline.push("console=ttyS0");
    let kernel = KernelSource::File(scratch(file));
    let request = BootRequest {
        kernel: &kernel,
        initrd: None,
        cmdline: &cmdline,
        entry: [EntryPolicy::Auto, EntryPolicy::Linux64, EntryPolicy::Pvh][usize::from(choice) % 3],
        rsdp: None,
    };
    // A refusal is as good as a load.
    let _ = berth_boot::load(&memory, &request);
    let _ = berth_boot::inspect(&kernel, RAM as u64);
}

/// Reads a tar file. What can be read makes an initramfs that can be read.
pub fn tar(data: &[u8]) {
    image::tar(data);
}

/// Says what an image is.
pub fn image(data: &[u8]) {
    image::image(data);
}

/// Has the assist execute the instruction, in the state, that the bytes describe.
pub fn assist(data: &[u8]) {
    assist::run(data);
}

/// Walks whatever descriptor chains the bytes lay out.
pub fn chain(data: &[u8]) {
    conformance::fuzz_chain(data);
}

/// Plays the bytes as a driver that does anything to the registers and rings of a device.
pub fn mmio(data: &[u8]) {
    conformance::fuzz_mmio(Box::new(Rng::new()), data);
}

/// Gives the entropy device's handler requests made of the bytes.
pub fn rng(data: &[u8]) {
    conformance::fuzz_queue(Box::new(Rng::new()), data);
}

/// Gives a disk's handler requests made of the bytes: a file of 30 sectors.
pub fn block(data: &[u8]) {
    let disk = FileDisk::open(scratch(&[0; 30 * 512]), false).expect("it is a regular file");
    conformance::fuzz_queue(Box::new(Block::new(Box::new(disk), BlockConfig::default())), data);
}

/// Gives a persistent memory device's handler requests made of the bytes.
pub fn pmem(data: &[u8]) {
    let disk = FileDisk::open(scratch(&[0; 512]), false).expect("it is a regular file");
    let device = Pmem::new(Box::new(disk), 1 << 32, persistent::ALIGNMENT);
    conformance::fuzz_queue(Box::new(device), data);
}

/// Uses the bytes as a qcow2 image and as requests to it.
pub fn qcow2(data: &[u8]) {
    qcow2::run(data);
}

/// Gives the socket device packets, and host programs something to do, made of the bytes.
pub fn vsock(data: &[u8]) {
    vsock::run(data);
}

/// Gives a balloon's handlers requests made of the bytes. What is given back is only checked.
pub fn balloon(data: &[u8]) {
    struct Checked;
    impl PageReturner for Checked {
        fn give_back(&self, memory: &Memory, addr: GuestAddress, len: u64) -> io::Result<()> {
            assert!(
                memory.check_range(addr, len as usize),
                "{addr:?}+{len:#x} is no RAM"
            );
            Ok(())
        }
    }
    let config = BalloonConfig {
        target_pages: 100,
        deflate_on_oom: true,
        stats_interval: Duration::from_secs(1_000_000),
        free_page_reporting: true,
        free_page_hinting: true,
    };
    let (balloon, _) = Balloon::new(config, Box::new(Checked)).expect("descriptors");
    conformance::fuzz_queue(Box::new(balloon), data);
}

/// Gives a console's handlers, those of its control messages too, requests made of the bytes.
pub fn console(data: &[u8]) {
    let ports = ["", "agent"].map(|name| (name.to_owned(), Box::new(NullPort) as _));
    let (console, _) = Console::new(ports.into()).expect("a descriptor");
    conformance::fuzz_queue(Box::new(console), data);
}

/// Accesses the port devices as the bytes say.
pub fn ports(data: &[u8]) {
    ports::run(data);
}

/// Reads a snapshot's description, its memory's trailer, or restores devices from parts of a description.
pub fn snapshot(data: &[u8]) {
    snapshot::run(data);
}

/// Reads text as a description of a VM in both languages. What can be read can be validated, written, and read again.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for format in [Format::Toml, Format::Json] {
        let Ok(spec) = spec::parse(text, format) else {
            continue;
        };
        // Faults are as good as none.
        let _ = spec::validate(&spec, Limits::NONE);
        let written = serde_json::to_string(&spec).expect("a description is plain data");
        assert_eq!(spec::parse(&written, Format::Json).ok(), Some(spec), "{written}");
    }
}

/// A description that has every field, and the least.
fn configs() -> Vec<Vec<u8>> {
    let toml = r#"cpus = 2
memory = "512M"
kernel = "vmlinux"
entry = "pvh"
initrd = "initrd"
cmdline = "quiet"
cmdline_replace = "console=ttyS0"
command = ["sh", "-c", "true"]
rng = false
serial = { file = "log" }
timeout = 10
assist = true

[cpu_template]
kvm_capabilities = ["121", "!56"]
msr_modifiers = [{ addr = "0x10a", bitmap = "0b0x1" }]

[[cpu_template.cpuid_modifiers]]
leaf = "0x7"
subleaf = "0b1"
flags = 1
modifiers = [{ register = "eax", bitmap = "0bx0_01" }]

[mmds]
version = "V2"
nets = ["net1"]
address = "169.254.170.2"
imds_compat = true
file = "metadata.json"

[vsock]
cid = 42
path = "vm.vsock"

[balloon]
target = "64M"
deflate_on_oom = true
stats_interval = 5
free_page_reporting = true
free_page_hinting = true

[[consoles]]
name = "agent"
socket = "s"

[[disks]]
path = "disk.img"
read_only = true
serial = "data"
rate_limit = { bandwidth = { size = "1M", refill_ms = 10, burst = 5 }, ops = { size = 7 } }

[[pmem]]
id = "data"
path = "data.img"
read_only = true
rate_limit = { ops = { size = 7 } }

[[nets]]
tap = "tap0"
mac = "02:00:00:00:00:01"
"#;
    let spec = spec::parse(toml, Format::Toml).expect("a good description");
    let json = serde_json::to_string_pretty(&spec).expect("a description is plain data");
    vec![toml.into(), json.into(), b"{}".into(), b"serial = \"pty\"".into()]
}

/// Reads text as a test file. What can be read is expanded: to cases or to a sentence.
pub fn boot_test(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(source) = Source::parse(Path::new("fuzz.test.toml"), text.to_owned()) else {
        return;
    };
    let outside = Outside {
        flags: &BTreeMap::new(),
        environment: &|_| None,
        images: Path::new("/images"),
    };
    match expand::expand(&source, &outside) {
        Ok(expanded) => assert!(!expanded.cases.is_empty() && expanded.cases.len() <= expand::CASES_MAX),
        Err(fault) => assert!(!fault.to_string().contains('\n'), "{fault}"),
    }
}

/// Test files that have between them every kind of step that can be done.
fn boot_tests() -> Vec<Vec<u8>> {
    let toml = r#"name = "boots ${mode}"
timeout = "60s"
hang = "10s"
allow = ["oops"]
never = ["BUG: [a-z]+"]
ready = "^login"
[vars]
mode = "quick"
home = { env = "HOME", default = "/" }
[matrix]
memory = ["128M", "1G"]
cpus = [1, 2]
[image.data]
from = ["layer.tar"]
size = "64M"
[vm]
cmdline = "x=${home}"
[[vm.disks]]
id = "data"
path = "${image.data}"
[[step]]
expect = "login: "
within = "30s"
[[step]]
send = "root
"
[[step]]
run = "uname -r"
status = 0
stdout = "^6\."
[[step]]
snapshot = "a"
[[step]]
restore = "a"
[[step]]
attach = "data"
image = "${image.data}"
[[step]]
press = "power"
[[step]]
exit = "shutdown"
[[step]]
file = "/etc/hostname"
disk = "data"
contains = "berth"
[[step]]
offset = 510
disk = "data"
hex = "55aa"
"#;
    vec![toml.into(), b"[[step]]\nexpect_regex = \"a+$\"\n".into()]
}

/// Gives a network card's handlers requests, and frames from outside, made of the bytes.
pub fn net(data: &[u8]) {
    net::run(data);
}

/// Gives a network card the bytes as a stream of frames.
pub fn stream(data: &[u8]) {
    stream::run(data);
}

/// Gives the metadata service on a network card segments made of the bytes.
pub fn mmds(data: &[u8]) {
    mmds::run(data);
}

/// Kernels in every format, behind the byte that chooses the entry policy.
fn kernels() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for path in [guests::tiny(), guests::byte()] {
        let elf = std::fs::read(path).expect("build.rs made it");
        seeds.extend((0..3).map(|choice| [&[choice][..], &elf].concat()));
        for (name, _) in formats::COMPRESSIONS {
            let packed = formats::compress(name, &elf);
            seeds.push([&[0][..], &formats::bzimage(&packed, elf.len())].concat());
            seeds.push([&[0][..], &packed].concat());
        }
    }
    seeds
}

/// A file that holds `bytes`, without a name that a crash could leave behind.
fn scratch(bytes: &[u8]) -> std::path::PathBuf {
    use std::cell::RefCell;
    use std::io::{Seek, Write};
    use std::os::fd::AsRawFd;

    thread_local! {
        static FILE: RefCell<std::fs::File> = RefCell::new(tempfile::tempfile().expect("a temporary file can be made"));
    }
    FILE.with_borrow_mut(|file| {
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(bytes));
        written.expect("the temporary folder has room");
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    })
}
