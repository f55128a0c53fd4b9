//! The assist of one vCPU: what to do at each of its exits.

use std::sync::Arc;

use iced_x86::Mnemonic;
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_INTERNAL_ERROR, KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_INTERNAL_ERROR_EMULATION, kvm_guest_debug, kvm_regs,
    kvm_segment, kvm_sregs,
};
use kvm_ioctls::{SyncReg, VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;

use super::execute::{self, Done, LONGEST};
use super::kvm::{Host, KvmMachine, read_msrs};
use super::machine::{Cpu, Exception, Trap, control, rflags};
use super::paging::Segment;
use super::{AssistCounts, AssistError};

/// IA32_STAR, IA32_LSTAR, IA32_CSTAR.
const SYSCALL_MSRS: [u32; 3] = [0xc000_0081, 0xc000_0082, 0xc000_0083];
/// DR6: which breakpoint, single step.
const DR6_BREAKPOINT_0: u64 = 1 << 0;
const DR6_STEP: u64 = 1 << 14;
/// DR7: breakpoint 0 on execution, enabled; bit 10 is always set.
const DR7_BREAKPOINT_0: u64 = 0x401;
/// The page fault's vector.
const PAGE_FAULT: u64 = 14;
/// Size of a gate in long mode.
const GATE: u64 = 16;
/// How many entries into the guest may pass until the IDT's place in memory is looked up again.
const RELOCATE: u32 = 256;

/// The assist of one vCPU. Use it on the vCPU's own thread, and only where the probe found an interpreting KVM.
pub struct VcpuAssist {
    host: Host,
    counts: AssistCounts,
    /// Whether KVM hands over registers with each exit.
    synced: bool,
    /// Where the guest's page fault handler starts, which carries the breakpoint.
    handler: Option<u64>,
    /// The guest-debug state that KVM has.
    debug: Debug,
    gate: GateCache,
    /// The guest's STAR, LSTAR, CSTAR when last read.
    syscall_msrs: [u64; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Debug {
    Off,
    /// A breakpoint on the page fault handler.
    Armed(u64),
    /// One instruction, then the breakpoint again.
    Stepping,
}

/// Where the gate of the page fault lies in guest memory.
#[derive(Debug, Clone, Copy, Default)]
struct GateCache {
    idt: u64,
    physical: Option<u64>,
    age: u32,
}

/// What the CPU pushed for a page fault.
#[derive(Debug, Clone, Copy)]
struct Frame {
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
}

fn failed(ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> AssistError {
    move |cause| AssistError::Ioctl { ioctl, cause }
}

impl VcpuAssist {
    /// An assist for a vCPU of `vm`, whose RAM is `memory`.
    pub fn new(memory: Arc<GuestMemoryMmap>, vm: &VmFd) -> Result<Self, AssistError> {
        Ok(Self {
            host: Host::new(memory, vm)?,
            counts: AssistCounts::default(),
            synced: false,
            handler: None,
            debug: Debug::Off,
            gate: GateCache::default(),
            syscall_msrs: [0; 3],
        })
    }

    /// What it completed so far.
    pub fn counts(&self) -> &AssistCounts {
        &self.counts
    }

    /// Before each KVM_RUN: keeps the breakpoint on the guest's page fault handler.
    pub fn before_run(&mut self, vcpu: &mut VcpuFd) -> Result<(), AssistError> {
        if !self.synced {
            for registers in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
                vcpu.set_sync_valid_reg(registers);
            }
            self.synced = true;
            // The registers come with the first exit; a guest that starts in ring 3 at once has set nothing up for SYSCALL.
            let sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
            vcpu.sync_regs_mut().sregs = sregs;
        }
        if self.debug == Debug::Stepping {
            return Ok(());
        }
        let sregs = &vcpu.sync_regs_mut().sregs;
        let system_calls = control::EFER_SCE | control::EFER_LMA;
        if sregs.efer & system_calls != system_calls {
            return Ok(());
        }
        let (idt, limit) = (sregs.idt.base, u64::from(sregs.idt.limit));
        if limit < (PAGE_FAULT + 1) * GATE - 1 {
            return Ok(());
        }
        if self.gate.idt != idt || self.gate.physical.is_none() || self.gate.age >= RELOCATE {
            let (regs, sregs) = (vcpu.sync_regs_mut().regs, vcpu.sync_regs_mut().sregs);
            self.find_gate(vcpu, regs, &sregs);
        }
        self.gate.age += 1;
        match self.read_gate() {
            Some(handler) if self.debug != Debug::Armed(handler) => self.arm(vcpu, handler),
            _ => Ok(()),
        }
    }

    /// Looks up where the gate lies. It may be out of reach while the kernel sets itself up; then there is none yet.
    fn find_gate(&mut self, vcpu: &VcpuFd, regs: kvm_regs, sregs: &kvm_sregs) {
        let mut machine = KvmMachine {
            vcpu,
            host: &mut self.host,
        };
        let cpu = Cpu::new(regs, *sregs, &mut machine);
        let gate = sregs.idt.base.wrapping_add(PAGE_FAULT * GATE);
        let physical = cpu
            .translate(gate, super::paging::Access::Table, Segment::Data)
            .ok();
        self.gate = GateCache {
            idt: sregs.idt.base,
            physical,
            age: 0,
        };
    }

    /// The handler that the gate names, if it is present. IDTs are aligned to their gates, so a gate crosses no page.
    fn read_gate(&mut self) -> Option<u64> {
        use vm_memory::{Bytes, GuestAddress};
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

    fn arm(&mut self, vcpu: &VcpuFd, handler: u64) -> Result<(), AssistError> {
        let mut debug = kvm_guest_debug {
            control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP,
            ..Default::default()
        };
        debug.arch.debugreg[0] = handler;
        debug.arch.debugreg[7] = DR7_BREAKPOINT_0;
        vcpu.set_guest_debug(&debug)
            .map_err(failed("KVM_SET_GUEST_DEBUG"))?;
        self.handler = Some(handler);
        self.debug = Debug::Armed(handler);
        Ok(())
    }

    fn step(&mut self, vcpu: &VcpuFd) -> Result<(), AssistError> {
        let debug = kvm_guest_debug {
            control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ,
            ..Default::default()
        };
        vcpu.set_guest_debug(&debug)
            .map_err(failed("KVM_SET_GUEST_DEBUG"))?;
        self.debug = Debug::Stepping;
        self.counts.steps += 1;
        Ok(())
    }

    /// After KVM_EXIT_DEBUG.
    pub fn on_debug(&mut self, vcpu: &mut VcpuFd) -> Result<(), AssistError> {
        let Some(dr6) = debug_status(vcpu) else {
            return Ok(());
        };
        let rip = vcpu.sync_regs_mut().regs.rip;
        if self.debug == Debug::Stepping {
            if let Some(handler) = self.handler {
                self.arm(vcpu, handler)?;
            }
            if dr6 & DR6_STEP != 0 {
                return Ok(());
            }
        } else if self.debug == Debug::Armed(rip) && dr6 & DR6_STEP == 0 {
            return self.on_page_fault(vcpu);
        }
        self.counts.debug_exceptions += 1;
        raise_debug(vcpu, dr6 & !DR6_BREAKPOINT_0)
    }

    /// At the first instruction of the page fault handler: was it a system call?
    fn on_page_fault(&mut self, vcpu: &mut VcpuFd) -> Result<(), AssistError> {
        let sync = vcpu.sync_regs_mut();
        let (mut regs, mut sregs) = (sync.regs, sync.sregs);
        let frame = {
            let mut machine = KvmMachine {
                vcpu,
                host: &mut self.host,
            };
            read_frame(&Cpu::new(regs, sregs, &mut machine))
        };
        if let Some(frame) = frame
            && self.is_system_call(vcpu, &regs, &frame)?
        {
            let [star, ..] = self.syscall_msrs;
            regs.rip = frame.rip;
            regs.rsp = frame.rsp;
            regs.rflags = frame.rflags & !rflags::RF;
            let selector = (star >> 32) as u16 & !3;
            sregs.cs = kernel_segment(selector, true);
            sregs.ss = kernel_segment(selector.wrapping_add(8), false);
            let sync = vcpu.sync_regs_mut();
            (sync.regs, sync.sregs) = (regs, sregs);
            vcpu.set_sync_dirty_reg(SyncReg::Register);
            vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
            self.counts.system_calls += 1;
            return Ok(());
        }
        self.counts.page_faults += 1;
        // Get past the breakpoint: the first instruction is one without effect in every kernel built for these CPUs.
        let mut machine = KvmMachine {
            vcpu,
            host: &mut self.host,
        };
        let mut cpu = Cpu::new(regs, sregs, &mut machine);
        let mut bytes = [0; LONGEST];
        let (length, beyond) = execute::fetch(&cpu, &mut bytes);
        let simple = matches!(
            execute::decode(&cpu, &bytes[..length]).mnemonic(),
            Mnemonic::Endbr64 | Mnemonic::Nop | Mnemonic::Cld | Mnemonic::Clac | Mnemonic::Lfence
        );
        if simple && let (_, Ok(Done::Next)) = execute::execute(&mut cpu, &bytes[..length], beyond) {
            let regs = cpu.regs;
            vcpu.sync_regs_mut().regs = regs;
            vcpu.set_sync_dirty_reg(SyncReg::Register);
            return Ok(());
        }
        self.step(vcpu)
    }

    /// Whether a page fault was the fetch that follows a SYSCALL in ring 3.
    ///
    /// A process that jumps to the entry point by itself faults at the same place, and must not pass for one that made a system
    /// call: it could bring flags of its choice in R11. SYSCALL leaves RFLAGS = R11 & ~FMASK, and every kernel masks IF, which
    /// ring 3 cannot clear; so the interrupt flag tells them apart.
    fn is_system_call(&mut self, vcpu: &VcpuFd, regs: &kvm_regs, frame: &Frame) -> Result<bool, AssistError> {
        let user = frame.cs & 3 == 3;
        let upper_half = frame.rip >> 63 == 1;
        let plausible = frame.rflags & rflags::IF == 0 && frame.rflags & !regs.r11 & !(2 | rflags::RF) == 0;
        if !(user && upper_half && plausible) {
            return Ok(false);
        }
        let entries = |msrs: &[u64; 3]| msrs[1..].contains(&frame.rip);
        if !entries(&self.syscall_msrs) {
            self.syscall_msrs = read_msrs(vcpu, SYSCALL_MSRS)?;
        }
        Ok(entries(&self.syscall_msrs))
    }

    /// After KVM_EXIT_INTERNAL_ERROR: completes the instruction at RIP, or says why it cannot be.
    pub fn on_unemulated(&mut self, vcpu: &mut VcpuFd) -> Result<(), AssistError> {
        let sync = vcpu.sync_regs_mut();
        let (regs, sregs) = (sync.regs, sync.sregs);
        if let Some(suberror) = internal_error(vcpu).filter(|error| *error != KVM_INTERNAL_ERROR_EMULATION) {
            return Err(AssistError::Internal {
                suberror,
                rip: regs.rip,
            });
        }
        let mut machine = KvmMachine {
            vcpu,
            host: &mut self.host,
        };
        let mut cpu = Cpu::new(regs, sregs, &mut machine);
        let mut bytes = [0; LONGEST];
        let (length, beyond) = execute::fetch(&cpu, &mut bytes);
        let (instruction, result) = execute::execute(&mut cpu, &bytes[..length], beyond);
        let (after, after_system, system_changed) = (cpu.regs, cpu.sregs, cpu.sregs_changed);
        let sync = vcpu.sync_regs_mut();
        sync.regs = after;
        if system_changed {
            sync.sregs = after_system;
            vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
        }
        // KVM queued #UD; taking the registers back drops it.
        vcpu.set_sync_dirty_reg(SyncReg::Register);
        match result {
            Ok(done) => {
                *self
                    .counts
                    .instructions
                    .entry(instruction.mnemonic())
                    .or_default() += 1;
                finish(vcpu, done, regs.rflags & rflags::TF != 0)
            }
            Err(Trap::Exception(exception)) => {
                self.counts.faults += 1;
                let sync = vcpu.sync_regs_mut();
                sync.regs.rflags |= rflags::RF;
                raise(vcpu, exception);
                Ok(())
            }
            Err(Trap::Host(error)) => Err(error),
            Err(Trap::Unsupported(why)) => Err(AssistError::instruction(
                regs.rip,
                &bytes[..length],
                &instruction,
                why.to_owned(),
            )),
            Err(Trap::NotRam(address)) => Err(AssistError::instruction(
                regs.rip,
                &bytes[..length],
                &instruction,
                format!("at {address:#x}, where the guest has no RAM"),
            )),
        }
    }
}

/// What follows an instruction that completed.
fn finish(vcpu: &mut VcpuFd, done: Done, stepping: bool) -> Result<(), AssistError> {
    match done {
        Done::Next => {
            let events = &mut vcpu.sync_regs_mut().events;
            if events.interrupt.shadow != 0 {
                // STI and MOV SS hold interrupts back for one instruction, which this was.
                events.interrupt.shadow = 0;
                events.exception.injected = 0;
                events.exception.pending = 0;
                vcpu.set_sync_dirty_reg(SyncReg::VcpuEvents);
            }
            if stepping {
                return raise_debug(vcpu, DR6_STEP);
            }
        }
        Done::Trap(exception) => raise(vcpu, exception),
        Done::Interrupt(vector) => {
            let events = &mut vcpu.sync_regs_mut().events;
            events.exception.injected = 0;
            events.exception.pending = 0;
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
            events.interrupt.soft = 1;
            events.interrupt.shadow = 0;
            vcpu.set_sync_dirty_reg(SyncReg::VcpuEvents);
        }
    }
    Ok(())
}

/// Gives the guest an exception at its next entry.
fn raise(vcpu: &mut VcpuFd, exception: Exception) {
    let sync = vcpu.sync_regs_mut();
    let events = &mut sync.events;
    events.exception.injected = 1;
    events.exception.pending = 0;
    events.exception.nr = exception.vector;
    events.exception.has_error_code = u8::from(exception.error_code.is_some());
    events.exception.error_code = exception.error_code.unwrap_or(0);
    events.exception_has_payload = 0;
    events.interrupt.shadow = 0;
    if let Some(address) = exception.cr2 {
        sync.sregs.cr2 = address;
        vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
    }
    vcpu.set_sync_dirty_reg(SyncReg::VcpuEvents);
}

/// Gives the guest a debug exception, with its reasons added to DR6 as the CPU does.
fn raise_debug(vcpu: &mut VcpuFd, reasons: u64) -> Result<(), AssistError> {
    let mut registers = vcpu.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?;
    registers.dr6 = registers.dr6 & !0xf | reasons & 0xe00f;
    vcpu.set_debug_regs(&registers)
        .map_err(failed("KVM_SET_DEBUGREGS"))?;
    raise(vcpu, Exception::DEBUG);
    Ok(())
}

/// A flat segment of ring 0, as SYSCALL loads it.
fn kernel_segment(selector: u16, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: if code { 11 } else { 3 },
        present: 1,
        dpl: 0,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}

/// The frame of a page fault in long mode, from the stack; none if it cannot be read.
fn read_frame(cpu: &Cpu<'_>) -> Option<Frame> {
    let mut raw = [0; 48];
    cpu.read(cpu.regs.rsp, &mut raw, Segment::Stack).ok()?;
    let word = |index: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&raw[8 * index..8 * index + 8]);
        u64::from_le_bytes(word)
    };
    Some(Frame {
        rip: word(1),
        cs: word(2),
        rflags: word(3),
        rsp: word(4),
    })
}

/// DR6 at a debug exit.
fn debug_status(vcpu: &mut VcpuFd) -> Option<u64> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_DEBUG {
        return None;
    }
    // SAFETY: the exit reason says that KVM filled in this member of the union; any bits are valid in it.
    Some(unsafe { run.__bindgen_anon_1.debug.arch.dr6 })
}

/// The kind of an internal error.
fn internal_error(vcpu: &mut VcpuFd) -> Option<u32> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: the exit reason says that KVM filled in this member of the union; any bits are valid in it.
    Some(unsafe { run.__bindgen_anon_1.internal.suberror })
}
