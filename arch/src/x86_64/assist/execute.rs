//! One instruction: decoded, then done to registers and memory as the CPU would have.

use std::sync::atomic::{Ordering, fence};

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic};

use super::machine::{Cpu, Exception, Trap, rflags};
use super::system::Query;
use super::xsave::Save;

/// The longest instruction.
pub const LONGEST: usize = 15;

/// How an instruction ended that did not fault. RIP is past it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The guest goes on with the next instruction.
    Next,
    /// The guest gets this exception, which is what the instruction is for.
    Trap(Exception),
    /// INT n: the guest gets this vector as a software interrupt.
    Interrupt(u8),
}

/// Reads the instruction at RIP: how many of the bytes are there, and the fault of the one after them, if it has one.
pub fn fetch(cpu: &Cpu<'_>, bytes: &mut [u8; LONGEST]) -> (usize, Option<Trap>) {
    let base = if cpu.bitness() == 64 { 0 } else { cpu.sregs.cs.base };
    let start = base.wrapping_add(cpu.regs.rip);
    let first = (LONGEST as u64).min(0x1000 - start % 0x1000) as usize;
    let (head, tail) = bytes.split_at_mut(first);
    if let Err(trap) = cpu.fetch(start, head) {
        return (0, Some(trap));
    }
    match cpu.fetch(start.wrapping_add(first as u64), tail) {
        Ok(()) => (LONGEST, None),
        Err(trap) => (first, Some(trap)),
    }
}

/// Decodes the instruction at RIP.
pub fn decode(cpu: &Cpu<'_>, bytes: &[u8]) -> Instruction {
    Decoder::with_ip(cpu.bitness(), bytes, cpu.regs.rip, DecoderOptions::NONE).decode()
}

