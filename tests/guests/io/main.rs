//! The I/O bench guest: drives virtio devices from ring 3 and says how long it took. `docs/performance.md` tells how to use it.
//!
//! - `boot.S` is both entries, [`start`] what it ends in; [`options`] reads the command line
//! - [`mmio`] and [`pci`] reach devices, [`transport`] starts them; [`queue`] and [`packed`] are their rings
//! - [`blk`] and [`net`] drive them; [`timing`] measures, [`report`] and [`serial`] say it
//! - [`mem`], [`paging`], [`interrupts`] and [`acpi`] are the machine
#![no_std]
#![no_main]

mod acpi;
mod blk;
mod failure;
mod interrupts;
mod mem;
mod mmio;
mod net;
#[allow(dead_code)]
mod options;
mod packed;
mod paging;
mod pattern;
mod pci;
mod queue;
mod report;
mod serial;
mod timing;
mod transport;

use core::cell::UnsafeCell;
use core::fmt::Write;

use failure::Failure;
use mem::{Arena, read8, read32, read64};
use mmio::Mmio;
use options::{Bench, Options};
use report::Times;
use serial::Serial;
use transport::Transport;

core::arch::global_asm!(
    include_str!("../long_mode.S"),
    include_str!("boot.S"),
    options(att_syntax)
);

/// Tables that `boot.S` keeps for [`paging`].
const SPARE_TABLES: u64 = 4;

unsafe extern "C" {
    /// The interrupt descriptor table.
    static idt: u8;
    static pml4: u8;
    static spare_tables: u8;
    /// The end of this program, from the linker.
    static program_end: u8;
}

/// Times are collected outside the stack; [`start`] alone borrows them.
struct Kept(UnsafeCell<Times>);
// SAFETY: there is one thread.
unsafe impl Sync for Kept {}
static TIMES: Kept = Kept(UnsafeCell::new(Times::new()));

/// What the monitor left in memory.
struct BootInfo {
    line: &'static str,
    /// Where ACPI's tables begin, or 0.
    rsdp: u64,
    /// End of the RAM that this program lies in.
    ram_end: u64,
}

impl BootInfo {
    /// From `boot_params` (Documentation/arch/x86/zero-page.rst).
    fn linux(at: u64) -> Self {
        let entries = (0..read8(at + 0x1e8) as u64).map(|index| at + 0x2d0 + 20 * index);
        Self {
            line: mem::text(read32(at + 0x228) as u64),
            rsdp: read64(at + 0x70),
            ram_end: ram_end(entries),
        }
    }

    /// From `hvm_start_info` (Xen's docs/misc/pvh.pandoc).
    fn pvh(at: u64) -> Self {
        let entries = (0..read32(at + 48) as u64).map(|index| read64(at + 40) + 24 * index);
        Self {
            line: mem::text(read64(at + 24)),
            rsdp: read64(at + 32),
            ram_end: ram_end(entries),
        }
    }
}

/// The end of the usable RAM around this program's end. Both kinds of entry begin with address, size and type.
fn ram_end(entries: impl Iterator<Item = u64>) -> u64 {
    let own = &raw const program_end as u64;
    let word = |at: u64| read32(at) as u64 | (read32(at + 4) as u64) << 32;
    entries
        .filter(|at| read32(at + 16) == 1)
        .map(|at| (word(at), word(at) + word(at + 8)))
        .find(|(start, end)| (*start..*end).contains(&own))
        // What is mapped one to one.
        .map_or(own, |(_, end)| end.min(5 << 30))
}

/// Where `boot.S` ends, in ring 3.
#[unsafe(no_mangle)]
extern "C" fn start(info: u64, pvh: u32) -> ! {
    interrupts::set_gates();
    let info = if pvh != 0 {
        BootInfo::pvh(info)
    } else {
        BootInfo::linux(info)
    };
    // SAFETY: this runs once, and nothing else borrows it.
    let times = unsafe { &mut *TIMES.0.get() };
    let status = match run(&info, times) {
        Ok(()) => 0,
        Err(failure) => {
            report::failure(&failure);
            1
        }
    };
    serial::end(status)
}

fn run(info: &BootInfo, times: &mut Times) -> Result<(), Failure<'static>> {
    let mut options = options::parse(info.line).map_err(Failure::Word)?;
    if options.tsc_khz == 0 {
        options.tsc_khz = timing::tsc_khz();
    }
    if options.tsc_khz == 0 && options.ms + options.warmup_ms > 0 {
        return Err(Failure::Refused(
            "the time stamp counter's frequency is unknown: say tsc_khz=",
        ));
    }
    let mut arena = Arena::new(&raw const program_end as u64, info.ram_end);
    match options.bench {
        Bench::Blk => blk::run(find(info, &options, blk::KIND)?, &options, &mut arena, times),
        Bench::Net => net::run(find(info, &options, net::KIND)?, &options, &mut arena, times),
    }
}

/// The device of type `kind` that the options choose: those on the command line first, then PCI's.
fn find(info: &BootInfo, options: &Options, kind: u32) -> Result<Transport, Failure<'static>> {
    let named = options::windows(info.line)
        .filter_map(Mmio::find)
        .map(|(mmio, kind)| (Transport::Mmio(mmio), kind));
    let on_bus = core::iter::once_with(|| pci::devices(info.rsdp))
        .flatten()
        .map(|(pci, kind)| (Transport::Pci(pci), kind));
    named
        .chain(on_bus)
        .filter(|(_, found)| *found == kind)
        .nth(options.dev)
        .map(|(transport, _)| transport)
        .ok_or(Failure::NoDevice)
}

/// Where `boot.S` sends what faults in ring 3.
#[unsafe(no_mangle)]
extern "C" fn fault(error: u64, instruction: u64, address: u64) -> ! {
    report::failure(&Failure::Fault {
        error,
        instruction,
        address,
    });
    serial::end(2)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    let line = info.location().map_or(0, |location| location.line());
    let _ = writeln!(Serial, "{{\"error\":\"the guest panics at line {line}\"}}");
    serial::end(3)
}
