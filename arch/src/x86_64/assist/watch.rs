//! Breakpoints on the guest's handlers, and single steps.

use iced_x86::Mnemonic;
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    kvm_guest_debug, kvm_regs, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::AssistError;
use super::execute::{self, LONGEST};
use super::kvm::KvmMachine;
use super::machine::{Cpu, control};
use super::paging::{Access, Segment};
use super::vcpu::{VcpuAssist, failed};

/// DR7: breakpoints 0 and 1 on execution, enabled; bit 10 is always set.
const DR7_BREAKPOINT_0: u64 = 0x401;
const DR7_BREAKPOINT_1: u64 = 0x4;
/// How many instructions of the page fault handler may come before the call that all handlers share.
const PROLOGUE: usize = 6;
/// The page fault's vector.
const PAGE_FAULT: u64 = 14;
/// Size of a gate in long mode.
const GATE: u64 = 16;
/// How many entries into the guest may pass until the IDT's place in memory is looked up again.
const RELOCATE: u32 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DebugState {
    Off,
    /// A breakpoint on the page fault handler.
    Armed(u64),
    /// One instruction, then the breakpoint again.
    Stepping,
}

/// Where the gate of the page fault lies in guest memory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct GateCache {
    idt: u64,
    physical: Option<u64>,
    age: u32,
}

impl VcpuAssist {
    /// Keeps the breakpoints where the guest's handlers are.
    pub(super) fn watch(&mut self, vcpu: &mut VcpuFd) -> Result<(), AssistError> {
        let sregs = &vcpu.sync_regs_mut().sregs;
        let system_calls = control::EFER_SCE | control::EFER_LMA;
        let (idt, limit) = (sregs.idt.base, u64::from(sregs.idt.limit));
        if sregs.efer & system_calls != system_calls || limit < (PAGE_FAULT + 1) * GATE - 1 {
            return self.disarm(vcpu);
        }
        if self.gate.idt != idt || self.gate.physical.is_none() || self.gate.age >= RELOCATE {
            let (regs, sregs) = (vcpu.sync_regs_mut().regs, vcpu.sync_regs_mut().sregs);
            self.find_gate(vcpu, regs, &sregs);
        }
        self.gate.age += 1;
        match self.read_gate() {
            Some(handler) if self.debug != DebugState::Armed(handler) => self.arm(vcpu, handler),
            _ => Ok(()),
        }
    }

    /// Looks up where the gate lies. It may be out of reach while the kernel sets itself up; then there is none yet.
    pub(super) fn find_gate(&mut self, vcpu: &VcpuFd, regs: kvm_regs, sregs: &kvm_sregs) {
        let mut machine = KvmMachine {
            vcpu,
            host: &mut self.host,
        };
        let cpu = Cpu::new(regs, *sregs, &mut machine);
        let gate = sregs.idt.base.wrapping_add(PAGE_FAULT * GATE);
        let physical = cpu.translate(gate, Access::Table, Segment::Data).ok();
        self.gate = GateCache {
            idt: sregs.idt.base,
            physical,
            age: 0,
        };
    }

    /// The handler that the gate names, if it is present. IDTs are aligned to their gates, so a gate crosses no page.
    pub(super) fn read_gate(&mut self) -> Option<u64> {
        let mut raw = [0; 16];
        self.host
            .memory
            .read_slice(&mut raw, GuestAddress(self.gate.physical?))
            .ok()?;
        let gate = u128::from_le_bytes(raw);
        let present = gate >> 47 & 1 == 1;
        let offset = (gate & 0xffff) | (gate >> 32 & 0xffff_0000) | (gate >> 32 & 0xffff_ffff_0000_0000);
        present.then_some(offset as u64)
    }

    pub(super) fn arm(&mut self, vcpu: &mut VcpuFd, handler: u64) -> Result<(), AssistError> {
        if self.interpreting && self.handler != Some(handler) {
            self.common = self.first_call(vcpu, handler);
        }
        let mut debug = kvm_guest_debug {
            control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP,
            ..Default::default()
        };
        debug.arch.debugreg[0] = handler;
        debug.arch.debugreg[7] = DR7_BREAKPOINT_0;
        if let Some(common) = self.common {
            debug.arch.debugreg[1] = common;
            debug.arch.debugreg[7] |= DR7_BREAKPOINT_1;
        }
        vcpu.set_guest_debug(&debug)
            .map_err(failed("KVM_SET_GUEST_DEBUG"))?;
        self.handler = Some(handler);
        self.debug = DebugState::Armed(handler);
        Ok(())
    }

