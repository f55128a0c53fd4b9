//! What the conformance suite does not ask of every device: the transport with a device that can be told what to do.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vm_memory::Bytes;

use super::*;
use crate::bus::BusDevice;
use crate::virtio::conformance::ring::Part;
use crate::virtio::conformance::{
    self, ACKNOWLEDGE, BUFFERS, DRIVER, DRIVER_OK, FEATURES_OK, Machine, NEEDS_RESET, Request, Subject,
    VERSION_1,
};
use crate::virtio::device::{StartError, VirtioDevice};
use crate::virtio::queue::{DeviceQueue, RING_FEATURES};
use crate::virtio::rng::Rng;

/// Copies what it reads to where it may write. Three queues of different sizes, eleven bytes of configuration.
#[derive(Default)]
struct Echo {
    queues: [Option<DeviceQueue>; 3],
    config: [u8; 11],
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    refuse_start: AtomicBool,
    features: AtomicU32,
}

const SIZES: [u16; 3] = [8, 256, 64];

impl VirtioDevice for Echo {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            kind: 42,
            name: "echo",
            features: RING_FEATURES | u64::from(self.control.features.load(Ordering::Relaxed)),
            queue_sizes: SIZES.to_vec(),
            config_len: self.config.len() as u64,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.copy_from_slice(&self.config[offset as usize..][..data.len()]);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.config[offset as usize..][..data.len()].copy_from_slice(data);
    }

    fn start_queue(
        &mut self,
        index: u16,
        queue: QueueResources,
        at: Option<QueueState>,
    ) -> Result<(), StartError> {
        if index == 2 && self.control.refuse_start.load(Ordering::Relaxed) {
            return Err(StartError::Ring { index });
        }
        self.queues[usize::from(index)] = Some(DeviceQueue::new(index, queue, at)?);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        self.queues[usize::from(index)].take().map(DeviceQueue::stop)
    }

    fn process_queue(&mut self, index: u16) {
        if let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) {
            queue.drain(|request| {
                let mut data = vec![0; request.readable_len().min(0x1000) as usize];
                request.read_at(0, &mut data);
                request.write_at(0, &data) as u32
            });
        }
    }
}

fn echo() -> Machine {
    Machine::new(Box::new(Echo::default()))
}

fn subject() -> Subject {
    Subject {
        make: Box::new(|| {
            let config = *b"hello world";
            Box::new(Echo {
                config,
                ..Default::default()
            })
        }),
        request: Request {
            queue: 1,
            prepare: Box::new(|memory, base, number| {
                memory
                    .write_slice(&number.to_le_bytes(), GuestAddress(base))
                    .unwrap();
                memory.write_slice(&[0; 8], GuestAddress(base + 0x100)).unwrap();
                vec![
                    Part::Read(base, 3),
                    Part::Read(base + 3, 1),
                    Part::Write(base + 0x100, 8),
                ]
            }),
            verify: Box::new(|memory, base, number, written| {
                let back: u64 = memory.read_obj(GuestAddress(base + 0x100)).unwrap();
                assert_eq!((back, written), (number.into(), 4));
            }),
        },
    }
}

#[test]
fn a_device_with_several_queues_and_configuration_conforms() {
    conformance::run(&subject());
}

#[test]
fn only_aligned_registers_of_four_bytes_exist() {
    let machine = echo();
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (0x70, 3), (0xfc, 8)] {
        let mut data = vec![0xff; width];
        machine.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; width], "{width} bytes at {offset:#x}");
    }
    machine.transport.write(0x70, &[1]);
    machine.transport.write(0x70, &[1, 0]);
    machine.transport.write(0x70, &[1, 0, 0, 0, 0, 0, 0, 0]);
    machine.transport.write(0x6e, &[1, 0, 1, 0]);
    assert_eq!(machine.status(), 0);
    machine.write(0x34, 5);
    machine.write(0x0, 5);
    assert_eq!((machine.queue_max(0), machine.read(0)), (8, 0x7472_6976));
    // No shared memory.
    assert_eq!(
        [0xb0, 0xb4, 0xb8, 0xbc].map(|register| machine.read(register)),
        [u32::MAX; 4]
    );
}

