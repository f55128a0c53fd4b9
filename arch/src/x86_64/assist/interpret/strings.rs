//! String instructions, a page at a time. What KVM needs half a microsecond for per word is done here by the copy.

use iced_x86::{Instruction, Mnemonic};

use super::alu;
use super::integer::Flow;
use crate::x86_64::assist::machine::{
    Cpu, Trap,
    rflags::{DF, STATUS, ZF},
};
use crate::x86_64::assist::operand::mask;
use crate::x86_64::assist::paging::{Segment, left_in_page};

impl Cpu<'_> {
    /// Does `i` if it is a string instruction with 64-bit addresses and no segment base.
    pub(super) fn string(&mut self, i: &Instruction) -> Result<Flow, Trap> {
        let size = match i.mnemonic() {
            Mnemonic::Movsb | Mnemonic::Stosb | Mnemonic::Lodsb | Mnemonic::Scasb | Mnemonic::Cmpsb => 1,
            Mnemonic::Movsw | Mnemonic::Stosw | Mnemonic::Lodsw | Mnemonic::Scasw | Mnemonic::Cmpsw => 2,
            Mnemonic::Movsd | Mnemonic::Stosd | Mnemonic::Lodsd | Mnemonic::Scasd | Mnemonic::Cmpsd => 4,
            Mnemonic::Movsq | Mnemonic::Stosq | Mnemonic::Lodsq | Mnemonic::Scasq | Mnemonic::Cmpsq => 8,
            _ => return Ok(Flow::Unknown),
        };
        let rare = i.segment_prefix() != iced_x86::Register::None || self.regs.rflags & DF != 0;
        // MOVSD and CMPSD are SSE instructions as well.
        if rare || !i.is_string_instruction() || i.len() > 4 {
            return Ok(Flow::Unknown);
        }
        let repeated = i.has_rep_prefix() || i.has_repne_prefix();
        match i.mnemonic() {
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
                self.store_string(size, repeated)
            }
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
                self.move_string(size, repeated)
            }
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq if !repeated => {
                let value = self.string_element(self.regs.rsi, size)?;
                self.set_register(accumulator(size), value)?;
                self.regs.rsi = self.regs.rsi.wrapping_add(size as u64);
                Ok(Flow::Next)
            }
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
                self.compare_string(i, size, repeated, false)
            }
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
                self.compare_string(i, size, repeated, true)
            }
            _ => Ok(Flow::Unknown),
        }
    }

    fn string_element(&self, address: u64, size: usize) -> Result<u64, Trap> {
        let mut raw = [0; 8];
        self.read(address, &mut raw[..size], Segment::Data)?;
        Ok(u64::from_le_bytes(raw))
    }

    /// How many elements to do at once: those left, as far as they lie whole in the pages of `addresses`, and one in any case.
    fn run_length(&self, size: usize, repeated: bool, addresses: &[u64]) -> u64 {
        if !repeated {
            return 1;
        }
        let fit = addresses
            .iter()
            .map(|address| (left_in_page(*address) / size) as u64)
            .min();
        self.regs.rcx.min(fit.unwrap_or(1).max(1))
    }

    fn store_string(&mut self, size: usize, repeated: bool) -> Result<Flow, Trap> {
        while !repeated || self.regs.rcx != 0 {
            let count = self.run_length(size, repeated, &[self.regs.rdi]);
            let bytes = self.regs.rax.to_le_bytes()[..size].repeat(count as usize);
            self.write(self.regs.rdi, &bytes, Segment::Data)?;
            self.regs.rdi = self.regs.rdi.wrapping_add(bytes.len() as u64);
            if !repeated {
                break;
            }
            self.regs.rcx -= count;
        }
        Ok(Flow::Next)
    }

    fn move_string(&mut self, size: usize, repeated: bool) -> Result<Flow, Trap> {
        while !repeated || self.regs.rcx != 0 {
            let (from, to) = (self.regs.rsi, self.regs.rdi);
            let mut count = self.run_length(size, repeated, &[from, to]);
            // Elements that are written and then read again must be moved one after the other.
            let ahead = to.wrapping_sub(from);
            if ahead < count * size as u64 {
                count = (ahead / size as u64).max(1);
            }
            let mut bytes = [0; 4096];
            let bytes = &mut bytes[..count as usize * size];
            self.read(from, bytes, Segment::Data)?;
            self.write(to, bytes, Segment::Data)?;
            self.regs.rsi = from.wrapping_add(bytes.len() as u64);
            self.regs.rdi = to.wrapping_add(bytes.len() as u64);
            if !repeated {
                break;
            }
            self.regs.rcx -= count;
        }
        Ok(Flow::Next)
    }

    /// SCAS, or CMPS if `both`.
    fn compare_string(
        &mut self,
        i: &Instruction,
        size: usize,
        repeated: bool,
        both: bool,
    ) -> Result<Flow, Trap> {
        while !repeated || self.regs.rcx != 0 {
            let b = self.string_element(self.regs.rdi, size)?;
            let a = if both {
                self.string_element(self.regs.rsi, size)?
            } else {
                self.regs.rax & mask(size)
            };
            let flags = alu::subtract(a, b, false, size).1;
            self.flags(STATUS, flags);
            self.regs.rdi = self.regs.rdi.wrapping_add(size as u64);
            if both {
                self.regs.rsi = self.regs.rsi.wrapping_add(size as u64);
            }
            if !repeated {
                break;
            }
            self.regs.rcx -= 1;
            if (flags & ZF != 0) == i.has_repne_prefix() {
                break;
            }
        }
        Ok(Flow::Next)
    }
}

fn accumulator(size: usize) -> iced_x86::Register {
    use iced_x86::Register;
    match size {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}
