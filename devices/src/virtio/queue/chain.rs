//! A descriptor chain that was checked whole (virtio 1.3, section 2.7).
//!
//! virtio-queue's own iterator ends a malformed chain as if it were a short one, so the walk is here. It reads every
//! descriptor once: what a driver changes afterwards is not looked at again.

#![forbid(unsafe_code)]

use std::sync::Arc;

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};
use virtio_queue::desc::split::Descriptor;
use vm_memory::bitmap::MS;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::place::Place;
use super::segments::{GuestIo, Segments};
use crate::Memory;

/// Most buffers that a chain may have when an indirect table holds them, which a driver may make longer than the queue.
/// It is also the most that one `preadv` takes (IOV_MAX), and what other VMMs accept.
pub const MAX_INDIRECT: u32 = 1024;

pub(super) const DESCRIPTOR_SIZE: usize = size_of::<Descriptor>();

/// What is wrong with a chain. The driver broke the protocol: the queue stops until the device is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A descriptor index that the table does not have.
    #[error("descriptor {index} lies outside its table of {size}")]
    Index {
        /// The index.
        index: u32,
        /// Entries in the table.
        size: u32,
    },
    /// The chain comes back to itself, or has more descriptors than its table.
    #[error("the chain that begins at descriptor {head} does not end")]
    Loop {
        /// Where it begins.
        head: u16,
    },
    /// The descriptor table cannot be read.
    #[error("the descriptor table at {addr:#x} does not lie in guest memory")]
    Table {
        /// Where the descriptor should be.
        addr: u64,
    },
    /// An indirect table that cannot be one.
    #[error("an indirect table of {len} bytes is none (16 bytes a descriptor, 1 to {MAX_INDIRECT} of them)")]
    IndirectLength {
        /// Its length in bytes.
        len: u32,
    },
    /// An indirect descriptor where none may be.
    #[error("{0}")]
    Indirect(&'static str),
    /// A readable buffer after a writable one.
    #[error("a buffer to read stands after one to write")]
    Order,
    /// A buffer outside guest memory.
    #[error("the buffer {addr:#x}+{len:#x} does not lie in guest memory")]
    Buffer {
        /// Its address.
        addr: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// More bytes than a chain may have.
    #[error("the buffers of one chain add up to 4 GiB or more")]
    Length,
}

/// One buffer of a checked chain. All of it lies in guest memory, and it is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Where it begins.
    pub addr: GuestAddress,
    /// Its length in bytes, not 0.
    pub len: u32,
}

/// A request: first the buffers that the device reads, then those that it writes.
///
/// Only [`DeviceQueue::pop`](super::DeviceQueue::pop) fills one, and only with a chain that it has checked. The same
/// value is filled again and again, so that a running queue allocates nothing.
pub struct RequestChain {
    memory: Arc<Memory>,
    head: u16,
    list: List,
}

/// The buffers of a chain, readable ones first.
#[derive(Default)]
struct List {
    buffers: Vec<Buffer>,
    readable: usize,
    readable_len: u32,
    writable_len: u32,
}

/// Where [`RequestChain::load`] finds a queue's descriptors.
pub(super) struct Table {
    pub(super) place: Place,
    pub(super) size: u16,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub(super) indirect: bool,
}

impl RequestChain {
    /// An empty request, to be filled.
    pub fn new(memory: Arc<Memory>) -> Self {
        Self {
            memory,
            head: 0,
            list: List::default(),
        }
    }

    /// Index of its first descriptor, by which it is given back.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the device reads.
    pub fn readable(&self) -> &[Buffer] {
        &self.list.buffers[..self.list.readable]
    }

    /// What the device writes.
    pub fn writable(&self) -> &[Buffer] {
        &self.list.buffers[self.list.readable..]
    }

    /// Bytes to read, all buffers together.
    pub fn readable_len(&self) -> u32 {
        self.list.readable_len
    }

    /// Bytes to write, all buffers together.
    pub fn writable_len(&self) -> u32 {
        self.list.writable_len
    }

    /// Copies what the driver wrote, from `offset` bytes into the readable buffers. Returns how many bytes there were.
    pub fn read_at(&self, offset: u32, data: &mut [u8]) -> usize {
        let mut done = 0;
        for part in parts(self.readable(), u64::from(offset), data.len() as u64) {
            let end = done + part.len as usize;
            // The walk checked every buffer, and guest memory does not shrink.
            if self.memory.read_slice(&mut data[done..end], part.addr).is_err() {
                break;
            }
            done = end;
        }
        done
    }

    /// Copies `data` to `offset` bytes into the writable buffers. Returns how many bytes found room.
    pub fn write_at(&self, offset: u32, data: &[u8]) -> usize {
        let mut done = 0;
        for part in parts(self.writable(), u64::from(offset), data.len() as u64) {
            let end = done + part.len as usize;
            if self.memory.write_slice(&data[done..end], part.addr).is_err() {
                break;
            }
            done = end;
        }
        done
    }

    /// Up to `len` bytes from `offset` bytes into the readable buffers, as a source for the host's I/O calls.
    pub fn readable_io<'a>(&'a self, segments: &'a mut Segments, offset: u32, len: u32) -> GuestIo<'a> {
        let mut io = segments.start(&self.memory);
        io.add(self.readable(), u64::from(offset), u64::from(len));
        io
    }

    /// Up to `len` bytes from `offset` bytes into the writable buffers, as a target for the host's I/O calls.
    pub fn writable_io<'a>(&'a self, segments: &'a mut Segments, offset: u32, len: u32) -> GuestIo<'a> {
        let mut io = segments.start(&self.memory);
        io.add(self.writable(), u64::from(offset), u64::from(len));
        io
    }

