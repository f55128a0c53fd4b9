//! Virtqueues as a driver has them (virtio 1.3, sections 2.7 and 2.8).
//!
//! A request is known by its token, from 0 up to the queue's capacity, and a token always has the same descriptors, so nothing has
//! to be looked for: head = token × descriptors per request, or the token itself where they lie in an indirect table.

use crate::mem::{Arena, acquire16, full_barrier, read16, read32, release16, write16, write32, write64};
use crate::packed::Packed;

/// A part of a request.
#[derive(Clone, Copy)]
pub struct Part {
    pub at: u64,
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// How a queue is laid out.
#[derive(Clone, Copy)]
pub struct Layout {
    /// Entries.
    pub size: u16,
    /// Descriptors of a request at most.
    pub parts: u16,
    pub indirect: bool,
    pub event_idx: bool,
    pub packed: bool,
}

impl Layout {
    /// Requests that can be in flight.
    pub fn capacity(&self) -> u16 {
        if self.indirect {
            self.size
        } else {
            self.size / self.parts
        }
    }
}

/// Where a queue's three areas are: descriptors, driver's, device's.
#[derive(Clone, Copy)]
pub struct Areas {
    pub descriptors: u64,
    pub driver: u64,
    pub device: u64,
}

pub enum Queue {
    Split(Split),
    Packed(Packed),
}

impl Queue {
    /// A queue in fresh memory. Completions raise no interrupt until [`arm`](Self::arm).
    pub fn new(layout: Layout, arena: &mut Arena) -> Result<Self, u64> {
        Ok(if layout.packed {
            Self::Packed(Packed::new(layout, arena)?)
        } else {
            Self::Split(Split::new(layout, arena)?)
        })
    }

    pub fn areas(&self) -> Areas {
        match self {
            Self::Split(queue) => queue.areas,
            Self::Packed(queue) => queue.areas(),
        }
    }

    /// Puts a request in; the device may not see it before [`publish`](Self::publish).
    pub fn add(&mut self, token: u16, parts: &[Part]) {
        match self {
            Self::Split(queue) => queue.add(token, parts),
            Self::Packed(queue) => queue.add(token, parts),
        }
    }

    /// Shows the device what was added; whether it wants to be notified.
    pub fn publish(&mut self) -> bool {
        match self {
            Self::Split(queue) => queue.publish(),
            Self::Packed(queue) => queue.publish(),
        }
    }

    /// The token of a request that is done, and how many bytes the device says it wrote.
    pub fn pop(&mut self) -> Option<(u16, u32)> {
        match self {
            Self::Split(queue) => queue.pop(),
            Self::Packed(queue) => queue.pop(),
        }
    }

    /// Asks for an interrupt at the next completion; whether there is one already, for which none may come.
    pub fn arm(&mut self) -> bool {
        match self {
            Self::Split(queue) => queue.arm(),
            Self::Packed(queue) => queue.arm(),
        }
    }
}

/// Writes a table of descriptors that a request's first descriptor names.
pub fn write_table(table: u64, parts: &[Part], chained: bool) {
    for (index, part) in parts.iter().enumerate() {
        let at = table + 16 * index as u64;
        let next = chained && index + 1 < parts.len();
        write64(at, part.at);
        write32(at + 8, part.len);
        if chained {
            write16(at + 12, NEXT * next as u16 | WRITE * part.writable as u16);
            write16(at + 14, index as u16 + 1);
        } else {
            write16(at + 14, WRITE * part.writable as u16);
        }
    }
}

/// VIRTQ_DESC_F_NEXT, _WRITE and _INDIRECT, the same in both kinds of ring.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// A split virtqueue.
pub struct Split {
    layout: Layout,
    areas: Areas,
    /// One table for each token.
    tables: u64,
    added: u16,
    published: u16,
    seen: u16,
}

impl Split {
    fn new(layout: Layout, arena: &mut Arena) -> Result<Self, u64> {
        let size = layout.size as u64;
        let areas = Areas {
            descriptors: arena.take(16 * size, 4096)?,
            driver: arena.take(6 + 2 * size, 64)?,
            device: arena.take(6 + 8 * size, 4096)?,
        };
        let tables = match layout.indirect {
            true => arena.take(16 * size * layout.parts as u64, 4096)?,
            false => 0,
        };
        write16(areas.driver, AVAIL_NO_INTERRUPT);
        let queue = Self {
            layout,
            areas,
            tables,
            added: 0,
            published: 0,
            seen: 0,
        };
        // An index that is not reached soon.
        queue.set_used_event(u16::MAX);
        Ok(queue)
    }

    fn set_used_event(&self, index: u16) {
        write16(self.areas.driver + 4 + 2 * self.layout.size as u64, index);
    }

    fn avail_event(&self) -> u16 {
        read16(self.areas.device + 4 + 8 * self.layout.size as u64)
    }

    fn add(&mut self, token: u16, parts: &[Part]) {
        let Layout { size, indirect, .. } = self.layout;
        let head = if indirect {
            token
        } else {
            token * self.layout.parts
        };
        let at = self.areas.descriptors + 16 * head as u64;
        if indirect {
            let table = self.tables + 16 * (token * self.layout.parts) as u64;
            write_table(table, parts, true);
            write64(at, table);
            write32(at + 8, 16 * parts.len() as u32);
            write16(at + 12, INDIRECT);
        } else {
            for (index, part) in parts.iter().enumerate() {
                let at = at + 16 * index as u64;
                let next = index + 1 < parts.len();
                write64(at, part.at);
                write32(at + 8, part.len);
                write16(at + 12, NEXT * next as u16 | WRITE * part.writable as u16);
                write16(at + 14, head + index as u16 + 1);
            }
        }
        write16(self.areas.driver + 4 + 2 * (self.added % size) as u64, head);
        self.added = self.added.wrapping_add(1);
    }

    fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.added);
        release16(self.areas.driver + 2, new);
        self.published = new;
        full_barrier();
        if self.layout.event_idx {
            crosses(self.avail_event(), old, new)
        } else {
            old != new && read16(self.areas.device) & USED_NO_NOTIFY == 0
        }
    }

    fn pop(&mut self) -> Option<(u16, u32)> {
        if acquire16(self.areas.device + 2) == self.seen {
            return None;
        }
        let at = self.areas.device + 4 + 8 * (self.seen % self.layout.size) as u64;
        self.seen = self.seen.wrapping_add(1);
        let head = read32(at) as u16;
        let token = if self.layout.indirect {
            head
        } else {
            head / self.layout.parts
        };
        Some((token, read32(at + 4)))
    }

    fn arm(&mut self) -> bool {
        if self.layout.event_idx {
            self.set_used_event(self.seen);
        } else {
            write16(self.areas.driver, 0);
        }
        full_barrier();
        acquire16(self.areas.device + 2) != self.seen
    }
}

/// Whether an index that moved from `old` to `new` has passed `event` (virtio 1.3, section 2.7.7.2).
pub fn crosses(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
