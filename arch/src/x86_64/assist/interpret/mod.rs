//! Ring 0 in user space: runs the guest's kernel here between two entries into KVM.
//!
//! KVM's emulator takes about a microsecond for an instruction and half of one for each word of a string instruction; this one takes
//! a fraction, since it keeps decoded instructions and translations. It does what needs no more than registers and RAM, in 64-bit
//! ring 0, and leaves everything else to KVM, one instruction at a time: whatever faults, system registers, ports and devices,
//! interrupts. A guest cannot tell who ran an instruction.
//!
//! **Page tables.** KVM shadows the guest's page tables and must see each change of an entry that it may have used. It has used none
//! without Present and Accessed set; so a store to a word that looks like such an entry is left to KVM as well. All other changes KVM
//! finds by itself at the next page fault, as it does those that devices make.
//!
//! **Interrupts** wait for at most [`BUDGET`] instructions, then KVM is entered. **Translations** and decoded instructions: the former
//! live for one session only, which is less than a CPU may keep them; the latter are compared with memory at each use.

mod alu;
mod integer;
#[cfg(test)]
mod native;
mod privilege;
mod strings;
#[cfg(test)]
mod tests;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

use super::AssistCounts;
use super::execute::{self, Done, LONGEST};
use super::machine::{Cpu, Trap, control, rflags};
use super::paging::{Access, Segment};
use integer::Flow;
pub(super) use privilege::Privileges;

/// How many instructions a session may have.
pub(super) const BUDGET: u32 = 2000;

/// How many PAUSE end a session.
const PAUSES: u32 = 16;

/// An instruction, where it lies and its bytes.
type Slot = Option<(u64, [u8; LONGEST], Instruction)>;

/// Decoded instructions by address. In pieces, made when first used: a small guest needs few.
pub(super) struct Decoded(Vec<Option<Box<[Slot]>>>);

const PIECES: usize = 1 << 6;
const PIECE: usize = 1 << 8;

impl Decoded {
    pub(super) fn new() -> Self {
        Self((0..PIECES).map(|_| None).collect())
    }

    fn slot(&mut self, rip: u64) -> &mut Slot {
        let index = (rip ^ (rip >> 14)) as usize % (PIECES * PIECE);
        let piece = &mut self.0[index / PIECE];
        &mut piece.get_or_insert_with(|| vec![None; PIECE].into())[index % PIECE]
    }
}

/// How far a session got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    /// Instructions done.
    pub(super) done: u32,
    /// Whether it ended with HLT.
    pub(super) halted: bool,
    /// Whether it ended since the guest waits for something to change in memory.
    pub(super) waiting: bool,
}