    /// Walks the chain that begins at descriptor `head` and takes it if all of it is well-formed. If not, `self` is empty.
    pub(super) fn load(&mut self, table: &Table, head: u16) -> Result<(), ChainError> {
        self.head = head;
        self.list.clear();
        let result = self.list.walk(&self.memory, table, head);
        if result.is_err() {
            self.list.clear();
        }
        result
    }
}

impl List {
    fn clear(&mut self) {
        self.buffers.clear();
        self.readable = 0;
        self.readable_len = 0;
        self.writable_len = 0;
    }

    fn walk(&mut self, memory: &Memory, table: &Table, head: u16) -> Result<(), ChainError> {
        let mut view = View::of_queue(memory, table);
        let mut index = u32::from(head);
        let mut in_indirect = false;
        let mut left = view.size;
        loop {
            if index >= view.size {
                return Err(ChainError::Index {
                    index,
                    size: view.size,
                });
            }
            if left == 0 {
                return Err(ChainError::Loop { head });
            }
            left -= 1;
            let descriptor = view.descriptor(index)?;
            let next = descriptor.flags() & VRING_DESC_F_NEXT as u16 != 0;
            if descriptor.flags() & VRING_DESC_F_INDIRECT as u16 != 0 {
                if in_indirect {
                    return Err(ChainError::Indirect("an indirect table names another"));
                }
                if !table.indirect {
                    return Err(ChainError::Indirect(
                        "an indirect table is used though VIRTIO_F_INDIRECT_DESC was not negotiated",
                    ));
                }
                if next {
                    return Err(ChainError::Indirect("a chain goes on after its indirect table"));
                }
                view = View::new(memory, descriptor.addr(), indirect_size(descriptor.len())?);
                (index, left, in_indirect) = (0, view.size, true);
                continue;
            }
            self.add(memory, descriptor)?;
            if !next {
                return Ok(());
            }
            index = u32::from(descriptor.next());
        }
    }

    fn add(&mut self, memory: &Memory, descriptor: Descriptor) -> Result<(), ChainError> {
        let (addr, len) = (descriptor.addr(), descriptor.len());
        let writable = descriptor.is_write_only();
        if !writable && self.buffers.len() > self.readable {
            return Err(ChainError::Order);
        }
        // An empty buffer says nothing, so its address does not matter either.
        if len == 0 {
            return Ok(());
        }
        // The first test is the second one made quick for a buffer in one region.
        if memory.get_slice(addr, len as usize).is_err()
            && !GuestMemoryBackend::check_range(memory, addr, len as usize)
        {
            return Err(ChainError::Buffer { addr: addr.0, len });
        }
        let total = u64::from(self.readable_len) + u64::from(self.writable_len) + u64::from(len);
        if total > u64::from(u32::MAX) {
            return Err(ChainError::Length);
        }
        self.buffers.push(Buffer { addr, len });
        if writable {
            self.writable_len += len;
        } else {
            self.readable_len += len;
            self.readable = self.buffers.len();
        }
        Ok(())
    }
}

/// A table of descriptors in guest memory, looked up once for all of them.
struct View<'a> {
    memory: &'a Memory,
    addr: GuestAddress,
    size: u32,
    /// The table, if it lies in one region.
    slice: Option<VolatileSlice<'a, MS<'a, Memory>>>,
}

impl<'a> View<'a> {
    fn new(memory: &'a Memory, addr: GuestAddress, size: u32) -> Self {
        let len = size as usize * DESCRIPTOR_SIZE;
        let slice = memory.get_slice(addr, len).ok();
        Self {
            memory,
            addr,
            size,
            slice,
        }
    }

    fn of_queue(memory: &'a Memory, table: &'a Table) -> Self {
        let len = usize::from(table.size) * DESCRIPTOR_SIZE;
        Self {
            memory,
            addr: table.place.addr(),
            size: table.size.into(),
            slice: table.place.slice(0, len).ok(),
        }
    }

    fn descriptor(&self, index: u32) -> Result<Descriptor, ChainError> {
        let offset = index as usize * DESCRIPTOR_SIZE;
        let found = if let Some(slice) = &self.slice {
            slice.read_obj(offset).ok()
        } else {
            let addr = self.addr.checked_add(offset as u64);
            addr.and_then(|addr| self.memory.read_obj(addr).ok())
        };
        found.ok_or(ChainError::Table {
            addr: self.addr.0.saturating_add(offset as u64),
        })
    }
}

fn indirect_size(len: u32) -> Result<u32, ChainError> {
    let size = len / DESCRIPTOR_SIZE as u32;
    if !len.is_multiple_of(DESCRIPTOR_SIZE as u32) || size == 0 || size > MAX_INDIRECT {
        return Err(ChainError::IndirectLength { len });
    }
    Ok(size)
}

/// The parts of `buffers` that make up `len` bytes from `skip` bytes into them.
pub(super) fn parts(buffers: &[Buffer], skip: u64, len: u64) -> impl Iterator<Item = Buffer> {
    let (mut skip, mut left) = (skip, len);
    buffers.iter().filter_map(move |buffer| {
        let size = u64::from(buffer.len);
        if left == 0 || skip >= size {
            skip = skip.saturating_sub(size);
            return None;
        }
        let take = (size - skip).min(left);
        // The whole buffer lies in guest memory, so this does not wrap.
        let addr = GuestAddress(buffer.addr.0.wrapping_add(skip));
        left -= take;
        skip = 0;
        Some(Buffer {
            addr,
            len: take as u32,
        })
    })
}
