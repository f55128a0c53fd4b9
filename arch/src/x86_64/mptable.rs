//! The MP table: processors and interrupt wiring, for kernels without ACPI.
//!
//! Truth: Intel's MultiProcessor Specification 1.4, chapter 4. The floating pointer lies in the EBDA, where kernels look; the
//! table it points to lies below 1 MiB in the firmware range, where it has room for 254 processors.
#![forbid(unsafe_code)]

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;

/// Why there is no MP table.
#[derive(Debug, thiserror::Error)]
pub enum MpTableError {
    /// APIC ids are 8 bits.
    #[error("an MP table describes 1 to {max} processors, not {0}", max = layout::MAX_CPUS)]
    Processors(u32),
    /// Guest memory does not reach to where the table belongs.
    #[error("the MP table at {address:#x} does not fit in guest memory: {cause}")]
    Memory {
        /// Where it belongs.
        address: u64,
        /// What was wrong.
        cause: GuestMemoryError,
    },
}

const SPEC_REVISION: u8 = 4; // 1.4
const APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const HEADER_SIZE: usize = 44;
const ISA_BUS: u8 = 0;
/// Interrupt flags: active high (bits 0, 1), edge (bits 2, 3).
const EDGE_HIGH: u16 = 0b0101;

/// Kinds of interrupt (table 4-10).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// Writes floating pointer and table for `cpus` processors with the APIC ids 0 to `cpus - 1`.
pub fn write<M>(memory: &M, cpus: u32) -> Result<(), MpTableError>
where
    M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
{
    let table = table(cpus)?;
    for (address, bytes) in [
        (layout::MP_FLOATING_POINTER, floating_pointer().as_slice()),
        (layout::MP_TABLE, &table),
    ] {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|cause| MpTableError::Memory { address, cause })?;
    }
    Ok(())
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, &byte| sum.wrapping_add(byte))
        .wrapping_neg()
}

/// The 16 bytes that kernels search for.
fn floating_pointer() -> [u8; 16] {
    const PARAGRAPHS: u8 = 1;
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(layout::MP_TABLE as u32).to_le_bytes());
    pointer[8] = PARAGRAPHS;
    pointer[9] = SPEC_REVISION;
    // Bytes 11 to 15, features: a configuration table is present, and no IMCR (virtual wire mode).
    pointer[10] = checksum(&pointer);
    pointer
}

