//! System instructions, and the ends of an instruction, against the manual.

use super::super::execute::{Done, LONGEST, execute, fetch};
use super::super::machine::{Cpu, Exception, Trap, control, rflags};
use super::super::mock::{self, CODE, DATA, HOLE, Mock, fault, regs, run, run_with, sregs, user_sregs};
use kvm_bindings::{kvm_regs, kvm_sregs};

#[test]
fn int3_and_its_like_end_behind_the_instruction() {
    let cases: [(&[u8], u64, Done); 5] = [
        (/* int3 */ &[0xcc], 2, Done::Trap(Exception::BREAKPOINT)),
        (&[0xf1], 2, Done::Trap(Exception::DEBUG)),
        (/* int 0x80 */ &[0xcd, 0x80], 2, Done::Interrupt(0x80)),
        (/* endbr64 */ &[0xf3, 0x0f, 0x1e, 0xfa], 2, Done::Next),
        (/* pause */ &[0xf3, 0x90], 2 | rflags::RF, Done::Next),
    ];
    for (code, flags, done) in cases {
        let before = kvm_regs {
            rflags: flags,
            ..regs()
        };
        let (result, after, _) = run_with(&mut Mock::new(), code, before, sregs());
        assert_eq!(result.unwrap(), done, "{code:02x?}");
        assert_eq!(
            (after.rip, after.rflags),
            (CODE + code.len() as u64, 2),
            "{code:02x?}"
        );
    }
}

#[test]
fn what_is_no_instruction_raises_invalid_opcode() {
    for code in [
        /* ud2 */ &[0x0f, 0x0b][..],
        /* ud1 eax, ecx */ &[0x0f, 0xb9, 0xc1],
        &[0x0f, 0x0a, 0, 0][..],
        &[0x06, 0, 0, 0],
    ] {
        assert_eq!(
            fault(&mut Mock::new(), code, regs(), sregs()),
            Exception::INVALID_OPCODE,
            "{code:02x?}"
        );
    }
    let long = [0x66; LONGEST];
    assert_eq!(
        fault(&mut Mock::new(), &long, regs(), sregs()),
        Exception::GENERAL_PROTECTION
    );
}

#[test]
fn an_instruction_that_the_assist_does_not_know_changes_nothing() {
    let (result, after, _) = run_with(
        &mut Mock::new(),
        /* paddd xmm0, xmm1 */ &[0x66, 0x0f, 0xfe, 0xc1],
        regs(),
        sregs(),
    );
    assert!(matches!(result, Err(Trap::Unsupported(_))), "{result:?}");
    assert_eq!(after, regs());
}

