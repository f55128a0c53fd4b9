//! The driver's side of a split virtqueue, able to do it wrong.
//!
//! Our own, because virtio-queue's mock lays the used ring into the available ring.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress};

use crate::Memory;

/// The descriptor goes on at its `next`.
pub const NEXT: u16 = 1;
/// The device writes the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// A descriptor, whether it makes sense or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawDescriptor {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

/// A buffer of a well-formed chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The device reads it.
    Read(u64, u32),
    /// The device writes it.
    Write(u64, u32),
}

/// A queue as the driver sees it.
pub struct Ring {
    memory: Arc<Memory>,
    /// Entries.
    pub size: u16,
    /// Address of the descriptor table.
    pub desc: u64,
    /// Address of the available ring.
    pub avail: u64,
    /// Address of the used ring.
    pub used: u64,
    next_free: u16,
    next_avail: u16,
    last_used: u16,
}

impl Ring {
    /// Bytes that a ring of `size` takes.
    pub const fn bytes(size: u16) -> u64 {
        // Each part rounded up generously to its alignment.
        (size as u64) * 26 + 64
    }

    /// An empty ring at `base` (a multiple of 16).
    pub fn new(memory: Arc<Memory>, base: u64, size: u16) -> Self {
        let avail = base + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let zeroes = vec![0; Self::bytes(size) as usize];
        memory
            .write_slice(&zeroes, GuestAddress(base))
            .expect("the ring lies in memory");
        Self {
            memory,
            size,
            desc: base,
            avail,
            used,
            next_free: 0,
            next_avail: 0,
            last_used: 0,
        }
    }

    /// Writes descriptor `index` of the table at `table`.
    pub fn descriptor(&self, table: u64, index: u16, descriptor: RawDescriptor) {
        let RawDescriptor {
            addr,
            len,
            flags,
            next,
        } = descriptor;
        let raw =
            u128::from(addr) | u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
        let at = GuestAddress(table + 16 * u64::from(index));
        self.memory
            .write_slice(&raw.to_le_bytes(), at)
            .expect("the table lies in memory");
    }

    /// Builds a well-formed chain and offers it. Descriptors are taken in turn, so no more than `size` may be in flight.
    pub fn add(&mut self, parts: &[Part]) -> u16 {
        let head = self.chain(parts);
        self.offer(head);
        head
    }

    /// Builds a well-formed chain without offering it.
    pub fn chain(&mut self, parts: &[Part]) -> u16 {
        let head = self.next_free % self.size;
        for (at, part) in parts.iter().enumerate() {
            let index = self.next_free % self.size;
            self.next_free = (index + 1) % self.size;
            let more = if at + 1 < parts.len() { NEXT } else { 0 };
            self.descriptor(self.desc, index, raw(*part, more, self.next_free));
        }
        head
    }

    /// Builds a well-formed chain in an indirect table at `table` and offers it.
    pub fn add_indirect(&mut self, table: u64, parts: &[Part]) -> u16 {
        for (index, part) in (0..).zip(parts) {
            let more = if usize::from(index) + 1 < parts.len() {
                NEXT
            } else {
                0
            };
            self.descriptor(table, index, raw(*part, more, index + 1));
        }
        let head = self.next_free % self.size;
        self.next_free = (head + 1) % self.size;
        let len = 16 * parts.len() as u32;
        self.descriptor(
            self.desc,
            head,
            RawDescriptor {
                addr: table,
                len,
                flags: INDIRECT,
                next: 0,
            },
        );
        self.offer(head);
        head
    }

    /// Puts `head` into the available ring.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        self.store(self.avail + 4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.store(self.avail + 2, self.next_avail);
    }

    /// Sets the available index to anything.
    pub fn set_avail_index(&mut self, index: u16) {
        self.next_avail = index;
        self.store(self.avail + 2, index);
    }

    /// The available ring's flags; 1 asks for no interrupts.
    pub fn set_avail_flags(&self, flags: u16) {
        self.store(self.avail, flags);
    }

    /// With the event index: interrupt me once you pass `index`.
    pub fn set_used_event(&self, index: u16) {
        self.store(self.avail + 4 + 2 * u64::from(self.size), index);
    }

    /// With the event index: the device wants to hear of the request after this one.
    pub fn avail_event(&self) -> u16 {
        self.load(self.used + 4 + 8 * u64::from(self.size))
    }

    /// The used ring's flags; 1 says that the device wants no notifications.
    pub fn used_flags(&self) -> u16 {
        self.load(self.used)
    }

    /// How many requests the device has given back in all (modulo 2^16).
    pub fn used_index(&self) -> u16 {
        self.load(self.used + 2)
    }

    /// The next request that the device gave back: its head and the bytes written.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.last_used {
            return None;
        }
        let slot = u64::from(self.last_used % self.size);
        self.last_used = self.last_used.wrapping_add(1);
        let mut entry = [0; 8];
        self.memory
            .read_slice(&mut entry, GuestAddress(self.used + 4 + 8 * slot))
            .expect("used ring");
        let entry = u64::from_le_bytes(entry);
        Some((entry as u32, (entry >> 32) as u32))
    }

    fn store(&self, addr: u64, value: u16) {
        self.memory
            .store(value.to_le(), GuestAddress(addr), Ordering::Release)
            .expect("ring");
    }

    fn load(&self, addr: u64) -> u16 {
        u16::from_le(
            self.memory
                .load(GuestAddress(addr), Ordering::Acquire)
                .expect("ring"),
        )
    }
}

fn raw(part: Part, flags: u16, next: u16) -> RawDescriptor {
    match part {
        Part::Read(addr, len) => RawDescriptor {
            addr,
            len,
            flags,
            next,
        },
        Part::Write(addr, len) => RawDescriptor {
            addr,
            len,
            flags: flags | WRITE,
            next,
        },
    }
}
