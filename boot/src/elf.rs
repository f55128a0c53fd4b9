//! ELF kernels: program headers checked against the file and the guest's memory, segments copied, entry points found.
//!
//! Fields by the System V ABI, chapters 4 and 5; the PVH entry note by Xen's `elfnote.h`.

use std::io;

use berth_arch::x86_64::layout;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::image::Image;
use crate::{BootEntry, BootError, ram_size};

/// Which entry point to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EntryPolicy {
    /// The 64-bit entry for Linux, which needs no 32-bit code, and for whatever has no PVH note; PVH for the rest.
    #[default]
    Auto,
    /// The 64-bit entry.
    Linux64,
    /// The PVH entry; refused if the kernel has no note for it.
    Pvh,
}

/// A kernel in guest memory.
pub(crate) struct Loaded {
    pub(crate) entry: BootEntry,
    /// End of its highest segment.
    pub(crate) end: u64,
}

const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// More program headers than any kernel has.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// More notes than any kernel has.
const MAX_NOTES_LEN: u64 = 1 << 20;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Where Linux is linked; an entry given as a virtual address is relative to it.
const LINUX_TEXT: u64 = 0xffff_ffff_8000_0000;

struct ProgramHeader {
    kind: u32,
    offset: u64,
    virt: u64,
    phys: u64,
    file_len: u64,
    memory_len: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Checks `image` whole, then copies its segments to `memory`.
pub(crate) fn load(
    name: &str,
    image: &Image,
    memory: &GuestMemoryMmap,
    policy: EntryPolicy,
) -> Result<Loaded, BootError> {
    let malformed = |what: String| BootError::Malformed {
        name: name.to_owned(),
        what,
    };
    let read = |cause| BootError::Read {
        what: "kernel",
        name: name.to_owned(),
        cause,
    };

    let (entry, headers) = parse(image).map_err(read)?.map_err(malformed)?;
    let mut end = 0;
    for (index, header) in headers
        .iter()
        .enumerate()
        .filter(|(_, header)| header.kind == PT_LOAD)
    {
        end = end.max(check_segment(name, index, header, image, memory)?);
    }
    if end == 0 {
        return Err(malformed("the ELF file has no segment to load".to_owned()));
    }
    let notes = Notes::read(image, &headers).map_err(read)?;
    let entry = choose_entry(policy, entry, &headers, &notes).map_err(malformed)?;

    for header in headers.iter().filter(|header| header.kind == PT_LOAD) {
        image
            .copy(header.offset, header.file_len, memory, header.phys)
            .map_err(read)?;
    }
    Ok(Loaded { entry, end })
}

/// The entry points of a kernel.
pub(crate) struct Entries {
    pub(crate) linux64: Option<u64>,
    pub(crate) pvh: Option<u64>,
}

/// Finds the entry points without a guest.
pub(crate) fn entries(name: &str, image: &Image) -> Result<Entries, BootError> {
    let read = |cause| BootError::Read {
        what: "kernel",
        name: name.to_owned(),
        cause,
    };
    let (entry, headers) = parse(image).map_err(read)?.map_err(|what| BootError::Malformed {
        name: name.to_owned(),
        what,
    })?;
    let notes = Notes::read(image, &headers).map_err(read)?;
    let found = |policy| match choose_entry(policy, entry, &headers, &notes) {
        Ok(BootEntry::Linux64 { rip } | BootEntry::Pvh { rip }) => Some(rip),
        Err(_) => None,
    };
    Ok(Entries {
        linux64: found(EntryPolicy::Linux64),
        pvh: found(EntryPolicy::Pvh),
    })
}

type Parsed = (u64, Vec<ProgramHeader>);

/// The entry address and the program headers.
fn parse(image: &Image) -> io::Result<Result<Parsed, String>> {
    let header = image.read_at(0, HEADER_LEN)?;
    if header.len() < HEADER_LEN {
        return Ok(Err(format!(
            "the ELF file has {} bytes, fewer than its header",
            header.len()
        )));
    }
    if header[4] != 2 || header[5] != 1 || u16_at(&header, 18) != MACHINE_X86_64 {
        return Ok(Err("the ELF file is not for 64-bit x86".to_owned()));
    }
    let (offset, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    if usize::from(size) != PROGRAM_HEADER_LEN || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Ok(Err(format!(
            "{count} program headers of {size} bytes (e_phnum, e_phentsize); Berth takes 1 to {MAX_PROGRAM_HEADERS} of {PROGRAM_HEADER_LEN}"
        )));
    }
    let len = usize::from(count) * PROGRAM_HEADER_LEN;
    let table = image.read_at(offset, len)?;
    if table.len() < len {
        return Ok(Err(format!(
            "its program headers would end at {:#x} of a file of {:#x} bytes; the file is cut short or e_phoff lies",
            offset.saturating_add(len as u64),
            image.len()
        )));
    }
    let headers = table
        .chunks_exact(PROGRAM_HEADER_LEN)
        .map(|raw| ProgramHeader {
            kind: u32_at(raw, 0),
            offset: u64_at(raw, 8),
            virt: u64_at(raw, 16),
            phys: u64_at(raw, 24),
            file_len: u64_at(raw, 32),
            memory_len: u64_at(raw, 40),
        })
        .collect();
    Ok(Ok((u64_at(&header, 24), headers)))
}

/// Checks that a segment lies in the file and its memory in high RAM. Returns where it ends.
fn check_segment(
    name: &str,
    index: usize,
    header: &ProgramHeader,
    image: &Image,
    memory: &GuestMemoryMmap,
) -> Result<u64, BootError> {
    let malformed = |what: String| BootError::Malformed {
        name: name.to_owned(),
        what,
    };
    let file_end = header.offset.saturating_add(header.file_len);
    if file_end > image.len() {
        return Err(malformed(format!(
            "segment {index} would end at {file_end:#x} of a file of {:#x} bytes; the file is cut short or its header lies",
            image.len()
        )));
    }
    if header.file_len > header.memory_len {
        return Err(malformed(format!(
            "segment {index} has {:#x} bytes in the file but only {:#x} in memory (p_filesz, p_memsz)",
            header.file_len, header.memory_len
        )));
    }
    if header.memory_len == 0 {
        return Ok(0);
    }
    if header.phys < layout::HIGH_RAM {
        return Err(malformed(format!(
            "segment {index} wants to lie at {:#x} (p_paddr), below 1 MiB where Berth keeps the boot structures",
            header.phys
        )));
    }
    let end = header.phys.saturating_add(header.memory_len);
    let fits = GuestMemoryBackend::check_range(memory, GuestAddress(header.phys), header.memory_len as usize);
    if !fits || end == u64::MAX {
        return Err(BootError::DoesNotFit {
            name: name.to_owned(),
            index,
            start: header.phys,
            end,
            mib: ram_size(memory) >> 20,
        });
    }
    Ok(end)
}

fn choose_entry(
    policy: EntryPolicy,
    entry: u64,
    headers: &[ProgramHeader],
    notes: &Notes,
) -> Result<BootEntry, String> {
    let inside = |address: u64| {
        headers.iter().any(|header| {
            header.kind == PT_LOAD && address >= header.phys && address - header.phys < header.memory_len
        })
    };
    let pvh = || match notes.pvh {
        Some(rip) if inside(rip) => Ok(BootEntry::Pvh { rip }),
        Some(rip) => Err(format!("its PVH entry {rip:#x} lies in no segment")),
        None => Err("it has no PVH entry (the ELF note XEN_ELFNOTE_PHYS32_ENTRY)".to_owned()),
    };
    let linux64 = || {
        let physical = physical_entry(entry, headers);
        if inside(physical) {
            Ok(BootEntry::Linux64 { rip: physical })
        } else {
            Err(format!("its entry {entry:#x} (e_entry) lies in no segment"))
        }
    };
    match policy {
        EntryPolicy::Linux64 => linux64(),
        EntryPolicy::Auto if notes.linux || notes.pvh.is_none() => linux64(),
        EntryPolicy::Pvh | EntryPolicy::Auto => pvh(),
    }
}

/// `e_entry` is a physical address in today's kernels and a virtual one in some; both are taken.
fn physical_entry(entry: u64, headers: &[ProgramHeader]) -> u64 {
    if entry < LINUX_TEXT {
        return entry;
    }
    headers
        .iter()
        .filter(|header| header.kind == PT_LOAD)
        .find(|header| entry >= header.virt && entry - header.virt < header.memory_len)
        .map_or(entry - LINUX_TEXT, |header| header.phys + (entry - header.virt))
}

/// What the ELF notes say.
#[derive(Default)]
struct Notes {
    pvh: Option<u64>,
    /// There are notes by Linux itself.
    linux: bool,
}

impl Notes {
    fn read(image: &Image, headers: &[ProgramHeader]) -> io::Result<Self> {
        let mut notes = Self::default();
        for header in headers.iter().filter(|header| header.kind == PT_NOTE) {
            let bytes = image.read_at(header.offset, header.file_len.min(MAX_NOTES_LEN) as usize)?;
            notes.scan(&bytes);
        }
        Ok(notes)
    }

    fn scan(&mut self, mut rest: &[u8]) {
        while rest.len() >= 12 {
            let (name_len, desc_len, kind) = (u32_at(rest, 0), u32_at(rest, 4), u32_at(rest, 8));
            let padded = |len: u32| (len as usize).next_multiple_of(4);
            let desc_at = 12 + padded(name_len);
            let (Some(name), Some(desc)) = (
                rest.get(12..12 + name_len as usize),
                rest.get(desc_at..desc_at + desc_len as usize),
            ) else {
                return;
            };
            match (name, kind) {
                (b"Xen\0", XEN_ELFNOTE_PHYS32_ENTRY) if desc.len() == 8 => self.pvh = Some(u64_at(desc, 0)),
                (b"Xen\0", XEN_ELFNOTE_PHYS32_ENTRY) if desc.len() == 4 => {
                    self.pvh = Some(u64::from(u32_at(desc, 0)));
                }
                (b"Linux\0", _) => self.linux = true,
                _ => {}
            }
            rest = rest.get(desc_at + padded(desc_len)..).unwrap_or_default();
        }
    }
}
