//! The assist of one vCPU: what to do at each of its exits.

use std::sync::Arc;

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION, KVM_MP_STATE_HALTED, kvm_mp_state,
    kvm_regs, kvm_segment,
};
use kvm_ioctls::{SyncReg, VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;

use super::execute::{self, Done, LONGEST};
use super::interpret::{Decoded, Privileges};
use super::kvm::{Host, KvmMachine, read_msrs};
use super::machine::{Cpu, Exception, Machine, Trap, rflags};
use super::paging::{Segment, Translations};
use super::watch::{DebugState, GateCache, is_without_effect};
use super::{AssistCounts, AssistError};

/// IA32_STAR, IA32_LSTAR, IA32_CSTAR.
const SYSCALL_MSRS: [u32; 3] = [0xc000_0081, 0xc000_0082, 0xc000_0083];
/// IA32_KERNEL_GS_BASE.
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
/// DR6: the breakpoints used here, single step.
const DR6_OURS: u64 = 0b11;
const DR6_STEP: u64 = 1 << 14;

/// The assist of one vCPU. Use it on the vCPU's own thread, and only where the probe found an interpreting KVM.
pub struct VcpuAssist {
    pub(super) host: Host,
    pub(super) counts: AssistCounts,
    /// Whether KVM hands over registers with each exit.
    synced: bool,
    /// Where the guest's page fault handler starts, which carries the breakpoint.
    pub(super) handler: Option<u64>,
    /// Where all handlers go on, if that can be told: interrupts that come in ring 3 are caught there to be interpreted here.
    pub(super) common: Option<u64>,
    /// The guest-debug state that KVM has.
    pub(super) debug: DebugState,
    pub(super) gate: GateCache,
    /// The guest's STAR, LSTAR, CSTAR when last read.
    syscall_msrs: [u64; 3],
    /// Whether ring 0 is interpreted here as far as possible.
    pub(super) interpreting: bool,
    decoded: Decoded,
    translations: Translations,
    /// Where the guest goes on after the HLT that it is in.
    halted: Option<u64>,
}

/// What an assist remembers that cannot be read from the vCPU. Version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssistState {
    /// Where the guest goes on after the HLT that it is in.
    pub halted: Option<u64>,
}

/// What the CPU pushed for a page fault.
#[derive(Debug, Clone, Copy)]
struct Frame {
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
}

