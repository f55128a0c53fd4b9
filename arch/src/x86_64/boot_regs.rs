//! The state in which a vCPU executes its first instruction.
//!
//! Two entries: Linux's 64-bit boot protocol (`Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol": long mode, paging with an
//! identity map) and PVH (Xen's `docs/misc/pvh.pandoc`: 32-bit protected mode, no paging). The functions that compute a state are
//! pure; [`set_entry`] and [`set_common`] give it to KVM and name the ioctl that failed.
//!
//! Only the first vCPU gets an entry. The others wait for INIT and SIPI, which set their registers, and need [`set_common`] only.
#![forbid(unsafe_code)]

use kvm_bindings::{kvm_fpu, kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{layout, msr};

/// How the guest is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit entry; `boot_params` lies at [`layout::ZERO_PAGE`].
    Linux64 {
        /// First instruction, within the identity map.
        rip: u64,
    },
    /// PVH; the start info lies at [`layout::PVH_START_INFO`].
    Pvh {
        /// First instruction.
        rip: u32,
    },
}

/// Why a vCPU could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum BootRegsError {
    /// KVM refused a call without which the guest cannot start.
    #[error("{ioctl} failed: {cause}")]
    Ioctl {
        /// Name of the call.
        ioctl: &'static str,
        /// What KVM said.
        cause: kvm_ioctls::Error,
    },
    /// The guest's memory does not reach to where a boot table belongs.
    #[error("the {table} at {address:#x} does not fit in guest memory: {cause}")]
    Memory {
        /// Which table.
        table: &'static str,
        /// Where it belongs.
        address: u64,
        /// What was wrong.
        cause: GuestMemoryError,
    },
}

fn failed(ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> BootRegsError {
    move |cause| BootRegsError::Ioctl { ioctl, cause }
}

// CR0, CR4, EFER (Intel SDM volume 3, 2.5 and 2.2.1).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set; all others, interrupts included, are off at entry.
const RFLAGS_RESERVED: u64 = 2;

/// Linux wants its code segment at 0x10 and its data segment at 0x18 (`__BOOT_CS`, `__BOOT_DS`); entry 1 stays empty.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

/// General registers at entry.
pub fn regs(entry: Entry) -> kvm_regs {
    match entry {
        Entry::Linux64 { rip } => kvm_regs {
            rip,
            rflags: RFLAGS_RESERVED,
            rsi: layout::ZERO_PAGE,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            ..Default::default()
        },
        Entry::Pvh { rip } => kvm_regs {
            rip: rip.into(),
            rflags: RFLAGS_RESERVED,
            rbx: layout::PVH_START_INFO,
            ..Default::default()
        },
    }
}

/// Segment and control registers at entry. `reset` is what KVM gave the vCPU; the APIC's base and the like stay.
pub fn sregs(entry: Entry, reset: kvm_sregs) -> kvm_sregs {
    let mut sregs = reset;
    let long = matches!(entry, Entry::Linux64 { .. });
    let (code, data, tss) = segments(long);
    sregs.cs = code;
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.tr = tss;
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = (gdt(entry).len() * 8 - 1) as u16;
    sregs.idt.base = layout::BOOT_IDT;
    sregs.idt.limit = 7;
    if long {
        sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
        sregs.cr3 = layout::BOOT_PML4;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    } else {
        sregs.cr0 = CR0_PE | CR0_ET;
        sregs.cr3 = 0;
        sregs.cr4 = 0;
        sregs.efer = 0;
    }
    sregs
}

/// Code, data and task segments: flat, ring 0.
fn segments(long: bool) -> (kvm_segment, kvm_segment, kvm_segment) {
    let flat = kvm_segment {
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let code = kvm_segment {
        selector: CODE_SELECTOR,
        type_: 0xb, // execute, read, accessed
        l: long.into(),
        db: (!long).into(),
        ..flat
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 3, /* read, write, accessed */
        db: 1,
        ..flat
    };
    // Busy TSS, never used: a CPU in protected mode must have one.
    let tss = kvm_segment {
        selector: TSS_SELECTOR,
        type_: 0xb,
        limit: 0x67,
        present: 1,
        ..Default::default()
    };
    (code, data, tss)
}

/// The descriptors behind [`sregs`]'s selectors.
pub fn gdt(entry: Entry) -> [u64; 5] {
    let (code, data, tss) = segments(matches!(entry, Entry::Linux64 { .. }));
    [0, 0, descriptor(&code), descriptor(&data), descriptor(&tss)]
}

/// A segment as the GDT has it (Intel SDM volume 3, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let flags = [
        (u64::from(segment.type_), 40),
        (segment.s.into(), 44),
        (segment.dpl.into(), 45),
        (segment.present.into(), 47),
        (segment.avl.into(), 52),
        (segment.l.into(), 53),
        (segment.db.into(), 54),
        (segment.g.into(), 55),
    ];
    let address = (segment.base & 0xff_ffff) << 16 | (segment.base >> 24 & 0xff) << 56;
    let size = limit & 0xffff | (limit >> 16 & 0xf) << 48;
    flags
        .iter()
        .fold(address | size, |word, (value, shift)| word | value << shift)
}

