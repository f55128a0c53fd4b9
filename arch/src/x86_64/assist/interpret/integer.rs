//! The integer instructions of the kernel's daily life.

use iced_x86::{ConditionCode, FlowControl, Instruction, Mnemonic, OpKind};

use super::alu::{self, Flagged, Shift};
use crate::x86_64::assist::machine::{
    Cpu, Trap,
    rflags::{CF, DF, IF, OF, PF, SF, STATUS, ZF},
};
use crate::x86_64::assist::operand::mask;

/// What an instruction did to RIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// On to the next.
    Next,
    /// It set RIP itself.
    Jumped,
    /// Not one of these.
    Unknown,
}

/// Flags that POPF may change in ring 0, apart from those that need KVM.
const POPF: u64 = STATUS | DF | IF | 1 << 14 | 1 << 18 | 1 << 21;

impl Cpu<'_> {
    /// Whether a condition holds.
    fn condition(&self, code: ConditionCode) -> bool {
        let set = |flag| self.regs.rflags & flag != 0;
        let less = || set(SF) != set(OF);
        match code {
            ConditionCode::None => true,
            ConditionCode::o => set(OF),
            ConditionCode::no => !set(OF),
            ConditionCode::b => set(CF),
            ConditionCode::ae => !set(CF),
            ConditionCode::e => set(ZF),
            ConditionCode::ne => !set(ZF),
            ConditionCode::be => set(CF) || set(ZF),
            ConditionCode::a => !(set(CF) || set(ZF)),
            ConditionCode::s => set(SF),
            ConditionCode::ns => !set(SF),
            ConditionCode::p => set(PF),
            ConditionCode::np => !set(PF),
            ConditionCode::l => less(),
            ConditionCode::ge => !less(),
            ConditionCode::le => set(ZF) || less(),
            ConditionCode::g => !(set(ZF) || less()),
        }
    }

    /// The second operand, as wide as the first.
    fn source(&self, i: &Instruction, operand: u32, size: usize) -> Result<u64, Trap> {
        Ok(self.operand(i, operand)? & mask(size))
    }

    /// Changes operand 0 by `change`, atomically for all vCPUs with LOCK or if told so. Returns what it was.
    fn modify(
        &mut self,
        i: &Instruction,
        locked: bool,
        mut change: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, Trap> {
        if i.op_kind(0) == OpKind::Memory {
            let size = Self::operand_size(i, 0);
            let address = self.address(i, 0)?;
            if locked || i.has_lock_prefix() {
                return self.modify_locked(address, size, Self::segment(i), change);
            }
            let mut raw = [0; 8];
            self.read(address, &mut raw[..size], Self::segment(i))?;
            let old = u64::from_le_bytes(raw);
            if let Some(new) = change(old) {
                self.write(address, &new.to_le_bytes()[..size], Self::segment(i))?;
            }
            return Ok(old);
        }
        let old = self.operand(i, 0)?;
        if let Some(new) = change(old) {
            self.set_operand(i, 0, new)?;
        }
        Ok(old)
    }

    fn set_status(&mut self, flags: u64) {
        self.flags(STATUS, flags);
    }

    /// A two-operand operation on operand 0; `store` says whether the result goes there.
    fn binary(
        &mut self,
        i: &Instruction,
        store: bool,
        operation: impl Fn(u64, u64, bool, usize) -> Flagged,
    ) -> Result<Flow, Trap> {
        let size = Self::operand_size(i, 0);
        let carry = self.regs.rflags & CF != 0;
        let b = self.source(i, 1, size)?;
        let flags = if store {
            let mut flags = 0;
            self.modify(i, false, |a| {
                let result = operation(a, b, carry, size);
                flags = result.1;
                Some(result.0)
            })?;
            flags
        } else {
            operation(self.operand(i, 0)?, b, carry, size).1
        };
        self.set_status(flags);
        Ok(Flow::Next)
    }

    /// An operation on operand 0 alone that leaves the flags in `kept` as they are.
    fn unary(
        &mut self,
        i: &Instruction,
        kept: u64,
        operation: impl Fn(u64, usize) -> Flagged,
    ) -> Result<Flow, Trap> {
        let size = Self::operand_size(i, 0);
        let mut flags = 0;
        self.modify(i, false, |a| {
            let result = operation(a, size);
            flags = result.1;
            Some(result.0)
        })?;
        self.flags(STATUS & !kept, flags & !kept);
        Ok(Flow::Next)
    }

    fn shift_by(&mut self, i: &Instruction, kind: Shift) -> Result<Flow, Trap> {
        let size = Self::operand_size(i, 0);
        let count = self.operand(i, 1)? as u32 & if size == 8 { 63 } else { 31 };
        if count == 0 {
            // A 32-bit register is cleared above all the same.
            if i.op0_kind() == OpKind::Register {
                let value = self.operand(i, 0)?;
                self.set_operand(i, 0, value)?;
            }
            return Ok(Flow::Next);
        }
        let (mut changed, mut flags) = (0, 0);
        self.modify(i, false, |a| {
            let result = alu::shift(kind, a, count, size);
            (changed, flags) = (result.1, result.2);
            Some(result.0)
        })?;
        self.flags(changed, flags);
        Ok(Flow::Next)
    }

    /// SHLD and SHRD of 32 and 64 bits.
    fn double_shift(&mut self, i: &Instruction, left: bool) -> Result<Flow, Trap> {
        let size = Self::operand_size(i, 0);
        let bits = 8 * size as u32;
        let count = self.operand(i, 2)? as u32 & if size == 8 { 63 } else { 31 };
        let (a, b) = (self.operand(i, 0)?, self.operand(i, 1)?);
        if size < 4 {
            return Ok(Flow::Unknown);
        }
        if count == 0 {
            self.set_operand(i, 0, a)?;
            return Ok(Flow::Next);
        }
        let (value, carry) = if left {
            (
                (a << count | b >> (bits - count)) & mask(size),
                a >> (bits - count) & 1,
            )
        } else {
            (
                (a >> count | b << (bits - count)) & mask(size),
                a >> (count - 1) & 1,
            )
        };
        self.set_operand(i, 0, value)?;
        let overflow = (a ^ value) >> (bits - 1) & 1;
        let flags = alu::result_flags(value, size) | (carry * CF) | (overflow * OF);
        self.flags(CF | PF | ZF | SF | OF, flags);
        Ok(Flow::Next)
    }

    /// MUL, and IMUL with one operand.
    fn multiply(&mut self, i: &Instruction, signed: bool) -> Result<Flow, Trap> {
        let size = Self::operand_size(i, 0);
        if size == 1 {
            return Ok(Flow::Unknown);
        }
        let bits = 8 * size as u32;
        let (a, b) = (self.regs.rax & mask(size), self.operand(i, 0)?);
        let (product, overflow) = if signed {
            let product = extend(a, size) * extend(b, size);
            (
                product as u128,
                product != extend(product as u64 & mask(size), size),
            )
        } else {
            let product = u128::from(a) * u128::from(b);
            (product, product >> bits != 0)
        };
        let (low, high) = accumulators(size);
        self.set_register(low, product as u64)?;
        self.set_register(high, (product >> bits) as u64)?;
        self.flags(CF | OF, if overflow { CF | OF } else { 0 });
        Ok(Flow::Next)
    }

    /// IMUL with two or three operands.
    fn multiply_to(&mut self, i: &Instruction) -> Result<Flow, Trap> {
        let size = Self::operand_size(i, 0);
        let (a, b) = if i.op_count() == 3 { (1, 2) } else { (0, 1) };
        let product = extend(self.source(i, a, size)?, size) * extend(self.source(i, b, size)?, size);
        let value = product as u64 & mask(size);
        self.set_operand(i, 0, value)?;
        self.flags(
            CF | OF,
            if product == extend(value, size) {
                0
            } else {
                CF | OF
            },
        );
        Ok(Flow::Next)
    }

    /// DIV and IDIV; the ones that fault are KVM's.
    fn divide(&mut self, i: &Instruction, signed: bool) -> Result<Flow, Trap> {
        let size = Self::operand_size(i, 0);
        if size == 1 {
            return Ok(Flow::Unknown);
        }
        let bits = 8 * size as u32;
        let divisor = self.operand(i, 0)?;
        let dividend =
            u128::from(self.regs.rdx & mask(size)) << bits | u128::from(self.regs.rax & mask(size));
        let result = if signed {
            let spare = 128 - 2 * bits;
            let dividend = (dividend << spare) as i128 >> spare;
            let divisor = extend(divisor, size);
            let quotient = dividend.checked_div(divisor);
            quotient
                .filter(|quotient| extend(*quotient as u64 & mask(size), size) == *quotient)
                .map(|quotient| (quotient as u64, (dividend % divisor) as u64))
        } else {
            let divisor = u128::from(divisor);
            let quotient = dividend.checked_div(divisor);
            quotient
                .filter(|quotient| quotient >> bits == 0)
                .map(|quotient| (quotient as u64, (dividend % divisor) as u64))
        };
        let Some((quotient, remainder)) = result else {
            return Ok(Flow::Unknown);
        };
        let (low, high) = accumulators(size);
        self.set_register(low, quotient)?;
        self.set_register(high, remainder)?;
        Ok(Flow::Next)
    }

    /// BT and its like.
    fn bit(
        &mut self,
        i: &Instruction,
        change: Option<fn(value: u64, bit: u64) -> u64>,
    ) -> Result<Flow, Trap> {
        let size = Self::operand_size(i, 0);
        let bits = 8 * size as i64;
        if i.op_kind(0) != OpKind::Memory || i.op_kind(1) != OpKind::Register {
            let bit = 1 << (self.operand(i, 1)? & (bits as u64 - 1));
            let old = match change {
                Some(change) => self.modify(i, false, |value| Some(change(value, bit)))?,
                None => self.operand(i, 0)?,
            };
            self.flags(CF, if old & bit == 0 { 0 } else { CF });
            return Ok(Flow::Next);
        }
        // A register may reach beyond the operand.
        let index = extend(self.operand(i, 1)?, size) as i64;
        let address = self
            .address(i, 0)?
            .wrapping_add((index.div_euclid(bits) * size as i64) as u64);
        let bit = 1u64 << index.rem_euclid(bits);
        let segment = Self::segment(i);
        let mut raw = [0; 8];
        let old = match change {
            Some(change) if i.has_lock_prefix() => {
                self.modify_locked(address, size, segment, |value| Some(change(value, bit)))?
            }
            change => {
                self.read(address, &mut raw[..size], segment)?;
                let old = u64::from_le_bytes(raw);
                if let Some(change) = change {
                    self.write(address, &change(old, bit).to_le_bytes()[..size], segment)?;
                }
                old
            }
        };
        self.flags(CF, if old & bit == 0 { 0 } else { CF });
        Ok(Flow::Next)
    }

    fn scan(&mut self, i: &Instruction, find: fn(u64) -> u32) -> Result<Flow, Trap> {
        let value = self.operand(i, 1)?;
        if value == 0 {
            // The destination stays, whole.
            self.flags(ZF, ZF);
        } else {
            self.set_operand(i, 0, u64::from(find(value)))?;
            self.flags(ZF, 0);
        }
        Ok(Flow::Next)
    }

    fn compare_exchange(&mut self, i: &Instruction) -> Result<Flow, Trap> {
        let size = Self::operand_size(i, 0);
        let expected = self.regs.rax & mask(size);
        let new = self.operand(i, 1)?;
        // Memory is written in any case; a register is not, not even its upper half.
        let always = i.op_kind(0) == OpKind::Memory;
        let old = self.modify(i, false, |value| {
            if value == expected {
                Some(new)
            } else {
                always.then_some(value)
            }
        })?;
        if old != expected {
            self.set_register(accumulators(size).0, old)?;
        }
        self.set_status(alu::subtract(expected, old, false, size).1);
        Ok(Flow::Next)
    }

    fn exchange_add(&mut self, i: &Instruction) -> Result<Flow, Trap> {
        let size = Self::operand_size(i, 0);
        let b = self.operand(i, 1)?;
        let old = self.modify(i, false, |a| Some(alu::add(a, b, false, size).0))?;
        // If both operands are one register, the sum wins.
        if i.op_kind(0) == OpKind::Register {
            self.set_operand(i, 1, old)?;
            self.set_operand(i, 0, alu::add(old, b, false, size).0)?;
        } else {
            self.set_operand(i, 1, old)?;
        }
        self.set_status(alu::add(old, b, false, size).1);
        Ok(Flow::Next)
    }

    fn exchange(&mut self, i: &Instruction) -> Result<Flow, Trap> {
        let new = self.operand(i, 1)?;
        let old = self.modify(i, true, |_| Some(new))?;
        self.set_operand(i, 1, old)?;
        Ok(Flow::Next)
    }

    fn push(&mut self, value: u64) -> Result<(), Trap> {
        let rsp = self.regs.rsp.wrapping_sub(8);
        self.write_stack(rsp, value)?;
        self.regs.rsp = rsp;
        Ok(())
    }

    fn pop(&mut self) -> Result<u64, Trap> {
        let value = self.read_stack(self.regs.rsp)?;
        self.regs.rsp = self.regs.rsp.wrapping_add(8);
        Ok(value)
    }

    fn jump(&mut self, to: u64) -> Flow {
        // One that is not canonical faults: KVM knows how.
        if !super::super::paging::is_canonical(to, self.levels()) {
            return Flow::Unknown;
        }
        self.regs.rip = to;
        Flow::Jumped
    }

    fn target(&self, i: &Instruction) -> Result<u64, Trap> {
        match i.op0_kind() {
            OpKind::NearBranch64 => Ok(i.near_branch64()),
            OpKind::Register | OpKind::Memory if Self::operand_size(i, 0) == 8 => self.operand(i, 0),
            _ => Err(Trap::Unsupported("")),
        }
    }

    fn pop_flags(&mut self, i: &Instruction) -> Result<Flow, Trap> {
        let value = self.read_stack(self.regs.rsp)?;
        // Single-stepping, I/O privilege and the rarer bits are KVM's.
        if i.mnemonic() != Mnemonic::Popfq || (value ^ self.regs.rflags) & !(POPF | 2 | 1 << 16) != 0 {
            return Ok(Flow::Unknown);
        }
        self.regs.rsp = self.regs.rsp.wrapping_add(8);
        self.flags(POPF, value & POPF);
        Ok(Flow::Next)
    }

    /// Does `i` if it is one of these.
    pub(super) fn integer(&mut self, i: &Instruction) -> Result<Flow, Trap> {
        match i.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movzx => {
                let value = self.operand(i, 1)?;
                self.set_operand(i, 0, value)?;
            }
            Mnemonic::Movsx | Mnemonic::Movsxd => {
                let value = extend(self.operand(i, 1)?, Self::operand_size(i, 1)) as u64;
                self.set_operand(i, 0, value)?;
            }
            Mnemonic::Lea => {
                let value = self.effective_address(i)?;
                self.set_operand(i, 0, value)?;
            }
            Mnemonic::Add => return self.binary(i, true, |a, b, _, size| alu::add(a, b, false, size)),
            Mnemonic::Adc => return self.binary(i, true, alu::add),
            Mnemonic::Sub => return self.binary(i, true, |a, b, _, size| alu::subtract(a, b, false, size)),
            Mnemonic::Sbb => return self.binary(i, true, alu::subtract),
            Mnemonic::Cmp => return self.binary(i, false, |a, b, _, size| alu::subtract(a, b, false, size)),
            Mnemonic::And => return self.binary(i, true, |a, b, _, size| alu::logic(a & b, size)),
            Mnemonic::Or => return self.binary(i, true, |a, b, _, size| alu::logic(a | b, size)),
            Mnemonic::Xor => return self.binary(i, true, |a, b, _, size| alu::logic(a ^ b, size)),
            Mnemonic::Test => return self.binary(i, false, |a, b, _, size| alu::logic(a & b, size)),
            Mnemonic::Inc => return self.unary(i, CF, |a, size| alu::add(a, 1, false, size)),
            Mnemonic::Dec => return self.unary(i, CF, |a, size| alu::subtract(a, 1, false, size)),
            Mnemonic::Neg => return self.unary(i, 0, |a, size| alu::subtract(0, a, false, size)),
            Mnemonic::Not => return self.unary(i, STATUS, |a, size| (!a & mask(size), 0)),
            Mnemonic::Shl | Mnemonic::Sal => return self.shift_by(i, Shift::Left),
            Mnemonic::Shr => return self.shift_by(i, Shift::Right),
            Mnemonic::Sar => return self.shift_by(i, Shift::ArithmeticRight),
            Mnemonic::Rol => return self.shift_by(i, Shift::RotateLeft),
            Mnemonic::Ror => return self.shift_by(i, Shift::RotateRight),
            Mnemonic::Shld => return self.double_shift(i, true),
            Mnemonic::Shrd => return self.double_shift(i, false),
            Mnemonic::Mul => return self.multiply(i, false),
            Mnemonic::Imul if i.op_count() == 1 => return self.multiply(i, true),
            Mnemonic::Imul => return self.multiply_to(i),
            Mnemonic::Div => return self.divide(i, false),
            Mnemonic::Idiv => return self.divide(i, true),
            Mnemonic::Bt => return self.bit(i, None),
            Mnemonic::Bts => return self.bit(i, Some(|value, bit| value | bit)),
            Mnemonic::Btr => return self.bit(i, Some(|value, bit| value & !bit)),
            Mnemonic::Btc => return self.bit(i, Some(|value, bit| value ^ bit)),
            Mnemonic::Bsf => return self.scan(i, u64::trailing_zeros),
            Mnemonic::Bsr => return self.scan(i, |value| value.ilog2()),
            Mnemonic::Cmpxchg => return self.compare_exchange(i),
            Mnemonic::Xadd => return self.exchange_add(i),
            Mnemonic::Xchg => return self.exchange(i),
            Mnemonic::Bswap => {
                let size = Self::operand_size(i, 0);
                let value = self.operand(i, 0)?;
                self.set_operand(i, 0, value.swap_bytes() >> (64 - 8 * size))?;
            }
            Mnemonic::Cdqe => self.regs.rax = extend(self.regs.rax & mask(4), 4) as u64,
            Mnemonic::Cwde => self.regs.rax = extend(self.regs.rax & mask(2), 2) as u64 & mask(4),
            Mnemonic::Cqo => self.regs.rdx = extend(self.regs.rax, 8).signum().min(0) as u64,
            Mnemonic::Cdq => {
                self.regs.rdx = extend(self.regs.rax & mask(4), 4).signum().min(0) as u64 & mask(4);
            }
            Mnemonic::Clc => self.flags(CF, 0),
            Mnemonic::Stc => self.flags(0, CF),
            Mnemonic::Cld => self.flags(DF, 0),
            Mnemonic::Cli => self.flags(IF, 0),
            Mnemonic::Sti => self.flags(0, IF),
            _ => return self.flow(i),
        }
        Ok(Flow::Next)
    }

    /// Does `i` if it is about the stack or about where to go on.
    fn flow(&mut self, i: &Instruction) -> Result<Flow, Trap> {
        match i.mnemonic() {
            Mnemonic::Jmp => {
                let to = self.target(i)?;
                return Ok(self.jump(to));
            }
            Mnemonic::Call => {
                let to = self.target(i)?;
                if !super::super::paging::is_canonical(to, self.levels()) {
                    return Ok(Flow::Unknown);
                }
                self.push(i.next_ip())?;
                return Ok(self.jump(to));
            }
            Mnemonic::Ret => {
                let to = self.read_stack(self.regs.rsp)?;
                let release = if i.op_count() == 1 {
                    u64::from(i.immediate16())
                } else {
                    0
                };
                let flow = self.jump(to);
                if flow == Flow::Jumped {
                    self.regs.rsp = self.regs.rsp.wrapping_add(8 + release);
                }
                return Ok(flow);
            }
            Mnemonic::Push if i.stack_pointer_increment() == -8 => {
                let value = self.operand(i, 0)?;
                self.push(value)?;
            }
            Mnemonic::Pop if i.stack_pointer_increment() == 8 && i.op0_kind() == OpKind::Register => {
                let register = i.op0_register();
                if !register.is_gpr64() {
                    return Ok(Flow::Unknown);
                }
                let value = self.pop()?;
                self.set_register(register, value)?;
            }
            Mnemonic::Pushfq => self.push(self.regs.rflags & !(1 << 16 | 1 << 17))?,
            Mnemonic::Popfq => return self.pop_flags(i),
            Mnemonic::Leave if i.stack_pointer_increment() == 8 || self.bitness() == 64 => {
                let value = self.read_stack(self.regs.rbp)?;
                self.regs.rsp = self.regs.rbp.wrapping_add(8);
                self.regs.rbp = value;
            }
            _ if i.code().is_jcc_short() || i.code().is_jcc_near() => {
                if self.condition(i.condition_code()) {
                    return Ok(self.jump(i.near_branch64()));
                }
            }
            _ if i.condition_code() != ConditionCode::None
                && i.op_count() == 1
                && i.flow_control() == FlowControl::Next =>
            {
                let value = u64::from(self.condition(i.condition_code()));
                self.set_operand(i, 0, value)?;
            }
            _ if i.condition_code() != ConditionCode::None && i.op_count() == 2 => {
                // The source is read, and a 32-bit destination cleared above, in any case.
                let value = self.operand(i, 1)?;
                let value = if self.condition(i.condition_code()) {
                    value
                } else {
                    self.operand(i, 0)?
                };
                self.set_operand(i, 0, value)?;
            }
            _ => return Ok(Flow::Unknown),
        }
        Ok(Flow::Next)
    }
}

/// `value` of `size` bytes, sign-extended.
fn extend(value: u64, size: usize) -> i128 {
    let spare = 64 - 8 * size as u32;
    i128::from((value << spare) as i64 >> spare)
}

/// RAX and RDX in the given width.
fn accumulators(size: usize) -> (iced_x86::Register, iced_x86::Register) {
    use iced_x86::Register;
    match size {
        1 => (Register::AL, Register::AH),
        2 => (Register::AX, Register::DX),
        4 => (Register::EAX, Register::EDX),
        _ => (Register::RAX, Register::RDX),
    }
}
