//! What the assist needs of a virtual machine, as a trait, so that every instruction is tested without /dev/kvm.

use kvm_bindings::{kvm_regs, kvm_sregs};

use super::AssistError;
use super::paging::Translations;
use super::xsave::Layout;

/// RFLAGS bits (Intel SDM volume 1, section 3.4.3).
pub mod rflags {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Parity.
    pub const PF: u64 = 1 << 2;
    /// Auxiliary carry.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Trap: an exception after each instruction.
    pub const TF: u64 = 1 << 8;
    /// Interrupts enabled.
    pub const IF: u64 = 1 << 9;
    /// Direction of string instructions.
    pub const DF: u64 = 1 << 10;
    /// Overflow.
    pub const OF: u64 = 1 << 11;
    /// Resume: no instruction breakpoint once.
    pub const RF: u64 = 1 << 16;
    /// Alignment check; with CR4.SMAP, supervisor access to user pages.
    pub const AC: u64 = 1 << 18;
    /// All that arithmetic sets.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// CR0, CR4 and EFER bits.
pub mod control {
    /// CR0: protected mode.
    pub const CR0_PE: u64 = 1 << 0;
    /// CR0: monitor coprocessor.
    pub const CR0_MP: u64 = 1 << 1;
    /// CR0: no x87.
    pub const CR0_EM: u64 = 1 << 2;
    /// CR0: task switched, the next use of the FPU faults.
    pub const CR0_TS: u64 = 1 << 3;
    /// CR0: read-only pages are so for the kernel as well.
    pub const CR0_WP: u64 = 1 << 16;
    /// CR0: paging.
    pub const CR0_PG: u64 = 1 << 31;
    /// CR4: RDTSC is for the kernel only.
    pub const CR4_TSD: u64 = 1 << 2;
    /// CR4: translations may be global.
    pub const CR4_PGE: u64 = 1 << 7;
    /// CR4: the operating system uses FXSAVE and SSE.
    pub const CR4_OSFXSR: u64 = 1 << 9;
    /// CR4: five-level paging.
    pub const CR4_LA57: u64 = 1 << 12;
    /// CR4: RDFSBASE and its like are allowed.
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    /// CR4: process-context identifiers.
    pub const CR4_PCIDE: u64 = 1 << 17;
    /// CR4: the operating system uses XSAVE.
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    /// CR4: the kernel executes no user pages.
    pub const CR4_SMEP: u64 = 1 << 20;
    /// CR4: the kernel accesses no user pages unless RFLAGS.AC says so.
    pub const CR4_SMAP: u64 = 1 << 21;
    /// EFER: SYSCALL is on.
    pub const EFER_SCE: u64 = 1 << 0;
    /// EFER: long mode active.
    pub const EFER_LMA: u64 = 1 << 10;
    /// EFER: pages may be not executable.
    pub const EFER_NXE: u64 = 1 << 11;
}

/// An exception for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u8,
    /// Its error code, where the vector has one.
    pub error_code: Option<u32>,
    /// The faulting address, for page faults.
    pub cr2: Option<u64>,
}

impl Exception {
    /// #DB.
    pub const DEBUG: Self = Self::plain(1);
    /// #BP.
    pub const BREAKPOINT: Self = Self::plain(3);
    /// #OF.
    pub const OVERFLOW: Self = Self::plain(4);
    /// #UD.
    pub const INVALID_OPCODE: Self = Self::plain(6);
    /// #NM.
    pub const DEVICE_NOT_AVAILABLE: Self = Self::plain(7);
    /// #SS(0).
    pub const STACK: Self = Self::with_zero(12);
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self::with_zero(13);
    /// #MF.
    pub const X87: Self = Self::plain(16);
    /// #XM.
    pub const SIMD: Self = Self::plain(19);

    const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error_code: None,
            cr2: None,
        }
    }

    const fn with_zero(vector: u8) -> Self {
        Self {
            vector,
            error_code: Some(0),
            cr2: None,
        }
    }

    /// #PF.
    pub const fn page_fault(address: u64, error_code: u32) -> Self {
        Self {
            vector: 14,
            error_code: Some(error_code),
            cr2: Some(address),
        }
    }
}

