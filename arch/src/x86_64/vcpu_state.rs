//! The whole state of a vCPU, to be kept and given to another.
//!
//! The order of the calls matters (`Documentation/virt/kvm/api.rst`, and what KVM's code checks): CPUID before everything,
//! special registers before the MSRs that depend on EFER, the local APIC before its deadline, events and the run state last.
//! No call and no MSR is taken for granted: what KVM does not list is not asked for, what it lists and refuses is left out.

use std::sync::Arc;

use kvm_bindings::{
    Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::xsave_buffer::{TooLarge, XsaveBuffer};
use super::{cpuid, msr};
use crate::hex;

/// IA32_TSC.
pub const MSR_TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE: set after the APIC's timer has its mode.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// MSRs that KVM sets at once.
const BATCH: usize = 256;

/// Why a vCPU's state cannot be read or set.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// KVM refused a call.
    #[error("{ioctl} failed: {cause}")]
    Ioctl {
        /// Name of the call.
        ioctl: &'static str,
        /// What KVM said.
        cause: kvm_ioctls::Error,
    },
    /// CPUID does not fit.
    #[error(transparent)]
    Cpuid(#[from] cpuid::CpuidError),
    /// Extended state of a size that this host does not have.
    #[error("the extended state of a vCPU has {found} bytes, but this host's has {expected}")]
    Xsave {
        /// In the state.
        found: usize,
        /// On this host.
        expected: usize,
    },
    /// MSRs that the guest had and this host refuses.
    #[error("KVM refuses the value {value:#x} of MSR {index:#x}")]
    Msr {
        /// The MSR.
        index: u32,
        /// Its value in the state.
        value: u64,
    },
}

fn failed(ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> VcpuStateError {
    move |cause| VcpuStateError::Ioctl { ioctl, cause }
}

/// A vCPU's state. Structures of KVM's are kept as their bytes, in hexadecimal digits. Version 1.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// CPUID as the guest sees it.
    pub cpuid: Vec<CpuidLeaf>,
    /// Frequency of the TSC in kHz, where KVM tells it.
    pub tsc_khz: Option<u32>,
    /// Index and value of every MSR.
    pub msrs: Vec<(u32, u64)>,
    #[serde(with = "hex::plain")]
    regs: kvm_regs,
    #[serde(with = "hex::plain")]
    sregs: kvm_sregs,
    #[serde(with = "hex::plain")]
    xcrs: kvm_xcrs,
    #[serde(with = "hex::bytes")]
    xsave: Vec<u8>,
    #[serde(with = "hex::plain")]
    lapic: Lapic,
    #[serde(with = "hex::plain")]
    debug: kvm_debugregs,
    #[serde(with = "hex::plain")]
    events: kvm_vcpu_events,
    mp_state: u32,
}

/// An entry of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidLeaf {
    /// EAX that selects it.
    pub function: u32,
    /// ECX that selects it, where the flags say so.
    pub index: u32,
    /// KVM's flags.
    pub flags: u32,
    /// EAX, EBX, ECX, EDX.
    pub registers: [u32; 4],
}

impl From<&kvm_cpuid_entry2> for CpuidLeaf {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        Self {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            registers: [entry.eax, entry.ebx, entry.ecx, entry.edx],
        }
    }
}

impl From<&CpuidLeaf> for kvm_cpuid_entry2 {
    fn from(leaf: &CpuidLeaf) -> Self {
        let [eax, ebx, ecx, edx] = leaf.registers;
        Self {
            function: leaf.function,
            index: leaf.index,
            flags: leaf.flags,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }
}

/// The local APIC's registers as bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(transparent)]
struct Lapic([u8; 1024]);

/// Reads the states of vCPUs.
#[derive(Clone)]
pub struct StateReader {
    msrs: Arc<[u32]>,
}

impl StateReader {
    /// Asks which MSRs there are.
    pub fn new(kvm: &Kvm) -> Result<Self, VcpuStateError> {
        let list = kvm
            .get_msr_index_list()
            .map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(Self {
            msrs: list.as_slice().into(),
        })
    }

    /// Reads the state of a vCPU of `vm` that stands still, outside of KVM_RUN, with nothing left to complete.
    pub fn read(&self, vm: &VmFd, vcpu: &VcpuFd) -> Result<VcpuState, VcpuStateError> {
        // First: KVM settles what the APIC has pending when it is asked for the run state.
        let mp_state = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
        let cpuid = vcpu
            .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_CPUID2"))?;
        let lapic = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        Ok(VcpuState {
            cpuid: cpuid.as_slice().iter().map(CpuidLeaf::from).collect(),
            tsc_khz: vcpu.get_tsc_khz().ok(),
            msrs: self.read_msrs(vcpu)?,
            regs: vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?,
            xcrs: vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?,
            xsave: buffer(vm)?.read(vcpu).map_err(failed("KVM_GET_XSAVE2"))?,
            lapic: Lapic(lapic.regs.map(|byte| byte as u8)),
            debug: vcpu.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?,
            events: vcpu.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?,
            mp_state: mp_state.mp_state,
        })
    }

