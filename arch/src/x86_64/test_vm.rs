//! A VM with one vCPU and some memory, for tests that need /dev/kvm. Without it they fail.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Fields drop in this order: the VM before the memory it maps.
pub(crate) struct TestVm {
    pub(crate) vcpu: VcpuFd,
    _vm: VmFd,
    pub(crate) memory: GuestMemoryMmap,
}

impl TestVm {
    pub(crate) fn new(size: usize) -> Self {
        let kvm = Kvm::new().expect("this test needs /dev/kvm");
        let vm = kvm.create_vm().expect("KVM_CREATE_VM");
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).expect("memory");
        let region = kvm_userspace_memory_region {
            memory_size: size as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).expect("address") as u64,
            ..Default::default()
        };
        // SAFETY: the region is a mapping of `size` bytes that `Self` keeps until after it has dropped the VM.
        unsafe { vm.set_user_memory_region(region) }.expect("KVM_SET_USER_MEMORY_REGION");
        vm.create_irq_chip().expect("KVM_CREATE_IRQCHIP");
        let vcpu = vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
        Self {
            vcpu,
            _vm: vm,
            memory,
        }
    }
}