    /// Where the first call of a handler goes, if it is among its first instructions.
    pub(super) fn first_call(&mut self, vcpu: &mut VcpuFd, handler: u64) -> Option<u64> {
        let (regs, sregs) = (vcpu.sync_regs_mut().regs, vcpu.sync_regs_mut().sregs);
        let mut machine = KvmMachine {
            vcpu,
            host: &mut self.host,
        };
        let mut cpu = Cpu::new(kvm_regs { rip: handler, ..regs }, sregs, &mut machine);
        // The handler runs in ring 0, wherever the guest is now.
        cpu.sregs.cs.selector &= !3;
        for _ in 0..PROLOGUE {
            let mut bytes = [0; LONGEST];
            let (length, _) = execute::fetch(&cpu, &mut bytes);
            let instruction = execute::decode(&cpu, &bytes[..length]);
            match instruction.mnemonic() {
                Mnemonic::Call if instruction.is_call_near() => {
                    return Some(instruction.near_branch_target());
                }
                Mnemonic::Push => {}
                other if is_without_effect(other) => {}
                _ => return None,
            }
            cpu.regs.rip = instruction.next_ip();
        }
        None
    }

    pub(super) fn disarm(&mut self, vcpu: &VcpuFd) -> Result<(), AssistError> {
        if self.debug == DebugState::Stepping {
            let debug = kvm_guest_debug::default();
            vcpu.set_guest_debug(&debug)
                .map_err(failed("KVM_SET_GUEST_DEBUG"))?;
            self.debug = DebugState::Off;
        }
        Ok(())
    }

    pub(super) fn step(&mut self, vcpu: &VcpuFd) -> Result<(), AssistError> {
        if self.debug == DebugState::Stepping {
            return Ok(());
        }
        let block = if self.interpreting {
            0
        } else {
            KVM_GUESTDBG_BLOCKIRQ
        };
        let debug = kvm_guest_debug {
            control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | block,
            ..Default::default()
        };
        vcpu.set_guest_debug(&debug)
            .map_err(failed("KVM_SET_GUEST_DEBUG"))?;
        self.debug = DebugState::Stepping;
        self.counts.steps += 1;
        Ok(())
    }

    /// Whether a single step ended behind the first instruction of the page fault handler, with nothing pushed since.
    ///
    /// A step from the kernel to ring 3 does not stop there, so the next to stop may be a system call.
    pub(super) fn follows_page_fault(&mut self, vcpu: &mut VcpuFd, rip: u64) -> bool {
        if self.read_gate().is_none() {
            let (regs, sregs) = (vcpu.sync_regs_mut().regs, vcpu.sync_regs_mut().sregs);
            self.find_gate(vcpu, regs, &sregs);
        }
        let Some(handler) = self
            .read_gate()
            .filter(|handler| rip.wrapping_sub(*handler) < LONGEST as u64)
        else {
            return false;
        };
        let (regs, sregs) = (vcpu.sync_regs_mut().regs, vcpu.sync_regs_mut().sregs);
        let mut machine = KvmMachine {
            vcpu,
            host: &mut self.host,
        };
        let cpu = Cpu::new(kvm_regs { rip: handler, ..regs }, sregs, &mut machine);
        let mut bytes = [0; LONGEST];
        let (length, _) = execute::fetch(&cpu, &mut bytes);
        let first = execute::decode(&cpu, &bytes[..length]);
        rip == handler || rip == first.next_ip() && is_without_effect(first.mnemonic())
    }
}

/// Whether an instruction may start a handler without touching registers or the stack.
pub(super) fn is_without_effect(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Endbr64 | Mnemonic::Nop | Mnemonic::Cld | Mnemonic::Clac | Mnemonic::Lfence
    )
}
