//! A driver that does what no driver should, told by a string of bytes.
//!
//! The bytes come from a seed (the suite), from proptest (unit tests) or from a fuzzer, so that all three share one
//! driver. Whatever it does, no call may panic or hang, and after a reset the device works.

use vm_memory::{Bytes, GuestAddress};

use super::machine::{BUFFERS, DRIVER_OK, MEMORY_END, Machine, RING_SIZE};
use super::ring::{INDIRECT, NEXT, RawDescriptor, Ring, WRITE};
use super::suite::Subject;
use crate::bus::BusDevice;
use crate::virtio::device::VirtioDevice;
use crate::virtio::mmio::MmioState;

/// Plays `data` against `machine`.
pub fn play(machine: &Machine, data: &[u8]) {
    let mut input = Input(data);
    let mut rings: Vec<Ring> = Vec::new();
    while let Some(verb) = input.byte() {
        act(machine, &mut rings, &mut input, verb);
    }
    machine.device.pump();
}

/// Plays bytes made from `seed`, then checks that the device still works.
pub(super) fn seeded(subject: &Subject, seed: u64) {
    let machine = subject.machine();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let bytes: Vec<u8> = (0..4000)
        .map(|_| {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect();
    play(&machine, &bytes);
    machine.transport.resume();
    subject.works(&machine);
}

/// Plays `data` against the transport and `device`: an entry point for fuzzers. All that `data` says goes.
pub fn fuzz_mmio(device: Box<dyn VirtioDevice>, data: &[u8]) {
    let machine = Machine::new(device);
    play(&machine, data);
    machine.transport.resume();
    machine.reset();
    machine.bring_up(machine.offered());
}

/// Gives the transport and `device` a saved state that may be anything, then a driver's honest handshake: an entry point for
/// fuzzers.
pub fn fuzz_restore(device: Box<dyn VirtioDevice>, state: &MmioState) {
    let machine = Machine::new(device);
    if machine.transport.restore(state).is_ok() {
        assert!(machine.transport.save().is_ok(), "what is restored stands still");
        machine.transport.resume();
        machine.device.pump();
    }
    machine.reset();
    machine.bring_up(machine.offered());
}

/// Brings `device` up and lets its queues have rings and memory made of `data`: an entry point for fuzzers that are after
/// the request handlers. The first byte chooses the queue, the second the ring features.
pub fn fuzz_queue(device: Box<dyn VirtioDevice>, data: &[u8]) {
    let machine = Machine::new(device);
    let mut input = Input(data);
    let (queue, features) = (input.small(), u64::from(input.small()));
    let mut rings = machine.bring_up(machine.offered() & !((features & 3) << 28));
    let count = rings.len() as u16;
    let index = queue % count;
    let ring = &mut rings[usize::from(index)];
    while !input.0.is_empty() {
        // A well-formed chain of up to 4 buffers, the readable ones filled from the input.
        let parts = usize::from(input.small() % 4) + 1;
        let head = input.small() % ring.size;
        let mut writable = false;
        for at in 0..parts {
            let index = (head + at as u16) % ring.size;
            let shape = input.small();
            writable |= shape & 1 != 0;
            let len = length(&mut input, shape >> 4);
            let addr = BUFFERS + u64::from(index) * 0x2000;
            if !writable {
                fill(&machine, &mut input, addr, len);
            }
            let more = if at + 1 < parts { NEXT } else { 0 };
            let flags = more | if writable { WRITE } else { 0 };
            ring.descriptor(
                ring.desc,
                index,
                RawDescriptor {
                    addr,
                    len,
                    flags,
                    next: (index + 1) % ring.size,
                },
            );
        }
        ring.offer(head);
        machine.notify(index);
    }
}

fn fill(machine: &Machine, input: &mut Input, addr: u64, len: u32) {
    let bytes = input.take((len as usize).min(64));
    machine
        .memory
        .write_slice(bytes, GuestAddress(addr))
        .expect("a buffer in memory");
}

fn length(input: &mut Input, shape: u16) -> u32 {
    match shape {
        0..=3 => [1, 16, 512, 4096][usize::from(shape)],
        4 => 0x10_0000,
        5 => 0,
        _ => u32::from(input.small()),
    }
}

fn act(machine: &Machine, rings: &mut Vec<Ring>, input: &mut Input, verb: u8) {
    match verb % 16 {
        0 => *rings = machine.bring_up(machine.offered()),
        1 => machine.write(u64::from(input.small()) * 4 % 0x110, input.word()),
        2 => {
            let (width, offset) = (usize::from(input.small() % 8) + 1, u64::from(input.small()) * 2);
            let bytes = input.take(width).to_vec();
            machine.transport.write(offset, &bytes);
        }
        3 => {
            let mut data = vec![0; usize::from(input.small() % 8) + 1];
            machine.transport.read(u64::from(input.small()) * 2, &mut data);
        }
        4 => machine.add_status(input.word() & 0xff),
        5..=7 => descriptor(machine, rings, input),
        8 => {
            if let Some(ring) = ring(rings, input) {
                ring.offer(input.small() % (RING_SIZE + 2));
            }
        }
        9 => {
            if let Some(ring) = ring(rings, input) {
                ring.set_avail_index(input.word() as u16);
            }
        }
        10 | 11 => machine.notify(input.small() % 8),
        12 => {
            // Anything, anywhere in and around the rings.
            let at = u64::from(input.word()) % 0x8000;
            let bytes = input.take(4);
            machine
                .memory
                .write_slice(bytes, GuestAddress(at))
                .expect("low memory");
        }
        13 => {
            machine.transport.pause();
            let state = machine.transport.save().expect("a paused transport saves");
            machine.transport.restore(&state).expect("its own state");
            machine.transport.resume();
        }
        14 => machine.device.poke(),
        _ => {
            // Ready queues over wild rings.
            machine.write(0x70, 0);
            machine.negotiate(machine.offered());
            machine.write(0x30, u32::from(input.small() % 8));
            for register in [0x38, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
                let value = input.word();
                machine.write(register, if register & 4 == 0 { value } else { value & 1 });
            }
            machine.write(0x44, 1);
            machine.add_status(DRIVER_OK);
        }
    }
}

fn ring<'a>(rings: &'a mut [Ring], input: &mut Input) -> Option<&'a mut Ring> {
    let count = rings.len();
    rings.get_mut(usize::from(input.small()) % count.max(1))
}

