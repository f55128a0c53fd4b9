//! How each monitor is told to run the guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use berth_tests::guests;
use berth_tests::netns::Netns;
use serde_json::json;

use crate::partner::TAP;

/// Guest memory, MiB: room for the largest depth and size together is not needed.
const MEMORY: u64 = 512;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Berth,
    Firecracker,
    CloudHypervisor,
    Qemu,
    /// This program without a guest.
    Floor,
}

pub(crate) struct Monitor {
    pub(crate) kind: Kind,
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    /// What follows the path in Berth's --disk.
    disk: String,
    /// Holds the files that a run needs.
    folder: tempfile::TempDir,
}

/// What a run is given.
pub(crate) struct Given<'a> {
    /// The guest's command line.
    pub(crate) words: &'a str,
    pub(crate) disk: &'a Path,
    pub(crate) direct: bool,
    /// Where there is a tap to give it.
    pub(crate) netns: Option<&'a Netns>,
}

impl Monitor {
    pub(crate) fn new(kind: Kind, name: &'static str, path: &Path, disk: &str) -> Self {
        Self {
            kind,
            name,
            path: path.to_owned(),
            disk: disk.to_owned(),
            folder: tempfile::tempdir().expect("the temporary folder can be written"),
        }
    }

    /// The first line that it prints for `--version`.
    pub(crate) fn version(&self) -> String {
        let output = Command::new(&self.path)
            .arg("--version")
            .stdin(Stdio::null())
            .output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.ok()
            .and_then(|text| text.lines().next().map(str::to_owned))
            .unwrap_or_default()
    }

    /// The command of one run.
    pub(crate) fn command(&self, given: &Given) -> Command {
        let mut command = match given.netns {
            None => Command::new(&self.path),
            Some(netns) => {
                let prefix = netns.prefix();
                let mut command = Command::new(&prefix[0]);
                command.args(&prefix[1..]).arg(&self.path);
                command
            }
        };
        match self.kind {
            Kind::Berth => self.berth(given, &mut command),
            Kind::Firecracker => self.firecracker(given, &mut command),
            Kind::CloudHypervisor => cloud_hypervisor(given, &mut command),
            Kind::Qemu => qemu(given, &mut command),
            Kind::Floor => {
                command.args(["floor", "--file"]).arg(given.disk);
                if given.direct {
                    command.arg("--direct");
                }
                command.arg("--").arg(given.words);
            }
        }
        command
    }

    fn berth(&self, given: &Given, command: &mut Command) {
        command
            .args(["run", "--memory", &format!("{MEMORY}M"), "--kernel"])
            .arg(guests::io())
            .args(["--cmdline", given.words])
            .args(["--disk", &format!("{}{}", given.disk.display(), self.disk)]);
        if given.netns.is_some() {
            command.args(["--net", &format!("tap={TAP}")]);
        }
    }

    fn firecracker(&self, given: &Given, command: &mut Command) {
        let nets = given
            .netns
            .map(|_| json!({ "iface_id": "net", "host_dev_name": TAP }));
        let config = json!({
            "boot-source": { "kernel_image_path": guests::io(), "boot_args": given.words },
            "drives": [{
                "drive_id": "disk", "path_on_host": given.disk, "is_root_device": false, "is_read_only": false,
                "io_engine": "Async",
            }],
            "network-interfaces": nets.as_slice(),
            "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY },
        });
        let path = self.folder.path().join("vm.json");
        fs::write(&path, config.to_string()).expect("the temporary folder can be written");
        command.args(["--no-api", "--config-file"]).arg(path);
    }
}

fn cloud_hypervisor(given: &Given, command: &mut Command) {
    let direct = if given.direct { "on" } else { "off" };
    command
        .arg("--kernel")
        .arg(guests::io())
        .args(["--cmdline", given.words, "--cpus", "boot=1"])
        .args([
            "--memory",
            &format!("size={MEMORY}M"),
            "--serial",
            "tty",
            "--console",
            "off",
        ])
        .args([
            "--disk",
            &format!("path={},direct={direct}", given.disk.display()),
        ]);
}

fn qemu(given: &Given, command: &mut Command) {
    let direct = if given.direct { "on" } else { "off" };
    let drive = format!(
        "id=disk,file={},format=raw,if=none,aio=io_uring,cache.direct={direct}",
        given.disk.display()
    );
    if given.netns.is_some() {
        command
            .args([
                "-netdev",
                &format!("tap,id=net,ifname={TAP},script=no,downscript=no,vhost=off"),
            ])
            .args(["-device", "virtio-net-device,netdev=net"]);
    }
    command
        // The feature that is left out stops QEMU on hosts whose KVM does not take its register.
        .args([
            "-M",
            "microvm,accel=kvm,acpi=off,kernel-irqchip=split,pic=off,pit=off",
        ])
        .args([
            "-cpu",
            "host,-arch-capabilities",
            "-smp",
            "1",
            "-m",
            &MEMORY.to_string(),
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
        ])
        .args([
            "-global",
            "virtio-mmio.force-legacy=false",
            "-append",
            given.words,
            "-kernel",
        ])
        .arg(guests::io())
        .args(["-object", "iothread,id=io", "-drive", &drive])
        .args(["-device", "virtio-blk-device,drive=disk,iothread=io"]);
}
