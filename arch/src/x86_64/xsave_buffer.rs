//! The buffer in which KVM hands over a vCPU's extended state: 4096 bytes, or what KVM_CAP_XSAVE2 says.

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use zerocopy::IntoBytes;

/// A buffer for the vCPUs of one VM.
pub(crate) struct XsaveBuffer(Xsave);

/// The VM's extended state is larger than this program can hold; its size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLarge(pub(crate) usize);

impl XsaveBuffer {
    /// A buffer of the size that KVM wants for vCPUs of `vm`.
    pub(crate) fn new(vm: &VmFd) -> Result<Self, TooLarge> {
        // A KVM without the capability uses 4096 bytes.
        let size = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        let extra = size
            .saturating_sub(size_of::<kvm_xsave>())
            .div_ceil(size_of::<u32>());
        Xsave::new(extra).map(Self).map_err(|_| TooLarge(size))
    }

    /// Bytes in it.
    pub(crate) fn len(&self) -> usize {
        size_of::<kvm_xsave>() + size_of_val(self.0.as_slice())
    }

    /// The extended state of `vcpu`, of the VM that the buffer is for.
    pub(crate) fn read(&mut self, vcpu: &VcpuFd) -> Result<Vec<u8>, kvm_ioctls::Error> {
        // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 gave for this VM. That size grows only if the process enables dynamic
        // features (AMX), which Berth never does.
        unsafe { vcpu.get_xsave2(&mut self.0) }?;
        let fixed = self.0.as_fam_struct_ref().xsave.region.as_bytes();
        Ok([fixed, self.0.as_slice().as_bytes()].concat())
    }

    /// Gives `vcpu`, of the VM that the buffer is for, the extended state `image`; what it has no bytes for stays as it was read last.
    pub(crate) fn write(&mut self, vcpu: &VcpuFd, image: &[u8]) -> Result<(), kvm_ioctls::Error> {
        // SAFETY: only the fixed part is changed, not the length that the wrapper relies on.
        let fixed = unsafe { self.0.as_mut_fam_struct() };
        let fixed = fixed.xsave.region.as_mut_bytes();
        let (head, tail) = image.split_at(image.len().min(fixed.len()));
        fixed[..head.len()].copy_from_slice(head);
        let extra = self.0.as_mut_slice().as_mut_bytes();
        let length = tail.len().min(extra.len());
        extra[..length].copy_from_slice(&tail[..length]);
        // SAFETY: as in `read`: KVM reads no more than the buffer has.
        unsafe { vcpu.set_xsave2(&self.0) }
    }
}
