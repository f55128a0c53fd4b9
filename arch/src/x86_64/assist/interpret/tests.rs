//! Sessions: where they end, and what they leave to KVM.

use kvm_bindings::{kvm_regs, kvm_sregs};

use super::{BUDGET, Decoded, Privileges, Session};
use crate::x86_64::assist::AssistCounts;
use crate::x86_64::assist::machine::{Cpu, Machine, rflags};
use crate::x86_64::assist::mock::{CODE, DATA, HOLE, Mock, regs, sregs};
use crate::x86_64::assist::paging::Translations;

/// What a session came to.
struct Ended {
    session: Session,
    regs: kvm_regs,
    sregs: kvm_sregs,
    known: Privileges,
}

/// Runs a session on `code`.
fn session(machine: &mut Mock, decoded: &mut Decoded, code: &[u8], registers: kvm_regs) -> Ended {
    machine.write(CODE, code);
    let translations = Translations::new();
    translations.clear();
    let mut cpu = Cpu::new(registers, sregs(), machine);
    cpu.guarded = true;
    cpu.translations = Some(&translations);
    let mut known = Privileges::default();
    let session = cpu.session(decoded, &mut known, &mut AssistCounts::default());
    Ended {
        session,
        regs: cpu.regs,
        sregs: cpu.sregs,
        known,
    }
}

fn run(code: &[u8], registers: kvm_regs) -> Ended {
    session(&mut Mock::new(), &mut Decoded::new(), code, registers)
}

#[test]
fn a_session_ends_before_what_is_for_kvm() {
    let ends: [&[u8]; 10] = [
        &[0xe4, 0x60],       // in al, 0x60
        &[0x0f, 0x20, 0xc0], // mov rax, cr0
        &[0x0f, 0x22, 0xd8], // mov cr3, rax
        &[0x0f, 0x30],       // wrmsr
        &[0x0f, 0x01, 0x3f], // invlpg [rdi]
        &[0x8e, 0xd8],       // mov ds, eax
        &[0x0f, 0xa2],       // cpuid
        &[0xcc],             // int3
        &[0x0f, 0x0b],       // ud2
        &[0x0f, 0x58, 0xc1], // addps xmm0, xmm1
    ];
    for end in ends {
        let code = [&[0xff, 0xc0], end].concat(); // inc eax
        let ended = run(&code, regs());
        assert_eq!(
            (ended.session.done, ended.regs.rip, ended.regs.rax),
            (1, CODE + 2, 0xb),
            "{end:02x?}"
        );
    }
}

#[test]
fn faults_are_left_to_kvm_with_registers_as_before() {
    let cases: [&[u8]; 4] = [
        &[0x48, 0x8b, 0x07], // mov rax, [rdi]
        &[0x48, 0x01, 0x07], // add [rdi], rax
        &[0xff, 0x17],       // call [rdi]
        &[0x48, 0xf7, 0xf1], // div rcx
    ];
    for code in cases {
        let before = kvm_regs {
            rdi: HOLE,
            rcx: 0,
            ..regs()
        };
        let ended = run(code, before);
        assert_eq!((ended.session.done, ended.regs), (0, before), "{code:02x?}");
    }
}

#[test]
fn a_budget_ends_endless_loops() {
    let ended = run(&[0xeb, 0xfe], regs());
    assert_eq!((ended.session.done, ended.regs.rip), (BUDGET, CODE));
    let ended = run(&[0xf3, 0x90, 0xeb, 0xfc], regs());
    assert!(
        ended.session.waiting && ended.session.done < BUDGET,
        "PAUSE gives way earlier"
    );
}

#[test]
fn hlt_waits_behind_itself_and_takes_sti_along() {
    let off = run(&[0xf4], regs());
    assert_eq!(
        (off.session.halted, off.regs.rip),
        (true, CODE + 1),
        "another CPU may still wake it"
    );
    let on = run(
        &[0xf4],
        kvm_regs {
            rflags: 2 | rflags::IF,
            ..regs()
        },
    );
    assert_eq!((on.session.halted, on.regs.rip), (true, CODE + 1));
    let both = run(&[0xfb, 0xf4], regs());
    assert_eq!(
        (both.session.halted, both.regs.rip, both.regs.rflags),
        (true, CODE + 2, 2 | rflags::IF)
    );
    let apart = run(&[0xfb, 0x90, 0xcc], regs());
    assert_eq!(
        (apart.session.halted, apart.regs.rip, apart.regs.rflags),
        (false, CODE + 2, 2 | rflags::IF)
    );
}

