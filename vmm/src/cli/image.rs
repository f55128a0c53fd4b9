//! `berth image`: images made and looked at.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::{io, process, thread};

use clap::{Args, Subcommand};
use rustix::event::{PollFd, PollFlags, poll};

use super::completion::words;
use super::say::{complain, print, print_json};
use crate::exit_code;
use crate::image::{self, BuildOptions, Built, ImageFormat, Owner, Partial};
use crate::signals::Signals;
use crate::spec::ByteSize;

/// Arguments of `berth image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: ImageVerb,
}

/// The verbs of `berth image`.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Make a root image from directories and tar files
    #[command(long_about = BUILD_ABOUT, after_help = BUILD_EXAMPLES, after_long_help = BUILD_EXAMPLES)]
    Build(Box<ImageBuildArgs>),
    /// Say what an image is
    #[command(after_help = INFO_HELP, after_long_help = INFO_HELP)]
    Info(ImageInfoArgs),
}

const INFO_HELP: &str = "\
It knows ext2/3/4, EROFS, SquashFS, XFS, Btrfs, FAT, cpio and tar (compressed or not), ISO 9660, GPT and MBR disks, qcow2, VHD, VHDX \
and VMDK.";

/// Arguments of `berth image info`.
#[derive(Debug, Args)]
pub struct ImageInfoArgs {
    /// The image: a file or a block device
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

const BUILD_ABOUT: &str = "\
Make a root image from directories and tar files.

It needs no root rights, no mounts and no VM. Owners, modes, times, attributes, devices, links and holes of files stay as they are in \
the sources; a later source is laid over those before it, and whiteouts of OCI layers (.wh.NAME) hide what is below. The same sources \
make the same image, byte for byte.";

const BUILD_EXAMPLES: &str = "\
Examples:
  berth image build rootfs/ -o root.ext4 --owner 0:0
  berth image build base.tar.zst changes/ -o root.ext4 --size 2G
  docker export $CONTAINER | berth image build - -o root.erofs
  berth image build initramfs/ -o initrd.cpio.zst --owner 0:0 --timestamp 0";

/// Arguments of `berth image build`.
#[derive(Debug, Args)]
pub struct ImageBuildArgs {
    /// Directories and tar files (also gzip, xz, zstd, bzip2, lz4), - for a tar file on standard input
    #[arg(value_name = "SOURCE", required = true)]
    pub from: Vec<PathBuf>,

    /// The image's file, which is replaced if it is there
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,

    /// ext4, erofs, squashfs, cpio, cpio.gz, cpio.zst, cpio.xz or cpio.lz4 [default: by the output's name]
    #[arg(long, short, value_name = "KIND", value_parser = str::parse::<ImageFormat>, add = words(&["ext4", "erofs", "squashfs", "cpio", "cpio.gz", "cpio.zst", "cpio.xz", "cpio.lz4"]))]
    pub format: Option<ImageFormat>,

    /// Size of an ext4 image [default: what it needs, and room for a tenth more]
    #[arg(long, value_name = "SIZE", value_parser = str::parse::<ByteSize>)]
    pub size: Option<ByteSize>,

    /// When the image says it was made, in seconds since 1970; nothing in it is later [default: the newest file's time]
    ///
    /// The variable SOURCE_DATE_EPOCH means the same.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timestamp: Option<u64>,

    /// The file system's UUID [default: one that its contents determine]
    #[arg(long, value_name = "UUID")]
    pub uuid: Option<String>,

    /// The file system's label
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,

    /// Who owns what comes from directories, such as 0:0 [default: who owns it here]
    #[arg(long, value_name = "UID:GID", value_parser = str::parse::<Owner>)]
    pub owner: Option<Owner>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no number of seconds since 1970"))
}

/// Runs it. Returns the exit code.
pub(super) fn run(args: &ImageArgs) -> u8 {
    match &args.verb {
        ImageVerb::Build(args) => build(args),
        ImageVerb::Info(args) => info(args),
    }
}

fn build(args: &ImageBuildArgs) -> u8 {
    let partial = Partial::default();
    if let Err(cause) = discard_on_signal(partial.clone()) {
        complain(&format_args!("signals cannot be waited for: {cause}"));
        return exit_code::FAULT;
    }
    let options = BuildOptions {
        from: args.from.clone(),
        output: args.output.clone(),
        format: args.format,
        size: args.size,
        timestamp: args.timestamp,
        uuid: args.uuid.clone(),
        label: args.label.clone(),
        owner: args.owner,
    };
    match image::build_with(&options, &partial) {
        Ok(built) if args.json => print_json(&built),
        Ok(built) => print(&text(&built)),
        Err(error) => {
            complain(&error);
            exit_code::USER
        }
    }
}

fn info(args: &ImageInfoArgs) -> u8 {
    match image::info::info(&args.file) {
        Ok(info) if args.json => print_json(&info),
        Ok(info) => print(&image::info::text(&info)),
        Err(error) => {
            complain(&error);
            exit_code::USER
        }
    }
}

fn text(built: &Built) -> String {
    let mib = built.size.div_ceil(1 << 20);
    let uuid = built.uuid.iter().map(|uuid| format!(", UUID {uuid}"));
    let uuid = uuid.collect::<String>();
    format!(
        "{}: {}, {mib} MiB, {} files and directories{uuid}\n",
        built.path.display(),
        built.format,
        built.nodes
    )
}

/// Has a signal that ends the program remove what it would leave behind.
fn discard_on_signal(partial: Partial) -> io::Result<()> {
    let signals = Signals::take()?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        loop {
            // Only whether one has come matters; a failed wait is tried again.
            let _ = poll(&mut [PollFd::new(&signals, PollFlags::IN)], None);
            if let Some(signal) = signals.next() {
                partial.discard();
                process::exit(i32::from(exit_code::of_signal(signal)));
            }
        }
    })?;
    Ok(())
}
