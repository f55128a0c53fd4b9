//! The guest's physical address space: where Berth puts what, in memory and among the ports.
//!
//! ```text
//!          0 ┬ RAM: boot structures, one page or more each (below)
//!    0x9fc00 ┼ EBDA: the MP floating pointer; Linux looks for it here
//!    0xa0000 ┼ VGA hole: RAM is there but no table says so
//!    0xe0000 ┼ firmware tables: ACPI (64 KiB), then the MP configuration table (64 KiB)
//!   0x100000 ┼ RAM: kernel, initramfs, everything else
//! 0xd0000000 ┼ MMIO: virtio windows, IOAPIC, LAPIC, KVM's own pages
//!      4 GiB ┼ RAM: what did not fit below
//!  then, in GiB ┼ files that the guest has in memory (virtio-pmem), in no table
//! ```
//!
//! The boot structures are needed until the guest has read them; then it may use their memory as it likes. Truth for what Linux
//! expects: `Documentation/arch/x86/boot.rst`; for PVH: Xen's `docs/misc/pvh.pandoc`.

/// Size of a small page.
pub const PAGE_SIZE: u64 = 0x1000;

/// Global descriptor table for the first instruction.
pub const BOOT_GDT: u64 = 0x500;
/// Entries that fit before [`BOOT_IDT`].
pub const BOOT_GDT_MAX_ENTRIES: usize = 16;
/// Interrupt descriptor table: one empty entry, so that an early fault is a triple fault.
pub const BOOT_IDT: u64 = 0x580;
/// PVH: `hvm_start_info`.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH: the one `hvm_modlist_entry` (the initramfs).
pub const PVH_MODULE_LIST: u64 = 0x6040;
/// PVH: the `hvm_memmap_table_entry` array; ends before [`ZERO_PAGE`].
pub const PVH_MEMORY_MAP: u64 = 0x6100;
/// Linux `boot_params`, 4 KiB.
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer: grows down, towards the zero page's end at 0x8000.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Top level of the boot page tables.
pub const BOOT_PML4: u64 = 0x9000;
/// Second level: one entry per GiB.
pub const BOOT_PDPT: u64 = 0xa000;
/// Third level: four tables in a row, one per GiB, 512 pages of 2 MiB each.
pub const BOOT_PD: u64 = 0xb000;
/// How many GiB the boot page tables map at most.
pub const BOOT_PD_MAX_TABLES: u64 = 4;
/// Linux `setup_data`: one entry, the seed for its random numbers.
pub const SETUP_DATA: u64 = 0xf000;
/// Kernel command line.
pub const COMMAND_LINE: u64 = 0x20000;
/// Bytes a command line may have with its NUL: what Linux on x86 takes (`COMMAND_LINE_SIZE`).
pub const COMMAND_LINE_SIZE: usize = 2048;

/// End of the low RAM that the memory map offers; the last KiB below 640 KiB is the EBDA.
pub const LOW_RAM_END: u64 = 0x9fc00;
/// Where the MP floating pointer lies (16 bytes).
pub const MP_FLOATING_POINTER: u64 = LOW_RAM_END;
/// Where firmware tables begin: the ACPI RSDP. It is named in `boot_params.acpi_rsdp_addr` and in `hvm_start_info.rsdp_paddr` too.
pub const ACPI_RSDP: u64 = 0xe0000;
/// End (exclusive) of the room for ACPI tables.
pub const ACPI_END: u64 = VM_GENERATION_ID;
/// The VM generation id: 16 bytes that change when the VM goes on from a state that another may go on from too.
pub const VM_GENERATION_ID: u64 = 0xe_ff00;
/// The MP configuration table: 254 processors need more than the EBDA's KiB.
pub const MP_TABLE: u64 = 0xf0000;
/// End (exclusive) of the room for the MP configuration table.
pub const MP_TABLE_END: u64 = 0x10_0000;
/// Where high RAM begins: the lowest address for a kernel or an initramfs.
pub const HIGH_RAM: u64 = 0x10_0000;

/// First address of the MMIO gap: RAM ends here at the latest, and goes on at [`MMIO_GAP_END`].
pub const MMIO_GAP: u64 = 0xd000_0000;
/// End (exclusive) of the MMIO gap: 4 GiB.
pub const MMIO_GAP_END: u64 = 0x1_0000_0000;