#[test]
fn stores_over_entries_that_kvm_may_have_used_are_left_to_kvm() {
    let stores: [&[u8]; 5] = [
        &[0x48, 0x89, 0x07],                // mov [rdi], rax
        &[0x88, 0x07],                      // mov [rdi], al
        &[0xf0, 0x48, 0x0f, 0xba, 0x37, 5], // lock btr qword ptr [rdi], 5
        &[0x48, 0x87, 0x07],                // xchg [rdi], rax
        &[0xf3, 0x48, 0xab],                // rep stosq
    ];
    // Entry, and whether it may have been used.
    let entries = [
        (0x1234_5067, true),
        (0x8000_0001_2345_6163, true),
        (0x1234_5047, false),
        (0x1234_5066, false),
        (0x67, false),
        (0xffff_8880_1234_5067, false),
        (0, false),
    ];
    for store in stores {
        for (entry, used) in entries {
            let mut machine = Mock::new();
            machine.put(DATA, entry);
            let before = kvm_regs {
                rax: 0,
                rcx: 1,
                ..regs()
            };
            let ended = session(
                &mut machine,
                &mut Decoded::new(),
                &[store, &[0xcc]].concat(),
                before,
            );
            assert_eq!(ended.session.done == 0, used, "{store:02x?} over {entry:#x}");
            assert_eq!(
                machine.word(DATA) == entry,
                used || entry == 0 || store.len() == 6 && entry & 0x20 == 0
            );
        }
    }
}

#[test]
fn a_push_over_such_a_word_goes_on_since_the_stack_is_no_page_table() {
    let mut machine = Mock::new();
    machine.put(regs().rsp - 0x10, 0x1234_5067);
    let before = kvm_regs {
        rsp: regs().rsp - 8,
        ..regs()
    };
    let ended = session(&mut machine, &mut Decoded::new(), &[0x50, 0xcc], before);
    assert_eq!(ended.session.done, 1);
}

#[test]
fn changed_code_is_decoded_again() {
    let mut machine = Mock::new();
    let mut decoded = Decoded::new();
    let first = session(&mut machine, &mut decoded, &[0xff, 0xc0, 0xcc], regs()); // inc eax
    let second = session(&mut machine, &mut decoded, &[0xff, 0xc8, 0xcc], regs()); // dec eax
    assert_eq!((first.regs.rax, second.regs.rax), (0xb, 0x9));
}

#[test]
fn swapgs_exchanges_the_bases_and_says_so() {
    let mut machine = Mock::new();
    machine.msrs.insert(0xc000_0102, 0x77);
    let once = session(
        &mut machine,
        &mut Decoded::new(),
        &[0x0f, 0x01, 0xf8, 0xcc],
        regs(),
    );
    assert_eq!(
        (once.sregs.gs.base, once.known.kernel_gs),
        (0x77, Some((0, true)))
    );
    let code = [0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8, 0xcc];
    let twice = session(&mut machine, &mut Decoded::new(), &code, regs());
    assert_eq!(
        (twice.sregs.gs.base, twice.known.kernel_gs),
        (0, Some((0x77, true)))
    );
}

const STAR: u64 = 0x0023_0010 << 32;

