//! Integer instructions against the manual.

use super::super::machine::{Exception, rflags};
use super::super::mock::{self, DATA, HOLE, Mock, READ_ONLY, fault, regs, run, sregs};
use kvm_bindings::kvm_regs;

const CF: u64 = rflags::CF;
const ZF: u64 = rflags::ZF;
const SF: u64 = rflags::SF;
const STATUS: u64 = rflags::STATUS;
const OF: u64 = rflags::OF;

/// Code, RAX and RCX before, all status flags set before or not; RAX and the flags named by the mask after.
type Case = (&'static [u8], u64, u64, bool, u64, u64, u64);

#[rustfmt::skip]
const CASES: &[Case] = &[
    (/* popcnt rax, rcx */ &[0xf3, 0x48, 0x0f, 0xb8, 0xc1], 0, 0xf0f0, true, 8, STATUS, 0),
    (/* popcnt rax, rcx */ &[0xf3, 0x48, 0x0f, 0xb8, 0xc1], 5, 0, true, 0, STATUS, ZF),
    (/* popcnt eax, ecx */ &[0xf3, 0x0f, 0xb8, 0xc1], u64::MAX, u64::MAX, false, 32, STATUS, 0),
    (/* popcnt ax, cx */ &[0x66, 0xf3, 0x0f, 0xb8, 0xc1], u64::MAX, u64::MAX, false, 0xffff_ffff_ffff_0010, STATUS, 0),
    (/* lzcnt rax, rcx */ &[0xf3, 0x48, 0x0f, 0xbd, 0xc1], 0, 1, true, 63, CF | ZF, 0),
    (/* lzcnt eax, ecx */ &[0xf3, 0x0f, 0xbd, 0xc1], u64::MAX, 1 << 31, true, 0, CF | ZF, ZF),
    (/* lzcnt ax, cx */ &[0x66, 0xf3, 0x0f, 0xbd, 0xc1], 0, 0xffff_0000, false, 16, CF | ZF, CF),
    (/* tzcnt rax, rcx */ &[0xf3, 0x48, 0x0f, 0xbc, 0xc1], 0, 8, true, 3, CF | ZF, 0),
    (/* tzcnt rax, rcx */ &[0xf3, 0x48, 0x0f, 0xbc, 0xc1], 0, 0, false, 64, CF | ZF, CF),
    (/* tzcnt eax, ecx */ &[0xf3, 0x0f, 0xbc, 0xc1], 0, 1 << 40, false, 32, CF | ZF, CF),
    (/* tzcnt ax, cx */ &[0x66, 0xf3, 0x0f, 0xbc, 0xc1], 0, 1, false, 0, CF | ZF, ZF),
    (/* andn rax, rcx, rax */ &[0xc4, 0xe2, 0xf0, 0xf2, 0xc0], 0xff, 0x0f, true, 0xf0, CF | OF | ZF | SF, 0),
    (/* andn eax, ecx, eax */ &[0xc4, 0xe2, 0x70, 0xf2, 0xc0], 0xffff_ffff_8000_0000, 0, true, 0x8000_0000, CF | OF | ZF | SF, SF),
    (/* bextr rax, rcx, rax */ &[0xc4, 0xe2, 0xf8, 0xf7, 0xc1], 0x0804, 0xabcd, true, 0xbc, CF | OF | ZF, 0),
    (/* bextr rax, rcx, rax */ &[0xc4, 0xe2, 0xf8, 0xf7, 0xc1], 0x0840, 0xabcd, true, 0, CF | OF | ZF, ZF),
    (/* bextr rax, rcx, rax */ &[0xc4, 0xe2, 0xf8, 0xf7, 0xc1], 0xff00, 0xabcd, true, 0xabcd, CF | OF | ZF, 0),
    (/* blsi rax, rcx */ &[0xc4, 0xe2, 0xf8, 0xf3, 0xd9], 0, 0b1100, false, 0b100, CF | OF | ZF | SF, CF),
    (/* blsi rax, rcx */ &[0xc4, 0xe2, 0xf8, 0xf3, 0xd9], 1, 0, true, 0, CF | OF | ZF | SF, ZF),
    (/* blsmsk rax, rcx */ &[0xc4, 0xe2, 0xf8, 0xf3, 0xd1], 0, 0b1100, true, 0b111, CF | OF | ZF | SF, 0),
    (/* blsmsk eax, ecx */ &[0xc4, 0xe2, 0x78, 0xf3, 0xd1], 0, 0, false, 0xffff_ffff, CF | OF | ZF | SF, CF | SF),
    (/* blsr rax, rcx */ &[0xc4, 0xe2, 0xf8, 0xf3, 0xc9], 0, 0b1100, true, 0b1000, CF | OF | ZF | SF, 0),
    (/* blsr rax, rcx */ &[0xc4, 0xe2, 0xf8, 0xf3, 0xc9], 0, 0, true, 0, CF | OF | ZF | SF, CF | ZF),
    (/* bzhi rax, rcx, rax */ &[0xc4, 0xe2, 0xf8, 0xf5, 0xc1], 4, 0xff, true, 0xf, CF | OF | ZF | SF, 0),
    (/* bzhi eax, ecx, eax */ &[0xc4, 0xe2, 0x78, 0xf5, 0xc1], 32, 0xff, false, 0xff, CF | OF | ZF | SF, CF),
    (/* bzhi rax, rcx, rax */ &[0xc4, 0xe2, 0xf8, 0xf5, 0xc1], 0xff, u64::MAX, false, u64::MAX, CF | OF | ZF | SF, CF | SF),
    (/* pdep rax, rcx, rax */ &[0xc4, 0xe2, 0xf3, 0xf5, 0xc0], 0xf0f0, 0b1010_0110, false, 0xa060, STATUS, 0),
    (/* pext rax, rcx, rax */ &[0xc4, 0xe2, 0xf2, 0xf5, 0xc0], 0xf0f0, 0xa060, true, 0xa6, STATUS, STATUS),
    (/* rorx rax, rcx, 4 */ &[0xc4, 0xe3, 0xfb, 0xf0, 0xc1, 0x04], 0, 0xf, true, 0xf << 60, STATUS, STATUS),
    (/* rorx eax, ecx, 36 */ &[0xc4, 0xe3, 0x7b, 0xf0, 0xc1, 0x24], 0, 0xf, false, 0xf000_0000, STATUS, 0),
    (/* sarx rax, rcx, rax */ &[0xc4, 0xe2, 0xfa, 0xf7, 0xc1], 68, 1 << 63, false, 0xf8 << 56, STATUS, 0),
    (/* sarx eax, ecx, eax */ &[0xc4, 0xe2, 0x7a, 0xf7, 0xc1], 4, 1 << 31, false, 0xf800_0000, STATUS, 0),
    (/* shlx eax, ecx, eax */ &[0xc4, 0xe2, 0x79, 0xf7, 0xc1], 31, 3, true, 1 << 31, STATUS, STATUS),
    (/* shrx rax, rcx, rax */ &[0xc4, 0xe2, 0xfb, 0xf7, 0xc1], 63, 1 << 63, true, 1, STATUS, STATUS),
    (/* adcx rax, rcx */ &[0x66, 0x48, 0x0f, 0x38, 0xf6, 0xc1], u64::MAX, 0, true, 0, STATUS, STATUS),
    (/* adcx eax, ecx */ &[0x66, 0x0f, 0x38, 0xf6, 0xc1], 0xffff_ffff, 1, false, 0, STATUS, CF),
    (/* adox rax, rcx */ &[0xf3, 0x48, 0x0f, 0x38, 0xf6, 0xc1], u64::MAX, 0, false, u64::MAX, STATUS, 0),
    (/* adox rax, rcx */ &[0xf3, 0x48, 0x0f, 0x38, 0xf6, 0xc1], u64::MAX, 1, false, 0, STATUS, OF),
    (/* crc32 eax, cl */ &[0xf2, 0x0f, 0x38, 0xf0, 0xc1], u64::MAX, 0x61, true, 0x3e2f_bccf, STATUS, STATUS),
    (/* crc32 rax, rcx */ &[0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc1], 0, 1, false, 0x493c_7d27, STATUS, 0),
    (/* crc32 eax, cx */ &[0x66, 0xf2, 0x0f, 0x38, 0xf1, 0xc1], 0, 0, false, 0, STATUS, 0),
    (/* rdrand rax */ &[0x48, 0x0f, 0xc7, 0xf0], 0, 0, true, 0x0123_4567_89ab_cdef, STATUS, CF),
    (/* rdseed eax */ &[0x0f, 0xc7, 0xf8], u64::MAX, 0, false, 0x89ab_cdef, STATUS, CF),
    (/* rdrand ax */ &[0x66, 0x0f, 0xc7, 0xf0], u64::MAX, 0, false, 0xffff_ffff_ffff_cdef, STATUS, CF),
];

#[test]
fn results_and_flags_are_those_of_the_manual() {
    for (code, rax, rcx, set, result, mask, flags) in CASES {
        let before = kvm_regs {
            rax: *rax,
            rcx: *rcx,
            rflags: 2 | if *set { STATUS } else { 0 },
            ..regs()
        };
        let after = run(&mut Mock::new(), code, before);
        assert_eq!(
            (after.rax, after.rflags & mask),
            (*result, *flags),
            "{code:02x?}: {:x} and {:x}, not {result:x} and {flags:x}",
            after.rax,
            after.rflags & mask
        );
        let unchanged = kvm_regs {
            rax: *rax,
            rip: before.rip,
            rflags: after.rflags,
            ..after
        };
        assert_eq!(
            unchanged,
            kvm_regs {
                rflags: after.rflags,
                ..before
            },
            "{code:02x?}"
        );
    }
}

#[test]
fn mulx_gives_both_halves_and_the_high_one_wins() {
    let before = kvm_regs {
        rdx: u64::MAX,
        rcx: 16,
        rflags: 2 | rflags::STATUS,
        ..regs()
    };
    let after = run(
        &mut Mock::new(),
        /* mulx rax, rbx, rcx */ &[0xc4, 0xe2, 0xe3, 0xf6, 0xc1],
        before,
    );
    assert_eq!(
        (after.rax, after.rbx, after.rflags),
        (15, u64::MAX << 4, before.rflags)
    );
    let after = run(
        &mut Mock::new(),
        /* mulx eax, eax, ecx */ &[0xc4, 0xe2, 0x7b, 0xf6, 0xc1],
        before,
    );
    assert_eq!(after.rax, 15);
}

#[test]
fn random_numbers_that_the_host_does_not_have_clear_carry() {
    let mut machine = Mock::new();
    machine.random = None;
    let before = kvm_regs {
        rflags: 2 | rflags::STATUS,
        ..regs()
    };
    let after = run(
        &mut machine,
        /* rdrand rax */ &[0x48, 0x0f, 0xc7, 0xf0],
        before,
    );
    assert_eq!((after.rax, after.rflags), (0, 2));
}

#[test]
fn movbe_swaps_both_ways_and_crosses_pages() {
    let mut machine = Mock::new();
    let edge = mock::SPLIT - 3;
    let before = kvm_regs {
        rax: 0x0102_0304_0506_0708,
        rdi: edge,
        ..regs()
    };
    run(
        &mut machine,
        /* movbe [rdi], rax */ &[0x48, 0x0f, 0x38, 0xf1, 0x07],
        before,
    );
    assert_eq!(machine.bytes(edge, 3), [1, 2, 3]);
    assert_eq!(machine.bytes(0x3f_0000, 5), [4, 5, 6, 7, 8]);
    let after = run(
        &mut machine,
        /* movbe rbx, [rdi] */ &[0x48, 0x0f, 0x38, 0xf0, 0x1f],
        before,
    );
    assert_eq!(after.rbx, before.rax);
    let after = run(
        &mut machine,
        /* movbe bx, [rdi] */ &[0x66, 0x0f, 0x38, 0xf0, 0x1f],
        before,
    );
    assert_eq!(after.rbx, 0x0102);
    let after = run(
        &mut machine,
        /* movbe ebx, [rdi] */ &[0x0f, 0x38, 0xf0, 0x1f],
        kvm_regs {
            rbx: u64::MAX,
            ..before
        },
    );
    assert_eq!(after.rbx, 0x0102_0304);
}

#[test]
fn a_store_that_faults_on_its_second_page_writes_nothing() {
    let mut machine = Mock::new();
    let before = kvm_regs {
        rax: u64::MAX,
        rdi: HOLE - 4,
        ..regs()
    };
    assert_eq!(
        fault(
            &mut machine,
            /* movbe [rdi], rax */ &[0x48, 0x0f, 0x38, 0xf1, 0x07],
            before,
            sregs()
        ),
        Exception::page_fault(HOLE, 0b10)
    );
    assert_eq!(machine.word(HOLE - 8), 0);
    let before = kvm_regs {
        rdi: READ_ONLY - 4,
        ..before
    };
    assert_eq!(
        fault(
            &mut machine,
            /* movbe [rdi], rax */ &[0x48, 0x0f, 0x38, 0xf1, 0x07],
            before,
            sregs()
        ),
        Exception::page_fault(READ_ONLY, 0b11)
    );
    assert_eq!(machine.word(READ_ONLY - 8), 0);
}

#[test]
fn cmpxchg16b_compares_both_halves_and_replaces_them_or_loads_them() {
    let mut machine = Mock::new();
    machine.put(DATA, 0xa);
    machine.put(DATA + 8, 0xd);
    let code = /* lock cmpxchg16b [rdi] */ &[0xf0, 0x48, 0x0f, 0xc7, 0x0f];
    let after = run(&mut machine, code, regs());
    assert_eq!((machine.word(DATA), machine.word(DATA + 8)), (0xb, 0xc));
    assert_eq!((after.rax, after.rdx, after.rflags), (0xa, 0xd, 2 | ZF));
    // Now it differs: the low half only.
    let before = kvm_regs {
        rax: 0xa,
        rdx: 0xc,
        rflags: 2 | rflags::STATUS,
        ..regs()
    };
    let after = run(
        &mut machine,
        /* cmpxchg16b [rdi] */ &[0x48, 0x0f, 0xc7, 0x0f],
        before,
    );
    assert_eq!((after.rax, after.rdx), (0xb, 0xc));
    assert_eq!(after.rflags, (2 | rflags::STATUS) & !ZF);
    assert_eq!((machine.word(DATA), machine.word(DATA + 8)), (0xb, 0xc));
}

#[test]
fn cmpxchg16b_faults_on_misalignment_and_on_pages_that_may_not_be_written() {
    let code = /* lock cmpxchg16b [rdi] */ &[0xf0, 0x48, 0x0f, 0xc7, 0x0f];
    let at = |rdi| kvm_regs { rdi, ..regs() };
    let mut machine = Mock::new();
    assert_eq!(
        fault(&mut machine, code, at(DATA + 8), sregs()),
        Exception::GENERAL_PROTECTION
    );
    // Even if it would only load.
    assert_eq!(
        fault(&mut machine, code, at(READ_ONLY), sregs()),
        Exception::page_fault(READ_ONLY, 0b11)
    );
    assert_eq!(
        fault(&mut machine, code, at(1 << 50), sregs()),
        Exception::GENERAL_PROTECTION
    );
    let stack = /* lock cmpxchg16b [rsp] */ &[0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x24];
    assert_eq!(
        fault(
            &mut machine,
            stack,
            kvm_regs {
                rsp: 1 << 50,
                ..regs()
            },
            sregs()
        ),
        Exception::STACK
    );
}

#[test]
fn lock_where_it_is_not_allowed_is_no_instruction() {
    for code in [
        /* .byte 0xf0; movbe [rdi], rax */ &[0xf0, 0x48, 0x0f, 0x38, 0xf1, 0x07][..],
        /* .byte 0xf0; crc32 eax, cl */ &[0xf0, 0xf2, 0x0f, 0x38, 0xf0, 0xc1],
    ] {
        assert_eq!(
            fault(&mut Mock::new(), code, regs(), sregs()),
            Exception::INVALID_OPCODE
        );
    }
}
