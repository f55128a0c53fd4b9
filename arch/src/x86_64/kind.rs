//! How this host's KVM runs a guest's kernel: natively, or by interpreting it.
//!
//! No capability and no CPUID bit says so; the way to know is to run ring-0 code and see what comes back. The code is three
//! instructions that every x86_64 CPU has and KVM's instruction emulator lacks, then a port write. Native execution reaches the
//! port; the emulator stops at the first instruction it does not know. KVM emulates some code on ordinary hosts too (MMIO; real mode
//! on Intel CPUs before 2010), so the code runs in protected or long mode and touches no device.
//!
//! [`kind_of_vcpu`] asks the VM's own vCPU, which is cheapest; [`host_kind`] makes a VM for it.

use std::time::{Duration, Instant};

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

use super::boot_regs::{self, Entry};
use super::layout::{EXIT_PORT, PAGE_SIZE, ZERO_PAGE};

/// What runs a guest's ring 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostKind {
    /// The CPU: KVM with hardware virtualization.
    Native,
    /// KVM's instruction emulator: guests need the [assist](super::assist).
    Interpreted,
}

/// Why the kind of host could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum KindError {
    /// A call to KVM failed.
    #[error("{ioctl} failed while probing the host: {cause}")]
    Ioctl {
        /// Name of the call.
        ioctl: &'static str,
        /// What KVM said.
        cause: kvm_ioctls::Error,
    },
    /// The vCPU could not be prepared.
    #[error("cannot probe the host: {0}")]
    Registers(#[from] boot_regs::BootRegsError),
    /// There is no memory for the code.
    #[error("cannot place the probe's code at {PROBE_CODE:#x} in guest memory: {0}")]
    Memory(String),
    /// The code did something that neither kind of host does.
    #[error(
        "the probe's code ended with the unexpected exit {0}; this KVM can run neither natively nor interpreted guests as Berth knows them"
    )]
    Exit(String),
}

fn failed(ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> KindError {
    move |cause| KindError::Ioctl { ioctl, cause }
}

/// Where the code lies: in the page of the boot stack, which nobody uses before the guest runs.
const PROBE_CODE: u64 = ZERO_PAGE + PAGE_SIZE;

/// Means the same in 32-bit and 64-bit mode. FNCLEX, EMMS and FWAIT leave an FPU that was just reset as it is.
const CODE: [u8; 9] = [
    0xdb,
    0xe2, // fnclex
    0x0f,
    0x77, // emms
    0x9b, // fwait: last, it costs an interpreter a millisecond
    0xe6,
    EXIT_PORT as u8, // out EXIT_PORT, al
    0xeb,
    0xfc, // jmp back to the out
];

/// What kind of host runs `vcpu`, by letting it run a few instructions before the guest does.
///
/// The vCPU must be the first one and prepared for `entry` by [`boot_regs::write_tables`] and [`boot_regs::set_entry`]; it is left
/// as they left it, and the memory too. KVM takes no other CPUID after this than the one the vCPU has by then.
pub fn kind_of_vcpu<M>(vcpu: &mut VcpuFd, memory: &M, entry: Entry) -> Result<HostKind, KindError>
where
    M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
{
    let place = |bytes: &[u8]| {
        let written = memory.write_slice(bytes, GuestAddress(PROBE_CODE));
        written.map_err(|cause| KindError::Memory(cause.to_string()))
    };
    place(&CODE)?;
    run_from(vcpu, PROBE_CODE)?;
    let kind = match vcpu.run().map_err(failed("KVM_RUN"))? {
        VcpuExit::IoOut(EXIT_PORT, _) => Ok(HostKind::Native),
        VcpuExit::InternalError => Err("internal error".to_owned()),
        other => Err(format!("{other:?}")),
    };
    let kind = match kind {
        Ok(kind) => {
            finish_port_access(vcpu);
            kind
        }
        Err(_) if is_emulation_failure(vcpu) => HostKind::Interpreted,
        Err(exit) => return Err(KindError::Exit(exit)),
    };
    // This also drops the #UD that KVM has queued for the instruction it could not emulate.
    vcpu.set_regs(&boot_regs::regs(entry))
        .map_err(failed("KVM_SET_REGS"))?;
    place(&[0; CODE.len()])?;
    Ok(kind)
}

/// Lets KVM complete a port access, which it does at the next KVM_RUN: by then it must not meet the guest's registers.
fn finish_port_access(vcpu: &mut VcpuFd) {
    vcpu.set_kvm_immediate_exit(1);
    // EINTR is the answer. A KVM too old for an immediate exit comes back from the next OUT instead.
    let _ = vcpu.run();
    vcpu.set_kvm_immediate_exit(0);
}

fn is_emulation_failure(vcpu: &mut VcpuFd) -> bool {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
        return false;
    }
    // SAFETY: every bit pattern is a valid u32, and for this exit reason KVM has filled this member of the union.
    let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
    suberror == KVM_INTERNAL_ERROR_EMULATION
}