#[test]
fn sysret_enters_ring_3_and_ends_the_session() {
    let mut machine = Mock::new();
    machine.msrs.insert(0xc000_0081, STAR);
    let before = kvm_regs {
        rcx: 0x1234,
        r11: 0x246 | rflags::RF,
        ..regs()
    };
    let ended = session(
        &mut machine,
        &mut Decoded::new(),
        &[0x48, 0x0f, 0x07, 0x90],
        before,
    );
    assert_eq!(
        (ended.regs.rip, ended.regs.rflags, ended.session.done),
        (0x1234, 0x246, 1)
    );
    assert_eq!((ended.sregs.cs.selector, ended.sregs.ss.selector), (0x33, 0x2b));
    assert_eq!(
        (
            ended.sregs.cs.dpl,
            ended.sregs.cs.l,
            ended.sregs.ss.dpl,
            ended.sregs.ss.db
        ),
        (3, 1, 3, 1)
    );
    // Not canonical, or with flags that need care: KVM's.
    for (rcx, r11) in [(1 << 47, 0x202), (0x1234, 0x302), (0x1234, 0x3202)] {
        let before = kvm_regs { rcx, r11, ..regs() };
        let ended = session(&mut machine, &mut Decoded::new(), &[0x48, 0x0f, 0x07], before);
        assert_eq!((ended.session.done, ended.regs), (0, before));
    }
}

#[test]
fn iret_returns_to_the_kernel_and_to_ring_3() {
    let frame = |cs: u64, ss: u64, flags: u64| {
        let mut machine = Mock::new();
        machine.msrs.insert(0xc000_0081, STAR);
        for (at, word) in (0..).zip([CODE + 0x100, cs, flags, DATA + 0x4000, ss]) {
            machine.put(regs().rsp + 8 * at, word);
        }
        machine.write(CODE + 0x100, &[0xcc]);
        session(&mut machine, &mut Decoded::new(), &[0x48, 0xcf], regs())
    };
    for (cs, ss) in [(0x10, 0), (0x33, 0x2b)] {
        let ended = frame(cs, ss, 0x246);
        assert_eq!(
            (ended.regs.rip, ended.regs.rsp, ended.regs.rflags),
            (CODE + 0x100, DATA + 0x4000, 0x246)
        );
        assert_eq!(
            (
                u64::from(ended.sregs.cs.selector),
                u64::from(ended.sregs.ss.selector)
            ),
            (cs, ss)
        );
    }
    for (cs, ss, flags) in [
        (0x10, 0, 0x346),
        (0x23, 0x2b, 0x246),
        (0x33, 0x23, 0x246),
        (0x33, 0x2b, 0x3246),
    ] {
        assert_eq!(frame(cs, ss, flags).session.done, 0, "{cs:#x} {ss:#x} {flags:#x}");
    }
}

#[test]
fn calls_returns_and_the_stack_work_together() {
    let code = [
        0xe8, 0x03, 0, 0, 0, // call +3
        0xff, 0xc0, // inc eax
        0xcc, // int3
        0x55, // push rbp
        0x48, 0x89, 0xe5, // mov rbp, rsp
        0x9c, // pushfq
        0x5b, // pop rbx
        0xc9, // leave
        0xc3, // ret
    ];
    let ended = run(&code, regs());
    assert_eq!(
        (ended.regs.rip, ended.regs.rsp, ended.regs.rbp),
        (CODE + 7, regs().rsp, regs().rbp)
    );
    assert_eq!((ended.regs.rbx, ended.session.done), (2, 8));
}

#[test]
fn string_instructions_cross_pages_and_keep_what_they_did_before_a_fault() {
    let mut machine = Mock::new();
    let before = kvm_regs {
        rdi: HOLE - 32,
        rax: u64::MAX,
        rcx: 6,
        ..regs()
    };
    let ended = session(&mut machine, &mut Decoded::new(), &[0xf3, 0x48, 0xab], before);
    assert_eq!((ended.session.done, ended.regs.rip), (0, CODE));
    assert_eq!((ended.regs.rdi, ended.regs.rcx), (HOLE, 2));
    assert_eq!(machine.bytes(HOLE - 32, 32), [0xff; 32]);
    // Overlapping, upwards: the first byte spreads.
    machine.put(DATA, 0x41);
    let before = kvm_regs {
        rsi: DATA,
        rdi: DATA + 1,
        rcx: 9000,
        ..regs()
    };
    let ended = session(&mut machine, &mut Decoded::new(), &[0xf3, 0xa4, 0xcc], before);
    assert_eq!((ended.session.done, ended.regs.rcx), (1, 0));
    assert_eq!(machine.bytes(DATA, 9001), vec![0x41; 9001]);
}
