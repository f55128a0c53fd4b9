//! The XSAVE family and x87 control against the manual. The mock's components are 2 (256 bytes), 5 (64), 9 (8) and 10 (64, aligned).

use super::super::machine::{Exception, control};
use super::super::mock::{DATA, HOLE, Mock, SPLIT, fault, regs, run, run_with, sregs, user_sregs};
use kvm_bindings::{kvm_regs, kvm_sregs};

const XSAVE: &[u8] = /* xsave64 [rdi] */ &[0x48, 0x0f, 0xae, 0x27];
const XSAVEOPT: &[u8] = /* xsaveopt64 [rdi] */ &[0x48, 0x0f, 0xae, 0x37];
const XSAVEC: &[u8] = /* xsavec64 [rdi] */ &[0x48, 0x0f, 0xc7, 0x27];
const XSAVES: &[u8] = /* xsaves64 [rdi] */ &[0x48, 0x0f, 0xc7, 0x2f];
const XRSTOR: &[u8] = /* xrstor64 [rdi] */ &[0x48, 0x0f, 0xae, 0x2f];
const XRSTORS: &[u8] = /* xrstors64 [rdi] */ &[0x48, 0x0f, 0xc7, 0x1f];
const COMPACTED: u64 = 1 << 63;

fn masked(mask: u64) -> kvm_regs {
    kvm_regs {
        rax: mask & 0xffff_ffff,
        rdx: mask >> 32,
        ..regs()
    }
}

/// A machine with every component in use, each byte of component `i` being `0x10 + i`.
fn full() -> Mock {
    let mut machine = Mock::new();
    machine.state[0..24].copy_from_slice(&[
        0x7f, 0x02, 0x00, 0x38, 0x80, 0, 0x11, 0x01, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    ]);
    for register in 0..8 {
        machine.state[32 + 16 * register..42 + 16 * register].fill(0x10);
    }
    machine.state[24..28].copy_from_slice(&0x1fa0u32.to_le_bytes());
    machine.state[160..416].fill(0x11);
    machine.state[576..832].fill(0x12);
    machine.state[832..896].fill(0x15);
    machine.state[896..904].fill(0x19);
    machine.state[960..1024].fill(0x1a);
    machine.state[512..520].copy_from_slice(&0x627u64.to_le_bytes());
    machine
}

fn header(machine: &Mock) -> (u64, u64) {
    (machine.word(DATA + 512), machine.word(DATA + 520))
}

fn fill(machine: &Mock, byte: u8) {
    use super::super::machine::Machine;
    machine.write(DATA, &[byte; 4096]);
}

#[test]
fn xsave_writes_what_was_asked_for_and_nothing_else() {
    let mut machine = full();
    fill(&machine, 0xee);
    machine.put(DATA + 512, 0);
    run(&mut machine, XSAVE, masked(0b100));
    assert_eq!(
        header(&machine),
        (0b100, 0xeeee_eeee_eeee_eeee),
        "XCOMP_BV is not written"
    );
    assert_eq!(machine.bytes(DATA, 24), [0xee; 24], "x87");
    assert_eq!(
        machine.bytes(DATA + 24, 8),
        [0xa0, 0x1f, 0, 0, 0xff, 0xff, 2, 0],
        "MXCSR goes with AVX too"
    );
    assert_eq!(
        machine.bytes(DATA + 32, 480),
        [0xee; 480],
        "x87 and XMM registers"
    );
    assert_eq!(machine.bytes(DATA + 576, 256), [0x12; 256]);
    assert_eq!(machine.bytes(DATA + 832, 64), [0xee; 64]);
    // Components that were not asked for keep their bits.
    run(&mut machine, XSAVE, masked(0x201));
    assert_eq!(header(&machine).0, 0x205);
    assert_eq!(machine.bytes(DATA, 24), machine.state[..24]);
    assert_eq!(machine.bytes(DATA + 896, 8), [0x19; 8]);
}

