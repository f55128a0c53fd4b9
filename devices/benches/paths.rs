//! The inner paths that every request takes, each by itself: nanoseconds of the I/O thread or the vCPU thread.
//!
//! `cargo bench -p berth-devices --bench paths`

use std::hint::black_box;
use std::sync::Arc;

use berth_devices::Memory;
use berth_devices::bus::{Bus, BusDevice};
use berth_devices::limiter::{BucketConfig, Limiter, LimiterConfig};
use berth_devices::virtio::device::{DeviceInterrupt, QueueResources};
use berth_devices::virtio::queue::{DeviceQueue, RING_FEATURES};
use criterion::{Criterion, criterion_group, criterion_main};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

const SIZE: u16 = 256;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;
const BUFFERS: u64 = 0x10000;
/// Descriptors of a request: what a block request has.
const CHAIN: u16 = 3;

struct Silent;

impl DeviceInterrupt for Silent {
    fn used_buffer(&self, _: u16) {}
    fn config_changed(&self) {}
    fn needs_reset(&self) {}
}

impl BusDevice for Silent {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, _: u64, _: &[u8]) {}
}

/// A queue whose every available-ring entry names a chain of [`CHAIN`] descriptors, and its memory.
fn queue() -> (DeviceQueue, Arc<Memory>) {
    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory"));
    let chains = SIZE / CHAIN;
    for index in 0..chains * CHAIN {
        let (next, last) = (index + 1, index % CHAIN == CHAIN - 1);
        // NEXT but on the last one, which is WRITE.
        let flags: u16 = if last { 2 } else { 1 };
        let at = GuestAddress(DESCRIPTORS + u64::from(index) * 16);
        let entry = (BUFFERS + u64::from(index) * 512, 512_u32, flags, next);
        memory.write_obj(entry.0, at).expect("in memory");
        memory
            .write_obj(entry.1, GuestAddress(at.0 + 8))
            .expect("in memory");
        memory
            .write_obj(entry.2, GuestAddress(at.0 + 12))
            .expect("in memory");
        memory
            .write_obj(entry.3, GuestAddress(at.0 + 14))
            .expect("in memory");
    }
    for entry in 0..SIZE {
        let head = entry % chains * CHAIN;
        let at = GuestAddress(AVAILABLE + 4 + u64::from(entry) * 2);
        memory.write_obj(head, at).expect("in memory");
    }
    let mut queue = Queue::new(SIZE).expect("a power of two");
    queue.set_desc_table_address(Some(DESCRIPTORS as u32), None);
    queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
    queue.set_used_ring_address(Some(USED as u32), None);
    queue.set_event_idx(true);
    queue.set_ready(true);
    let resources = QueueResources {
        memory: memory.clone(),
        queue,
        kick: EventFd::new(0).expect("an eventfd"),
        interrupt: Arc::new(Silent),
        features: RING_FEATURES,
        counters: Arc::default(),
    };
    (
        DeviceQueue::new(0, resources, None).expect("rings in memory"),
        memory,
    )
}

fn rings(criterion: &mut Criterion) {
    let (mut queue, memory) = queue();
    let mut chain = queue.new_chain();
    let mut available = 0_u16;
    let mut post = move || {
        available = available.wrapping_add(1);
        memory
            .write_obj(available, GuestAddress(AVAILABLE + 2))
            .expect("in memory");
    };
    criterion.bench_function("walk a chain of 3, put it back", |bencher| {
        post();
        bencher.iter(|| {
            assert!(queue.pop(black_box(&mut chain)));
            queue.undo_pop(1);
        });
        assert!(queue.pop(&mut chain));
        queue.complete(chain.head(), 1);
    });
    criterion.bench_function("walk a chain of 3, answer it, consider an interrupt", |bencher| {
        bencher.iter(|| {
            post();
            assert!(queue.pop(black_box(&mut chain)));
            queue.complete(chain.head(), 1);
            queue.signal();
        });
    });
    criterion.bench_function("look at an empty ring", |bencher| {
        bencher.iter(|| queue.has_more());
    });
}

fn limits(criterion: &mut Criterion) {
    // Never empty, so that each request is admitted.
    let bucket = Some(BucketConfig {
        size: u64::MAX / 2,
        refill_ms: 1,
        burst: 0,
    });
    let config = LimiterConfig {
        bandwidth: bucket,
        ops: bucket,
    };
    for (name, config) in [
        ("no limit", LimiterConfig::default()),
        ("two token buckets", config),
    ] {
        let mut limiter = Limiter::new(config).expect("a timer");
        criterion.bench_function(&format!("admit a request: {name}"), |bencher| {
            bencher.iter(|| limiter.admit(black_box(4096)));
        });
    }
}

fn buses(criterion: &mut Criterion) {
    let mut bus = Bus::new();
    for index in 0..64 {
        let device = Arc::new(Silent);
        bus.insert(0xd000_0000 + index * 0x1000, 0x1000, device)
            .expect("free ranges");
    }
    criterion.bench_function("find one of 64 devices on a bus", |bencher| {
        bencher.iter(|| bus.write(black_box(0xd002_a050), &[0; 4]));
    });
}

criterion_group!(paths, rings, limits, buses);
criterion_main!(paths);
