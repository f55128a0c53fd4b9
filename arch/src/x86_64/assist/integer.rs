//! Integer instructions newer than KVM's emulator: bit counts, BMI, ADX, CRC32, MOVBE, random numbers, CMPXCHG16B.
//!
//! Truth: Intel SDM volume 2. Flags that the manual leaves undefined keep their values.

use iced_x86::{Instruction, Register};

use super::machine::{Cpu, Exception, Trap, rflags};
use super::operand::mask;
use super::paging::Access;

/// Polynomial of CRC32C, bit-reversed.
const CRC32C: u32 = 0x82f6_3b78;

impl Cpu<'_> {
    /// Sets ZF and SF from `value` of `size` bytes, CF as told, and clears OF.
    fn logic_flags(&mut self, value: u64, size: usize, carry: bool) {
        let mut set = 0;
        if value == 0 {
            set |= rflags::ZF;
        }
        if value >> (8 * size - 1) & 1 == 1 {
            set |= rflags::SF;
        }
        if carry {
            set |= rflags::CF;
        }
        self.flags(rflags::ZF | rflags::SF | rflags::CF | rflags::OF, set);
    }

    /// POPCNT.
    pub fn popcnt(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let value = self.operand(instruction, 1)?;
        self.set_operand(instruction, 0, u64::from(value.count_ones()))?;
        self.flags(rflags::STATUS, if value == 0 { rflags::ZF } else { 0 });
        Ok(())
    }

    /// LZCNT, or TZCNT if `trailing`.
    pub fn zeros(&mut self, instruction: &Instruction, trailing: bool) -> Result<(), Trap> {
        let bits = 8 * Self::operand_size(instruction, 0) as u32;
        let value = self.operand(instruction, 1)?;
        let count = if trailing {
            value.trailing_zeros()
        } else {
            value.leading_zeros() - (64 - bits)
        };
        let count = count.min(bits);
        self.set_operand(instruction, 0, u64::from(count))?;
        let carry = if count == bits { rflags::CF } else { 0 };
        let zero = if count == 0 { rflags::ZF } else { 0 };
        self.flags(rflags::CF | rflags::ZF, carry | zero);
        Ok(())
    }

    /// ANDN.
    pub fn andn(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let size = Self::operand_size(instruction, 0);
        let value = !self.operand(instruction, 1)? & self.operand(instruction, 2)? & mask(size);
        self.set_operand(instruction, 0, value)?;
        self.logic_flags(value, size, false);
        Ok(())
    }

    /// BEXTR.
    pub fn bextr(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let value = self.operand(instruction, 1)?;
        let control = self.operand(instruction, 2)?;
        let (start, length) = (control as u8, (control >> 8) as u8);
        let shifted = value.checked_shr(u32::from(start)).unwrap_or(0);
        let value = shifted & 1u64.checked_shl(u32::from(length)).unwrap_or(0).wrapping_sub(1);
        self.set_operand(instruction, 0, value)?;
        self.flags(
            rflags::CF | rflags::OF | rflags::ZF,
            if value == 0 { rflags::ZF } else { 0 },
        );
        Ok(())
    }

    /// BLSI, BLSMSK, BLSR: `result` and carry come from the source.
    fn lowest_bit(
        &mut self,
        instruction: &Instruction,
        result: fn(u64) -> u64,
        carry: fn(u64) -> bool,
    ) -> Result<(), Trap> {
        let size = Self::operand_size(instruction, 0);
        let source = self.operand(instruction, 1)?;
        let value = result(source) & mask(size);
        self.set_operand(instruction, 0, value)?;
        self.logic_flags(value, size, carry(source));
        Ok(())
    }

    /// BLSI.
    pub fn blsi(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        self.lowest_bit(
            instruction,
            |source| source & source.wrapping_neg(),
            |source| source != 0,
        )
    }

    /// BLSMSK.
    pub fn blsmsk(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        self.lowest_bit(
            instruction,
            |source| source ^ source.wrapping_sub(1),
            |source| source == 0,
        )
    }

    /// BLSR.
    pub fn blsr(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        self.lowest_bit(
            instruction,
            |source| source & source.wrapping_sub(1),
            |source| source == 0,
        )
    }

    /// BZHI.
    pub fn bzhi(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let size = Self::operand_size(instruction, 0);
        let index = u32::from(self.operand(instruction, 2)? as u8);
        let kept = 1u64.checked_shl(index).unwrap_or(0).wrapping_sub(1);
        let value = self.operand(instruction, 1)? & kept;
        self.set_operand(instruction, 0, value)?;
        self.logic_flags(value, size, index as usize >= 8 * size);
        Ok(())
    }

    /// MULX.
    pub fn mulx(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let size = Self::operand_size(instruction, 0);
        let source = self.operand(instruction, 2)?;
        let product = u128::from(source) * u128::from(self.regs.rdx & mask(size));
        // The high half wins if both destinations are the same.
        self.set_operand(instruction, 1, product as u64)?;
        self.set_operand(instruction, 0, (product >> (8 * size)) as u64)
    }

    /// PDEP.
    pub fn pdep(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let (mut source, mut places) = (self.operand(instruction, 1)?, self.operand(instruction, 2)?);
        let mut value = 0;
        while places != 0 {
            let lowest = places & places.wrapping_neg();
            if source & 1 == 1 {
                value |= lowest;
            }
            source >>= 1;
            places ^= lowest;
        }
        self.set_operand(instruction, 0, value)
    }

    /// PEXT.
    pub fn pext(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let (source, mut places) = (self.operand(instruction, 1)?, self.operand(instruction, 2)?);
        let mut value = 0;
        let mut at = 0;
        while places != 0 {
            let lowest = places & places.wrapping_neg();
            if source & lowest != 0 {
                value |= 1 << at;
            }
            at += 1;
            places ^= lowest;
        }
        self.set_operand(instruction, 0, value)
    }

    /// RORX, SARX, SHLX, SHRX: no flags.
    pub fn shift(
        &mut self,
        instruction: &Instruction,
        shift: fn(value: u64, count: u32, bits: u32) -> u64,
    ) -> Result<(), Trap> {
        let bits = 8 * Self::operand_size(instruction, 0) as u32;
        let value = self.operand(instruction, 1)?;
        let count = self.operand(instruction, 2)? as u32 & (bits - 1);
        self.set_operand(instruction, 0, shift(value, count, bits))
    }

    /// ADCX and ADOX: addition with its own carry flag.
    pub fn add_with(&mut self, instruction: &Instruction, flag: u64) -> Result<(), Trap> {
        let size = Self::operand_size(instruction, 0);
        let carry = u128::from(self.regs.rflags & flag != 0);
        let sum =
            u128::from(self.operand(instruction, 0)?) + u128::from(self.operand(instruction, 1)?) + carry;
        self.set_operand(instruction, 0, sum as u64)?;
        self.flags(flag, if sum >> (8 * size) != 0 { flag } else { 0 });
        Ok(())
    }

    /// CRC32.
    pub fn crc32(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let size = Self::operand_size(instruction, 1);
        let source = self.operand(instruction, 1)?;
        let mut crc = self.operand(instruction, 0)? as u32;
        for byte in &source.to_le_bytes()[..size] {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = crc >> 1 ^ if crc & 1 == 1 { CRC32C } else { 0 };
            }
        }
        self.set_operand(instruction, 0, u64::from(crc))
    }

    /// MOVBE.
    pub fn movbe(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let size = Self::operand_size(instruction, 0);
        let value = self.operand(instruction, 1)?;
        self.set_operand(instruction, 0, value.swap_bytes() >> (64 - 8 * size))
    }

    /// MOVDIRI.
    pub fn mov(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let value = self.operand(instruction, 1)?;
        self.set_operand(instruction, 0, value)
    }

    /// RDRAND and RDSEED, from the host's randomness.
    pub fn random(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let random = self.machine.random();
        self.set_register(instruction.op0_register(), random.unwrap_or(0))?;
        self.flags(rflags::STATUS, if random.is_some() { rflags::CF } else { 0 });
        Ok(())
    }

    /// CMPXCHG16B, atomic for all vCPUs with and without LOCK.
    pub fn cmpxchg16b(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let address = self.address(instruction, 0)?;
        let segment = Self::segment(instruction);
        if !address.is_multiple_of(16) {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        let physical = self.translate(address, Access::Write, segment)?;
        let pair = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        let expected = pair(self.regs.rdx, self.regs.rax);
        let new = pair(self.regs.rcx, self.regs.rbx);
        let found = self
            .machine
            .compare_exchange16(physical, expected, new)
            .ok_or(Trap::NotRam(physical))?;
        if found == expected {
            self.flags(0, rflags::ZF);
        } else {
            self.flags(rflags::ZF, 0);
            self.set_register(Register::RAX, found as u64)?;
            self.set_register(Register::RDX, (found >> 64) as u64)?;
        }
        Ok(())
    }
}