/// First virtio-mmio window.
pub const VIRTIO_MMIO: u64 = MMIO_GAP;
/// Size of one virtio-mmio window.
pub const VIRTIO_MMIO_SIZE: u64 = PAGE_SIZE;
/// How many virtio-mmio windows there are.
pub const VIRTIO_MMIO_MAX: usize = 64;
/// GSIs for virtio-mmio devices.
///
/// Left out: 0 (timer), 1 and 12 (keyboard and mouse), 2 (cascade), 3 and 4 (serial), 8 (RTC), 9 (ACPI), 13 (FPU).
pub const VIRTIO_GSIS: [u32; 15] = [5, 6, 7, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// Most processors a guest can have: APIC ids are 8 bits, 255 means all of them, and one is left for the IOAPIC.
pub const MAX_CPUS: u32 = 254;
/// The in-kernel or emulated IOAPIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Input pins of the IOAPIC: GSIs 0 to 23.
pub const IOAPIC_PINS: u32 = 24;
/// The local APIC of every processor.
pub const LAPIC: u64 = 0xfee0_0000;
/// Page for `KVM_SET_IDENTITY_MAP_ADDR`: KVM on Intel hosts without unrestricted guest wants one.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for `KVM_SET_TSS_ADDR`, for the same hosts.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// First serial port (COM1): base of its eight I/O ports.
pub const COM1_PORT: u16 = 0x3f8;
/// GSI of COM1.
pub const COM1_GSI: u32 = 4;
/// Second serial port (COM2): base of its eight I/O ports.
pub const COM2_PORT: u16 = 0x2f8;
/// GSI of COM2.
pub const COM2_GSI: u32 = 3;
/// Ports a serial port takes.
pub const COM_PORTS: u16 = 8;
/// Keyboard controller, data port.
pub const I8042_DATA_PORT: u16 = 0x60;
/// Keyboard controller, command and status port; the guest resets by writing [`I8042_RESET`] here.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// GSI of the keyboard.
pub const I8042_GSI: u32 = 1;
/// The keyboard controller's command that resets the machine.
pub const I8042_RESET: u8 = 0xfe;
/// CMOS clock, index port.
pub const CMOS_INDEX_PORT: u16 = 0x70;
/// CMOS clock, data port.
pub const CMOS_DATA_PORT: u16 = 0x71;
/// GSI of the CMOS clock.
pub const CMOS_GSI: u32 = 8;
/// Exit port: a byte written here ends the VM with that status.
pub const EXIT_PORT: u16 = 0xf4;
/// Ready port: a guest writes 1 here when it has started and waits for what it is to do.
pub const READY_PORT: u16 = 0xf5;
/// pvpanic (QEMU's `docs/specs/pvpanic`).
pub const PVPANIC_PORT: u16 = 0x505;

/// ACPI sleep control register, one byte (ACPI 6.5, 4.8.3.7). Power off = [`ACPI_POWER_OFF`] written here.
pub const ACPI_SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register, one byte. Reads as zero.
pub const ACPI_SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register, one byte. Reset = [`ACPI_RESET`] written here.
pub const ACPI_RESET_PORT: u16 = 0x602;
/// Which events the generic event device has pending, one byte. Reading clears them.
pub const ACPI_EVENT_PORT: u16 = 0x604;
/// GSI by which the generic event device announces an event (edge).
pub const ACPI_EVENT_GSI: u32 = 9;
/// Sleep type of S5 (soft off) in `\_S5`.
pub const ACPI_S5_TYPE: u8 = 5;
/// What a guest writes to the sleep control register to power off: SLP_EN (bit 5), S5's type in bits 2 to 4.
pub const ACPI_POWER_OFF: u8 = 0x20 | (ACPI_S5_TYPE << 2);
/// What a guest writes to the reset register.
pub const ACPI_RESET: u8 = 1;
/// Bit of [`ACPI_EVENT_PORT`]: the power button was pressed.
pub const ACPI_EVENT_POWER_BUTTON: u8 = 1;
/// Bit of [`ACPI_EVENT_PORT`]: the VM generation id changed.
pub const ACPI_EVENT_GENERATION: u8 = 2;

/// Address of virtio-mmio window `index`, or `None` past the last.
pub const fn virtio_mmio_address(index: usize) -> Option<u64> {
    if index < VIRTIO_MMIO_MAX {
        Some(VIRTIO_MMIO + index as u64 * VIRTIO_MMIO_SIZE)
    } else {
        None
    }
}

/// GSI of the virtio-mmio device in window `index`.
///
/// The sixteenth device shares the first one's GSI and so on. That is sound with edges: each device has its interrupt status
/// register, drivers ask for shared interrupts, and an edge that comes while another is served is latched.
pub const fn virtio_gsi(index: usize) -> u32 {
    VIRTIO_GSIS[index % VIRTIO_GSIS.len()]
}

/// The RAM regions (base, length) of a guest with `size` bytes: one up to the MMIO gap, and the rest from 4 GiB on.
pub fn ram_regions(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(MMIO_GAP);
    let high = size - low;
    let mut regions = vec![(0, low)];
    if high > 0 {
        regions.push((MMIO_GAP_END, high));
    }
    regions
}

/// What memory of devices is aligned to: kernels map such memory by their largest pages, and none shares a section with RAM.
pub const DEVICE_MEMORY_ALIGNMENT: u64 = 1 << 30;

/// Where a guest with `size` bytes of RAM has the memory of devices: behind RAM and the MMIO gap.
pub fn device_memory(size: u64) -> u64 {
    let end = ram_regions(size)
        .into_iter()
        .map(|(base, len)| base + len)
        .fold(MMIO_GAP_END, u64::max);
    end.next_multiple_of(DEVICE_MEMORY_ALIGNMENT)
}

/// What a range of the memory map is for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeKind {
    /// RAM the guest may use (E820 and PVH type 1).
    Usable,
    /// Not to be used (type 2).
    Reserved,
}