#[test]
fn configuration_takes_any_width_but_not_past_its_end_nor_before_a_driver() {
    let machine = echo();
    let read = |offset: u64| {
        let mut data = [0xff; 8];
        machine.transport.read(offset, &mut data);
        data
    };
    machine.transport.write(0x100, &[9; 4]);
    assert_eq!(read(0x100), [0; 8], "no driver yet");
    machine.negotiate(VERSION_1);
    machine.transport.write(0x101, &[1]);
    machine.transport.write(0x102, &[2, 3, 4]);
    machine.transport.write(0x105, &[5; 8]);
    machine.transport.write(0x10b, &[6]);
    machine.transport.write(u64::MAX, &[6]);
    assert_eq!(read(0x100), [0, 1, 2, 3, 4, 5, 5, 5]);
    assert_eq!(read(0x108), [5, 5, 5, 0, 0, 0, 0, 0]);
    assert_eq!(read(0x10b), [0; 8]);
    assert_eq!(read(u64::MAX), [0; 8]);
}

#[test]
fn queues_that_cannot_be_ask_for_a_reset() {
    let spoil: [(&str, u64, u32); 8] = [
        ("size 0", 0x38, 0),
        ("size no power of two", 0x38, 6),
        ("size above the device's", 0x38, 16),
        ("size of more than 16 bits", 0x38, 0x1_0008),
        ("table misaligned", 0x80, 0x1008),
        ("table outside memory", 0x84, 1),
        ("available ring misaligned", 0x90, 0x2001),
        ("used ring misaligned", 0xa0, 0x3002),
    ];
    for (name, register, value) in spoil {
        let machine = echo();
        machine.negotiate(VERSION_1);
        machine.set_up_queue(1);
        machine.set_up_queue(0);
        machine.write(0x44, 0);
        machine.write(register, value);
        machine.write(0x44, 1);
        assert_eq!(
            (machine.read(0x44), machine.status() & NEEDS_RESET),
            (0, NEEDS_RESET),
            "{name}"
        );
        assert_eq!(machine.interrupts(), 0, "{name}: not before DRIVER_OK");
        machine.add_status(DRIVER_OK);
        assert_eq!(
            (machine.interrupts(), machine.acknowledge()),
            (1, 2),
            "{name}: but then"
        );
        assert_eq!(machine.attached(), [0; 0], "{name}: nothing runs");
        machine.bring_up(VERSION_1);
    }
}