#[test]
fn xsave_writes_initial_values_and_xsaveopt_leaves_them_out() {
    let mut machine = Mock::new();
    // What KVM leaves in a component that is not in use must not come out.
    machine.state[576..832].fill(0x77);
    fill(&machine, 0xee);
    machine.put(DATA + 512, u64::MAX);
    run(&mut machine, XSAVE, masked(7));
    assert_eq!(header(&machine).0, !7);
    assert_eq!(machine.bytes(DATA, 2), [0x7f, 3]);
    assert_eq!(machine.bytes(DATA + 160, 256), [0; 256]);
    assert_eq!(machine.bytes(DATA + 576, 256), [0; 256]);
    fill(&machine, 0xee);
    machine.put(DATA + 512, u64::MAX);
    run(&mut machine, XSAVEOPT, masked(7));
    assert_eq!(header(&machine).0, !7);
    assert_eq!(machine.bytes(DATA, 24), [0xee; 24]);
    assert_eq!(machine.bytes(DATA + 24, 4), [0x80, 0x1f, 0, 0]);
    assert_eq!(machine.bytes(DATA + 576, 256), [0xee; 256]);
}

#[test]
fn xsavec_packs_components_and_aligns_those_that_want_it() {
    for code in [XSAVEC, XSAVES] {
        let mut machine = full();
        fill(&machine, 0xee);
        run(&mut machine, code, masked(0x621));
        assert_eq!(header(&machine), (0x621, COMPACTED | 0x621));
        assert_eq!(machine.bytes(DATA + 24, 8), [0xee; 8], "MXCSR goes with SSE only");
        assert_eq!(
            machine.bytes(DATA + 528, 48),
            [0xee; 48],
            "the rest of the header"
        );
        assert_eq!(machine.bytes(DATA + 576, 64), [0x15; 64]);
        assert_eq!(machine.bytes(DATA + 640, 8), [0x19; 8]);
        assert_eq!(machine.bytes(DATA + 648, 56), [0xee; 56]);
        assert_eq!(machine.bytes(DATA + 704, 64), [0x1a; 64]);
    }
}