pub(super) fn failed(ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> AssistError {
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
            common: None,
            debug: DebugState::Off,
            gate: GateCache::default(),
            syscall_msrs: [0; 3],
            interpreting: true,
            decoded: Decoded::new(),
            translations: Translations::new(),
            halted: None,
        })
    }

    /// The guest may read `memory` too, but not write it.
    #[must_use]
    pub fn with_read_only(mut self, memory: Arc<GuestMemoryMmap>) -> Self {
        self.host.read_only = memory;
        self
    }

    /// Sets whether ring 0 is interpreted here as far as possible, as it is from the start, or by KVM, which is many times slower. Call it
    /// before the vCPU runs.
    pub fn interpret_here(&mut self, on: bool) {
        self.interpreting = on;
    }

    /// What it remembers that cannot be read from the vCPU.
    pub fn save(&self) -> AssistState {
        AssistState { halted: self.halted }
    }

    /// Goes on from `state`, for a vCPU whose own state was set. Call it before the vCPU runs.
    pub fn restore(&mut self, state: AssistState, vcpu: &VcpuFd) -> Result<(), AssistError> {
        self.halted = state.halted;
        self.syscall_msrs = read_msrs(vcpu, SYSCALL_MSRS)?;
        Ok(())
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
            // From now on they come with each exit.
            let regs = vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?;
            let sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
            let events = vcpu.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
            let sync = vcpu.sync_regs_mut();
            (sync.regs, sync.sregs, sync.events) = (regs, sregs, events);
        }
        // KVM adds the interrupt that it is delivering to this set and takes none away; given back, a vector of long ago would be
        // delivered again, interrupts enabled or not. What is under way KVM keeps by itself.
        vcpu.sync_regs_mut().sregs.interrupt_bitmap = [0; 4];
        if self.interpreting && self.interpret(vcpu)? {
            return self.step(vcpu);
        }
        if self.debug == DebugState::Stepping && !self.interpreting {
            return Ok(());
        }
        self.watch(vcpu)
    }

    /// Interprets ring 0 from where it stands. Returns whether KVM is to do a single instruction now.
    fn interpret(&mut self, vcpu: &mut VcpuFd) -> Result<bool, AssistError> {
        // By a breakpoint, or by a kick that came between the fault and the handler's first instruction.
        if self.handler == Some(vcpu.sync_regs_mut().regs.rip) {
            self.on_page_fault(vcpu)?;
        }
        let sync = vcpu.sync_regs_mut();
        let events = &sync.events;
        let delivering = events.exception.injected
            | events.exception.pending
            | events.interrupt.injected
            | events.nmi.injected;
        let mut known = Privileges {
            star: self.syscall_msrs[0],
            kernel_gs: None,
            nmi: events.nmi.masked != 0,
        };
        let (regs, sregs, shadow) = (sync.regs, sync.sregs, events.interrupt.shadow);
        self.translations.clear();
        let mut machine = KvmMachine {
            vcpu,
            host: &mut self.host,
        };
        let mut cpu = Cpu::new(regs, sregs, &mut machine);
        if !cpu.can_interpret() {
            return Ok(false);
        }
        if delivering != 0 || self.halted == Some(regs.rip) {
            return Ok(true);
        }
        cpu.guarded = true;
        cpu.translations = Some(&self.translations);
        let session = cpu.session(&mut self.decoded, &mut known, &mut self.counts);
        let (after, after_system, system_changed) = (cpu.regs, cpu.sregs, cpu.sregs_changed);
        let goes_on = cpu.privilege() == 0;
        if let Some((base, true)) = known.kernel_gs {
            machine.set_msr(MSR_KERNEL_GS_BASE, base)?;
        }
        self.syscall_msrs[0] = known.star;
        if session.waiting {
            // The guest waits for another of its CPUs, which may wait for this thread's.
            std::thread::yield_now();
        }
        self.halted = session.halted.then_some(after.rip);
        if session.halted {
            let halted = kvm_mp_state {
                mp_state: KVM_MP_STATE_HALTED,
            };
            vcpu.set_mp_state(halted).map_err(failed("KVM_SET_MP_STATE"))?;
        }
        self.counts.interpreted += u64::from(session.done);
        if after != regs {
            vcpu.sync_regs_mut().regs = after;
            vcpu.set_sync_dirty_reg(SyncReg::Register);
        }
        if system_changed {
            vcpu.sync_regs_mut().sregs = after_system;
            vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
        }
        if session.done > 0 && shadow != 0 {
            vcpu.sync_regs_mut().events.interrupt.shadow = 0;
            vcpu.set_sync_dirty_reg(SyncReg::VcpuEvents);
        }
        Ok(goes_on)
    }

    /// After KVM_EXIT_DEBUG.
    pub fn on_debug(&mut self, vcpu: &mut VcpuFd) -> Result<(), AssistError> {
        let Some(dr6) = debug_status(vcpu) else {
            return Ok(());
        };
        let rip = vcpu.sync_regs_mut().regs.rip;
        if self.debug == DebugState::Stepping && self.interpreting {
            if self.handler != Some(rip) && self.follows_page_fault(vcpu, rip) {
                return self.on_page_fault(vcpu);
            }
            if dr6 & DR6_STEP != 0 {
                return Ok(());
            }
        } else if self.debug == DebugState::Stepping {
            if let Some(handler) = self.handler {
                self.arm(vcpu, handler)?;
            }
            if dr6 & DR6_STEP != 0 {
                return Ok(());
            }
        } else if self.debug == DebugState::Armed(rip) && dr6 & DR6_STEP == 0 {
            // While interpreting, the look at each entry finds it.
            return if self.interpreting {
                Ok(())
            } else {
                self.on_page_fault(vcpu)
            };
        } else if self.common == Some(rip) && dr6 & DR6_STEP == 0 {
            return Ok(());
        }
        self.counts.debug_exceptions += 1;
        raise_debug(vcpu, dr6 & !DR6_OURS)
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
        if self.interpreting {
            return Ok(());
        }
        // Get past the breakpoint: the first instruction is one without effect in every kernel built for these CPUs.
        let mut machine = KvmMachine {
            vcpu,
            host: &mut self.host,
        };
        let mut cpu = Cpu::new(regs, sregs, &mut machine);
        let mut bytes = [0; LONGEST];
        let (length, beyond) = execute::fetch(&cpu, &mut bytes);
        let simple = is_without_effect(execute::decode(&cpu, &bytes[..length]).mnemonic());
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