impl RangeKind {
    /// The number E820 and PVH use for it.
    pub const fn number(self) -> u32 {
        match self {
            Self::Usable => 1,
            Self::Reserved => 2,
        }
    }
}

/// One range of the memory map that a kernel is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub base: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// Usable or reserved.
    pub kind: RangeKind,
}

/// The memory map of a guest with `size` bytes of RAM, in ascending order: for E820 and for PVH alike.
pub fn memory_map(size: u64) -> Vec<MemoryRange> {
    let usable = |base, end: u64| MemoryRange {
        base,
        len: end - base,
        kind: RangeKind::Usable,
    };
    let reserved = |base, end: u64| MemoryRange {
        base,
        len: end - base,
        kind: RangeKind::Reserved,
    };
    let mut map = vec![
        usable(0, LOW_RAM_END.min(size)),
        reserved(LOW_RAM_END, 0xa0000),
        reserved(ACPI_RSDP, HIGH_RAM),
    ];
    for (base, len) in ram_regions(size) {
        let start = base.max(HIGH_RAM);
        if start < base + len {
            map.push(usable(start, base + len));
        }
    }
    map.retain(|range| range.len > 0);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_around_the_mmio_gap_and_nothing_is_lost() {
        const MIB: u64 = 1 << 20;
        for (size, expected) in [
            (128 * MIB, vec![(0, 128 * MIB)]),
            (MMIO_GAP, vec![(0, MMIO_GAP)]),
            (MMIO_GAP + MIB, vec![(0, MMIO_GAP), (MMIO_GAP_END, MIB)]),
            (
                16 << 30,
                vec![(0, MMIO_GAP), (MMIO_GAP_END, (16 << 30) - MMIO_GAP)],
            ),
        ] {
            assert_eq!(ram_regions(size), expected, "{size:#x}");
        }
    }

    #[test]
    fn memory_of_devices_lies_behind_ram_and_gap() {
        for (size, expected) in [
            (128 << 20, MMIO_GAP_END),
            (MMIO_GAP, MMIO_GAP_END),
            (MMIO_GAP + 4096, MMIO_GAP_END + DEVICE_MEMORY_ALIGNMENT),
        ] {
            assert_eq!(device_memory(size), expected, "{size:#x}");
        }
    }

    #[test]
    fn memory_map_is_ordered_without_overlap_and_offers_only_ram() {
        for size in [2 << 20, 128 << 20, MMIO_GAP, 5 << 30, 1 << 40] {
            let map = memory_map(size);
            for pair in map.windows(2) {
                assert!(pair[0].base + pair[0].len <= pair[1].base, "{size:#x}: {pair:x?}");
            }
            for range in map.iter().filter(|range| range.kind == RangeKind::Usable) {
                let inside =
                    |&(base, len): &(u64, u64)| base <= range.base && range.base + range.len <= base + len;
                assert!(ram_regions(size).iter().any(inside), "{size:#x}: {range:x?}");
            }
        }
    }

    #[test]
    fn low_structures_do_not_overlap() {
        let places = [
            (BOOT_GDT, BOOT_GDT_MAX_ENTRIES as u64 * 8),
            (BOOT_IDT, 8),
            (PVH_START_INFO, 64),
            (PVH_MODULE_LIST, 32),
            (PVH_MEMORY_MAP, 24 * 8),
            (ZERO_PAGE, PAGE_SIZE),
            (ZERO_PAGE + PAGE_SIZE, BOOT_STACK - ZERO_PAGE - PAGE_SIZE),
            (BOOT_PML4, PAGE_SIZE),
            (BOOT_PDPT, PAGE_SIZE),
            (BOOT_PD, BOOT_PD_MAX_TABLES * PAGE_SIZE),
            (SETUP_DATA, PAGE_SIZE),
            (COMMAND_LINE, COMMAND_LINE_SIZE as u64),
            (MP_FLOATING_POINTER, 16),
            (ACPI_RSDP, ACPI_END - ACPI_RSDP),
            (MP_TABLE, MP_TABLE_END - MP_TABLE),
        ];
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }

    #[test]
    fn every_virtio_window_lies_in_the_gap_and_has_a_gsi_of_the_ioapic() {
        for index in 0..VIRTIO_MMIO_MAX {
            let address = virtio_mmio_address(index).unwrap();
            assert!((MMIO_GAP..IOAPIC).contains(&address));
            assert!(virtio_gsi(index) < IOAPIC_PINS);
        }
        assert_eq!(virtio_mmio_address(VIRTIO_MMIO_MAX), None);
    }
}