impl Cpu<'_> {
    /// Whether sessions are possible at all in this mode.
    pub(super) fn can_interpret(&self) -> bool {
        let paging = self.sregs.cr0 & control::CR0_PG != 0;
        paging && self.bitness() == 64 && self.privilege() == 0 && self.regs.rflags & rflags::TF == 0
    }

    /// Runs ring 0 until something is for KVM.
    pub(super) fn session(
        &mut self,
        decoded: &mut Decoded,
        known: &mut Privileges,
        counts: &mut AssistCounts,
    ) -> Session {
        let mut session = Session {
            done: 0,
            halted: false,
            waiting: false,
        };
        let mut pauses = 0;
        while session.done < BUDGET {
            let rip = self.regs.rip;
            let Some(instruction) = self.next_instruction(decoded.slot(rip)) else {
                break;
            };
            match instruction.mnemonic() {
                // Something wakes the guest: an interrupt, another CPU's call to KVM. Until then it stands behind the HLT. No interrupt
                // comes between the two of STI, HLT.
                Mnemonic::Hlt => {
                    self.regs.rip = instruction.next_ip();
                    session.done += 1;
                    session.halted = true;
                    break;
                }
                Mnemonic::Sti if self.precedes_halt(&instruction) => {
                    self.regs.rflags |= rflags::IF;
                    self.regs.rip = instruction.next_ip().wrapping_add(1);
                    session.done += 2;
                    session.halted = true;
                    break;
                }
                _ => {}
            }
            let before = self.regs;
            match self.one(&instruction, known, counts) {
                Ok(Flow::Next) => self.regs.rip = instruction.next_ip(),
                Ok(Flow::Jumped) => {}
                Ok(Flow::Unknown) | Err(_) => {
                    // String instructions keep what they did so far, as on the CPU.
                    if !instruction.is_string_instruction() {
                        self.regs = before;
                    }
                    break;
                }
            }
            session.done += 1;
            if instruction.mnemonic() == Mnemonic::Pause {
                pauses += 1;
                session.waiting = pauses == PAUSES;
            }
            if session.waiting || self.privilege() != 0 {
                break;
            }
        }
        session
    }

    fn precedes_halt(&self, instruction: &Instruction) -> bool {
        const HLT: u8 = 0xf4;
        let mut next = [0];
        self.fetch(instruction.next_ip(), &mut next).is_ok() && next == [HLT]
    }

    fn next_instruction(&mut self, slot: &mut Slot) -> Option<Instruction> {
        let rip = self.regs.rip;
        let mut bytes = [0; LONGEST];
        if let Some((at, known, instruction)) = slot
            && *at == rip
        {
            let length = instruction.len();
            self.fetch(rip, &mut bytes[..length]).ok()?;
            if bytes[..length] == known[..length] {
                return Some(*instruction);
            }
        }
        let (length, _) = execute::fetch(self, &mut bytes);
        let instruction = Decoder::with_ip(64, &bytes[..length], rip, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            return None;
        }
        *slot = Some((rip, bytes, instruction));
        Some(instruction)
    }

    fn one(
        &mut self,
        instruction: &Instruction,
        known: &mut Privileges,
        counts: &mut AssistCounts,
    ) -> Result<Flow, Trap> {
        let flow = self.integer(instruction)?;
        if flow != Flow::Unknown {
            return Ok(flow);
        }
        let flow = self.string(instruction)?;
        if flow != Flow::Unknown {
            return Ok(flow);
        }
        let flow = self.privileged(instruction, known)?;
        if flow != Flow::Unknown {
            return Ok(flow);
        }
        // The rest of what completes for KVM's sake; what it does to system registers and the outside is KVM's here.
        if !harmless(instruction.mnemonic()) {
            return Ok(Flow::Unknown);
        }
        match execute::perform(self, instruction)? {
            Done::Next => {
                *counts.instructions.entry(instruction.mnemonic()).or_default() += 1;
                Ok(Flow::Next)
            }
            _ => Ok(Flow::Unknown),
        }
    }

    pub(super) fn read_stack(&self, address: u64) -> Result<u64, Trap> {
        let mut raw = [0; 8];
        self.read(address, &mut raw, Segment::Stack)?;
        Ok(u64::from_le_bytes(raw))
    }

    pub(super) fn write_stack(&self, address: u64, value: u64) -> Result<(), Trap> {
        self.write(address, &value.to_le_bytes(), Segment::Stack)
    }

    /// The address that LEA computes.
    pub(super) fn effective_address(&self, instruction: &Instruction) -> Result<u64, Trap> {
        instruction
            .virtual_address(1, 0, |register, _, _| {
                if register.is_segment_register() {
                    Some(0)
                } else {
                    self.register(register).ok()
                }
            })
            .ok_or(Trap::Unsupported(""))
    }

    /// Changes a value in memory by `change` atomically for all vCPUs, and returns what it was. One that does not lie within an aligned
    /// word of eight bytes is KVM's.
    pub(super) fn modify_locked(
        &mut self,
        address: u64,
        size: usize,
        segment: Segment,
        mut change: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, Trap> {
        let physical = self.translate(address, Access::Write, segment)?;
        let offset = (physical % 8) as usize;
        if offset + size > 8 {
            return Err(Trap::Unsupported(""));
        }
        let word = physical - offset as u64;
        loop {
            let mut raw = [0; 8];
            if !self.machine.read(word, &mut raw) {
                return Err(Trap::NotRam(word));
            }
            let current = u64::from_le_bytes(raw);
            if self.guarded && may_be_used_entry(current) {
                return Err(Trap::Unsupported(""));
            }
            let mut part = [0; 8];
            part[..size].copy_from_slice(&raw[offset..offset + size]);
            let old = u64::from_le_bytes(part);
            let Some(new) = change(old) else {
                return Ok(old);
            };
            raw[offset..offset + size].copy_from_slice(&new.to_le_bytes()[..size]);
            match self
                .machine
                .compare_exchange(word, current, u64::from_le_bytes(raw))
            {
                Some(true) => return Ok(old),
                Some(false) => {}
                None => return Err(Trap::NotRam(word)),
            }
        }
    }
}

/// Whether a word may be an entry of a page table that KVM has used: Present and Accessed, with an address that guests have.
pub(super) fn may_be_used_entry(word: u64) -> bool {
    const PRESENT_AND_ACCESSED: u64 = 0x21;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Above all memory and devices.
    const END: u64 = 1 << 42;
    word & PRESENT_AND_ACCESSED == PRESENT_AND_ACCESSED && (1..END).contains(&(word & ADDRESS))
}

/// What the assist completes without asking KVM for anything that an interpreted instruction in between could have changed.
fn harmless(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Popcnt
            | Mnemonic::Lzcnt
            | Mnemonic::Tzcnt
            | Mnemonic::Andn
            | Mnemonic::Bextr
            | Mnemonic::Blsi
            | Mnemonic::Blsmsk
            | Mnemonic::Blsr
            | Mnemonic::Bzhi
            | Mnemonic::Mulx
            | Mnemonic::Rorx
            | Mnemonic::Sarx
            | Mnemonic::Shlx
            | Mnemonic::Shrx
            | Mnemonic::Crc32
            | Mnemonic::Movbe
            | Mnemonic::Cmpxchg16b
            | Mnemonic::Xsave
            | Mnemonic::Xsave64
            | Mnemonic::Xsaveopt
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xsavec
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaves
            | Mnemonic::Xsaves64
            | Mnemonic::Xrstor
            | Mnemonic::Xrstor64
            | Mnemonic::Xrstors
            | Mnemonic::Xrstors64
            | Mnemonic::Clac
            | Mnemonic::Stac
            | Mnemonic::Rdtsc
            | Mnemonic::Verw
            | Mnemonic::Clflush
            | Mnemonic::Clflushopt
            | Mnemonic::Clwb
            | Mnemonic::Nop
            | Mnemonic::Reservednop
            | Mnemonic::Pause
            | Mnemonic::Endbr32
            | Mnemonic::Endbr64
            | Mnemonic::Prefetch
            | Mnemonic::Prefetchw
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Lfence
            | Mnemonic::Mfence
            | Mnemonic::Sfence
    )
}
