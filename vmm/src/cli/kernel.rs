//! `berth kernel`: what a kernel file is.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::PathBuf;

use berth_arch::x86_64::layout;
use berth_boot::{Format, KernelReport, KernelSource};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::say::{complain, print, print_json};
use crate::exit_code;

/// Arguments of `berth kernel`.
#[derive(Debug, Args)]
pub struct KernelArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: KernelVerb,
}

/// The verbs of `berth kernel`.
#[derive(Debug, Subcommand)]
pub enum KernelVerb {
    /// Say a kernel's format, version, entry points and, where it carries its configuration, what is built in
    Info(KernelInfoArgs),
}

/// Arguments of `berth kernel info`.
#[derive(Debug, Args)]
pub struct KernelInfoArgs {
    /// The kernel: ELF (vmlinux) or bzImage, compressed or not
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What an unpacked kernel may come to.
const LARGEST: u64 = 1 << 30;

/// What decides whether a kernel finds its devices and its root here.
const OPTIONS: [&str; 28] = [
    "VIRTIO_MMIO",
    "VIRTIO_MMIO_CMDLINE_DEVICES",
    "VIRTIO_PCI",
    "VIRTIO_BLK",
    "VIRTIO_NET",
    "VIRTIO_CONSOLE",
    "VIRTIO_BALLOON",
    "VIRTIO_VSOCKETS",
    "HW_RANDOM_VIRTIO",
    "SERIAL_8250_CONSOLE",
    "ACPI",
    "PVH",
    "KVM_GUEST",
    "PVPANIC_MMIO",
    "BLK_DEV_INITRD",
    "RD_GZIP",
    "RD_XZ",
    "RD_ZSTD",
    "RD_LZ4",
    "DEVTMPFS_MOUNT",
    "EXT4_FS",
    "EROFS_FS",
    "SQUASHFS",
    "XFS_FS",
    "BTRFS_FS",
    "OVERLAY_FS",
    "IKCONFIG",
    "MODULES",
];

/// What `info --json` prints.
#[derive(Serialize)]
struct Info<'a> {
    format: &'static str,
    size: u64,
    unpacked: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    compression: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    entries: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_protocol: Option<String>,
    /// The longest command line that the kernel takes, where it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    cmdline_max: Option<u32>,
    /// The longest command line that Berth gives.
    berth_cmdline_max: usize,
    /// Whether it carries its configuration.
    config: bool,
    /// y, m or n for each option, where it does.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    options: BTreeMap<&'static str, &'a str>,
}

/// Runs it. Returns the exit code.
pub(super) fn run(args: &KernelArgs) -> u8 {
    let KernelVerb::Info(args) = &args.verb;
    match berth_boot::inspect(&KernelSource::File(args.file.clone()), LARGEST) {
        Ok(report) => {
            let info = Info::of(&report);
            if args.json {
                print_json(&info)
            } else {
                print(&info.text())
            }
        }
        Err(error) => {
            complain(&error);
            exit_code::USER
        }
    }
}

impl<'a> Info<'a> {
    fn of(report: &'a KernelReport) -> Self {
        let entries = [("linux64", report.linux64), ("pvh", report.pvh)];
        let config = report.config.as_ref();
        let value = |config: &'a BTreeMap<String, String>, name| config.get(name).map_or("n", String::as_str);
        Self {
            format: match report.format {
                Format::Elf => "elf",
                Format::BzImage => "bzimage",
            },
            size: report.size,
            unpacked: report.unpacked,
            compression: report.compression.map(berth_boot::Compression::name),
            version: report.version.as_deref(),
            entries: entries
                .into_iter()
                .filter_map(|(name, at)| Some((name, at?)))
                .collect(),
            boot_protocol: report
                .protocol
                .map(|(major, minor)| format!("{major}.{minor:02}")),
            cmdline_max: report.cmdline,
            berth_cmdline_max: layout::COMMAND_LINE_SIZE - 1,
            config: config.is_some(),
            options: config
                .map(|config| OPTIONS.map(|name| (name, value(config, name))).into())
                .unwrap_or_default(),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &dyn fmt::Display| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<12} {value}");
        };
        let packed = match self.compression {
            Some(compression) => format!(", compressed by {compression}"),
            None => String::new(),
        };
        let format = match self.format {
            "elf" => "ELF (vmlinux)",
            _ => "bzImage",
        };
        line("format", &format_args!("{format}{packed}"));
        line(
            "size",
            &format_args!("{} bytes, {} unpacked", self.size, self.unpacked),
        );
        line("version", &self.version.unwrap_or("not said"));
        for (name, at) in &self.entries {
            let name = if *name == "pvh" {
                "PVH entry"
            } else {
                "64-bit entry"
            };
            line(name, &format_args!("{at:#x}"));
        }
        if let Some(protocol) = &self.boot_protocol {
            line("protocol", protocol);
        }
        let limit = self
            .cmdline_max
            .map(|limit| format!("{limit} bytes by the kernel, "));
        line(
            "command line",
            &format_args!("{}{} by Berth", limit.unwrap_or_default(), self.berth_cmdline_max),
        );
        if !self.config {
            line("config", &"not carried (CONFIG_IKCONFIG)");
        }
        for (value, title) in [("y", "built in"), ("m", "modules"), ("n", "not there")] {
            let names = self.options.iter().filter(|(_, own)| **own == value);
            let names: Vec<_> = names.map(|(name, _)| *name).collect();
            if !names.is_empty() {
                line(title, &names.join(" "));
            }
        }
        text
    }
}
