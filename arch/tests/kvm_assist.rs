//! Guests that need the assist where KVM interprets ring 0, and run without it elsewhere. These tests fail without /dev/kvm.
#![cfg(target_arch = "x86_64")]

#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "assist/guest.rs"]
mod guest;

use std::sync::atomic::{AtomicU64, Ordering};

use guest::{DATA, Guest, KERNEL, Label, USER_PAGES};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// The same guest twice: its kernel run by KVM, and, where KVM interprets it, interpreted by the assist.
fn guests(cpus: u64) -> impl Iterator<Item = Guest> {
    [false, true].into_iter().map(move |here| {
        let mut guest = Guest::new(cpus);
        for assist in guest.cpus.iter_mut().filter_map(|cpu| cpu.assist.as_mut()) {
            assist.interpret_here(here);
        }
        guest
    })
}

/// Scratch in the data page of the first vCPU.
const SCRATCH: u64 = DATA + 0x4000;

#[test]
fn ring_0_runs_instructions_that_kvm_does_not_know() {
    for mut guest in guests(1) {
        guest.cpus[0].in_ring0(Label::Ring0, KERNEL + SCRATCH, 0);
        let result = |guest: &Guest, offset| guest.word(SCRATCH + offset);
        assert_eq!(guest.cpus[0].run(), 3, "int3");
        assert_eq!(
            guest.word(DATA + 0x20),
            Label::Ring0.kernel() + 1,
            "RIP after int3"
        );
        let end = guest.cpus[0].run();
        let at = guest.word(DATA + 0x20) - Label::Ring0.kernel();
        assert_eq!(
            end, 3,
            "the end of the good instructions; last exception at offset {at:#x}"
        );
        assert_eq!(result(&guest, 0), 8, "popcnt");
        assert_eq!(result(&guest, 8), 0xb0779fd, "crc32");
        assert_eq!(result(&guest, 16) >> 18 & 1, 1, "stac");
        assert_eq!(result(&guest, 24) >> 18 & 1, 0, "clac");
        assert_eq!(result(&guest, 32), 4, "tzcnt");
        assert_eq!(
            result(&guest, 40) & 0xff_ffff,
            0x00_0101,
            "rdrand's carry, cmpxchg16b's zero flags"
        );
        assert_eq!(
            (result(&guest, 48), result(&guest, 56)),
            (7, 9),
            "cmpxchg16b wrote"
        );
        assert_eq!(
            (result(&guest, 64), result(&guest, 72)),
            (7, 9),
            "cmpxchg16b read"
        );
        assert_eq!(result(&guest, 88), KERNEL + SCRATCH + 0x123, "wrfsbase");
        assert_eq!(result(&guest, 96) as u32, 0x1f80, "stmxcsr");
        assert_eq!(guest.cpus[0].run(), 6, "ud2");
    }
}

#[test]
fn system_calls_from_ring_3_return_with_every_register_as_documented() {
    for mut guest in guests(1) {
        guest.cpus[0].in_ring3(Label::Calls, 0, 1000);
        assert_eq!(guest.cpus[0].run(), 0);
        assert_eq!(guest.word(DATA + 0x48), 1002, "calls that the kernel saw");
        assert_eq!(
            guest.word(DATA + 0x40) & 0xffff_ffff,
            0x18_0010,
            "CS and SS in the kernel"
        );
        assert_eq!(guest.word(DATA + 0x68) & 0x201, 0, "FMASK was applied");
        if let Some(assist) = &guest.cpus[0].assist {
            assert_eq!(assist.counts().system_calls, 1002, "{}", assist.counts());
        }
    }
}

#[test]
fn an_interrupt_that_kvm_once_delivered_is_not_delivered_again() {
    const LONG_AGO: usize = 0x30;
    for mut guest in guests(1) {
        let cpu = &mut guest.cpus[0];
        cpu.in_ring3(Label::Calls, 0, 10);
        if let Some(assist) = &mut cpu.assist {
            assist.before_run(&mut cpu.vcpu).unwrap();
        }
        cpu.vcpu.sync_regs_mut().sregs.interrupt_bitmap[0] = 1 << LONG_AGO;
        assert_eq!(cpu.run(), 0);
    }
}