#[test]
fn an_instruction_that_crosses_into_a_missing_page_faults_there_only_if_it_needs_to() {
    let mut machine = Mock::new();
    let short = /* popcnt rax, rcx */ &[0xf3, 0x48, 0x0f, 0xb8, 0xc1];
    let mut attempt = |at: u64, code: &[u8]| {
        use super::super::machine::Machine;
        machine.write(at, code);
        let mut cpu = Cpu::new(kvm_regs { rip: at, ..regs() }, sregs(), &mut machine);
        let mut bytes = [0; LONGEST];
        let (length, beyond) = fetch(&cpu, &mut bytes);
        execute(&mut cpu, &bytes[..length], beyond).1
    };
    assert_eq!(attempt(HOLE - 5, short).unwrap(), Done::Next);
    match attempt(HOLE - 4, &short[..4]) {
        // Without NX and SMEP in the error code's way: a fetch by the kernel.
        Err(Trap::Exception(exception)) => assert_eq!(exception, Exception::page_fault(HOLE, 1 << 4)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn stac_and_clac_change_ac_and_belong_to_the_kernel() {
    let after = run(&mut Mock::new(), /* stac */ &[0x0f, 0x01, 0xcb], regs());
    assert_eq!(after.rflags, 2 | rflags::AC);
    let after = run(
        &mut Mock::new(),
        /* clac */ &[0x0f, 0x01, 0xca],
        kvm_regs {
            rflags: 2 | rflags::AC,
            ..regs()
        },
    );
    assert_eq!(after.rflags, 2);
    assert_eq!(
        fault(
            &mut Mock::new(),
            /* clac */ &[0x0f, 0x01, 0xca],
            regs(),
            user_sregs()
        ),
        Exception::INVALID_OPCODE
    );
}

#[test]
fn segment_bases_are_read_and_written_in_both_widths() {
    let mut machine = Mock::new();
    let mut system = sregs();
    system.fs.base = 0x1234_5678_9abc;
    system.gs.base = 0xffff_8000_0000_0000;
    let mut go =
        |code: &[u8], before: kvm_regs, system: kvm_sregs| run_with(&mut machine, code, before, system);
    let (_, after, _) = go(
        /* rdfsbase rax */ &[0xf3, 0x48, 0x0f, 0xae, 0xc0],
        regs(),
        system,
    );
    assert_eq!(after.rax, 0x1234_5678_9abc);
    let (_, after, _) = go(
        /* rdgsbase eax */ &[0xf3, 0x0f, 0xae, 0xc8],
        kvm_regs {
            rax: u64::MAX,
            ..regs()
        },
        system,
    );
    assert_eq!(after.rax, 0);
    let before = kvm_regs {
        rax: 0xffff_9000_0000_0001,
        ..regs()
    };
    let (_, _, changed) = go(
        /* wrgsbase rax */ &[0xf3, 0x48, 0x0f, 0xae, 0xd8],
        before,
        system,
    );
    assert_eq!((changed.gs.base, changed.fs.base), (before.rax, system.fs.base));
    let (_, _, changed) = go(/* wrfsbase eax */ &[0xf3, 0x0f, 0xae, 0xd0], before, system);
    assert_eq!(changed.fs.base, 1);
}

#[test]
fn segment_bases_must_be_canonical_and_switched_on() {
    let mut machine = Mock::new();
    let before = kvm_regs {
        rax: 1 << 47,
        ..regs()
    };
    assert_eq!(
        fault(
            &mut machine,
            /* wrfsbase rax */ &[0xf3, 0x48, 0x0f, 0xae, 0xd0],
            before,
            sregs()
        ),
        Exception::GENERAL_PROTECTION
    );
    let mut off = sregs();
    off.cr4 &= !control::CR4_FSGSBASE;
    assert_eq!(
        fault(
            &mut machine,
            /* rdgsbase rax */ &[0xf3, 0x48, 0x0f, 0xae, 0xc8],
            regs(),
            off
        ),
        Exception::INVALID_OPCODE
    );
}

#[test]
fn time_and_cpu_number_come_from_the_guests_own_registers() {
    let mut machine = Mock::new();
    let after = run(
        &mut machine,
        /* rdtscp */ &[0x0f, 0x01, 0xf9],
        kvm_regs {
            rcx: u64::MAX,
            ..regs()
        },
    );
    assert_eq!((after.rdx, after.rax, after.rcx), (1, 0x2345_6789, 7));
    let after = run(
        &mut machine,
        /* rdpid rax */ &[0xf3, 0x0f, 0xc7, 0xf8],
        regs(),
    );
    assert_eq!(after.rax, 7);
    let mut restricted = user_sregs();
    restricted.cr4 |= control::CR4_TSD;
    assert_eq!(
        fault(
            &mut machine,
            /* rdtscp */ &[0x0f, 0x01, 0xf9],
            regs(),
            restricted
        ),
        Exception::GENERAL_PROTECTION
    );
}

#[test]
fn invpcid_flushes_and_refuses_what_the_manual_refuses() {
    let code = /* invpcid rax, [rdi] */ &[0x66, 0x0f, 0x38, 0x82, 0x07];
    let mut machine = Mock::new();
    for kind in 0..4 {
        run(&mut machine, code, kvm_regs { rax: kind, ..regs() });
    }
    assert_eq!(machine.flushes, 4);
    let bad =
        |machine: &mut Mock, kind, system| fault(machine, code, kvm_regs { rax: kind, ..regs() }, system);
    assert_eq!(bad(&mut machine, 4, sregs()), Exception::GENERAL_PROTECTION);
    machine.put(DATA + 8, 1 << 60);
    assert_eq!(
        bad(&mut machine, 0, sregs()),
        Exception::GENERAL_PROTECTION,
        "not canonical"
    );
    machine.put(DATA, 1 << 12);
    assert_eq!(
        bad(&mut machine, 1, sregs()),
        Exception::GENERAL_PROTECTION,
        "reserved bits"
    );
    machine.put(DATA, 1);
    let mut off = sregs();
    off.cr4 &= !control::CR4_PCIDE;
    assert_eq!(
        bad(&mut machine, 1, off),
        Exception::GENERAL_PROTECTION,
        "a PCID without PCIDs"
    );
    assert_eq!(
        bad(&mut machine, 2, user_sregs()),
        Exception::GENERAL_PROTECTION,
        "ring 3"
    );
    assert_eq!(machine.flushes, 4);
}

#[test]
fn xcr0_is_read_and_written_within_its_rules() {
    let mut machine = Mock::new();
    let with = |rcx, rdx, rax| kvm_regs {
        rcx,
        rdx,
        rax,
        ..regs()
    };
    let after = run(&mut machine, /* xgetbv */ &[0x0f, 0x01, 0xd0], with(0, 9, 9));
    assert_eq!((after.rdx, after.rax), (0, 0x627));
    let after = run(&mut machine, /* xgetbv */ &[0x0f, 0x01, 0xd0], with(1, 9, 9));
    assert_eq!((after.rdx, after.rax), (0, 0), "nothing is in use after reset");
    run(&mut machine, /* xsetbv */ &[0x0f, 0x01, 0xd1], with(0, 0, 3));
    assert_eq!(machine.xcr0, 3);
    for (rcx, value) in [(0, 2), (0, 5), (0, 1 << 40), (1, 1)] {
        let error = fault(
            &mut machine,
            /* xsetbv */ &[0x0f, 0x01, 0xd1],
            with(rcx, value >> 32, value & 0xffff_ffff),
            sregs(),
        );
        assert_eq!(error, Exception::GENERAL_PROTECTION, "{rcx} {value:#x}");
    }
    let mut off = sregs();
    off.cr4 &= !control::CR4_OSXSAVE;
    assert_eq!(
        fault(&mut machine, /* xgetbv */ &[0x0f, 0x01, 0xd0], regs(), off),
        Exception::INVALID_OPCODE
    );
    assert_eq!(
        fault(
            &mut machine,
            /* xsetbv */ &[0x0f, 0x01, 0xd1],
            with(0, 0, 3),
            user_sregs()
        ),
        Exception::GENERAL_PROTECTION
    );
}

#[test]
fn cache_and_hint_instructions_do_nothing_but_fault_where_the_manual_says() {
    for code in [
        /* prefetchnta [rdi] */ &[0x0f, 0x18, 0x07][..],
        /* prefetchw [rdi] */ &[0x0f, 0x0d, 0x0f],
        /* nop word ptr [rax + rax] */ &[0x66, 0x0f, 0x1f, 0x04, 0x00],
        /* sfence */ &[0x0f, 0xae, 0xf8],
        /* mfence */ &[0x0f, 0xae, 0xf0],
        /* wbinvd */ &[0x0f, 0x09],
        /* cldemote [rdi] */ &[0x0f, 0x1c, 0x07],
    ] {
        let before = kvm_regs { rdi: HOLE, ..regs() };
        assert_eq!(run(&mut Mock::new(), code, before).rdi, HOLE);
    }
    let at = |rdi| kvm_regs { rdi, ..regs() };
    for code in [
        /* clflush [rdi] */ &[0x0f, 0xae, 0x3f][..],
        /* clflushopt [rdi] */ &[0x66, 0x0f, 0xae, 0x3f],
        /* clwb [rdi] */ &[0x66, 0x0f, 0xae, 0x37],
    ] {
        run(&mut Mock::new(), code, at(DATA));
        assert_eq!(
            fault(&mut Mock::new(), code, at(HOLE), sregs()),
            Exception::page_fault(HOLE, 0)
        );
    }
    assert_eq!(
        fault(
            &mut Mock::new(),
            /* wbinvd */ &[0x0f, 0x09],
            regs(),
            user_sregs()
        ),
        Exception::GENERAL_PROTECTION
    );
    let mut machine = Mock::new();
    for at in (DATA..DATA + 192).step_by(8) {
        machine.put(at, u64::MAX);
    }
    run(
        &mut machine,
        /* clzero */ &[0x0f, 0x01, 0xfc],
        kvm_regs {
            rax: DATA + 64 + 5,
            ..regs()
        },
    );
    assert_eq!(
        (machine.word(DATA + 56), machine.word(DATA + 128)),
        (u64::MAX, u64::MAX)
    );
    assert_eq!(machine.bytes(DATA + 64, 64), [0; 64]);
}

#[test]
fn selectors_are_looked_up_in_the_descriptor_table() {
    let mut machine = Mock::new();
    let table = 0x50_000;
    let descriptors: [u64; 6] = [
        0,
        0x00af_9b00_0000_ffff, // code, ring 0, 4 KiB units
        0x00cf_9100_0000_ffff, // data, ring 0, read-only
        0x0040_f300_0000_0fff, // data, ring 3, writable
        0x0000_8b00_1000_0067, // busy TSS
        0x0000_8e00_0000_0000, // interrupt gate
    ];
    for (index, descriptor) in (0..).zip(descriptors) {
        machine.put(table + index * 8, descriptor);
    }
    let mut system = sregs();
    system.gdt.base = table;
    system.gdt.limit = 47;
    // Selector, then what LAR and LSL give, and whether VERR and VERW agree.
    let cases = [
        (0x00, None, None, false, false),
        (0x08, Some(0xaf_9b00), Some(u64::from(u32::MAX)), true, false),
        (0x10, Some(0xcf_9100), Some(u64::from(u32::MAX)), true, false),
        (0x1b, Some(0x40_f300), Some(0xfff), true, true),
        (0x0b, None, None, false, false),
        (0x20, Some(0x00_8b00), Some(0x67), false, false),
        (0x28, None, None, false, false),
        (0x30, None, None, false, false),
        (0x0c, None, None, false, false),
    ];
    for (selector, rights, limit, readable, writable) in cases {
        let before = kvm_regs {
            rcx: selector,
            rax: 1,
            ..regs()
        };
        let mut go = |code: &[u8]| {
            let (result, after, _) = run_with(&mut machine, code, before, system);
            assert_eq!(result.unwrap(), Done::Next);
            (after.rflags & rflags::ZF != 0, after.rax)
        };
        assert_eq!(
            go(/* lar eax, ecx */ &[0x0f, 0x02, 0xc1]),
            (rights.is_some(), rights.unwrap_or(1)),
            "LAR {selector:#x}"
        );
        assert_eq!(
            go(/* lsl eax, ecx */ &[0x0f, 0x03, 0xc1]),
            (limit.is_some(), limit.unwrap_or(1)),
            "LSL {selector:#x}"
        );
        assert_eq!(
            go(/* verr cx */ &[0x0f, 0x00, 0xe1]).0,
            readable,
            "VERR {selector:#x}"
        );
        assert_eq!(
            go(/* verw cx */ &[0x0f, 0x00, 0xe9]).0,
            writable,
            "VERW {selector:#x}"
        );
    }
}

#[test]
fn user_and_kernel_pages_are_kept_apart() {
    let code = /* crc32 eax, byte ptr [rdi] */ &[0xf2, 0x0f, 0x38, 0xf0, 0x07];
    let at = |rdi, rflags| kvm_regs {
        rdi,
        rflags,
        ..regs()
    };
    let mut machine = Mock::new();
    assert_eq!(
        fault(&mut machine, code, at(DATA, 2), user_sregs()),
        Exception::page_fault(DATA, 0b101),
        "ring 3 on a kernel page"
    );
    let mut smap = sregs();
    smap.cr4 |= control::CR4_SMAP;
    assert_eq!(
        fault(&mut machine, code, at(mock::USER, 2), smap),
        Exception::page_fault(mock::USER, 1),
        "SMAP"
    );
    let (result, ..) = run_with(&mut machine, code, at(mock::USER, 2 | rflags::AC), smap);
    assert!(result.is_ok(), "SMAP after STAC");
    let (result, ..) = run_with(&mut machine, code, at(mock::USER, 2), user_sregs());
    assert!(result.is_ok(), "ring 3 on a user page");
}

#[test]
fn accesses_set_accessed_and_dirty_as_the_cpu_does() {
    let mut machine = Mock::new();
    let before = kvm_regs {
        rcx: DATA + 0x1000,
        ..regs()
    };
    run(
        &mut machine,
        /* crc32 eax, byte ptr [rcx] */ &[0xf2, 0x0f, 0x38, 0xf0, 0x01],
        before,
    );
    assert_eq!(machine.entry(DATA + 0x1000) & 0x60, 0x20);
    run(
        &mut machine,
        /* movbe [rcx], eax */ &[0x0f, 0x38, 0xf1, 0x01],
        before,
    );
    assert_eq!(machine.entry(DATA + 0x1000) & 0x60, 0x60);
    assert_eq!(machine.word(0x1000) & 0x60, 0x20, "the root entry");
}

#[test]
fn reserved_bits_and_write_protection_fault() {
    let read = /* crc32 eax, byte ptr [rdi] */ &[0xf2, 0x0f, 0x38, 0xf0, 0x07];
    let mut machine = Mock::new();
    machine.set_entry(DATA, machine.entry(DATA) | 1 << 63);
    let mut no_nx = sregs();
    no_nx.efer &= !control::EFER_NXE;
    assert_eq!(
        fault(&mut machine, read, regs(), no_nx),
        Exception::page_fault(DATA, 0b1001)
    );
    let mut unprotected = sregs();
    unprotected.cr0 &= !control::CR0_WP;
    let before = kvm_regs {
        rdi: mock::READ_ONLY,
        ..regs()
    };
    let (result, ..) = run_with(
        &mut machine,
        /* movbe [rdi], eax */ &[0x0f, 0x38, 0xf1, 0x07],
        before,
        unprotected,
    );
    assert!(result.is_ok(), "without CR0.WP the kernel writes read-only pages");
}

#[test]
fn segment_bases_count_in_addresses_and_32_bit_code_wraps() {
    let mut machine = Mock::new();
    machine.put(DATA + 0x40, 0x8000);
    let mut system = sregs();
    system.gs.base = DATA;
    let before = kvm_regs { rdi: 0x40, ..regs() };
    let (_, after, _) = run_with(
        &mut machine,
        /* tzcnt rax, gs:[rdi] */ &[0x65, 0xf3, 0x48, 0x0f, 0xbc, 0x07],
        before,
        system,
    );
    assert_eq!(after.rax, 15);
    // Compatibility mode: tzcnt eax, [edi], with a segment base that wraps around.
    system.cs.l = 0;
    system.cs.db = 1;
    system.ds.base = u64::from(u32::MAX);
    let before = kvm_regs {
        rdi: DATA + 0x41,
        ..regs()
    };
    let (_, after, _) = run_with(&mut machine, &[0xf3, 0x0f, 0xbc, 0x07], before, system);
    assert_eq!(after.rax, 15);
}
