//! Tiny guests for the assist: ring 0 in the upper half, ring 3 in the lower, written in [assembly](code).
//!
//! The host sets everything up; the guest ends by a write to the exit port.

mod code;

use std::sync::Arc;

use berth_arch::x86_64::assist::VcpuAssist;
use berth_arch::x86_64::kind::{self, HostKind};
use berth_arch::x86_64::layout::EXIT_PORT;
use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment,
    kvm_userspace_memory_region, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

pub(crate) use code::Label;

const SIZE: usize = 8 << 20;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const PML4: u64 = 0x10000;
const KERNEL_PDPT: u64 = 0x11000;
const KERNEL_PD: u64 = 0x12000;
const USER_PDPT: u64 = 0x13000;
const USER_PD: u64 = 0x14000;
pub(crate) const USER_PT: u64 = 0x15000;
/// Where the code lies in guest memory.
pub(crate) const CODE: u64 = 0x20_0000;
/// All memory is mapped here for the kernel.
pub(crate) const KERNEL: u64 = 0xffff_ffff_8000_0000;
/// One page of scratch for each vCPU.
pub(crate) const DATA: u64 = 0x40_0000;
/// Tops of the kernel stacks.
const STACKS: u64 = 0x50_0000;
/// User space: the code and the data, readable and writable by ring 3, at their physical addresses. The page table at `USER_PT` maps the
/// 2 MiB from here.
pub(crate) const USER_PAGES: u64 = 0x60_0000;

const KERNEL_CS: u16 = 0x10;
const USER_SS: u16 = 0x2b;
const USER_CS: u16 = 0x33;

/// A vCPU and, on hosts that need it, its assist.
pub(crate) struct Cpu {
    pub(crate) vcpu: VcpuFd,
    pub(crate) assist: Option<VcpuAssist>,
    /// Its data page, in physical memory.
    pub(crate) data: u64,
}

impl Cpu {
    /// Runs to the next write to the exit port and returns the byte.
    pub(crate) fn run(&mut self) -> u8 {
        loop {
            if let Some(assist) = &mut self.assist {
                assist.before_run(&mut self.vcpu).unwrap();
            }
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(EXIT_PORT, [byte])) => return *byte,
                Ok(VcpuExit::Debug(_)) => {
                    let assist = self.assist.as_mut().expect("a debug exit on a native host");
                    assist.on_debug(&mut self.vcpu).unwrap();
                }
                Ok(VcpuExit::InternalError) => {
                    let assist = self.assist.as_mut().expect("an internal error on a native host");
                    assist.on_unemulated(&mut self.vcpu).unwrap();
                }
                Err(error) if error.errno() == libc::EINTR => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Changes registers.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut kvm_regs)) {
        let mut regs = self.vcpu.get_regs().unwrap();
        change(&mut regs);
        self.vcpu.set_regs(&regs).unwrap();
    }

    /// Puts it at a label in ring 0.
    pub(crate) fn in_ring0(&mut self, label: Label, rdi: u64, rsi: u64) {
        self.set_segments(KERNEL_CS, 0, 0);
        self.set_regs(label.kernel(), KERNEL + self.data + 0x1000, rdi, rsi);
    }

    /// Puts it at a label in ring 3.
    pub(crate) fn in_ring3(&mut self, label: Label, rdi: u64, rsi: u64) {
        self.set_segments(USER_CS, USER_SS, 3);
        self.set_regs(label.user(), self.data + 0x1000, rdi, rsi);
    }

    fn set_regs(&mut self, rip: u64, rsp: u64, rdi: u64, rsi: u64) {
        // Finish the last exit's port access with the old registers.
        self.vcpu.set_kvm_immediate_exit(1);
        let _ = self.vcpu.run();
        self.vcpu.set_kvm_immediate_exit(0);
        let regs = kvm_regs {
            rip,
            rsp,
            rdi,
            rsi,
            rflags: 2,
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).unwrap();
    }

    fn set_segments(&mut self, cs: u16, ss: u16, dpl: u8) {
        let mut sregs = self.vcpu.get_sregs().unwrap();
        let segment = |selector, code: bool| kvm_segment {
            limit: u32::MAX,
            selector,
            type_: if code { 11 } else { 3 },
            present: 1,
            dpl,
            db: u8::from(!code),
            s: 1,
            l: u8::from(code),
            g: 1,
            ..Default::default()
        };
        sregs.cs = segment(cs, true);
        sregs.ss = segment(if ss == 0 { 0x18 } else { ss }, false);
        for other in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs] {
            *other = segment(USER_SS, false);
            other.dpl = 3;
        }
        // No swapgs in these guests: user space never uses gs.
        sregs.gs.base = KERNEL + self.data;
        self.vcpu.set_sregs(&sregs).unwrap();
    }
}

/// A guest and its vCPUs. Fields drop in this order: the VM before the memory it maps.
pub(crate) struct Guest {
    pub(crate) cpus: Vec<Cpu>,
    _vm: VmFd,
    pub(crate) memory: Arc<GuestMemoryMmap>,
}

