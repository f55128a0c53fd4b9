//! System instructions: SMAP's flag, segment bases, TSC_AUX, INVPCID, XCR0, segment checks, cache lines.
//!
//! Truth: Intel SDM volume 2; CLZERO from AMD's manual. An instruction is completed whatever the guest's CPUID says of it: a guest
//! that was told not to use it does not.

use iced_x86::{Instruction, Register};

use super::machine::{Cpu, Exception, Trap, control, rflags};
use super::paging::{Access, is_canonical};

/// IA32_TIME_STAMP_COUNTER.
const MSR_TSC: u32 = 0x10;
/// IA32_TSC_AUX.
const MSR_TSC_AUX: u32 = 0xc000_0103;
/// Descriptor bits, of its upper word.
const PRESENT: u32 = 1 << 15;
const NOT_SYSTEM: u32 = 1 << 12;
const CODE: u32 = 1 << 11;
const CONFORMING: u32 = 1 << 10;
/// Writable data, or readable code.
const READ_WRITE: u32 = 1 << 9;
const GRANULARITY: u32 = 1 << 23;

/// What is asked of a selector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Query {
    /// LAR: the access rights.
    Rights,
    /// LSL: the limit.
    Limit,
    /// VERR.
    Readable,
    /// VERW.
    Writable,
}

