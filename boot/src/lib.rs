//! From a kernel file to a bootable guest: detection, decompression on the host, loading, boot parameters.
//!
//! A kernel is an ELF file, a bzImage or either of them compressed. Whatever it is, an ELF file ends up in guest memory
//! and no guest ever decompresses itself: that costs minutes where guest kernel code is interpreted. Nothing a file says
//! about sizes and offsets is believed before it has been checked against the file and the guest's memory.
#![forbid(unsafe_code)]

mod bzimage;
mod cmdline;
mod compression;
mod elf;
mod error;
mod image;
mod inspect;
mod params;

use std::path::Path;

use berth_arch::x86_64::layout;
use vm_memory::GuestMemoryMmap;

pub use cmdline::CommandLine;
pub use compression::Compression;
pub use elf::EntryPolicy;
pub use error::BootError;
pub use image::{KernelSource, open_file};
pub use inspect::{KernelReport, inspect};

/// What to boot.
#[derive(Debug, Clone, Copy)]
pub struct BootRequest<'a> {
    /// The kernel.
    pub kernel: &'a KernelSource,
    /// Initial RAM disk, given to the guest as it is.
    pub initrd: Option<&'a Path>,
    /// The whole command line.
    pub cmdline: &'a CommandLine,
    /// Which of the kernel's entry points to take.
    pub entry: EntryPolicy,
    /// Guest physical address of the ACPI root pointer, where the guest has ACPI.
    pub rsdp: Option<u64>,
}

/// The container a kernel came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An ELF file (`vmlinux`).
    Elf,
    /// A bzImage; its payload was unpacked on the host.
    BzImage,
}

/// What a kernel file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelInfo {
    /// Its container.
    pub format: Format,
    /// How it, or its payload, was compressed.
    pub compression: Option<Compression>,
}

/// Where the guest starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootEntry {
    /// Linux's 64-bit entry, `boot_params` at [`layout::ZERO_PAGE`].
    Linux64 {
        /// First instruction.
        rip: u64,
    },
    /// The PVH entry, in 32-bit protected mode, start info at [`layout::PVH_START_INFO`].
    Pvh {
        /// First instruction.
        rip: u64,
    },
}

/// A guest's memory, ready to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// Where it starts.
    pub entry: BootEntry,
    /// What the kernel file was.
    pub kernel: KernelInfo,
}

/// Loads what `request` names into `memory`, which must be fresh: all zero.
pub fn load(memory: &GuestMemoryMmap, request: &BootRequest) -> Result<Boot, BootError> {
    let name = request.kernel.name();
    let opened = image::Image::open(request.kernel)?;
    let ram = ram_size(memory);
    let (image, kernel) = image::unpack(&name, opened, ram)?;
    let loaded = elf::load(&name, &image, memory, request.entry)?;
    drop(image);
    let initrd = match request.initrd {
        Some(path) => Some(params::load_initrd(path, memory, loaded.end)?),
        None => None,
    };
    let cmdline = request.cmdline.bytes(layout::COMMAND_LINE_SIZE)?;
    params::write(memory, loaded.entry, &cmdline, initrd, request.rsdp)?;
    Ok(Boot {
        entry: loaded.entry,
        kernel,
    })
}

fn ram_size(memory: &GuestMemoryMmap) -> u64 {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    memory.iter().map(GuestMemoryRegion::len).sum()
}

#[cfg(test)]
mod tests;
