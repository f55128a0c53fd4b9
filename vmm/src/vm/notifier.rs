//! A driver's notifications as ioeventfds: a write to QueueNotify goes from KVM to the I/O thread with no exit.

use std::sync::Arc;

use berth_devices::virtio::handle::Notifier;
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// The QueueNotify register of one virtio-mmio window.
pub(crate) struct QueueNotify {
    vm: Arc<VmFd>,
    address: IoEventAddress,
}

/// Offset of QueueNotify (virtio 1.3, section 4.2.2).
const QUEUE_NOTIFY: u64 = 0x50;

impl QueueNotify {
    /// For the window at `window`.
    pub(crate) fn new(vm: Arc<VmFd>, window: u64) -> Self {
        Self {
            vm,
            address: IoEventAddress::Mmio(window + QUEUE_NOTIFY),
        }
    }
}

impl Notifier for QueueNotify {
    fn attach(&self, queue: u16, kick: &EventFd) {
        if let Err(error) = self.vm.register_ioevent(kick, &self.address, u32::from(queue)) {
            tracing::warn!(
                "KVM refused an ioeventfd (KVM_IOEVENTFD), notifications take the slow way: {error}"
            );
        }
    }

    fn detach(&self, queue: u16, kick: &EventFd) {
        // Refused only if it was never attached.
        let _ = self.vm.unregister_ioevent(kick, &self.address, u32::from(queue));
    }
}
