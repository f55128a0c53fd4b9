//! The XSAVE family: from the extended state that ring 3 left in the CPU to the guest kernel's areas, and back.
//!
//! Truth: Intel SDM volume 1, chapter 13. KVM gives and takes the state as an area in standard form, the [`Image`]; the guest's
//! areas may be in standard or compacted form. The modified optimisation is not used, as the manual allows. Without all this the
//! guest kernel would leave the upper halves of the vector registers to the next process.

use std::arch::x86_64::__cpuid_count;

use iced_x86::Instruction;

use super::machine::{Cpu, Exception, Trap, control};
use super::paging::Access;

/// Bits of XSTATE_BV, XCR0 and masks.
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
/// XCOMP_BV: the area is compacted.
const COMPACTED: u64 = 1 << 63;
/// IA32_XSS.
const MSR_XSS: u32 = 0xda0;

/// Where the header lies, and how long it is.
const HEADER: usize = 512;
const HEADER_SIZE: usize = 64;
/// The first component beyond x87 and SSE of a compacted area.
const EXTENDED: usize = HEADER + HEADER_SIZE;

/// MXCSR after reset.
pub const MXCSR_INIT: u32 = 0x1f80;
/// The x87 control word after FNINIT.
pub const FCW_INIT: u16 = 0x37f;

/// One component of the extended state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component {
    /// Its bit in XSTATE_BV.
    pub index: u32,
    /// Its place in an area in standard form.
    pub offset: usize,
    /// Its size in bytes.
    pub size: usize,
    /// Whether it starts at a multiple of 64 bytes in compacted areas.
    pub aligned: bool,
}

/// The components beyond x87 and SSE, in the order of their bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout(Vec<Component>);

impl Layout {
    /// Takes the user components of `(index, leaf)` for each subleaf of CPUID leaf 0xD.
    pub fn new(components: Vec<Component>) -> Self {
        Self(components)
    }

    /// The host CPU's layout, which is that of KVM's images, and what ring 3 sees.
    pub fn of_host() -> Self {
        let leaf = |index| __cpuid_count(0xd, index);
        let (low, high) = (leaf(0).eax, leaf(0).edx);
        let supported = u64::from(low) | u64::from(high) << 32;
        Self(
            (2..63)
                .filter(|index| supported >> index & 1 == 1)
                .map(|index| {
                    let leaf = leaf(index);
                    Component {
                        index,
                        offset: leaf.ebx as usize,
                        size: leaf.eax as usize,
                        aligned: leaf.ecx & 2 != 0,
                    }
                })
                .collect(),
        )
    }

    /// Length of an area in standard form.
    fn standard_size(&self) -> usize {
        self.0
            .iter()
            .map(|component| component.offset + component.size)
            .fold(EXTENDED, usize::max)
    }

    /// The components of an area in the form that `xcomp_bv` says, with their places.
    fn places(&self, xcomp_bv: u64) -> impl Iterator<Item = (&Component, usize)> {
        let compacted = xcomp_bv & COMPACTED != 0;
        let mut end = EXTENDED;
        self.0
            .iter()
            .filter(move |component| !compacted || xcomp_bv >> component.index & 1 == 1)
            .map(move |component| {
                if !compacted {
                    return (component, component.offset);
                }
                let at = if component.aligned {
                    end.next_multiple_of(64)
                } else {
                    end
                };
                end = at + component.size;
                (component, at)
            })
    }
}

/// The extended state as KVM gives it: an area in standard form.
pub struct Image(Vec<u8>);

impl Image {
    /// Wraps a standard-form area; one that is too short for all components reads as if its end was zero.
    pub fn new(mut raw: Vec<u8>, layout: &Layout) -> Self {
        if raw.len() < layout.standard_size() {
            raw.resize(layout.standard_size(), 0);
        }
        Self(raw)
    }

    /// The area.
    pub fn raw(&self) -> &[u8] {
        &self.0
    }

