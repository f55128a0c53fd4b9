//! What only a real KVM can show. These tests fail without /dev/kvm; the crate's other tests do not need it.
#![cfg(target_arch = "x86_64")]

use berth_arch::probe;
use berth_arch::x86_64::boot_regs::{self, Entry};
use berth_arch::x86_64::cpuid::{self, GuestCpu};
use berth_arch::x86_64::{kind, layout};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const GUEST: u64 = 0x10_0000;
const ENTRIES: [Entry; 2] = [Entry::Linux64 { rip: GUEST }, Entry::Pvh { rip: GUEST as u32 }];

/// A VM with one vCPU. Fields drop in this order: the VM before the memory it maps.
struct TestVm {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: GuestMemoryMmap,
}

fn kvm() -> Kvm {
    Kvm::new().expect("this test needs /dev/kvm")
}

impl TestVm {
    fn new(size: usize) -> Self {
        let vm = kvm().create_vm().unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap();
        let region = kvm_userspace_memory_region {
            memory_size: size as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
            ..Default::default()
        };
        // SAFETY: the region is a mapping of `size` bytes that `Self` keeps until after it has dropped the VM.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        Self {
            vcpu,
            _vm: vm,
            memory,
        }
    }

    /// A VM about to run `code` from `entry`.
    fn about_to_run(code: &[u8], entry: Entry) -> Self {
        let vm = Self::new(2 << 20);
        vm.memory.write_slice(code, GuestAddress(GUEST)).unwrap();
        boot_regs::write_tables(&vm.memory, entry, 1).unwrap();
        assert_eq!(boot_regs::set_common(&vm.vcpu, true).unwrap(), [], "refused MSRs");
        boot_regs::set_entry(&vm.vcpu, entry).unwrap();
        vm
    }

    /// Runs until the exit port is written and returns the byte.
    fn run(&mut self) -> u8 {
        match self.vcpu.run().unwrap() {
            VcpuExit::IoOut(layout::EXIT_PORT, [byte]) => *byte,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn each_entry_reaches_the_guest_with_its_boot_information() {
    // mov rax, rsi; shr rax, 12; out 0xf4, al
    let linux = [0x48, 0x89, 0xf0, 0x48, 0xc1, 0xe8, 12, 0xe6, 0xf4];
    assert_eq!(
        u64::from(TestVm::about_to_run(&linux, ENTRIES[0]).run()),
        layout::ZERO_PAGE >> 12
    );
    // mov eax, ebx; shr eax, 12; out 0xf4, al
    let pvh = [0x89, 0xd8, 0xc1, 0xe8, 12, 0xe6, 0xf4];
    assert_eq!(
        u64::from(TestVm::about_to_run(&pvh, ENTRIES[1]).run()),
        layout::PVH_START_INFO >> 12
    );
}

#[test]
fn probing_the_vms_own_vcpu_agrees_with_a_throwaway_vm_and_leaves_no_trace() {
    let host = kind::host_kind(&kvm()).unwrap();
    for entry in ENTRIES {
        let mut vm = TestVm::about_to_run(&[0xb0, 42, 0xe6, 0xf4], entry); // mov al, 42; out 0xf4, al
        let state = |vm: &TestVm| {
            // The page tables, which follow, get accessed bits.
            let mut low = vec![0u8; layout::BOOT_PML4 as usize];
            vm.memory.read_slice(&mut low, GuestAddress(0)).unwrap();
            (
                vm.vcpu.get_regs().unwrap(),
                vm.vcpu.get_sregs().unwrap(),
                vm.vcpu.get_fpu().unwrap(),
                low,
            )
        };
        let before = state(&vm);
        assert_eq!(
            kind::kind_of_vcpu(&mut vm.vcpu, &vm.memory, entry).unwrap(),
            host,
            "{entry:?}"
        );
        let after = state(&vm);
        assert_eq!(
            (before.0, before.1, before.2),
            (after.0, after.1, after.2),
            "{entry:?}"
        );
        let changed = before
            .3
            .iter()
            .zip(&after.3)
            .position(|(before, after)| before != after);
        assert_eq!(changed, None, "{entry:?}: memory changed");
        assert_eq!(vm.run(), 42, "{entry:?}");
    }
}

#[test]
fn probing_without_memory_for_the_code_is_an_error() {
    let mut vm = TestVm::new(0x8000);
    let error = kind::kind_of_vcpu(&mut vm.vcpu, &vm.memory, ENTRIES[1])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("cannot place the probe's code at 0x8000"),
        "{error}"
    );
}

#[test]
fn ring0_speed_is_of_a_plausible_order() {
    let speed = kind::ring0_speed(&kvm()).unwrap();
    assert!((10_000..100_000_000_000).contains(&speed), "{speed}");
}

#[test]
fn kvm_takes_the_cpuid_of_every_vcpu() {
    let kvm = kvm();
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let host = cpuid::supported(&kvm).unwrap();
    for index in 0..2 {
        let vcpu = vm.create_vcpu(u64::from(index)).unwrap();
        let interpreted = cpuid::looks_interpreted(host.as_slice());
        let tsc_khz = vcpu.get_tsc_khz().ok();
        let cpu = GuestCpu {
            index,
            count: 2,
            tsc_deadline: true,
            tsc_khz,
            interpreted,
        };
        cpuid::set(&vcpu, &cpuid::guest_cpuid(host.as_slice(), cpu)).unwrap();
        let set = vcpu.get_cpuid2(256).unwrap();
        let cores = set
            .as_slice()
            .iter()
            .find(|entry| entry.function == 0xb && entry.index == 1)
            .unwrap();
        assert_eq!((cores.ebx, cores.edx), (2, index));
    }
}

#[test]
fn the_cpuid_hint_agrees_with_what_runs_ring_0() {
    let kvm = kvm();
    let interpreted = kind::host_kind(&kvm).unwrap() == kind::HostKind::Interpreted;
    assert_eq!(
        cpuid::looks_interpreted(cpuid::supported(&kvm).unwrap().as_slice()),
        interpreted
    );
}

#[test]
fn report_says_that_guests_can_run_here_and_how_fast() {
    let report = probe::report();
    assert!(
        report.can_run() && report.ring0_speed.is_some(),
        "{:?}",
        report.facts
    );
}

#[test]
fn opening_kvm_finds_every_required_capability() {
    probe::kvm::open().unwrap();
}
