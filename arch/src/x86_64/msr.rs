//! One MSR of a vCPU. Nothing if KVM does not know it or does not take the value.
#![forbid(unsafe_code)]

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

pub(super) fn read(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut msrs = one(index, 0)?;
    (vcpu.get_msrs(&mut msrs).ok()? == 1).then_some(())?;
    Some(msrs.as_slice().first()?.data)
}

pub(super) fn write(vcpu: &VcpuFd, index: u32, data: u64) -> Option<()> {
    (vcpu.set_msrs(&one(index, data)?).ok()? == 1).then_some(())
}

fn one(index: u32, data: u64) -> Option<Msrs> {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[entry]).ok()
}