fn run_from(vcpu: &VcpuFd, rip: u64) -> Result<(), KindError> {
    let regs = kvm_regs {
        rip,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))
}

/// What kind of host this is, by a VM made for the purpose. Costs several times as much as [`kind_of_vcpu`].
pub fn host_kind(kvm: &Kvm) -> Result<HostKind, KindError> {
    let entry = Entry::Pvh {
        rip: PROBE_CODE as u32,
    };
    let mut vm = ProbeVm::new(kvm, entry)?;
    kind_of_vcpu(&mut vm.vcpu, &vm.memory, entry)
}

/// Measures how many ring-0 instructions a second this host runs, for some 50 ms.
pub fn ring0_speed(kvm: &Kvm) -> Result<u64, KindError> {
    const ENOUGH: Duration = Duration::from_millis(10);
    let entry = Entry::Pvh {
        rip: PROBE_CODE as u32,
    };
    let mut vm = ProbeVm::new(kvm, entry)?;
    let mut rounds: u32 = 1000;
    loop {
        let elapsed = vm.count_down(rounds)?;
        if elapsed >= ENOUGH || rounds > u32::MAX / 8 {
            let instructions = f64::from(rounds) * 2.0;
            return Ok((instructions / elapsed.as_secs_f64().max(1e-9)) as u64);
        }
        rounds *= 8;
    }
}

/// One vCPU, one page of memory, no interrupt controller. Fields drop in this order: the VM before the memory it maps.
struct ProbeVm {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: GuestMemoryMmap,
}

impl ProbeVm {
    fn new(kvm: &Kvm, entry: Entry) -> Result<Self, KindError> {
        let page = GuestAddress(PROBE_CODE);
        let memory = GuestMemoryMmap::from_ranges(&[(page, PAGE_SIZE as usize)])
            .map_err(|cause| KindError::Memory(cause.to_string()))?;
        let host = memory
            .get_host_address(page)
            .map_err(|cause| KindError::Memory(cause.to_string()))?;
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        let region = kvm_userspace_memory_region {
            guest_phys_addr: PROBE_CODE,
            memory_size: PAGE_SIZE,
            userspace_addr: host as u64,
            ..Default::default()
        };
        // SAFETY: the region is a mapping of one page that `Self` keeps until after it has dropped the VM.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        boot_regs::set_entry(&vcpu, entry)?;
        Ok(Self {
            vcpu,
            _vm: vm,
            memory,
        })
    }

    /// Runs a loop of two instructions `rounds` times.
    fn count_down(&mut self, rounds: u32) -> Result<Duration, KindError> {
        let count = rounds.to_le_bytes();
        let code = [
            0xb9,
            count[0],
            count[1],
            count[2],
            count[3], // mov ecx, rounds
            0xff,
            0xc9, // dec ecx
            0x75,
            0xfc, // jnz back to the dec
            0xe6,
            EXIT_PORT as u8, // out EXIT_PORT, al
            0xeb,
            0xfc, // jmp back to the out
        ];
        let placed = self.memory.write_slice(&code, GuestAddress(PROBE_CODE));
        placed.map_err(|cause| KindError::Memory(cause.to_string()))?;
        run_from(&self.vcpu, PROBE_CODE)?;
        let start = Instant::now();
        match self.vcpu.run().map_err(failed("KVM_RUN"))? {
            VcpuExit::IoOut(EXIT_PORT, _) => {}
            other => return Err(KindError::Exit(format!("{other:?}"))),
        }
        let elapsed = start.elapsed();
        finish_port_access(&mut self.vcpu);
        Ok(elapsed)
    }
}