/// The configuration table.
fn table(cpus: u32) -> Result<Vec<u8>, MpTableError> {
    if !(1..=layout::MAX_CPUS).contains(&cpus) {
        return Err(MpTableError::Processors(cpus));
    }
    let ioapic_id = cpus as u8;
    let mut entries = Entries::default();
    for id in 0..cpus as u8 {
        entries.add(&processor(id));
    }
    entries.add(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let address = (layout::IOAPIC as u32).to_le_bytes();
    entries.add(&[
        2,
        ioapic_id,
        IOAPIC_VERSION,
        1,
        address[0],
        address[1],
        address[2],
        address[3],
    ]);
    for pin in 0..layout::IOAPIC_PINS as u8 {
        entries.add(&interrupt(3, INT, EDGE_HIGH, pin, ioapic_id, pin));
    }
    entries.add(&interrupt(4, EXT_INT, 0, 0, 0, 0));
    entries.add(&interrupt(4, NMI, 0, 0, 0xff, 1));
    Ok(with_header(&entries))
}

#[derive(Default)]
struct Entries {
    count: u16,
    bytes: Vec<u8>,
}

impl Entries {
    fn add(&mut self, entry: &[u8]) {
        self.count += 1;
        self.bytes.extend_from_slice(entry);
    }
}

/// Table 4-4. Signature and feature flags stay zero: kernels ask CPUID.
fn processor(id: u8) -> [u8; 20] {
    const ENABLED: u8 = 1;
    const BOOTSTRAP: u8 = 2;
    let mut entry = [0; 20];
    entry[1] = id;
    entry[2] = APIC_VERSION;
    entry[3] = if id == 0 { ENABLED | BOOTSTRAP } else { ENABLED };
    entry
}

/// Tables 4-9 (`entry` 3, an IOAPIC's pin) and 4-11 (`entry` 4, a local APIC's pin).
fn interrupt(entry: u8, kind: u8, flags: u16, source: u8, apic: u8, pin: u8) -> [u8; 8] {
    let flags = flags.to_le_bytes();
    [entry, kind, flags[0], flags[1], ISA_BUS, source, apic, pin]
}

fn with_header(entries: &Entries) -> Vec<u8> {
    let mut table = Vec::with_capacity(HEADER_SIZE + entries.bytes.len());
    table.extend_from_slice(b"PCMP");
    table.extend_from_slice(&((HEADER_SIZE + entries.bytes.len()) as u16).to_le_bytes());
    table.extend_from_slice(&[SPEC_REVISION, 0]);
    table.extend_from_slice(b"BERTH   BERTH VM    ");
    table.extend_from_slice(&[0; 6]); // no OEM table
    table.extend_from_slice(&entries.count.to_le_bytes());
    table.extend_from_slice(&(layout::LAPIC as u32).to_le_bytes());
    table.extend_from_slice(&[0; 4]); // no extended table
    table.extend_from_slice(&entries.bytes);
    table[7] = checksum(&table);
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use vm_memory::GuestMemoryMmap;

    use super::*;

    /// What a kernel finds: processors (id, bootstrap), IOAPIC ids, and IOAPIC pins (source IRQ, flags, APIC, pin).
    #[derive(Default)]
    struct Found {
        processors: Vec<(u8, bool)>,
        ioapics: Vec<u8>,
        pins: Vec<(u8, u16, u8, u8)>,
        local: Vec<(u8, u8, u8)>,
    }

    /// Reads the table as a kernel does, from the floating pointer on.
    fn parse(memory: &GuestMemoryMmap) -> Found {
        let read = |address: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            bytes
        };
        let pointer = read(layout::MP_FLOATING_POINTER, 16);
        assert_eq!((&pointer[..4], checksum(&pointer)), (b"_MP_".as_slice(), 0));
        let table = u64::from(u32::from_le_bytes(pointer[4..8].try_into().unwrap()));
        let len = usize::from(u16::from_le_bytes(read(table + 4, 2).try_into().unwrap()));
        let bytes = read(table, len);
        assert_eq!((&bytes[..4], checksum(&bytes)), (b"PCMP".as_slice(), 0));
        assert!(table + len as u64 <= layout::MP_TABLE_END);
        let count = u16::from_le_bytes([bytes[34], bytes[35]]);
        let (mut rest, mut found) = (&bytes[HEADER_SIZE..], Found::default());
        for _ in 0..count {
            let size = if rest[0] == 0 { 20 } else { 8 };
            let (entry, after) = rest.split_at(size);
            match entry[0] {
                0 => found.processors.push((entry[1], entry[3] & 2 != 0)),
                1 => assert_eq!(&entry[2..], b"ISA   "),
                2 => found.ioapics.push(entry[1]),
                3 => found.pins.push((
                    entry[5],
                    u16::from_le_bytes([entry[2], entry[3]]),
                    entry[6],
                    entry[7],
                )),
                4 => found.local.push((entry[1], entry[6], entry[7])),
                other => panic!("entry of type {other}"),
            }
            rest = after;
        }
        assert!(rest.is_empty());
        found
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap()
    }

    proptest! {
        #[test]
        fn a_kernel_finds_every_processor_and_all_pins(cpus in 1u32..=layout::MAX_CPUS) {
            let memory = memory();
            write(&memory, cpus).unwrap();
            let found = parse(&memory);
            let ids: BTreeSet<_> = found.processors.iter().map(|processor| processor.0).collect();
            prop_assert_eq!(ids, (0..cpus as u8).collect());
            prop_assert_eq!(found.processors.iter().filter(|processor| processor.1).count(), 1);
            prop_assert_eq!(&found.ioapics, &[cpus as u8], "no processor has the IOAPIC's id");
            let wanted: Vec<_> = (0..24).map(|pin| (pin, EDGE_HIGH, cpus as u8, pin)).collect();
            prop_assert_eq!(&found.pins, &wanted);
            prop_assert_eq!(&found.local, &[(EXT_INT, 0, 0), (NMI, 0xff, 1)]);
        }
    }

    #[test]
    fn impossible_processor_counts_are_refused() {
        for cpus in [0, 255, u32::MAX] {
            let error = write(&memory(), cpus).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("an MP table describes 1 to 254 processors, not {cpus}")
            );
        }
    }

    #[test]
    fn memory_that_ends_too_early_is_an_error() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0xf_0000)]).unwrap();
        assert!(matches!(
            write(&memory, 1),
            Err(MpTableError::Memory {
                address: layout::MP_TABLE,
                ..
            })
        ));
    }
}