#[test]
fn xsavec_leaves_room_for_components_that_are_not_in_use() {
    let mut machine = full();
    machine.state[512..520].copy_from_slice(&0x400u64.to_le_bytes());
    machine.state[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    fill(&machine, 0xee);
    run(&mut machine, XSAVEC, masked(u64::MAX));
    assert_eq!(header(&machine), (0x400, COMPACTED | 0x627));
    assert_eq!(machine.bytes(DATA + 576, 320), [0xee; 320]);
    // 576 + 256 + 64 + 8, aligned.
    assert_eq!(machine.bytes(DATA + 960, 64), [0x1a; 64]);
}

#[test]
fn mxcsr_alone_makes_sse_in_use() {
    let mut machine = Mock::new();
    machine.state[24..28].copy_from_slice(&0x1fc0u32.to_le_bytes());
    run(&mut machine, XSAVEC, masked(7));
    assert_eq!(header(&machine), (2, COMPACTED | 7));
    assert_eq!(machine.bytes(DATA + 24, 4), [0xc0, 0x1f, 0, 0]);
}

#[test]
fn everything_saved_in_any_form_comes_back() {
    for (save, restore) in [
        (XSAVE, XRSTOR),
        (XSAVEOPT, XRSTOR),
        (XSAVEC, XRSTOR),
        (XSAVES, XRSTORS),
    ] {
        for mask in [u64::MAX, 0x627, 0x205, 0x400, 6, 1] {
            let mut machine = full();
            let before = machine.state.clone();
            run(&mut machine, save, masked(mask));
            machine.state = Mock::new().state;
            run(&mut machine, restore, masked(mask));
            let pieces = [
                (0, 0..24),
                (1, 160..416),
                (2, 576..832),
                (5, 832..896),
                (9, 896..904),
                (10, 960..1024),
            ];
            for (bit, place) in pieces {
                if mask >> bit & 1 == 1 {
                    assert_eq!(
                        machine.state[place.clone()],
                        before[place],
                        "{save:02x?} {mask:#x} {bit}"
                    );
                }
            }
            let in_use = u64::from_le_bytes(machine.state[512..520].try_into().unwrap());
            assert_eq!(in_use & mask, mask & 0x627, "{save:02x?} {mask:#x}");
        }
    }
}

#[test]
fn xrstor_resets_what_the_area_does_not_hold_and_keeps_what_was_not_asked_for() {
    let mut machine = full();
    // An empty compacted area.
    machine.put(DATA + 520, COMPACTED | 0x627);
    run(&mut machine, XRSTOR, masked(0x7));
    assert_eq!(machine.state[..2], [0x7f, 3]);
    assert_eq!(machine.state[24..28], [0x80, 0x1f, 0, 0]);
    assert_eq!(machine.state[160..416], [0; 256]);
    assert_eq!(machine.state[576..832], [0; 256]);
    assert_eq!(machine.state[832..896], [0x15; 64]);
    assert_eq!(machine.state[512..520], 0x620u64.to_le_bytes());
}

#[test]
fn standard_form_loads_mxcsr_even_if_sse_is_reset() {
    let mut machine = full();
    machine.put(DATA + 24, 0x1f00);
    run(&mut machine, XRSTOR, masked(2));
    assert_eq!(machine.state[24..28], [0, 0x1f, 0, 0]);
    assert_eq!(machine.state[160..416], [0; 256]);
    machine.put(DATA + 24, 1 << 20);
    assert_eq!(
        fault(&mut machine, XRSTOR, masked(4), sregs()),
        Exception::GENERAL_PROTECTION
    );
    run(&mut machine, XRSTOR, masked(0x20));
}

#[test]
fn the_other_operand_size_keeps_short_pointers_only() {
    let mut machine = full();
    run(
        &mut machine,
        /* xsave [rdi] */ &[0x0f, 0xae, 0x27],
        masked(1),
    );
    assert_eq!(
        machine.bytes(DATA + 8, 16),
        [1, 2, 3, 4, 0, 0, 0, 0, 9, 10, 11, 12, 0, 0, 0, 0]
    );
    run(&mut machine, XSAVE, masked(1));
    run(
        &mut machine,
        /* xrstor [rdi] */ &[0x0f, 0xae, 0x2f],
        masked(1),
    );
    assert_eq!(
        machine.state[8..24],
        [1, 2, 3, 4, 0, 0, 0, 0, 9, 10, 11, 12, 0, 0, 0, 0]
    );
}

#[test]
fn bad_headers_raise_general_protection() {
    let cases: [(&[u8], u64, u64, u64); 9] = [
        (XRSTOR, 1 << 3, 0, 0),
        (XRSTOR, 1, 1, 0),
        (XRSTOR, 1, 0, 1),
        (XRSTOR, 1, COMPACTED | 1 << 3, 0),
        (XRSTOR, 3, COMPACTED | 1, 0),
        (XRSTOR, COMPACTED | 1, COMPACTED | 1, 0),
        (XRSTOR, 1, COMPACTED | 1, 1),
        (XRSTORS, 1, 0, 0),
        (XRSTORS, 1 << 8, COMPACTED | 1 << 8, 0),
    ];
    for (code, xstate_bv, xcomp_bv, third) in cases {
        let mut machine = full();
        let before = machine.state.clone();
        machine.put(DATA + 512, xstate_bv);
        machine.put(DATA + 520, xcomp_bv);
        machine.put(DATA + 528, third);
        let error = fault(&mut machine, code, masked(u64::MAX), sregs());
        assert_eq!(
            error,
            Exception::GENERAL_PROTECTION,
            "{xstate_bv:#x} {xcomp_bv:#x} {third}"
        );
        assert_eq!(machine.state, before);
    }
}

#[test]
fn supervisor_components_count_only_for_xsaves() {
    let mut machine = full();
    machine.msrs.insert(0xda0, 1 << 8);
    run(&mut machine, XSAVES, masked(u64::MAX));
    assert_eq!(header(&machine), (0x627, COMPACTED | 0x727));
    run(&mut machine, XRSTORS, masked(u64::MAX));
    run(&mut machine, XSAVEC, masked(u64::MAX));
    assert_eq!(header(&machine), (0x627, COMPACTED | 0x627));
    assert_eq!(
        fault(&mut machine, XSAVES, masked(1), user_sregs()),
        Exception::GENERAL_PROTECTION
    );
}

#[test]
fn the_family_faults_as_the_manual_says() {
    let change = |f: fn(&mut kvm_sregs)| {
        let mut system = sregs();
        f(&mut system);
        system
    };
    for code in [XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS] {
        let mut machine = full();
        let off = change(|s| s.cr4 &= !control::CR4_OSXSAVE);
        assert_eq!(
            fault(&mut machine, code, masked(1), off),
            Exception::INVALID_OPCODE
        );
        let switched = change(|s| s.cr0 |= control::CR0_TS);
        assert_eq!(
            fault(&mut machine, code, masked(1), switched),
            Exception::DEVICE_NOT_AVAILABLE
        );
        let misaligned = kvm_regs {
            rdi: DATA + 32,
            ..masked(1)
        };
        assert_eq!(
            fault(&mut machine, code, misaligned, sregs()),
            Exception::GENERAL_PROTECTION
        );
        let missing = kvm_regs {
            rdi: HOLE,
            ..masked(1)
        };
        assert!(fault(&mut machine, code, missing, sregs()).cr2.is_some());
    }
}

#[test]
fn an_area_across_pages_is_whole_and_a_missing_second_page_leaves_the_first_alone() {
    let mut machine = full();
    let at = kvm_regs {
        rdi: SPLIT - 640,
        ..masked(0x627)
    };
    run(&mut machine, XSAVEC, at);
    assert_eq!(machine.bytes(SPLIT - 64, 64), [0x12; 64]);
    assert_eq!(machine.bytes(0x3f_0000, 192), [0x12; 192]);
    assert_eq!(machine.bytes(0x3f_0000 + 192, 64), [0x15; 64]);
    let saved = machine.state.clone();
    machine.state = Mock::new().state;
    run(&mut machine, XRSTOR, at);
    assert_eq!(machine.state[576..1024], saved[576..1024]);

    let at = kvm_regs {
        rdi: HOLE - 640,
        ..masked(0x627)
    };
    assert_eq!(
        fault(&mut machine, XSAVEC, at, sregs()),
        Exception::page_fault(HOLE, 0b10)
    );
    assert_eq!(machine.bytes(HOLE - 640, 640), [0; 640]);
}

#[test]
fn fxsave_and_fxrstor_carry_x87_and_sse() {
    let mut machine = full();
    let before = machine.state.clone();
    run(
        &mut machine,
        /* fxsave64 [rdi] */ &[0x48, 0x0f, 0xae, 0x07],
        regs(),
    );
    assert_eq!(machine.bytes(DATA, 416), before[..416]);
    machine.state = Mock::new().state;
    run(
        &mut machine,
        /* fxrstor64 [rdi] */ &[0x48, 0x0f, 0xae, 0x0f],
        regs(),
    );
    assert_eq!(machine.state[..416], before[..416]);
    assert_eq!(machine.state[512..520], 3u64.to_le_bytes());
    machine.put(DATA + 24, 1 << 31);
    assert_eq!(
        fault(
            &mut machine,
            /* fxrstor [rdi] */ &[0x0f, 0xae, 0x0f],
            regs(),
            sregs()
        ),
        Exception::GENERAL_PROTECTION
    );
    let misaligned = kvm_regs {
        rdi: DATA + 8,
        ..regs()
    };
    assert_eq!(
        fault(
            &mut machine,
            /* fxsave [rdi] */ &[0x0f, 0xae, 0x07],
            misaligned,
            sregs()
        ),
        Exception::GENERAL_PROTECTION
    );
}

#[test]
fn mxcsr_is_stored_and_loaded_without_its_reserved_bits() {
    let mut machine = full();
    run(&mut machine, /* stmxcsr [rdi] */ &[0x0f, 0xae, 0x1f], regs());
    assert_eq!(machine.bytes(DATA, 8), [0xa0, 0x1f, 0, 0, 0, 0, 0, 0]);
    machine.put(DATA, 0x9fc0);
    run(&mut machine, /* ldmxcsr [rdi] */ &[0x0f, 0xae, 0x17], regs());
    assert_eq!(machine.state[24..28], [0xc0, 0x9f, 0, 0]);
    machine.put(DATA, 0x4_0000);
    assert_eq!(
        fault(
            &mut machine,
            /* ldmxcsr [rdi] */ &[0x0f, 0xae, 0x17],
            regs(),
            sregs()
        ),
        Exception::GENERAL_PROTECTION
    );
    let mut off = sregs();
    off.cr4 &= !control::CR4_OSFXSR;
    assert_eq!(
        fault(
            &mut machine,
            /* stmxcsr [rdi] */ &[0x0f, 0xae, 0x1f],
            regs(),
            off
        ),
        Exception::INVALID_OPCODE
    );
}

#[test]
fn x87_control_instructions_change_what_they_are_for() {
    let mut machine = full();
    machine.state[2..4].copy_from_slice(&0xb8c1u16.to_le_bytes());
    run(&mut machine, /* fnstsw ax */ &[0xdf, 0xe0], regs());
    run(&mut machine, /* fnclex */ &[0xdb, 0xe2], regs());
    assert_eq!(machine.state[2..4], 0x3800u16.to_le_bytes());
    let after = run(
        &mut machine,
        /* fnstsw ax */ &[0xdf, 0xe0],
        kvm_regs {
            rax: u64::MAX,
            ..regs()
        },
    );
    assert_eq!(after.rax, 0xffff_ffff_ffff_3800);
    run(&mut machine, /* emms */ &[0x0f, 0x77], regs());
    assert_eq!(machine.state[4], 0);
    run(&mut machine, /* fnstcw [rdi] */ &[0xd9, 0x3f], regs());
    assert_eq!(machine.word(DATA), 0x27f);
    machine.put(DATA, 0xffff);
    run(&mut machine, /* fldcw [rdi] */ &[0xd9, 0x2f], regs());
    assert_eq!(machine.state[..2], 0x1f7fu16.to_le_bytes());
    run(&mut machine, /* fninit */ &[0xdb, 0xe3], regs());
    assert_eq!(machine.state[..8], [0x7f, 3, 0, 0, 0, 0, 0, 0]);
    run(&mut machine, /* fnop */ &[0xd9, 0xd0], regs());
}

#[test]
fn pending_x87_exceptions_raise_mf_where_the_cpu_waits() {
    let mut machine = full();
    machine.put(DATA, 0x37e);
    machine.state[2..4].copy_from_slice(&1u16.to_le_bytes());
    run(&mut machine, /* fldcw [rdi] */ &[0xd9, 0x2f], regs());
    assert_eq!(machine.state[2..4], 0x8081u16.to_le_bytes());
    for code in [
        /* fwait */ &[0x9b][..],
        /* emms */ &[0x0f, 0x77],
        /* fldcw [rdi] */ &[0xd9, 0x2f],
        /* fild dword ptr [rdi] */ &[0xdb, 0x07],
    ] {
        assert_eq!(fault(&mut machine, code, regs(), sregs()), Exception::X87);
    }
    run(&mut machine, /* fnstsw ax */ &[0xdf, 0xe0], regs());
    run(&mut machine, /* fnclex */ &[0xdb, 0xe2], regs());
    run(&mut machine, /* fwait */ &[0x9b], regs());
}

#[test]
fn task_switched_faults_every_use_of_the_fpu() {
    let mut switched = sregs();
    switched.cr0 |= control::CR0_TS;
    for code in [
        /* fwait */ &[0x9b][..],
        /* fnclex */ &[0xdb, 0xe2],
        /* fninit */ &[0xdb, 0xe3],
        /* emms */ &[0x0f, 0x77],
        /* fxsave [rdi] */ &[0x0f, 0xae, 0x07],
        /* ldmxcsr [rdi] */ &[0x0f, 0xae, 0x17],
    ] {
        let error = fault(&mut Mock::new(), code, regs(), switched);
        assert_eq!(error, Exception::DEVICE_NOT_AVAILABLE, "{code:02x?}");
    }
    switched.cr0 &= !control::CR0_MP;
    let (result, ..) = run_with(&mut Mock::new(), /* fwait */ &[0x9b], regs(), switched);
    assert!(result.is_ok(), "FWAIT minds TS only with MP");
}

#[test]
fn fild_pushes_integers_of_each_size() {
    let mut machine = Mock::new();
    machine.put(DATA, 0xffff_ffff_ffff_fffe);
    let push = |machine: &mut Mock, code: &[u8]| {
        run(machine, code, regs());
        machine.state[32..42].to_vec()
    };
    let minus_two = [0, 0, 0, 0, 0, 0, 0, 0x80, 0x00, 0xc0];
    assert_eq!(
        push(&mut machine, /* fild word ptr [rdi] */ &[0xdf, 0x07]),
        minus_two
    );
    assert_eq!(
        push(&mut machine, /* fild dword ptr [rdi] */ &[0xdb, 0x07]),
        minus_two
    );
    assert_eq!(
        push(&mut machine, /* fild qword ptr [rdi] */ &[0xdf, 0x2f]),
        minus_two
    );
    machine.put(DATA, 0);
    assert_eq!(
        push(&mut machine, /* fild dword ptr [rdi] */ &[0xdb, 0x07]),
        [0; 10]
    );
    assert_eq!(machine.state[48..58], minus_two);
    assert_eq!(
        machine.state[2..5],
        [0x00, 0x20, 0xf0],
        "TOP is 4, four registers are full"
    );
    for _ in 0..4 {
        push(&mut machine, /* fild dword ptr [rdi] */ &[0xdb, 0x07]);
    }
    assert_eq!(machine.state[2..4], [0, 0]);
    assert_eq!(
        push(&mut machine, /* fild dword ptr [rdi] */ &[0xdb, 0x07]),
        [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff]
    );
    assert_eq!(machine.state[2..4], 0x3a41u16.to_le_bytes(), "stack overflow");
}
