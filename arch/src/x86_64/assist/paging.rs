//! The guest's page tables: from linear to physical addresses, with the rights and faults of the real CPU.
//!
//! Truth: Intel SDM volume 3, chapter 4. Four and five levels; pages of 4 KiB, 2 MiB and 1 GiB; user and supervisor, write and
//! execute rights, CR0.WP, SMEP, SMAP and RFLAGS.AC; Accessed and Dirty are set as the CPU sets them. The 32-bit formats are left
//! out: no guest that needs completing runs with them. A walk reads five words at most, wherever the guest's tables point.

use std::cell::{Cell, RefCell};

use super::interpret::may_be_used_entry;
use super::machine::{Cpu, Exception, Trap, control, rflags};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PAGE: u64 = 0x1000;

/// Error code bits of #PF.
const FAULT_PRESENT: u32 = 1 << 0;
const FAULT_WRITE: u32 = 1 << 1;
const FAULT_USER: u32 = 1 << 2;
const FAULT_RESERVED: u32 = 1 << 3;
const FAULT_FETCH: u32 = 1 << 4;

/// How often a walk starts again because another vCPU changed an entry meanwhile.
const RETRIES: usize = 16;

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads data.
    Read,
    /// Writes data.
    Write,
    /// Fetches an instruction.
    Fetch,
    /// Reads a descriptor table: with the kernel's rights at any privilege.
    Table,
}

/// Which exception an address that is not canonical raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// #GP(0).
    Data,
    /// #SS(0).
    Stack,
}

/// Translations of one session at one privilege level.
pub struct Translations {
    /// A number for the session: those of others do not count.
    session: Cell<u64>,
    slots: RefCell<Vec<Translation>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Translation {
    session: u64,
    page: u64,
    frame: u64,
}

const TRANSLATIONS: usize = 256;

impl Translations {
    pub(super) fn new() -> Self {
        Self {
            session: Cell::new(0),
            slots: RefCell::default(),
        }
    }

    /// Forgets all of them.
    pub(super) fn clear(&self) {
        self.session.set(self.session.get() + 1);
        let mut slots = self.slots.borrow_mut();
        if slots.is_empty() {
            slots.resize(4 * TRANSLATIONS, Translation::default());
        }
    }

    fn slot(page: u64, access: Access) -> usize {
        (page as usize % TRANSLATIONS) * 4 + access as usize
    }

    fn find(&self, linear: u64, access: Access) -> Option<u64> {
        let page = linear / PAGE;
        let slots = self.slots.borrow();
        let slot = slots.get(Self::slot(page, access))?;
        (slot.page == page && slot.session == self.session.get()).then_some(slot.frame | (linear % PAGE))
    }

    fn keep(&self, linear: u64, access: Access, physical: u64) {
        let page = linear / PAGE;
        if let Some(slot) = self.slots.borrow_mut().get_mut(Self::slot(page, access)) {
            *slot = Translation {
                session: self.session.get(),
                page,
                frame: physical - physical % PAGE,
            };
        }
    }
}

/// What a walk finds: the address, and which entries to mark.
struct Walk {
    physical: u64,
    /// Address and value of the entries from the root to the leaf.
    entries: [(u64, u64); 5],
    used: usize,
}

impl Cpu<'_> {
    /// The physical address of `linear` for an access at the current privilege.
    pub fn translate(&self, linear: u64, access: Access, segment: Segment) -> Result<u64, Trap> {
        if self.sregs.cr0 & control::CR0_PG == 0 {
            return Ok(linear & 0xffff_ffff);
        }
        if self.sregs.efer & control::EFER_LMA == 0 {
            return Err(Trap::Unsupported("with 32-bit page tables"));
        }
        let levels = self.levels();
        if !is_canonical(linear, levels) {
            return Err(match segment {
                Segment::Data => Exception::GENERAL_PROTECTION,
                Segment::Stack => Exception::STACK,
            }
            .into());
        }
        if let Some(physical) = self.translations.and_then(|known| known.find(linear, access)) {
            return Ok(physical);
        }
        for _ in 0..RETRIES {
            let walk = self.walk(linear, access, levels)?;
            if self.mark(&walk, access)? {
                if let Some(known) = self.translations {
                    known.keep(linear, access, walk.physical);
                }
                return Ok(walk.physical);
            }
        }
        Err(Trap::Unsupported(
            "while another vCPU keeps changing its page tables",
        ))
    }