    /// Reads `N` bytes at a fixed place within the first 576.
    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut value = [0; N];
        value.copy_from_slice(&self.0[at..at + N]);
        value
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A 16-bit field of the x87 part.
    pub fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.get(at))
    }

    /// Sets a 16-bit field of the x87 part, which is in use from then on.
    pub fn set_word(&mut self, at: usize, value: u16) {
        self.use_x87();
        self.put(at, &value.to_le_bytes());
    }

    /// Makes x87 state something that may be changed: in use, with its initial values if it was not.
    pub fn use_x87(&mut self) {
        if self.in_use() & X87 == 0 {
            self.init_x87();
            self.set_xstate_bv(self.xstate_bv() | X87);
        }
    }

    /// The state after FNINIT.
    pub fn init_x87(&mut self) {
        self.0[..24].fill(0);
        self.0[32..160].fill(0);
        self.put(0, &FCW_INIT.to_le_bytes());
    }

    /// The x87 registers from ST(0) on, 16 bytes each.
    pub fn x87_registers(&mut self) -> &mut [u8] {
        &mut self.0[32..160]
    }

    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.get(24))
    }

    /// Which MXCSR bits may be set.
    pub fn mxcsr_mask(&self) -> u32 {
        match u32::from_le_bytes(self.get(28)) {
            0 => 0xffbf,
            mask => mask,
        }
    }

    /// Sets MXCSR, or refuses it with #GP.
    pub fn set_mxcsr(&mut self, value: u32) -> Result<(), Trap> {
        if value & !self.mxcsr_mask() != 0 {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        if self.xstate_bv() & SSE == 0 {
            self.0[160..416].fill(0);
        }
        self.put(24, &value.to_le_bytes());
        // KVM reads MXCSR only with SSE or AVX state in use.
        if value != MXCSR_INIT {
            self.set_xstate_bv(self.xstate_bv() | SSE);
        }
        Ok(())
    }

    fn xstate_bv(&self) -> u64 {
        u64::from_le_bytes(self.get(HEADER))
    }

    fn set_xstate_bv(&mut self, value: u64) {
        self.put(HEADER, &value.to_le_bytes());
    }

    /// XINUSE: the components that are not in their initial configuration.
    pub fn in_use(&self) -> u64 {
        self.xstate_bv() | if self.mxcsr() == MXCSR_INIT { 0 } else { SSE }
    }

    /// Gives components that are not in use their initial values, which KVM need not have done.
    fn settle(&mut self, layout: &Layout) {
        let in_use = self.in_use();
        if in_use & X87 == 0 {
            self.init_x87();
        }
        if in_use & SSE == 0 {
            self.0[160..416].fill(0);
        }
        for component in layout
            .0
            .iter()
            .filter(|component| in_use >> component.index & 1 == 0)
        {
            self.0[component.offset..component.offset + component.size].fill(0);
        }
    }

    /// The x87 part as FXSAVE and XSAVE store it: with 64-bit pointers, or with 32-bit ones and selectors of zero, as CPUs that have
    /// given up FCS and FDS do.
    pub fn x87(&self, wide: bool) -> [u8; 24] {
        let mut bytes: [u8; 24] = self.get(0);
        if !wide {
            bytes[12..16].fill(0);
            bytes[20..24].fill(0);
        }
        bytes
    }

    /// Takes the x87 part from an area.
    pub fn set_x87(&mut self, area: &[u8; HEADER], wide: bool) {
        self.put(0, &area[..24]);
        if !wide {
            self.0[12..16].fill(0);
            self.0[20..24].fill(0);
        }
        self.0[5] = 0;
        self.put(32, &area[32..160]);
        // Bits 80 to 127 of each register's slot are reserved and may hold anything.
        for register in self.0[32..160].chunks_exact_mut(16) {
            register[10..].fill(0);
        }
        self.set_xstate_bv(self.xstate_bv() | X87);
    }

    /// Takes the XMM registers from an area.
    pub fn set_xmm(&mut self, area: &[u8; HEADER]) {
        self.put(160, &area[160..416]);
        self.set_xstate_bv(self.xstate_bv() | SSE);
    }

    /// The XMM registers.
    pub fn xmm(&self) -> &[u8] {
        &self.0[160..416]
    }
}

/// How an instruction of the family saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Save {
    /// XSAVE.
    Plain,
    /// XSAVEOPT.
    Optimised,
    /// XSAVEC.
    Compacted,
    /// XSAVES.
    Supervisor,
}