fn descriptor(machine: &Machine, rings: &mut [Ring], input: &mut Input) {
    let Some(ring) = ring(rings, input) else { return };
    let addr = match input.small() % 8 {
        0 => u64::from(input.word()) << 32 | u64::from(input.word()),
        1 => MEMORY_END - 8,
        2 => ring.desc,
        3 => ring.used,
        _ => BUFFERS + u64::from(input.small()) * 64,
    };
    let len = match input.small() % 6 {
        0 => input.word(),
        1 => 16,
        2 => 32,
        3 => 512,
        4 => 1,
        _ => u32::from(input.small()) * 16,
    };
    let flags = input.small() & (NEXT | WRITE | INDIRECT);
    let next = input.small() % (RING_SIZE + 2);
    let table = if input.small().is_multiple_of(4) {
        BUFFERS
    } else {
        ring.desc
    };
    let index = input.small() % ring.size;
    ring.descriptor(
        table,
        index,
        RawDescriptor {
            addr,
            len,
            flags,
            next,
        },
    );
    // Often the buffer should say something.
    if (BUFFERS..=MEMORY_END - 16).contains(&addr) {
        let bytes = input.take(16);
        machine
            .memory
            .write_slice(bytes, GuestAddress(addr))
            .expect("a buffer in memory");
    }
}

/// The script. Past its end there are zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn small(&mut self) -> u16 {
        self.byte().unwrap_or(0).into()
    }

    fn word(&mut self) -> u32 {
        let mut word = [0; 4];
        let bytes = self.take(4);
        word[..bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(word)
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
