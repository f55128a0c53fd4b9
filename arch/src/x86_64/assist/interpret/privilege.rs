//! The ways out of the kernel: SWAPGS, SYSRET, IRET. The common cases only; KVM has the rest.

use iced_x86::{Instruction, Mnemonic};
use kvm_bindings::kvm_segment;

use super::integer::Flow;
use crate::x86_64::assist::machine::{Cpu, Trap, rflags};
use crate::x86_64::assist::paging::is_canonical;

/// IA32_STAR.
const MSR_STAR: u32 = 0xc000_0081;
/// IA32_KERNEL_GS_BASE.
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
/// What SYSRET takes from R11, and what IRET may change here: neither TF nor the I/O privilege level nor the rarer bits.
const SYSRET: u64 = 0x3c_7fd7;
const USUAL: u64 = rflags::STATUS | rflags::DF | rflags::IF | rflags::RF | rflags::AC | 2 | 1 << 21;

/// What only the host knows about the privilege levels of this vCPU.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::x86_64::assist) struct Privileges {
    /// The guest's STAR, once it is known and not zero.
    pub(in crate::x86_64::assist) star: u64,
    /// IA32_KERNEL_GS_BASE, if it was needed, and whether it must be written back.
    pub(in crate::x86_64::assist) kernel_gs: Option<(u64, bool)>,
    /// Whether an NMI is being handled, which IRET ends.
    pub(in crate::x86_64::assist) nmi: bool,
}

impl Cpu<'_> {
    /// Does `i` if it is one of these.
    pub(super) fn privileged(&mut self, i: &Instruction, known: &mut Privileges) -> Result<Flow, Trap> {
        match i.mnemonic() {
            Mnemonic::Swapgs => {
                let (kernel, _) = match known.kernel_gs {
                    Some(kernel) => kernel,
                    None => (self.machine.msr(MSR_KERNEL_GS_BASE)?, false),
                };
                known.kernel_gs = Some((self.sregs.gs.base, true));
                self.sregs.gs.base = kernel;
                self.sregs_changed = true;
                Ok(Flow::Next)
            }
            Mnemonic::Sysretq => {
                let (rip, flags) = (self.regs.rcx, self.regs.r11 & SYSRET);
                let star = self.star(known)?;
                if star == 0 || !is_canonical(rip, self.levels()) || flags & !USUAL != 0 {
                    return Ok(Flow::Unknown);
                }
                self.enter_user(star);
                self.regs.rip = rip;
                self.regs.rflags = flags & !rflags::RF | 2;
                Ok(Flow::Jumped)
            }
            Mnemonic::Iretq => self.iret(known),
            _ => Ok(Flow::Unknown),
        }
    }

    fn iret(&mut self, known: &mut Privileges) -> Result<Flow, Trap> {
        let mut frame = [0; 5];
        for (at, word) in (0..).zip(&mut frame) {
            *word = self.read_stack(self.regs.rsp.wrapping_add(8 * at))?;
        }
        let [rip, cs, flags, rsp, ss] = frame;
        let usual = flags & !USUAL == 0 && self.regs.rflags & 1 << 14 == 0 && !known.nmi;
        if !usual || !is_canonical(rip, self.levels()) {
            return Ok(Flow::Unknown);
        }
        if cs == u64::from(self.sregs.cs.selector) && ss == u64::from(self.sregs.ss.selector) {
            // Back to where the kernel was interrupted.
        } else {
            let star = self.star(known)?;
            let users = (cs, ss) == (u64::from(user_code(star)), u64::from(user_stack(star)));
            let segments = [self.sregs.ds, self.sregs.es, self.sregs.fs, self.sregs.gs];
            if star == 0 || !users || !segments.iter().all(stays) {
                return Ok(Flow::Unknown);
            }
            self.enter_user(star);
        }
        (self.regs.rip, self.regs.rsp, self.regs.rflags) = (rip, rsp, flags | 2);
        Ok(Flow::Jumped)
    }

    /// STAR, zero until the guest has set it.
    fn star(&mut self, known: &mut Privileges) -> Result<u64, Trap> {
        if known.star == 0 {
            known.star = self.machine.msr(MSR_STAR)?;
        }
        Ok(known.star)
    }

    fn enter_user(&mut self, star: u64) {
        let flat = |selector, code: bool| kvm_segment {
            limit: u32::MAX,
            selector,
            type_: if code { 11 } else { 3 },
            present: 1,
            dpl: 3,
            db: u8::from(!code),
            s: 1,
            l: u8::from(code),
            g: 1,
            ..Default::default()
        };
        self.sregs.cs = flat(user_code(star), true);
        self.sregs.ss = flat(user_stack(star), false);
        self.sregs_changed = true;
    }
}

fn user_code(star: u64) -> u16 {
    ((star >> 48) as u16).wrapping_add(16) | 3
}

fn user_stack(star: u64) -> u16 {
    ((star >> 48) as u16).wrapping_add(8) | 3
}

/// Whether a data segment register keeps its value on the way to ring 3.
fn stays(segment: &kvm_segment) -> bool {
    segment.selector & !3 == 0 || segment.dpl == 3
}
