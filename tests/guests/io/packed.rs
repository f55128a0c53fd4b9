//! A packed virtqueue (virtio 1.3, section 2.8).

use crate::mem::{Arena, acquire16, full_barrier, read16, read32, release16, write16, write32, write64};
use crate::options::MAX_DEPTH;
use crate::queue::{Areas, INDIRECT, Layout, NEXT, Part, WRITE, crosses, write_table};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const WRAP: u16 = 1 << 15;
/// RING_EVENT_FLAGS_ENABLE, _DISABLE and _DESC.
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const AT_INDEX: u16 = 2;

/// A place in the ring and the wrap counter that goes with it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    const START: Self = Self { index: 0, wrap: true };

    fn after(self, steps: u16, size: u16) -> Self {
        let index = self.index + steps;
        match index.checked_sub(size) {
            Some(index) => Self {
                index,
                wrap: !self.wrap,
            },
            None => Self { index, ..self },
        }
    }

    fn bits(self) -> u16 {
        self.index | WRAP * self.wrap as u16
    }
}

pub struct Packed {
    layout: Layout,
    areas: Areas,
    tables: u64,
    next: Place,
    published: Place,
    seen: Place,
    /// Flags of the first descriptor that was added since the last publishing, which are written last.
    held: Option<(Place, u16)>,
    /// Descriptors of each request in flight.
    lengths: [u16; MAX_DEPTH as usize],
}

impl Packed {
    pub fn new(layout: Layout, arena: &mut Arena) -> Result<Self, u64> {
        let size = layout.size as u64;
        let areas = Areas {
            descriptors: arena.take(16 * size, 4096)?,
            driver: arena.take(4, 64)?,
            device: arena.take(4, 64)?,
        };
        let tables = match layout.indirect {
            true => arena.take(16 * size * layout.parts as u64, 4096)?,
            false => 0,
        };
        write16(areas.driver + 2, DISABLE);
        Ok(Self {
            layout,
            areas,
            tables,
            next: Place::START,
            published: Place::START,
            seen: Place::START,
            held: None,
            lengths: [0; MAX_DEPTH as usize],
        })
    }

    pub fn areas(&self) -> Areas {
        self.areas
    }

    pub fn add(&mut self, token: u16, parts: &[Part]) {
        if self.layout.indirect {
            let table = self.tables + 16 * (token * self.layout.parts) as u64;
            write_table(table, parts, false);
            let whole = Part {
                at: table,
                len: 16 * parts.len() as u32,
                writable: false,
            };
            self.lengths[token as usize] = 1;
            self.put(token, whole, INDIRECT);
        } else {
            self.lengths[token as usize] = parts.len() as u16;
            for (index, part) in parts.iter().enumerate() {
                let next = index + 1 < parts.len();
                self.put(token, *part, NEXT * next as u16 | WRITE * part.writable as u16);
            }
        }
    }

    fn put(&mut self, id: u16, part: Part, flags: u16) {
        let place = self.next;
        let at = self.areas.descriptors + 16 * place.index as u64;
        write64(at, part.at);
        write32(at + 8, part.len);
        write16(at + 12, id);
        let flags = flags | if place.wrap { AVAIL } else { USED };
        if self.held.is_none() {
            self.held = Some((place, flags));
        } else {
            release16(at + 14, flags);
        }
        self.next = place.after(1, self.layout.size);
    }

    pub fn publish(&mut self) -> bool {
        let Some((place, flags)) = self.held.take() else {
            return false;
        };
        release16(self.areas.descriptors + 16 * place.index as u64 + 14, flags);
        let (old, new) = (self.published, self.next);
        self.published = new;
        full_barrier();
        match read16(self.areas.device + 2) & 3 {
            ENABLE => true,
            AT_INDEX => {
                let event = read16(self.areas.device);
                // Indices without a wrap, as far as both are from the newer one (section 2.8.10.1 has it so).
                let size = self.layout.size;
                let mut index = event & !WRAP;
                if (event & WRAP != 0) != new.wrap {
                    index = index.wrapping_sub(size);
                }
                let mut before = old.index;
                if old.wrap != new.wrap {
                    before = before.wrapping_sub(size);
                }
                crosses(index, before, new.index)
            }
            _ => false,
        }
    }

    pub fn pop(&mut self) -> Option<(u16, u32)> {
        if !self.is_used() {
            return None;
        }
        let at = self.areas.descriptors + 16 * self.seen.index as u64;
        let token = read16(at + 12);
        let length = self.lengths.get(token as usize).copied().unwrap_or(1);
        self.seen = self.seen.after(length, self.layout.size);
        Some((token, read32(at + 8)))
    }

    fn is_used(&self) -> bool {
        let flags = acquire16(self.areas.descriptors + 16 * self.seen.index as u64 + 14);
        (flags & AVAIL != 0) == self.seen.wrap && (flags & USED != 0) == self.seen.wrap
    }

    pub fn arm(&mut self) -> bool {
        if self.layout.event_idx {
            write16(self.areas.driver, self.seen.bits());
            release16(self.areas.driver + 2, AT_INDEX);
        } else {
            write16(self.areas.driver + 2, ENABLE);
        }
        full_barrier();
        self.is_used()
    }
}