    /// Levels of the page tables.
    pub fn levels(&self) -> u32 {
        if self.sregs.cr4 & control::CR4_LA57 != 0 {
            5
        } else {
            4
        }
    }

    fn walk(&self, linear: u64, access: Access, levels: u32) -> Result<Walk, Trap> {
        let user = self.privilege() == 3 && access != Access::Table;
        let nx = self.sregs.efer & control::EFER_NXE != 0;
        let smep = self.sregs.cr4 & control::CR4_SMEP != 0;
        let fault = |bits: u32| -> Trap {
            let mut code = bits;
            if access == Access::Write {
                code |= FAULT_WRITE;
            }
            if user {
                code |= FAULT_USER;
            }
            if access == Access::Fetch && (nx || smep) {
                code |= FAULT_FETCH;
            }
            Exception::page_fault(linear, code).into()
        };
        let mut walk = Walk {
            physical: 0,
            entries: [(0, 0); 5],
            used: 0,
        };
        let mut rights = WRITE | USER;
        let mut no_execute = false;
        let mut table = self.sregs.cr3 & ADDRESS;
        for level in (0..levels).rev() {
            let shift = 12 + 9 * level;
            let at = table + ((linear >> shift) & 511) * 8;
            let mut raw = [0; 8];
            if !self.machine.read(at, &mut raw) {
                return Err(Trap::NotRam(at));
            }
            let entry = u64::from_le_bytes(raw);
            if entry & PRESENT == 0 {
                return Err(fault(0));
            }
            let leaf = level == 0 || (entry & LARGE != 0 && level <= 2);
            let offset_mask = (1u64 << shift) - 1;
            // Bit 12 of a large page is its PAT bit.
            let low_reserved = leaf && level > 0 && entry & ADDRESS & offset_mask & !(1 << 12) != 0;
            if (entry & NO_EXECUTE != 0 && !nx) || (level > 2 && entry & LARGE != 0) || low_reserved {
                return Err(fault(FAULT_PRESENT | FAULT_RESERVED));
            }
            rights &= entry;
            no_execute |= entry & NO_EXECUTE != 0;
            if let Some(slot) = walk.entries.get_mut(walk.used) {
                *slot = (at, entry);
                walk.used += 1;
            }
            if leaf {
                walk.physical = (entry & ADDRESS & !offset_mask) | (linear & offset_mask);
                break;
            }
            table = entry & ADDRESS;
        }
        if self.allowed(access, user, rights, no_execute) {
            Ok(walk)
        } else {
            Err(fault(FAULT_PRESENT))
        }
    }

    fn allowed(&self, access: Access, user: bool, rights: u64, no_execute: bool) -> bool {
        let user_page = rights & USER != 0;
        let writable = rights & WRITE != 0;
        let smap = self.sregs.cr4 & control::CR4_SMAP != 0 && self.regs.rflags & rflags::AC == 0;
        match (access, user) {
            (_, true) if !user_page => false,
            (Access::Fetch, true) => !no_execute,
            (Access::Fetch, false) => !(no_execute || user_page && self.sregs.cr4 & control::CR4_SMEP != 0),
            (Access::Read | Access::Table, true) => true,
            (Access::Read, false) => !(user_page && smap),
            // Implicit accesses ignore RFLAGS.AC.
            (Access::Table, false) => !(user_page && self.sregs.cr4 & control::CR4_SMAP != 0),
            (Access::Write, true) => writable,
            (Access::Write, false) => {
                !(user_page && smap) && (writable || self.sregs.cr0 & control::CR0_WP == 0)
            }
        }
    }

