//! The chain walk against anything that may stand in memory.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use crate::Memory;
use crate::virtio::device::{DeviceInterrupt, QueueResources};
use crate::virtio::queue::{Buffer, DeviceQueue, RING_FEATURES, rings_in_memory};

struct Deaf;

impl DeviceInterrupt for Deaf {
    fn used_buffer(&self, _: u16) {}
    fn config_changed(&self) {}
    fn needs_reset(&self) {}
}

/// Lets memory be `data`, rings included, and takes every chain there is: an entry point for fuzzers.
///
/// Whatever is taken must keep what [`RequestChain`](crate::virtio::queue::RequestChain) promises.
pub fn fuzz_chain(data: &[u8]) {
    const SIZE: u16 = 16;
    let regions = [
        (GuestAddress(0), 0x1000),
        (GuestAddress(0x1000), 0x1000),
        (GuestAddress(0x4000), 0x1000),
    ];
    let memory = Arc::new(Memory::from_ranges(&regions).expect("some pages of memory"));
    let data = &data[..data.len().min(0x2000)];
    memory
        .write_slice(data, GuestAddress(0))
        .expect("the first two regions");
    let mut queue = Queue::new(SIZE).expect("a power of two");
    // The available ring first, so that even short inputs make chains.
    queue
        .try_set_avail_ring_address(GuestAddress(0x2))
        .expect("aligned");
    queue
        .try_set_desc_table_address(GuestAddress(0x30))
        .expect("aligned");
    queue
        .try_set_used_ring_address(GuestAddress(0x4000))
        .expect("aligned");
    queue.set_event_idx(true);
    queue.set_ready(true);
    assert!(rings_in_memory(&queue, &memory));
    let kick = EventFd::new(0).expect("an event descriptor");
    let interrupt = Arc::new(Deaf);
    let resources = QueueResources {
        memory: memory.clone(),
        queue,
        kick,
        interrupt,
        features: RING_FEATURES,
        counters: Arc::default(),
    };
    let mut queue = DeviceQueue::new(0, resources, None).expect("rings in memory");
    let mut chain = queue.new_chain();
    let mut taken = 0;
    while queue.pop(&mut chain) {
        taken += 1;
        let sum = |buffers: &[Buffer]| buffers.iter().map(|buffer| u64::from(buffer.len)).sum::<u64>();
        assert_eq!(sum(chain.readable()), u64::from(chain.readable_len()));
        assert_eq!(sum(chain.writable()), u64::from(chain.writable_len()));
        assert!(chain.head() < SIZE);
        for buffer in chain.readable().iter().chain(chain.writable()) {
            assert!(buffer.len > 0 && memory.check_range(buffer.addr, buffer.len as usize));
        }
    }
    assert!(taken <= SIZE, "no more chains than the ring has entries");
    queue.stop();
}
