//! What the kernel finds in memory when it starts: command line, initrd, memory map, and where they are.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use berth_arch::x86_64::layout;
use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{BootEntry, BootError, open_file, ram_size};

/// Where the initrd lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Initrd {
    pub(crate) base: u64,
    pub(crate) len: u64,
}

/// `initrd_addr_max` of every kernel with the 64-bit protocol.
const INITRD_MAX: u64 = 0x7fff_ffff;
/// Room that an initrd leaves above the kernel for what the kernel allocates first.
const KERNEL_SLACK: u64 = 1 << 20;

/// Reads `path` straight into guest memory, as high as the protocol allows, clear of a kernel that ends at `kernel_end`.
pub(crate) fn load_initrd(
    path: &Path,
    memory: &GuestMemoryMmap,
    kernel_end: u64,
) -> Result<Initrd, BootError> {
    let read = |cause| BootError::Read {
        what: "initrd",
        name: path.display().to_string(),
        cause,
    };
    let (mut file, len) = open_file(path).map_err(read)?;
    let ram = ram_size(memory);
    let low_end = ram.min(layout::MMIO_GAP).min(INITRD_MAX + 1);
    let base = low_end
        .checked_sub(len)
        .map(|base| base & !(layout::PAGE_SIZE - 1));
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    match base {
        Some(base) if base >= kernel_end + KERNEL_SLACK => {
            memory
                .read_exact_volatile_from(GuestAddress(base), &mut file, len as usize)
                .map_err(|error| read(std::io::Error::other(error)))?;
            Ok(Initrd { base, len })
        }
        _ => Err(BootError::InitrdDoesNotFit {
            path: path.to_owned(),
            size_mib: mib(len),
            kernel_end_mib: mib(kernel_end),
            ram_mib: ram >> 20,
        }),
    }
}

/// `SETUP_RNG_SEED`, the kind of `setup_data` that holds random bytes. Linux uses them up (6.0 and later).
const SETUP_RNG_SEED: u32 = 9;
/// Bytes of a seed: what Linux's generator holds.
const SEED_SIZE: usize = 32;

/// A `setup_data` entry (next, type, length, data) with a fresh seed from the host; `None` if the host has no randomness.
///
/// With it a guest has random numbers from its first instruction on, and need not hash what little it finds for each one.
fn seed() -> Option<Vec<u8>> {
    let mut bytes = [0; SEED_SIZE];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .ok()?;
    let mut entry = 0u64.to_le_bytes().to_vec();
    entry.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    entry.extend_from_slice(&(SEED_SIZE as u32).to_le_bytes());
    entry.extend_from_slice(&bytes);
    Some(entry)
}

/// Writes the command line and the parameters that `entry` calls for.
pub(crate) fn write(
    memory: &GuestMemoryMmap,
    entry: BootEntry,
    cmdline: &[u8],
    initrd: Option<Initrd>,
    rsdp: Option<u64>,
) -> Result<(), BootError> {
    let ram = ram_size(memory);
    let too_small = BootError::Memory { mib: ram >> 20 };
    let written = memory
        .write_slice(cmdline, GuestAddress(layout::COMMAND_LINE))
        .is_ok()
        && match entry {
            BootEntry::Linux64 { .. } => write_zero_page(memory, ram, cmdline.len(), initrd, rsdp),
            BootEntry::Pvh { .. } => write_start_info(memory, ram, initrd, rsdp),
        };
    if written { Ok(()) } else { Err(too_small) }
}

fn write_zero_page(
    memory: &GuestMemoryMmap,
    ram: u64,
    cmdline_len: usize,
    initrd: Option<Initrd>,
    rsdp: Option<u64>,
) -> bool {
    let mut params = boot_params::default();
    params.hdr.type_of_loader = 0xff;
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = u32::from_le_bytes(*b"HdrS");
    params.hdr.kernel_alignment = 0x100_0000;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    params.hdr.cmdline_size = cmdline_len as u32;
    params.acpi_rsdp_addr = rsdp.unwrap_or(0);
    if let Some(initrd) = initrd {
        // Both are below 2 GiB (INITRD_MAX).
        params.hdr.ramdisk_image = initrd.base as u32;
        params.hdr.ramdisk_size = initrd.len as u32;
    }
    if let Some(seed) = seed() {
        if memory
            .write_slice(&seed, GuestAddress(layout::SETUP_DATA))
            .is_err()
        {
            return false;
        }
        params.hdr.setup_data = layout::SETUP_DATA;
    }
    let map = layout::memory_map(ram);
    for (entry, range) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr: range.base,
            size: range.len,
            r#type: range.kind.number(),
        };
    }
    params.e820_entries = map.len() as u8;
    let params = BootParams::new(&params, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, memory).is_ok()
}

fn write_start_info(memory: &GuestMemoryMmap, ram: u64, initrd: Option<Initrd>, rsdp: Option<u64>) -> bool {
    let map: Vec<_> = layout::memory_map(ram)
        .iter()
        .map(|range| hvm_memmap_table_entry {
            addr: range.base,
            size: range.len,
            type_: range.kind.number(),
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: 0x336e_c578,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() {
            layout::PVH_MODULE_LIST
        } else {
            0
        },
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: rsdp.unwrap_or(0),
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(layout::PVH_START_INFO));
    params.set_sections(&map, GuestAddress(layout::PVH_MEMORY_MAP));
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.base,
            size: initrd.len,
            ..Default::default()
        };
        params.set_modules(&[module], GuestAddress(layout::PVH_MODULE_LIST));
    }
    PvhBootConfigurator::write_bootparams(&params, memory).is_ok()
}