    /// Sets Accessed, and Dirty on the leaf of a write; false if an entry is no longer what the walk saw.
    fn mark(&self, walk: &Walk, access: Access) -> Result<bool, Trap> {
        let entries = &walk.entries[..walk.used];
        for (index, &(at, entry)) in entries.iter().enumerate() {
            let leaf = index + 1 == entries.len();
            let mut wanted = entry | ACCESSED;
            if leaf && access == Access::Write {
                wanted |= DIRTY;
            }
            if wanted != entry {
                match self.machine.compare_exchange(at, entry, wanted) {
                    Some(true) => {}
                    Some(false) => return Ok(false),
                    None => return Err(Trap::NotRam(at)),
                }
            }
        }
        Ok(true)
    }

    /// Reads at a linear address; may cross pages.
    pub fn read(&self, linear: u64, into: &mut [u8], segment: Segment) -> Result<(), Trap> {
        self.read_as(linear, into, Access::Read, segment)
    }

    /// Reads instruction bytes.
    pub fn fetch(&self, linear: u64, into: &mut [u8]) -> Result<(), Trap> {
        self.read_as(linear, into, Access::Fetch, Segment::Data)
    }

    /// Reads of a descriptor table.
    pub fn read_table(&self, linear: u64, into: &mut [u8]) -> Result<(), Trap> {
        self.read_as(linear, into, Access::Table, Segment::Data)
    }

    fn read_as(&self, linear: u64, into: &mut [u8], access: Access, segment: Segment) -> Result<(), Trap> {
        let mut at = linear;
        let mut rest = into;
        while !rest.is_empty() {
            let (part, tail) = rest.split_at_mut(rest.len().min(left_in_page(at)));
            let physical = self.translate(at, access, segment)?;
            if !self.machine.read(physical, part) {
                return Err(Trap::NotRam(physical));
            }
            at = at.wrapping_add(part.len() as u64);
            rest = tail;
        }
        Ok(())
    }

    /// Writes at a linear address; may cross pages. Nothing is written if any page of it faults.
    pub fn write(&self, linear: u64, from: &[u8], segment: Segment) -> Result<(), Trap> {
        if from.len() > left_in_page(linear) {
            self.check(linear, from.len(), Access::Write, segment)?;
        }
        let mut at = linear;
        let mut rest = from;
        while !rest.is_empty() {
            let (part, tail) = rest.split_at(rest.len().min(left_in_page(at)));
            let physical = self.translate(at, Access::Write, segment)?;
            self.guard(linear, physical, part.len())?;
            if !self.machine.write(physical, part) {
                return Err(Trap::NotRam(physical));
            }
            at = at.wrapping_add(part.len() as u64);
            rest = tail;
        }
        Ok(())
    }

    /// Refuses a store to what may be page tables that KVM has used. The stack in use is none.
    fn guard(&self, linear: u64, physical: u64, length: usize) -> Result<(), Trap> {
        if !self.guarded || linear / PAGE == self.regs.rsp / PAGE {
            return Ok(());
        }
        let start = physical & !7;
        let end = (physical + length as u64).next_multiple_of(8);
        let mut words = [0; PAGE as usize];
        let words = &mut words[..(end - start) as usize];
        if !self.machine.read(start, words) {
            return Err(Trap::NotRam(start));
        }
        let entry = |word: &[u8]| {
            let mut raw = [0; 8];
            raw.copy_from_slice(word);
            may_be_used_entry(u64::from_le_bytes(raw))
        };
        if words.chunks_exact(8).any(entry) {
            Err(Trap::Unsupported(""))
        } else {
            Ok(())
        }
    }

    /// Raises whatever an access to these bytes would raise.
    pub fn check(&self, linear: u64, length: usize, access: Access, segment: Segment) -> Result<(), Trap> {
        let mut at = linear;
        let mut rest = length;
        while rest > 0 {
            self.translate(at, access, segment)?;
            let part = rest.min(left_in_page(at));
            at = at.wrapping_add(part as u64);
            rest -= part;
        }
        Ok(())
    }
}

/// Bytes from here to the end of the page.
pub(super) fn left_in_page(linear: u64) -> usize {
    (PAGE - linear % PAGE) as usize
}

/// Whether a linear address is one, with page tables of so many levels.
pub fn is_canonical(linear: u64, levels: u32) -> bool {
    let unused = 64 - (12 + 9 * levels);
    ((linear << unused) as i64 >> unused) as u64 == linear
}