impl Cpu<'_> {
    /// Faults with #GP outside ring 0.
    pub fn need_ring0(&self) -> Result<(), Trap> {
        if self.privilege() == 0 {
            Ok(())
        } else {
            Err(Exception::GENERAL_PROTECTION.into())
        }
    }

    /// CLAC and STAC.
    pub fn set_ac(&mut self, on: bool) -> Result<(), Trap> {
        if self.privilege() != 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        self.flags(rflags::AC, if on { rflags::AC } else { 0 });
        Ok(())
    }

    /// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
    pub fn segment_base_access(
        &mut self,
        instruction: &Instruction,
        gs: bool,
        write: bool,
    ) -> Result<(), Trap> {
        if self.sregs.cr4 & control::CR4_FSGSBASE == 0 || self.bitness() != 64 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        let register = instruction.op0_register();
        let segment = if gs { self.sregs.gs } else { self.sregs.fs };
        if !write {
            return self.set_register(register, segment.base);
        }
        let base = self.register(register)?;
        if !is_canonical(base, self.levels()) {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        if gs {
            self.sregs.gs.base = base;
        } else {
            self.sregs.fs.base = base;
        }
        self.sregs_changed = true;
        Ok(())
    }

    /// TSC_AUX; zero where KVM has no such register.
    fn tsc_aux(&mut self) -> u64 {
        self.machine.msr(MSR_TSC_AUX).unwrap_or(0) & 0xffff_ffff
    }

    /// RDPID.
    pub fn rdpid(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let aux = self.tsc_aux();
        self.set_register(instruction.op0_register(), aux)
    }

    /// RDTSC, or RDTSCP if `aux`.
    pub fn rdtsc(&mut self, aux: bool) -> Result<(), Trap> {
        if self.sregs.cr4 & control::CR4_TSD != 0 {
            self.need_ring0()?;
        }
        let tsc = self.machine.msr(MSR_TSC)?;
        self.regs.rax = tsc & 0xffff_ffff;
        self.regs.rdx = tsc >> 32;
        if aux {
            self.regs.rcx = self.tsc_aux();
        }
        Ok(())
    }

    /// INVPCID. All four types drop every cached translation, which is more than was asked for and allowed.
    pub fn invpcid(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        self.need_ring0()?;
        let kind = self.operand(instruction, 0)?;
        let mut descriptor = [0; 16];
        let address = self.address(instruction, 1)?;
        self.read(address, &mut descriptor, Self::segment(instruction))?;
        let descriptor = u128::from_le_bytes(descriptor);
        let pcid = descriptor as u64 & 0xfff;
        let linear = (descriptor >> 64) as u64;
        let reserved = descriptor as u64 >> 12 != 0;
        let no_pcid = self.sregs.cr4 & control::CR4_PCIDE == 0 && pcid != 0;
        let bad = match kind {
            0 => reserved || no_pcid || !is_canonical(linear, self.levels()),
            1 => reserved || no_pcid,
            2 | 3 => false,
            _ => true,
        };
        if bad {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        Ok(self.machine.flush_translations(&self.sregs)?)
    }

    fn need_osxsave(&self) -> Result<(), Trap> {
        if self.sregs.cr4 & control::CR4_OSXSAVE == 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        Ok(())
    }

    /// XGETBV of XCR0, or with RCX = 1 of what of it is in use.
    pub fn xgetbv(&mut self) -> Result<(), Trap> {
        self.need_osxsave()?;
        let value = match self.regs.rcx & 0xffff_ffff {
            0 => self.machine.xcr0()?,
            1 => self.machine.xcr0()? & self.image()?.in_use(),
            _ => return Err(Exception::GENERAL_PROTECTION.into()),
        };
        self.regs.rax = value & 0xffff_ffff;
        self.regs.rdx = value >> 32;
        Ok(())
    }

    /// XSETBV.
    pub fn xsetbv(&mut self) -> Result<(), Trap> {
        self.need_osxsave()?;
        self.need_ring0()?;
        let value = self.regs.rdx << 32 | self.regs.rax & 0xffff_ffff;
        // x87 always, AVX only with SSE; the rest KVM knows.
        let wrong = value & 1 == 0 || value & 0b110 == 0b100;
        if self.regs.rcx & 0xffff_ffff != 0 || wrong || !self.machine.set_xcr0(value)? {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        Ok(())
    }

    /// CLFLUSH and its like: memory is coherent, so nothing but the fault is left to do.
    pub fn touch(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let address = self.address(instruction, 0)?;
        self.check(address, 1, Access::Read, Self::segment(instruction))
    }

    /// CLZERO.
    pub fn clzero(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let address = self.register(Register::RAX)? & !63;
        self.write(address, &[0; 64], Self::segment(instruction))
    }

    /// The descriptor that `selector` names; `None` if it names none.
    fn descriptor(&mut self, selector: u16) -> Result<Option<[u32; 2]>, Trap> {
        let (base, limit) = if selector & 4 == 0 {
            if selector & !3 == 0 {
                return Ok(None);
            }
            (self.sregs.gdt.base, u32::from(self.sregs.gdt.limit))
        } else {
            if self.sregs.ldt.unusable != 0 || self.sregs.ldt.present == 0 {
                return Ok(None);
            }
            (self.sregs.ldt.base, self.sregs.ldt.limit)
        };
        let offset = u32::from(selector & !7);
        if offset + 7 > limit {
            return Ok(None);
        }
        let mut raw = [0; 8];
        self.read_table(base.wrapping_add(u64::from(offset)), &mut raw)?;
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        Ok(Some([word(0), word(4)]))
    }

    /// LAR, LSL, VERR, VERW.
    pub fn query_selector(&mut self, instruction: &Instruction, query: Query) -> Result<(), Trap> {
        if self.sregs.cr0 & control::CR0_PE == 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        let operand = match query {
            Query::Rights | Query::Limit => 1,
            Query::Readable | Query::Writable => 0,
        };
        // A register operand is as wide as the destination; memory is always 16 bits.
        let selector = self.operand(instruction, operand)? as u16;
        let descriptor = self.descriptor(selector)?;
        let found = descriptor.filter(|[_, high]| self.may_query(selector, *high, query));
        if let Some([low, high]) = found {
            let value = match query {
                Query::Rights => Some(high & 0x00ff_ff00),
                Query::Limit => {
                    let limit = low & 0xffff | high & 0xf_0000;
                    Some(if high & GRANULARITY == 0 {
                        limit
                    } else {
                        limit << 12 | 0xfff
                    })
                }
                Query::Readable | Query::Writable => None,
            };
            if let Some(value) = value {
                self.set_operand(instruction, 0, u64::from(value))?;
            }
        }
        self.flags(rflags::ZF, if found.is_some() { rflags::ZF } else { 0 });
        Ok(())
    }

    fn may_query(&self, selector: u16, high: u32, query: Query) -> bool {
        let code = high & CODE != 0;
        let kind = high >> 8 & 15;
        let visible = || {
            let level = self.privilege().max(selector as u8 & 3);
            u32::from(level) <= high >> 13 & 3
        };
        if high & NOT_SYSTEM == 0 {
            // In long mode: LDT and TSS, for LAR call gates too.
            let known = match query {
                Query::Rights => matches!(kind, 2 | 9 | 11 | 12),
                Query::Limit => matches!(kind, 2 | 9 | 11),
                Query::Readable | Query::Writable => false,
            };
            return known && visible();
        }
        let conforming = code && high & CONFORMING != 0;
        match query {
            Query::Rights | Query::Limit => conforming || visible(),
            Query::Readable => {
                (!code || high & READ_WRITE != 0) && (conforming || visible()) && high & PRESENT != 0
            }
            Query::Writable => !code && high & READ_WRITE != 0 && visible() && high & PRESENT != 0,
        }
    }
}
