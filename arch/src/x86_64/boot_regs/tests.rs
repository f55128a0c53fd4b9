//! The computed states. That KVM runs a guest from each entry is shown in `tests/kvm.rs`.

use super::*;
use vm_memory::GuestMemoryMmap;

const LINUX: Entry = Entry::Linux64 { rip: 0x10_0000 };
const PVH: Entry = Entry::Pvh { rip: 0x10_0000 };

#[test]
fn descriptors_are_those_of_the_boot_protocols() {
    assert_eq!(
        gdt(LINUX),
        [
            0,
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x0000_8b00_0000_0067
        ]
    );
    assert_eq!(
        gdt(PVH),
        [
            0,
            0,
            0x00cf_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x0000_8b00_0000_0067
        ]
    );
    assert!(gdt(LINUX).len() <= layout::BOOT_GDT_MAX_ENTRIES);
}

#[test]
fn descriptor_places_base_and_limit() {
    let segment = kvm_segment {
        base: 0x1234_5678,
        limit: 0xf_edcb,
        present: 1,
        dpl: 3,
        ..Default::default()
    };
    assert_eq!(descriptor(&segment), 0x120f_e034_5678_edcb);
}

#[test]
fn linux_entry_has_long_mode_with_interrupts_off_and_the_zero_page() {
    let reset = kvm_sregs {
        apic_base: 0xfee0_0900,
        cr0: 0x6000_0010,
        ..Default::default()
    };
    let sregs = sregs(LINUX, reset);
    assert_eq!(
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer),
        (0x8000_0011, layout::BOOT_PML4, 0x20, 0x500)
    );
    assert_eq!(
        (sregs.cs.selector, sregs.cs.l, sregs.cs.db, sregs.ss.selector),
        (0x10, 1, 0, 0x18)
    );
    assert_eq!(sregs.apic_base, 0xfee0_0900, "the APIC's base stays");
    let regs = regs(LINUX);
    assert_eq!(
        (regs.rip, regs.rsi, regs.rflags),
        (0x10_0000, layout::ZERO_PAGE, 2)
    );
}

#[test]
fn pvh_entry_has_protected_mode_without_paging_and_the_start_info() {
    let sregs = sregs(PVH, kvm_sregs::default());
    assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
    assert_eq!(
        (sregs.cs.l, sregs.cs.db, sregs.cs.limit, sregs.tr.limit),
        (0, 1, u32::MAX, 0x67)
    );
    let regs = regs(PVH);
    assert_eq!(
        (regs.rip, regs.rbx, regs.rflags),
        (0x10_0000, layout::PVH_START_INFO, 2)
    );
}

/// Walks the boot tables as a CPU would.
fn translate(memory: &GuestMemoryMmap, virtual_address: u64) -> Option<u64> {
    let entry = |table: u64, shift: u32| {
        let at = (table & !0xfff) + (virtual_address >> shift & 511) * 8;
        let entry: u64 = memory.read_obj(GuestAddress(at)).unwrap();
        (entry & 1 == 1).then_some(entry)
    };
    let directory = entry(entry(entry(layout::BOOT_PML4, 39)?, 30)?, 21)?;
    assert_eq!(directory & 0x80, 0x80, "2 MiB page");
    Some((directory & !0x1f_ffff) + (virtual_address & 0x1f_ffff))
}

#[test]
fn identity_map_covers_what_was_asked_and_no_more() {
    for gib in 1..=4 {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_tables(&memory, LINUX, gib).unwrap();
        for address in [0, 0x20_0000, (gib << 30) - 1] {
            assert_eq!(translate(&memory, address), Some(address), "{gib} GiB");
        }
        assert_eq!(translate(&memory, gib << 30), None, "{gib} GiB");
    }
}

#[test]
fn too_little_memory_names_the_table() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x9000)]).unwrap();
    let error = write_tables(&memory, LINUX, 1).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the boot page table at 0x9000 does not fit in guest memory"),
        "{error}"
    );
    write_tables(&memory, PVH, 1).unwrap();
}

#[test]
fn lint_pins_are_set_and_the_rest_of_the_apic_stays() {
    let mut reset = kvm_lapic_state::default();
    reset.regs[0x20] = 5;
    reset.regs[0x352] = 1; // masked
    let set = lapic(reset);
    assert_eq!(
        (set.regs[0x351], set.regs[0x352], set.regs[0x361], set.regs[0x20]),
        (7, 0, 4, 5)
    );
}
