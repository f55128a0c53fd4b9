//! What kernels do to the FPU besides saving it: x87 control, EMMS, FXSAVE, MXCSR.
//!
//! Truth: Intel SDM volume 1, chapters 8 and 10. Arithmetic is left out; FILD is here because Linux uses it to clear pointers.

use iced_x86::{Instruction, OpKind};

use super::machine::{Cpu, Exception, Trap, control};
use super::xsave::Image;

/// Places in the image.
const FCW: usize = 0;
const FSW: usize = 2;
const FTW: usize = 4;
/// Status word: invalid operation, stack fault, error summary, C1, busy.
const FSW_IE: u16 = 1 << 0;
const FSW_SF: u16 = 1 << 6;
const FSW_ES: u16 = 1 << 7;
const FSW_C1: u16 = 1 << 9;
const FSW_B: u16 = 1 << 15;
const EXCEPTIONS: u16 = 0x3f;

impl Cpu<'_> {
    /// Faults with #NM where x87 instructions other than FWAIT do.
    fn need_x87(&self) -> Result<(), Trap> {
        if self.sregs.cr0 & (control::CR0_EM | control::CR0_TS) != 0 {
            return Err(Exception::DEVICE_NOT_AVAILABLE.into());
        }
        Ok(())
    }

    /// Faults with #UD or #NM where SSE instructions do.
    fn need_sse(&self) -> Result<(), Trap> {
        if self.sregs.cr0 & control::CR0_EM != 0 || self.sregs.cr4 & control::CR4_OSFXSR == 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        self.need_fpu()
    }

    fn store_image(&mut self, image: &Image) -> Result<(), Trap> {
        Ok(self.machine.set_extended_state(image.raw())?)
    }

    /// The state, for an instruction that waits: #MF if an unmasked exception is pending.
    fn image_after_wait(&mut self) -> Result<Image, Trap> {
        let image = self.image()?;
        if image.word(FSW) & FSW_ES != 0 {
            Err(Exception::X87.into())
        } else {
            Ok(image)
        }
    }

    /// FWAIT.
    pub fn fwait(&mut self) -> Result<(), Trap> {
        let both = control::CR0_MP | control::CR0_TS;
        if self.sregs.cr0 & both == both {
            return Err(Exception::DEVICE_NOT_AVAILABLE.into());
        }
        self.image_after_wait().map(drop)
    }

    /// FNCLEX.
    pub fn fnclex(&mut self) -> Result<(), Trap> {
        self.need_x87()?;
        let mut image = self.image()?;
        let status = image.word(FSW);
        let cleared = status & !(EXCEPTIONS | FSW_SF | FSW_ES | FSW_B);
        if cleared != status {
            image.set_word(FSW, cleared);
            self.store_image(&image)?;
        }
        Ok(())
    }

    /// FNINIT.
    pub fn fninit(&mut self) -> Result<(), Trap> {
        self.need_x87()?;
        let mut image = self.image()?;
        image.use_x87();
        // The registers keep their values; the tags say that they are empty.
        image.set_word(FCW, super::xsave::FCW_INIT);
        for at in (2..24).step_by(2) {
            image.set_word(at, 0);
        }
        self.store_image(&image)
    }

    /// EMMS and FEMMS.
    pub fn emms(&mut self) -> Result<(), Trap> {
        if self.sregs.cr0 & control::CR0_EM != 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        self.need_fpu()?;
        let mut image = self.image_after_wait()?;
        if image.word(FTW) & 0xff != 0 {
            image.set_word(FTW, 0);
            self.store_image(&image)?;
        }
        Ok(())
    }

    /// FLDCW.
    pub fn fldcw(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        self.need_x87()?;
        let value = self.operand(instruction, 0)? as u16;
        let mut image = self.image_after_wait()?;
        // Bit 6 is always set; the reserved bits are always clear.
        image.set_word(FCW, value & 0x1f3f | 0x40);
        let status = image.word(FSW);
        let pending = status & EXCEPTIONS & !value != 0;
        let summary = FSW_ES | FSW_B;
        image.set_word(
            FSW,
            if pending {
                status | summary
            } else {
                status & !summary
            },
        );
        self.store_image(&image)
    }

    /// FNSTCW and FNSTSW.
    pub fn store_x87_word(&mut self, instruction: &Instruction, status: bool) -> Result<(), Trap> {
        self.need_x87()?;
        let image = self.image()?;
        let value = image.word(if status { FSW } else { FCW });
        self.set_operand(instruction, 0, u64::from(value))
    }

    /// FILD.
    pub fn fild(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        self.need_x87()?;
        let raw = self.operand(instruction, 0)?;
        let value = match Self::operand_size(instruction, 0) {
            2 => i64::from(raw as i16),
            4 => i64::from(raw as i32),
            _ => raw as i64,
        };
        let mut image = self.image_after_wait()?;
        image.use_x87();
        let status = image.word(FSW);
        let top = ((status >> 11) & 7).wrapping_sub(1) & 7;
        let mut status = status & !(7 << 11 | FSW_C1);
        let tags = image.word(FTW) & 0xff;
        let mut bytes = extended(value);
        if tags >> top & 1 != 0 {
            // Stack overflow.
            status |= FSW_IE | FSW_SF | FSW_C1;
            if image.word(FCW) & 1 == 0 {
                return Err(Trap::Unsupported(
                    "onto a full x87 stack with that exception unmasked",
                ));
            }
            bytes = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];
        }
        image.set_word(FSW, status | top << 11);
        image.set_word(FTW, tags | 1 << top);
        let registers = image.x87_registers();
        registers.copy_within(..112, 16);
        registers[..10].copy_from_slice(&bytes);
        registers[10..16].fill(0);
        self.store_image(&image)
    }

    /// LDMXCSR.
    pub fn ldmxcsr(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        self.need_sse()?;
        let value = self.operand(instruction, 0)? as u32;
        let mut image = self.image()?;
        image.set_mxcsr(value)?;
        self.store_image(&image)
    }

    /// STMXCSR.
    pub fn stmxcsr(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        self.need_sse()?;
        let value = self.image()?.mxcsr();
        self.set_operand(instruction, 0, u64::from(value))
    }

    fn fxsave_address(&mut self, instruction: &Instruction) -> Result<u64, Trap> {
        self.need_x87()?;
        if instruction.op_kind(0) != OpKind::Memory {
            return Err(Exception::INVALID_OPCODE.into());
        }
        let address = self.address(instruction, 0)?;
        if address.is_multiple_of(16) {
            Ok(address)
        } else {
            Err(Exception::GENERAL_PROTECTION.into())
        }
    }

    /// FXSAVE.
    pub fn fxsave(&mut self, instruction: &Instruction, wide: bool) -> Result<(), Trap> {
        let address = self.fxsave_address(instruction)?;
        let segment = Self::segment(instruction);
        let image = self.image()?;
        let mut area = [0; 416];
        area.copy_from_slice(&image.raw()[..416]);
        area[..24].copy_from_slice(&image.x87(wide));
        area[28..32].copy_from_slice(&image.mxcsr_mask().to_le_bytes());
        let length = if self.sregs.cr4 & control::CR4_OSFXSR == 0 {
            160
        } else {
            416
        };
        self.write(address, &area[..length], segment)
    }

    /// FXRSTOR.
    pub fn fxrstor(&mut self, instruction: &Instruction, wide: bool) -> Result<(), Trap> {
        let address = self.fxsave_address(instruction)?;
        let mut area = [0; 512];
        self.read(address, &mut area, Self::segment(instruction))?;
        let mut image = self.image()?;
        image.set_x87(&area, wide);
        if self.sregs.cr4 & control::CR4_OSFXSR != 0 {
            image.set_xmm(&area);
            image.set_mxcsr(u32::from_le_bytes([area[24], area[25], area[26], area[27]]))?;
        }
        self.store_image(&image)
    }
}

/// An integer in the x87's 80-bit format.
fn extended(value: i64) -> [u8; 10] {
    let magnitude = value.unsigned_abs();
    let mut bytes = [0; 10];
    if magnitude != 0 {
        let shift = magnitude.leading_zeros();
        let sign = u16::from(value < 0) << 15;
        bytes[..8].copy_from_slice(&(magnitude << shift).to_le_bytes());
        bytes[8..].copy_from_slice(&(sign | (16383 + 63 - shift as u16)).to_le_bytes());
    }
    bytes
}