impl Cpu<'_> {
    /// The current extended state.
    pub fn image(&mut self) -> Result<Image, Trap> {
        let raw = self.machine.extended_state()?;
        Ok(Image::new(raw, self.machine.layout()))
    }

    /// The area's address and the requested-feature bitmap.
    fn xsave_operands(
        &mut self,
        instruction: &Instruction,
        supervisor: bool,
    ) -> Result<(u64, u64, u64), Trap> {
        if self.sregs.cr4 & control::CR4_OSXSAVE == 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        self.need_fpu()?;
        if supervisor && self.privilege() != 0 {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        let address = self.address(instruction, 0)?;
        if !address.is_multiple_of(64) {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        let mut allowed = self.machine.xcr0()?;
        if supervisor {
            // A KVM without the MSR has no supervisor components.
            allowed |= self.machine.msr(MSR_XSS).unwrap_or(0);
        }
        let requested = (self.regs.rdx << 32 | self.regs.rax & 0xffff_ffff) & allowed;
        Ok((address, requested, allowed))
    }

    /// XSAVE, XSAVEOPT, XSAVEC, XSAVES.
    pub fn xsave(&mut self, instruction: &Instruction, form: Save, wide: bool) -> Result<(), Trap> {
        let (address, requested, _) = self.xsave_operands(instruction, form == Save::Supervisor)?;
        let segment = Self::segment(instruction);
        let mut image = self.image()?;
        image.settle(self.machine.layout());
        let in_use = image.in_use() & requested;
        let compacted = matches!(form, Save::Compacted | Save::Supervisor);
        let saved = if form == Save::Plain { requested } else { in_use };
        let mxcsr = if compacted {
            saved & SSE
        } else {
            requested & (SSE | AVX)
        } != 0;
        let xcomp_bv = if compacted { COMPACTED | requested } else { 0 };

        let x87 = image.x87(wide);
        let raw = image.raw();
        let mut parts: Vec<(usize, &[u8])> = Vec::new();
        if saved & X87 != 0 {
            parts.extend([(0, &x87[..]), (32, &raw[32..160])]);
        }
        if mxcsr {
            parts.push((24, &raw[24..32]));
        }
        if saved & SSE != 0 {
            parts.push((160, image.xmm()));
        }
        let layout = self.machine.layout();
        for (component, at) in layout.places(xcomp_bv) {
            if saved >> component.index & 1 == 1 {
                parts.push((at, &raw[component.offset..component.offset + component.size]));
            }
        }
        // Fault before anything is written.
        let at = |offset: usize| address.wrapping_add(offset as u64);
        self.check(at(HEADER), 16, Access::Write, segment)?;
        for (offset, bytes) in &parts {
            self.check(at(*offset), bytes.len(), Access::Write, segment)?;
        }
        let mut header = [0; 16];
        self.read(at(HEADER), &mut header, segment)?;
        let (old, _) = split(&header);
        let xstate_bv = if compacted {
            in_use
        } else {
            old & !requested | in_use
        };
        for (offset, bytes) in parts {
            self.write(at(offset), bytes, segment)?;
        }
        header[..8].copy_from_slice(&xstate_bv.to_le_bytes());
        header[8..].copy_from_slice(&xcomp_bv.to_le_bytes());
        self.write(at(HEADER), &header[..if compacted { 16 } else { 8 }], segment)
    }

    /// XRSTOR and XRSTORS.
    pub fn xrstor(&mut self, instruction: &Instruction, supervisor: bool, wide: bool) -> Result<(), Trap> {
        let (address, requested, allowed) = self.xsave_operands(instruction, supervisor)?;
        let segment = Self::segment(instruction);
        let at = |offset: usize| address.wrapping_add(offset as u64);
        let mut header = [0; HEADER_SIZE];
        self.read(at(HEADER), &mut header, segment)?;
        let (xstate_bv, xcomp_bv) = split(&header);
        let valid = if xcomp_bv & COMPACTED == 0 {
            !supervisor && xstate_bv & !allowed == 0 && header[8..24] == [0; 16]
        } else {
            xcomp_bv & !COMPACTED & !allowed == 0
                && xstate_bv & !(xcomp_bv & !COMPACTED) == 0
                && header[16..] == [0; 48]
        };
        if !valid {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        let loaded = requested & xstate_bv;
        let reset = requested & !xstate_bv;
        let compacted = xcomp_bv & COMPACTED != 0;
        let mxcsr_loaded = if compacted {
            loaded & SSE
        } else {
            requested & (SSE | AVX)
        } != 0;

        let mut legacy = [0; HEADER];
        if loaded & (X87 | SSE) != 0 || mxcsr_loaded {
            self.read(address, &mut legacy, segment)?;
        }
        let mut image = self.image()?;
        let kept = image.in_use() & !requested;
        image.set_xstate_bv(kept);
        if loaded & X87 != 0 {
            image.set_x87(&legacy, wide);
        }
        if loaded & SSE != 0 {
            image.set_xmm(&legacy);
        }
        let mxcsr = if mxcsr_loaded {
            u32::from_le_bytes([legacy[24], legacy[25], legacy[26], legacy[27]])
        } else if reset & SSE != 0 {
            MXCSR_INIT
        } else {
            image.mxcsr()
        };
        image.set_mxcsr(mxcsr)?;
        for (component, offset) in self.machine.layout().places(xcomp_bv) {
            if loaded >> component.index & 1 == 1 {
                let place = component.offset..component.offset + component.size;
                self.read(at(offset), &mut image.0[place], segment)?;
            }
        }
        image.set_xstate_bv(image.xstate_bv() | loaded);
        image.settle(self.machine.layout());
        image.0[HEADER + 8..HEADER + HEADER_SIZE].fill(0);
        self.machine.set_extended_state(image.raw())?;
        Ok(())
    }
}

/// XSTATE_BV and XCOMP_BV of a header.
fn split(header: &[u8]) -> (u64, u64) {
    let word = |at: usize| {
        let mut raw = [0; 8];
        raw.copy_from_slice(&header[at..at + 8]);
        u64::from_le_bytes(raw)
    };
    (word(0), word(8))
}