    /// Every listed MSR that KVM lets be read.
    fn read_msrs(&self, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, VcpuStateError> {
        let mut values = Vec::with_capacity(self.msrs.len());
        let mut left = &*self.msrs;
        while !left.is_empty() {
            let batch = &left[..left.len().min(BATCH)];
            let mut msrs = entries(batch.iter().map(|&index| (index, 0)))?;
            let read = vcpu.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
            let read = read.min(batch.len());
            values.extend(
                msrs.as_slice()[..read]
                    .iter()
                    .map(|entry| (entry.index, entry.data)),
            );
            // KVM stops at the first that it refuses.
            let skip = read + usize::from(read < batch.len());
            if read < batch.len() {
                tracing::debug!("MSR {:#x} is listed, but cannot be read", batch[read]);
            }
            left = &left[skip..];
        }
        Ok(values)
    }
}

impl VcpuState {
    /// Gives the state to a new vCPU of `vm` that has not run. `tsc_advance` is added to its TSC.
    ///
    /// An MSR that KVM refuses is an error only if the vCPU has another value than the state wants.
    pub fn write(&self, vm: &VmFd, vcpu: &VcpuFd, tsc_advance: u64) -> Result<(), VcpuStateError> {
        let leaves: Vec<kvm_cpuid_entry2> = self.cpuid.iter().map(kvm_cpuid_entry2::from).collect();
        cpuid::set(vcpu, &leaves)?;
        if let Some(khz) = self.tsc_khz
            && vcpu.get_tsc_khz().ok() != Some(khz)
        {
            vcpu.set_tsc_khz(khz).map_err(failed("KVM_SET_TSC_KHZ"))?;
        }
        vcpu.set_sregs(&self.sregs).map_err(failed("KVM_SET_SREGS"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(failed("KVM_SET_XCRS"))?;
        self.write_xsave(vm, vcpu)?;
        vcpu.set_regs(&self.regs).map_err(failed("KVM_SET_REGS"))?;
        let advanced = |&(index, value): &(u32, u64)| match index {
            MSR_TSC => (index, value.wrapping_add(tsc_advance)),
            _ => (index, value),
        };
        let (deadline, msrs): (Vec<_>, Vec<_>) = self
            .msrs
            .iter()
            .map(advanced)
            .partition(|(index, _)| *index == MSR_TSC_DEADLINE);
        write_msrs(vcpu, &msrs)?;
        let lapic = kvm_lapic_state {
            regs: self.lapic.0.map(|byte| byte as std::ffi::c_char),
        };
        vcpu.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))?;
        write_msrs(vcpu, &deadline)?;
        vcpu.set_debug_regs(&self.debug)
            .map_err(failed("KVM_SET_DEBUGREGS"))?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(failed("KVM_SET_VCPU_EVENTS"))?;
        let mp_state = kvm_mp_state {
            mp_state: self.mp_state,
        };
        vcpu.set_mp_state(mp_state).map_err(failed("KVM_SET_MP_STATE"))
    }

    fn write_xsave(&self, vm: &VmFd, vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
        let mut xsave = buffer(vm)?;
        let (found, expected) = (self.xsave.len(), xsave.len());
        if found != expected {
            return Err(VcpuStateError::Xsave { found, expected });
        }
        xsave.write(vcpu, &self.xsave).map_err(failed("KVM_SET_XSAVE"))
    }

    /// The vCPU's TSC.
    pub fn tsc(&self) -> Option<u64> {
        let found = self.msrs.iter().find(|(index, _)| *index == MSR_TSC);
        found.map(|(_, value)| *value)
    }
}

fn buffer(vm: &VmFd) -> Result<XsaveBuffer, VcpuStateError> {
    XsaveBuffer::new(vm).map_err(|TooLarge(found)| VcpuStateError::Xsave { found, expected: 0 })
}

/// At most [`BATCH`] MSRs.
fn entries(msrs: impl Iterator<Item = (u32, u64)>) -> Result<Msrs, VcpuStateError> {
    let entries: Vec<_> = msrs
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries)
        .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
        .map_err(failed("KVM_SET_MSRS"))
}

fn write_msrs(vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), VcpuStateError> {
    let mut left = msrs;
    while !left.is_empty() {
        let batch = &left[..left.len().min(BATCH)];
        let written = vcpu
            .set_msrs(&entries(batch.iter().copied())?)
            .map_err(failed("KVM_SET_MSRS"))?;
        let written = written.min(batch.len());
        left = &left[written..];
        if written < batch.len() {
            let (index, value) = batch[written];
            let same = msr::read(vcpu, index) == Some(value);
            if !same && value != 0 {
                return Err(VcpuStateError::Msr { index, value });
            }
            left = &left[1..];
        }
    }
    Ok(())
}