/// Completes the instruction that `bytes`, read at RIP, begin with. If it does not complete, registers are as before.
///
/// `beyond` is the fault of the byte after `bytes`, raised if the instruction has one there.
///
/// # Errors
/// The fault that the CPU would have raised, or why the instruction cannot be completed.
pub fn execute(cpu: &mut Cpu<'_>, bytes: &[u8], beyond: Option<Trap>) -> (Instruction, Result<Done, Trap>) {
    let mut decoder = Decoder::with_ip(cpu.bitness(), bytes, cpu.regs.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.code() == Code::INVALID {
        let trap = match (decoder.last_error(), beyond) {
            (DecoderError::NoMoreBytes, Some(trap)) if bytes.len() < LONGEST => trap,
            (DecoderError::NoMoreBytes, None) if bytes.len() < LONGEST => {
                Trap::Unsupported("of which only a part could be read")
            }
            // It goes on after the fifteenth byte.
            _ if decoder.position() >= LONGEST => Exception::GENERAL_PROTECTION.into(),
            _ => Exception::INVALID_OPCODE.into(),
        };
        return (instruction, Err(trap));
    }
    let (regs, sregs, sregs_changed) = (cpu.regs, cpu.sregs, cpu.sregs_changed);
    let result = perform(cpu, &instruction);
    if result.is_ok() {
        cpu.advance(&instruction);
        cpu.flags(rflags::RF, 0);
    } else {
        (cpu.regs, cpu.sregs, cpu.sregs_changed) = (regs, sregs, sregs_changed);
    }
    (instruction, result)
}

pub(super) fn perform(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<Done, Trap> {
    match instruction.mnemonic() {
        Mnemonic::Int3 => return Ok(Done::Trap(Exception::BREAKPOINT)),
        Mnemonic::Int1 => return Ok(Done::Trap(Exception::DEBUG)),
        Mnemonic::Into if cpu.regs.rflags & rflags::OF != 0 => return Ok(Done::Trap(Exception::OVERFLOW)),
        Mnemonic::Into => {}
        Mnemonic::Int => return Ok(Done::Interrupt(instruction.immediate8())),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => return Err(Exception::INVALID_OPCODE.into()),
        _ => {
            if !(integer(cpu, instruction)? || extended_state(cpu, instruction)? || system(cpu, instruction)?)
            {
                return Err(Trap::Unsupported(""));
            }
        }
    }
    Ok(Done::Next)
}

/// Completes an integer instruction; false if it is none.
fn integer(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<bool, Trap> {
    let i = instruction;
    match i.mnemonic() {
        Mnemonic::Popcnt => cpu.popcnt(i),
        Mnemonic::Lzcnt => cpu.zeros(i, false),
        Mnemonic::Tzcnt => cpu.zeros(i, true),
        Mnemonic::Andn => cpu.andn(i),
        Mnemonic::Bextr if matches!(i.op_count(), 3) && i.try_immediate(2).is_err() => cpu.bextr(i),
        Mnemonic::Blsi => cpu.blsi(i),
        Mnemonic::Blsmsk => cpu.blsmsk(i),
        Mnemonic::Blsr => cpu.blsr(i),
        Mnemonic::Bzhi => cpu.bzhi(i),
        Mnemonic::Mulx => cpu.mulx(i),
        Mnemonic::Pdep => cpu.pdep(i),
        Mnemonic::Pext => cpu.pext(i),
        Mnemonic::Rorx => cpu.shift(i, |value, count, bits| match bits {
            32 => u64::from((value as u32).rotate_right(count)),
            _ => value.rotate_right(count),
        }),
        Mnemonic::Sarx => cpu.shift(i, |value, count, bits| match bits {
            32 => u64::from((value as i32 >> count) as u32),
            _ => (value as i64 >> count) as u64,
        }),
        Mnemonic::Shlx => cpu.shift(i, |value, count, _| value << count),
        Mnemonic::Shrx => cpu.shift(i, |value, count, _| value >> count),
        Mnemonic::Adcx => cpu.add_with(i, rflags::CF),
        Mnemonic::Adox => cpu.add_with(i, rflags::OF),
        Mnemonic::Crc32 => cpu.crc32(i),
        Mnemonic::Movbe => cpu.movbe(i),
        Mnemonic::Movdiri => cpu.mov(i),
        Mnemonic::Rdrand | Mnemonic::Rdseed => cpu.random(i),
        Mnemonic::Cmpxchg16b => cpu.cmpxchg16b(i),
        _ => return Ok(false),
    }?;
    Ok(true)
}

/// Completes an instruction about x87, SSE or XSAVE state; false if it is none.
fn extended_state(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<bool, Trap> {
    let i = instruction;
    match i.mnemonic() {
        Mnemonic::Wait => cpu.fwait(),
        Mnemonic::Fnclex => cpu.fnclex(),
        Mnemonic::Fninit => cpu.fninit(),
        Mnemonic::Emms | Mnemonic::Femms => cpu.emms(),
        Mnemonic::Fldcw => cpu.fldcw(i),
        Mnemonic::Fnstcw => cpu.store_x87_word(i, false),
        Mnemonic::Fnstsw => cpu.store_x87_word(i, true),
        Mnemonic::Fild => cpu.fild(i),
        Mnemonic::Ldmxcsr => cpu.ldmxcsr(i),
        Mnemonic::Stmxcsr => cpu.stmxcsr(i),
        Mnemonic::Fxsave => cpu.fxsave(i, false),
        Mnemonic::Fxsave64 => cpu.fxsave(i, true),
        Mnemonic::Fxrstor => cpu.fxrstor(i, false),
        Mnemonic::Fxrstor64 => cpu.fxrstor(i, true),
        Mnemonic::Xsave => cpu.xsave(i, Save::Plain, false),
        Mnemonic::Xsave64 => cpu.xsave(i, Save::Plain, true),
        Mnemonic::Xsaveopt => cpu.xsave(i, Save::Optimised, false),
        Mnemonic::Xsaveopt64 => cpu.xsave(i, Save::Optimised, true),
        Mnemonic::Xsavec => cpu.xsave(i, Save::Compacted, false),
        Mnemonic::Xsavec64 => cpu.xsave(i, Save::Compacted, true),
        Mnemonic::Xsaves => cpu.xsave(i, Save::Supervisor, false),
        Mnemonic::Xsaves64 => cpu.xsave(i, Save::Supervisor, true),
        Mnemonic::Xrstor => cpu.xrstor(i, false, false),
        Mnemonic::Xrstor64 => cpu.xrstor(i, false, true),
        Mnemonic::Xrstors => cpu.xrstor(i, true, false),
        Mnemonic::Xrstors64 => cpu.xrstor(i, true, true),
        Mnemonic::Xgetbv => cpu.xgetbv(),
        Mnemonic::Xsetbv => cpu.xsetbv(),
        _ => return Ok(false),
    }?;
    Ok(true)
}

/// Completes a system instruction or one that only hints; false if it is none.
fn system(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<bool, Trap> {
    let i = instruction;
    match i.mnemonic() {
        Mnemonic::Clac => cpu.set_ac(false),
        Mnemonic::Stac => cpu.set_ac(true),
        Mnemonic::Cld => {
            cpu.flags(rflags::DF, 0);
            Ok(())
        }
        Mnemonic::Rdfsbase => cpu.segment_base_access(i, false, false),
        Mnemonic::Rdgsbase => cpu.segment_base_access(i, true, false),
        Mnemonic::Wrfsbase => cpu.segment_base_access(i, false, true),
        Mnemonic::Wrgsbase => cpu.segment_base_access(i, true, true),
        Mnemonic::Rdpid => cpu.rdpid(i),
        Mnemonic::Rdtsc => cpu.rdtsc(false),
        Mnemonic::Rdtscp => cpu.rdtsc(true),
        Mnemonic::Invpcid => cpu.invpcid(i),
        Mnemonic::Lar => cpu.query_selector(i, Query::Rights),
        Mnemonic::Lsl => cpu.query_selector(i, Query::Limit),
        Mnemonic::Verr => cpu.query_selector(i, Query::Readable),
        Mnemonic::Verw => cpu.query_selector(i, Query::Writable),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => cpu.touch(i),
        Mnemonic::Clzero => cpu.clzero(i),
        Mnemonic::Wbinvd | Mnemonic::Wbnoinvd | Mnemonic::Invd => cpu.need_ring0(),
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Fnop
        | Mnemonic::Pause
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Cldemote
        | Mnemonic::Sfence => Ok(()),
        Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Serialize => {
            fence(Ordering::SeqCst);
            Ok(())
        }
        _ => return Ok(false),
    }?;
    Ok(true)
}