#[test]
fn queues_are_set_up_between_features_and_driver_ok_only() {
    let machine = echo();
    machine.add_status(ACKNOWLEDGE);
    machine.add_status(DRIVER);
    machine.write(0x30, 0);
    machine.write(0x44, 1);
    assert_eq!((machine.read(0x44), machine.status()), (0, ACKNOWLEDGE | DRIVER));
    assert!(machine.negotiate(VERSION_1));
    let mut ring = machine.set_up_queue(0);
    // Ready: the set-up is settled.
    machine.write(0x80, 0x9000);
    machine.write(0x38, 4);
    let setup = machine.transport.save().unwrap().queues[0].0;
    assert_eq!((setup.desc, setup.size), (ring.desc, 8));
    machine.add_status(DRIVER_OK);
    ring.add(&[Part::Write(BUFFERS, 1)]);
    machine.notify(0);
    assert_eq!(ring.used_index(), 1);
    machine.write(0x30, 1);
    machine.write(0x44, 1);
    assert_eq!(machine.read(0x44), 0, "too late");
    machine.write(0x30, 3);
    machine.write(0x44, 1);
    machine.write(0x38, 8);
    machine.write(0x50, 3);
    machine.write(0x50, u32::MAX);
    assert_eq!(
        (machine.read(0x44), machine.read(0x34)),
        (0, 0),
        "there is no such queue"
    );
    assert_eq!(machine.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

#[test]
fn the_driver_may_leave_queues_out() {
    let machine = echo();
    machine.negotiate(VERSION_1);
    let mut ring = machine.set_up_queue(2);
    machine.add_status(DRIVER_OK);
    assert_eq!(machine.attached(), [2]);
    machine.notify(0);
    ring.add(&[Part::Write(BUFFERS, 1)]);
    machine.notify(2);
    assert_eq!((ring.used_index(), machine.status() & NEEDS_RESET), (1, 0));
}

#[test]
fn features_beyond_64_are_not_agreed_to() {
    let machine = echo();
    machine.write(0x70, ACKNOWLEDGE);
    machine.add_status(DRIVER);
    machine.write(0x24, 3);
    machine.write(0x20, 1);
    assert!(!machine.negotiate(VERSION_1));
    machine.reset();
    assert!(machine.negotiate(VERSION_1));
}

#[test]
fn a_device_that_does_not_start_asks_for_a_reset_and_may_start_later() {
    let control = Arc::new(Control::default());
    let machine = Machine::new(Box::new(Echo {
        control: control.clone(),
        ..Default::default()
    }));
    control.refuse_start.store(true, Ordering::Relaxed);
    machine.negotiate(VERSION_1);
    for index in 0..3 {
        machine.set_up_queue(index);
    }
    machine.add_status(DRIVER_OK);
    assert_ne!(machine.status() & NEEDS_RESET, 0);
    assert_eq!(
        (machine.interrupts(), machine.acknowledge(), machine.attached()),
        (1, 2, vec![])
    );
    control.refuse_start.store(false, Ordering::Relaxed);
    machine.bring_up(VERSION_1);
}

#[test]
fn a_configuration_change_counts_and_interrupts_a_running_driver_only() {
    let machine = echo();
    let interrupt = machine.transport.interrupt();
    interrupt.config_changed();
    assert_eq!(
        (machine.read(0xfc), machine.interrupts(), machine.read(0x60)),
        (1, 0, 0)
    );
    machine.bring_up(VERSION_1);
    interrupt.config_changed();
    assert_eq!(
        (machine.read(0xfc), machine.interrupts(), machine.acknowledge()),
        (2, 1, 2)
    );
    machine.reset();
    assert_eq!(machine.read(0xfc), 2, "the generation only grows");
}

#[test]
fn an_interrupt_that_is_left_over_is_repeated() {
    let machine = echo();
    let mut ring = machine.bring_up(VERSION_1).remove(0);
    machine.transport.interrupt().config_changed();
    ring.add(&[Part::Write(BUFFERS, 1)]);
    machine.notify(0);
    assert_eq!((machine.interrupts(), machine.read(0x60)), (2, 3));
    machine.write(0x64, 2);
    assert_eq!(
        (machine.interrupts(), machine.read(0x60)),
        (1, 1),
        "the other one is still there"
    );
    machine.write(0x64, 1);
    assert_eq!((machine.interrupts(), machine.read(0x60)), (0, 0));
}

#[test]
fn a_state_that_does_not_fit_is_refused_by_name_and_changes_nothing() {
    let machine = echo();
    machine.bring_up(VERSION_1);
    machine.transport.pause();
    let good = machine.transport.save().unwrap();
    let refusal = |change: &dyn Fn(&mut MmioState)| {
        let mut state = good.clone();
        change(&mut state);
        let refusal = machine.transport.restore(&state).unwrap_err();
        assert_eq!(machine.transport.save().unwrap(), good);
        refusal
    };
    assert_eq!(
        refusal(&|state| state.kind = 1),
        RestoreError::Kind {
            found: 1,
            expected: 42
        }
    );
    assert_eq!(
        refusal(&|state| state.queues.truncate(2)),
        RestoreError::Queues {
            found: 2,
            expected: 3
        }
    );
    assert_eq!(
        refusal(&|state| state.driver_features |= 6),
        RestoreError::Features { missing: 6 }
    );
    assert_eq!(
        refusal(&|state| state.queues[1].0.desc = !0xf),
        RestoreError::Ring { index: 1 }
    );
}

#[test]
fn vcpus_hammering_the_registers_and_the_device_do_not_wait_for_each_other_for_good() {
    let machine = Machine::new(Box::new(Rng::new()));
    std::thread::scope(|scope| {
        for seed in 0..4_u32 {
            let transport = Arc::clone(&machine.transport);
            scope.spawn(move || {
                let mut value = seed;
                for round in 0..20_000_u32 {
                    value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let register = u64::from(value >> 8) % 64 * 4;
                    let word = round % 16 * (value >> 31);
                    transport.write(register, &word.to_le_bytes());
                    transport.read(register, &mut [0; 4]);
                }
            });
        }
        // What an I/O thread does meanwhile.
        for _ in 0..20_000 {
            machine.device.pump();
            machine.device.poke();
            machine.transport.interrupt().needs_reset();
        }
    });
    machine.bring_up(VERSION_1);
}
