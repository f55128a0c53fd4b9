//! Operands of a decoded instruction: registers by name, memory by address.

use iced_x86::{Code, Instruction, OpKind, Register};
use kvm_bindings::kvm_regs;

use super::machine::{Cpu, Exception, Trap};
use super::paging::Segment;

/// The 64-bit register that `register` is part of.
fn whole(regs: &mut kvm_regs, register: Register) -> Option<&mut u64> {
    Some(match register.full_register() {
        Register::RAX => &mut regs.rax,
        Register::RCX => &mut regs.rcx,
        Register::RDX => &mut regs.rdx,
        Register::RBX => &mut regs.rbx,
        Register::RSP => &mut regs.rsp,
        Register::RBP => &mut regs.rbp,
        Register::RSI => &mut regs.rsi,
        Register::RDI => &mut regs.rdi,
        Register::R8 => &mut regs.r8,
        Register::R9 => &mut regs.r9,
        Register::R10 => &mut regs.r10,
        Register::R11 => &mut regs.r11,
        Register::R12 => &mut regs.r12,
        Register::R13 => &mut regs.r13,
        Register::R14 => &mut regs.r14,
        Register::R15 => &mut regs.r15,
        _ => return None,
    })
}

fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::BH | Register::CH | Register::DH
    )
}

/// All ones in the low `size` bytes.
pub fn mask(size: usize) -> u64 {
    match size {
        0 => 0,
        1..8 => (1 << (8 * size)) - 1,
        _ => u64::MAX,
    }
}

impl Cpu<'_> {
    /// Reads a general register, zero-extended.
    pub fn register(&self, register: Register) -> Result<u64, Trap> {
        let mut regs = self.regs;
        let value = *whole(&mut regs, register).ok_or(Trap::Unsupported("with this register"))?;
        let value = if is_high_byte(register) { value >> 8 } else { value };
        Ok(value & mask(register.size()))
    }

    /// Writes a general register; 32-bit writes clear the upper half, smaller ones leave the rest.
    pub fn set_register(&mut self, register: Register, value: u64) -> Result<(), Trap> {
        let slot = whole(&mut self.regs, register).ok_or(Trap::Unsupported("with this register"))?;
        *slot = match register.size() {
            8 => value,
            4 => value & 0xffff_ffff,
            1 if is_high_byte(register) => (*slot & !0xff00) | ((value & 0xff) << 8),
            size => (*slot & !mask(size)) | (value & mask(size)),
        };
        Ok(())
    }

    fn segment_base(&self, register: Register) -> u64 {
        let sregs = &self.sregs;
        let long = self.bitness() == 64;
        match register {
            Register::FS => sregs.fs.base,
            Register::GS => sregs.gs.base,
            _ if long => 0,
            Register::ES => sregs.es.base,
            Register::CS => sregs.cs.base,
            Register::SS => sregs.ss.base,
            _ => sregs.ds.base,
        }
    }

    /// The linear address of operand `operand`, a memory operand.
    pub fn address(&self, instruction: &Instruction, operand: u32) -> Result<u64, Trap> {
        let address = instruction.virtual_address(operand, 0, |register, _, _| {
            if register.is_segment_register() {
                Some(self.segment_base(register))
            } else {
                self.register(register).ok()
            }
        });
        let address = address.ok_or(Trap::Unsupported("with this addressing mode"))?;
        Ok(if self.bitness() == 64 {
            address
        } else {
            address & 0xffff_ffff
        })
    }

    /// Which fault a bad address of this instruction raises.
    pub fn segment(instruction: &Instruction) -> Segment {
        match instruction.memory_segment() {
            Register::SS => Segment::Stack,
            _ => Segment::Data,
        }
    }

    /// Size in bytes of operand `operand`.
    pub fn operand_size(instruction: &Instruction, operand: u32) -> usize {
        match instruction.op_kind(operand) {
            OpKind::Register => instruction.op_register(operand).size(),
            _ => instruction.memory_size().size(),
        }
    }

    /// Reads a general register, immediate or memory operand of at most eight bytes, zero-extended.
    pub fn operand(&self, instruction: &Instruction, operand: u32) -> Result<u64, Trap> {
        match instruction.op_kind(operand) {
            OpKind::Register => self.register(instruction.op_register(operand)),
            OpKind::Memory => {
                let size = Self::operand_size(instruction, operand).min(8);
                let mut raw = [0; 8];
                let address = self.address(instruction, operand)?;
                self.read(address, &mut raw[..size], Self::segment(instruction))?;
                Ok(u64::from_le_bytes(raw))
            }
            _ => instruction
                .try_immediate(operand)
                .map_err(|_| Trap::Unsupported("with this kind of operand")),
        }
    }

    /// Writes a general register or memory operand of at most eight bytes.
    pub fn set_operand(&mut self, instruction: &Instruction, operand: u32, value: u64) -> Result<(), Trap> {
        match instruction.op_kind(operand) {
            OpKind::Register => self.set_register(instruction.op_register(operand), value),
            OpKind::Memory => {
                let size = Self::operand_size(instruction, operand).min(8);
                let address = self.address(instruction, operand)?;
                self.write(address, &value.to_le_bytes()[..size], Self::segment(instruction))
            }
            _ => Err(Trap::Unsupported("with this kind of operand")),
        }
    }

    /// Moves RIP past the instruction.
    pub fn advance(&mut self, instruction: &Instruction) {
        self.regs.rip = match self.bitness() {
            64 => instruction.next_ip(),
            bits => instruction.next_ip() & mask(bits as usize / 8),
        };
    }

    /// Faults with #UD where LOCK is not allowed. The decoder refuses most such encodings itself.
    pub fn refuse_lock(instruction: &Instruction) -> Result<(), Trap> {
        if instruction.has_lock_prefix() || instruction.code() == Code::INVALID {
            return Err(Exception::INVALID_OPCODE.into());
        }
        Ok(())
    }
}