/// Why an instruction did not complete.
#[derive(Debug)]
pub enum Trap {
    /// The guest gets an exception, as on the real CPU.
    Exception(Exception),
    /// The assist does not know how; the text, if any, says what stands in the way.
    Unsupported(&'static str),
    /// The instruction reaches physical addresses that are no RAM.
    NotRam(u64),
    /// The host failed.
    Host(AssistError),
}

impl From<Exception> for Trap {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

impl From<AssistError> for Trap {
    fn from(error: AssistError) -> Self {
        Self::Host(error)
    }
}

/// What the assist needs beyond the vCPU's general and system registers. Addresses are guest-physical.
pub trait Machine {
    /// Reads RAM; false if any of it is none.
    fn read(&self, address: u64, into: &mut [u8]) -> bool;
    /// Writes RAM; false if any of it is none.
    fn write(&self, address: u64, from: &[u8]) -> bool;
    /// Replaces the aligned 64-bit word at `address` if it is `current`, atomically for all vCPUs; `None` if it is no RAM.
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Option<bool>;
    /// Replaces the aligned 128-bit word at `address` if it is `current`, and says what it was; `None` if it is no RAM.
    fn compare_exchange16(&self, address: u64, current: u128, new: u128) -> Option<u128>;
    /// The vCPU's extended state as an XSAVE image in standard format.
    fn extended_state(&mut self) -> Result<Vec<u8>, AssistError>;
    /// Replaces the extended state.
    fn set_extended_state(&mut self, image: &[u8]) -> Result<(), AssistError>;
    /// Where the components of the extended state lie.
    fn layout(&self) -> &Layout;
    /// XCR0.
    fn xcr0(&mut self) -> Result<u64, AssistError>;
    /// Sets XCR0; false if the value is not allowed.
    fn set_xcr0(&mut self, value: u64) -> Result<bool, AssistError>;
    /// A model-specific register.
    fn msr(&mut self, index: u32) -> Result<u64, AssistError>;
    /// Sets a model-specific register.
    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), AssistError>;
    /// Forgets cached translations, where the virtual CPU has such a cache.
    fn flush_translations(&mut self, sregs: &kvm_sregs) -> Result<(), AssistError>;
    /// Random bits.
    fn random(&mut self) -> Option<u64>;
}

/// A vCPU stopped at an instruction: its registers, by value, and the rest behind [`Machine`].
pub struct Cpu<'m> {
    /// General registers.
    pub regs: kvm_regs,
    /// System registers; only the FS and GS bases and CR2 are ever changed.
    pub sregs: kvm_sregs,
    /// Whether `sregs` was changed.
    pub sregs_changed: bool,
    /// Whether stores to what may be page tables that KVM knows are refused.
    pub(super) guarded: bool,
    /// Translations found so far, for as long as they may be kept.
    pub(super) translations: Option<&'m Translations>,
    /// The rest.
    pub machine: &'m mut dyn Machine,
}

impl<'m> Cpu<'m> {
    /// A vCPU with these registers.
    pub fn new(regs: kvm_regs, sregs: kvm_sregs, machine: &'m mut dyn Machine) -> Self {
        Self {
            regs,
            sregs,
            sregs_changed: false,
            guarded: false,
            translations: None,
            machine,
        }
    }

    /// The privilege level.
    pub fn privilege(&self) -> u8 {
        // SS says nothing here: between a SYSCALL and its completion it is the kernel's.
        if self.sregs.cr0 & control::CR0_PE == 0 {
            0
        } else {
            self.sregs.cs.selector as u8 & 3
        }
    }

    /// Bits of the current code segment: 64, 32 or 16.
    pub fn bitness(&self) -> u32 {
        if self.sregs.efer & control::EFER_LMA != 0 && self.sregs.cs.l != 0 {
            64
        } else if self.sregs.cs.db != 0 {
            32
        } else {
            16
        }
    }

    /// Faults with #NM if the FPU must not be used yet.
    pub fn need_fpu(&self) -> Result<(), Trap> {
        if self.sregs.cr0 & control::CR0_TS != 0 {
            return Err(Exception::DEVICE_NOT_AVAILABLE.into());
        }
        Ok(())
    }

    /// Sets and clears flags.
    pub fn flags(&mut self, clear: u64, set: u64) {
        self.regs.rflags = (self.regs.rflags & !clear) | set;
    }
}