#[test]
fn kicks_at_any_moment_lose_no_system_call() {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    extern "C" fn take(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        TAKEN.fetch_add(1, Ordering::Relaxed);
    }
    const CALLS: u64 = 5000;
    let signal = SIGRTMIN();
    register_signal_handler(signal, take).unwrap();
    let mut sent = 0;
    for mut guest in guests(1) {
        let mut cpu = guest.cpus.remove(0);
        cpu.in_ring3(Label::Calls, 0, CALLS);
        let vcpu = std::thread::spawn(move || (cpu.run(), cpu));
        while !vcpu.is_finished() {
            // Real-time signals queue: one at a time, and a pause of another length after each, or the vCPU does nothing
            // but take them.
            if TAKEN.load(Ordering::Relaxed) == sent {
                vcpu.kill(signal).unwrap();
                sent += 1;
            }
            for _ in 0..sent * 7919 % 10_000 {
                std::hint::spin_loop();
            }
        }
        sent = TAKEN.load(Ordering::Relaxed);
        let (end, cpu) = vcpu.join().unwrap();
        assert_eq!(end, 0);
        assert_eq!(guest.word(DATA + 0x48), CALLS + 2, "calls that the kernel saw");
        if let Some(assist) = &cpu.assist {
            assert_eq!(assist.counts().system_calls, CALLS + 2, "{}", assist.counts());
        }
    }
}

#[test]
fn page_faults_of_ring_3_reach_the_guests_handler() {
    for mut guest in guests(1) {
        guest.cpus[0].in_ring3(Label::Touch, USER_PAGES, 100);
        assert_eq!(guest.cpus[0].run(), 0);
        assert_eq!(guest.word(DATA + 0x58), 100);
        if let Some(assist) = &guest.cpus[0].assist {
            assert_eq!(assist.counts().page_faults, 100, "{}", assist.counts());
        }
    }
}

#[test]
fn a_process_that_jumps_to_the_system_call_entry_makes_no_system_call() {
    for mut guest in guests(1) {
        guest.cpus[0].in_ring3(Label::Jump, Label::Touch.user(), Label::Syscall.kernel());
        guest.cpus[0].change(|regs| regs.rflags |= 0x200);
        assert_eq!(guest.cpus[0].run(), 14);
        assert_eq!(guest.word(DATA + 0x20), Label::Syscall.kernel());
        assert_eq!(guest.word(DATA + 0x48), 0);
    }
}

#[test]
fn vector_registers_survive_every_save_instruction_and_xrstor() {
    let instructions = [(2, "xsavec"), (4, "xsave"), (5, "xsaveopt")];
    for ((number, name), mut guest) in instructions
        .into_iter()
        .flat_map(|it| guests(1).map(move |guest| (it, guest)))
    {
        guest.cpus[0].in_ring3(Label::Vectors, SCRATCH, 0);
        guest.cpus[0].change(|regs| regs.r13 = number);
        assert_eq!(guest.cpus[0].run(), 0, "{name}");
        let mut found = [0u8; 96];
        guest
            .memory
            .read_slice(&mut found, GuestAddress(SCRATCH + 8192))
            .unwrap();
        assert_eq!(found[..32], [0x11; 32], "{name}");
        assert_eq!(found[32..64], [0x22; 32], "{name}");
        assert_eq!(found[64..], [0x11; 32], "{name}");
    }
}

#[test]
fn two_vcpus_lose_no_cmpxchg16b() {
    const ROUNDS: u64 = 3000;
    for mut guest in guests(2) {
        let shared = SCRATCH + 0x20000;
        std::thread::scope(|scope| {
            for cpu in &mut guest.cpus {
                scope.spawn(move || {
                    cpu.in_ring0(Label::Hammer, KERNEL + shared, ROUNDS);
                    assert_eq!(cpu.run(), 0);
                });
            }
        });
        assert_eq!(
            (guest.word(shared), guest.word(shared + 8)),
            (2 * ROUNDS, 6 * ROUNDS)
        );
    }
}

#[test]
fn a_page_that_the_kernel_maps_elsewhere_is_elsewhere_for_ring_3() {
    for mut guest in guests(1) {
        let frame = USER_PAGES + 0x10_0000;
        guest.memory.write_obj(1u64, GuestAddress(USER_PAGES)).unwrap();
        guest.memory.write_obj(2u64, GuestAddress(frame)).unwrap();
        guest.cpus[0].in_ring3(Label::Remap, USER_PAGES, frame);
        guest.cpus[0].change(|regs| regs.r13 = SCRATCH);
        assert_eq!(guest.cpus[0].run(), 0);
        assert_eq!((guest.word(SCRATCH), guest.word(SCRATCH + 8)), (1, 2));
    }
}