impl Guest {
    /// A guest with so many vCPUs, all of them stopped.
    pub(crate) fn new(cpus: u64) -> Self {
        let kvm = Kvm::new().expect("this test needs /dev/kvm");
        let interpreted = kind::host_kind(&kvm).unwrap() == HostKind::Interpreted;
        let vm = kvm.create_vm().unwrap();
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap());
        let region = kvm_userspace_memory_region {
            memory_size: SIZE as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
            ..Default::default()
        };
        // SAFETY: the region is a mapping of `SIZE` bytes that `Self` keeps until after it has dropped the VM.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        vm.create_irq_chip().unwrap();
        write_tables(&memory);
        let cpus = (0..cpus)
            .map(|index| {
                let vcpu = vm.create_vcpu(index).unwrap();
                let data = DATA + index * 0x10000;
                set_up(&kvm, &vcpu, &memory, index, data);
                let assist = interpreted.then(|| VcpuAssist::new(memory.clone(), &vm).unwrap());
                Cpu { vcpu, assist, data }
            })
            .collect();
        Self {
            cpus,
            _vm: vm,
            memory,
        }
    }

    pub(crate) fn word(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }
}

fn put(memory: &GuestMemoryMmap, address: u64, value: u64) {
    memory.write_obj(value, GuestAddress(address)).unwrap();
}

fn write_tables(memory: &GuestMemoryMmap) {
    const RW: u64 = 3;
    const RWU: u64 = 7;
    const LARGE: u64 = 0x80;
    memory.write_slice(code::bytes(), GuestAddress(CODE)).unwrap();
    put(memory, PML4 + 511 * 8, KERNEL_PDPT | RW);
    put(memory, KERNEL_PDPT + 510 * 8, KERNEL_PD | RW);
    put(memory, PML4, USER_PDPT | RWU);
    put(memory, USER_PDPT, USER_PD | RWU);
    for page in 0..SIZE as u64 >> 21 {
        put(memory, KERNEL_PD + page * 8, page << 21 | RW | LARGE);
        put(memory, USER_PD + page * 8, page << 21 | RWU | LARGE);
    }
    put(memory, USER_PD + (USER_PAGES >> 21) * 8, USER_PT | RWU);
    for page in 0..512 {
        // Not present until touched.
        put(
            memory,
            USER_PT + page * 8,
            (USER_PAGES + page * 4096) | (RWU & !1),
        );
    }
    let gdt = [
        0,
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
    ];
    for (index, descriptor) in (0..).zip(gdt) {
        put(memory, GDT + index * 8, descriptor);
    }
    let vectors = [
        (1, Label::Vector1),
        (3, Label::Vector3),
        (6, Label::Vector6),
        (7, Label::Vector7),
        (13, Label::Vector13),
        (14, Label::Vector14),
        (128, Label::Vector128),
    ];
    for (vector, label) in vectors {
        let at = label.kernel();
        let dpl = if vector == 128 { 3 } else { 0 };
        let kind = 0x8e00 | dpl << 13;
        put(
            memory,
            IDT + vector * 16,
            at & 0xffff | u64::from(KERNEL_CS) << 16 | kind << 32 | (at >> 16 & 0xffff) << 48,
        );
        put(memory, IDT + vector * 16 + 8, at >> 32);
    }
}

fn set_up(kvm: &Kvm, vcpu: &VcpuFd, memory: &GuestMemoryMmap, index: u64, data: u64) {
    let mut cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .unwrap();
    for entry in cpuid.as_mut_slice() {
        if entry.function == 1 {
            // Interpreting KVMs leave out XSAVE and AVX, which ring 3 has all the same.
            entry.ecx |= 1 << 26 | 1 << 28;
        }
    }
    vcpu.set_cpuid2(&cpuid).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    sregs.cr0 = 0x8001_0033;
    sregs.cr3 = PML4;
    // PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE
    sregs.cr4 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18;
    sregs.efer = 0xd01;
    sregs.gdt.base = KERNEL + GDT;
    sregs.gdt.limit = 7 * 8 - 1;
    sregs.idt.base = KERNEL + IDT;
    sregs.idt.limit = 0xfff;
    let tss = TSS + index * 0x100;
    let stack = KERNEL + STACKS + (index + 1) * 0x4000;
    put(memory, tss + 4, stack);
    sregs.tr = kvm_segment {
        base: KERNEL + tss,
        limit: 0x67,
        selector: 0x40,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    vcpu.set_sregs(&sregs).unwrap();
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[
        entry(0xc000_0081, 0x0023_0010 << 32),
        entry(0xc000_0082, Label::Syscall.kernel()),
        entry(0xc000_0084, 0x257fd5),
    ])
    .unwrap();
    assert_eq!(vcpu.set_msrs(&msrs).unwrap(), 3);
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    xcrs.xcrs[0].value = 7;
    vcpu.set_xcrs(&xcrs).unwrap();
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    })
    .unwrap();
    put(memory, data + 0x50, stack - 0x1000);
}