/// FPU state at entry: what FNINIT and a reset leave, all exceptions masked.
pub fn fpu() -> kvm_fpu {
    kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    }
}

/// The local APIC with LINT0 = ExtINT and LINT1 = NMI, both unmasked: how firmware leaves it (MP specification 3.6.2.2).
pub fn lapic(reset: kvm_lapic_state) -> kvm_lapic_state {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const EXTINT: u32 = 7 << 8;
    const NMI: u32 = 4 << 8;
    let mut lapic = reset;
    for (register, value) in [(LVT_LINT0, EXTINT), (LVT_LINT1, NMI)] {
        for (byte, value) in lapic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
            *byte = value as _;
        }
    }
    lapic
}

/// Bytes of guest memory that the identity map of `gib` GiB takes from [`layout::BOOT_PML4`] on.
fn identity_map(gib: u64) -> Vec<u64> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const ENTRIES: usize = 512;
    let tables = gib.clamp(1, layout::BOOT_PD_MAX_TABLES);
    let mut words = vec![0; ENTRIES * 2];
    words[0] = layout::BOOT_PDPT | PRESENT_WRITABLE;
    for table in 0..tables {
        words[ENTRIES + table as usize] = (layout::BOOT_PD + table * layout::PAGE_SIZE) | PRESENT_WRITABLE;
    }
    words.extend((0..tables * ENTRIES as u64).map(|page| page << 21 | LARGE | PRESENT_WRITABLE));
    words
}

/// Writes the tables that [`sregs`] points to: the GDT, an empty IDT and, for 64-bit entry, an identity map of the first `gib` GiB
/// (1 to 4) in pages of 2 MiB.
pub fn write_tables<M>(memory: &M, entry: Entry, gib: u64) -> Result<(), BootRegsError>
where
    M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
{
    write_words(memory, "boot GDT", layout::BOOT_GDT, &gdt(entry))?;
    write_words(memory, "boot IDT", layout::BOOT_IDT, &[0])?;
    match entry {
        Entry::Linux64 { .. } => {
            write_words(memory, "boot page table", layout::BOOT_PML4, &identity_map(gib))
        }
        Entry::Pvh { .. } => Ok(()),
    }
}

fn write_words<M>(memory: &M, table: &'static str, address: u64, words: &[u64]) -> Result<(), BootRegsError>
where
    M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
{
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory
        .write_slice(&bytes, GuestAddress(address))
        .map_err(|cause| BootRegsError::Memory {
            table,
            address,
            cause,
        })
}

/// Sets the first vCPU's registers for `entry`. [`write_tables`] writes what they point to.
pub fn set_entry(vcpu: &VcpuFd, entry: Entry) -> Result<(), BootRegsError> {
    let reset = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    vcpu.set_sregs(&sregs(entry, reset))
        .map_err(failed("KVM_SET_SREGS"))?;
    vcpu.set_regs(&regs(entry)).map_err(failed("KVM_SET_REGS"))
}

/// An MSR that KVM refused. The guest starts without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("KVM refused MSR {name} ({index:#x})")]
pub struct RefusedMsr {
    /// The manual's name.
    pub name: &'static str,
    /// Its number.
    pub index: u32,
}

/// Sets what every vCPU needs besides its entry: FPU, the local APIC's LINT pins (if the APIC is in the kernel), boot MSRs.
///
/// Returns the MSRs that KVM refused: worth a log line, not worth failing.
pub fn set_common(vcpu: &VcpuFd, kernel_apic: bool) -> Result<Vec<RefusedMsr>, BootRegsError> {
    vcpu.set_fpu(&fpu()).map_err(failed("KVM_SET_FPU"))?;
    if kernel_apic {
        let reset = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        let wanted = lapic(reset);
        if wanted.regs != reset.regs {
            vcpu.set_lapic(&wanted).map_err(failed("KVM_SET_LAPIC"))?;
        }
    }
    Ok(set_msrs(vcpu))
}

/// An MSR that must differ from what KVM's reset leaves, by bits to set.
struct BootMsr {
    name: &'static str,
    index: u32,
    set: u64,
}

/// SYSENTER_*, STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE and TSC are zero after KVM's reset, as they should be: they are not set.
const BOOT_MSRS: [BootMsr; 2] = [
    // Fast strings: without this bit Linux believes that REP MOVSB is slow.
    BootMsr {
        name: "IA32_MISC_ENABLE",
        index: 0x1a0,
        set: 1,
    },
    // MTRRs enabled, default write-back: with MTRRs off, Linux turns the PAT off too.
    BootMsr {
        name: "IA32_MTRR_DEF_TYPE",
        index: 0x2ff,
        set: 1 << 11 | 6,
    },
];

fn set_msrs(vcpu: &VcpuFd) -> Vec<RefusedMsr> {
    let set = |msr: &BootMsr| -> Option<()> {
        let now = msr::read(vcpu, msr.index)?;
        if now & msr.set == msr.set {
            return Some(());
        }
        msr::write(vcpu, msr.index, now | msr.set)
    };
    let refused = BOOT_MSRS.iter().filter(|msr| set(msr).is_none());
    refused
        .map(|msr| RefusedMsr {
            name: msr.name,
            index: msr.index,
        })
        .collect()
}

#[cfg(test)]
mod tests;
