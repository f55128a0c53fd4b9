//! What is wanted of ACPI: where PCI's configuration space lies (PCI Firmware Specification, MCFG).

use crate::mem::{read8, read32, read64};
use crate::paging;

/// The configuration space of bus 0, if there is an MCFG table.
pub fn ecam(rsdp: u64) -> Option<u64> {
    let rsdp = if rsdp != 0 { rsdp } else { scan()? };
    // Version 2 has the XSDT with addresses of 8 bytes, version 0 the RSDT with 4.
    let (table, width) = match read8(rsdp + 15) {
        0 => (read32(rsdp + 16) as u64, 4),
        _ => (word64(rsdp + 24), 8),
    };
    paging::map(table, 4096).ok()?;
    let len = read32(table + 4) as u64;
    (table + 36..table + len).step_by(width).find_map(|entry| {
        let at = if width == 4 {
            word32(entry) as u64
        } else {
            word64(entry)
        };
        paging::map(at, 4096).ok()?;
        (word32(at) == u32::from_le_bytes(*b"MCFG")).then(|| word64(at + 44))
    })
}

fn scan() -> Option<u64> {
    (0xe_0000..0x10_0000)
        .step_by(16)
        .find(|at| read64(*at) == u64::from_le_bytes(*b"RSD PTR "))
}

/// Tables are not aligned.
fn word32(at: u64) -> u32 {
    (0..4).map(|byte| (read8(at + byte) as u32) << (8 * byte)).sum()
}

fn word64(at: u64) -> u64 {
    word32(at) as u64 | (word32(at + 4) as u64) << 32
}
