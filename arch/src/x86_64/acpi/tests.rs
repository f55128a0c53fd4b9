//! The tables as a kernel walks them.

use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::*;

fn everything(cpus: u32, windows: usize) -> Machine {
    let mut devices = vec![
        AcpiDevice::Com1,
        AcpiDevice::Com2,
        AcpiDevice::CmosClock,
        AcpiDevice::Pvpanic,
    ];
    devices.extend((0..windows).map(AcpiDevice::VirtioMmio));
    Machine { cpus, devices }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N]
        .iter()
        .rev()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// The table at a guest address, its signature and checksum checked.
fn table(image: &[u8], address: u64, signature: [u8; 4]) -> &[u8] {
    assert_eq!(address % 16, 0);
    let rest = &image[(address - layout::ACPI_RSDP) as usize..];
    let table = &rest[..number::<4>(rest, 4) as usize];
    assert_eq!((&table[..4], sum(table)), (signature.as_slice(), 0));
    table
}

/// FADT, MADT and DSDT as found from the RSDP on.
fn walk(image: &[u8]) -> (&[u8], &[u8], &[u8]) {
    assert_eq!(
        (&image[..8], sum(&image[..20]), sum(&image[..36])),
        (b"RSD PTR ".as_slice(), 0, 0)
    );
    let xsdt = table(image, number::<8>(image, 24), *b"XSDT");
    assert_eq!(xsdt.len(), 36 + 16);
    let fadt = table(image, number::<8>(xsdt, 36), *b"FACP");
    let madt = table(image, number::<8>(xsdt, 44), *b"APIC");
    (fadt, madt, table(image, number::<8>(fadt, 140), *b"DSDT"))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn the_generation_id_is_named_as_guests_look_for_it_and_lies_beyond_the_tables() {
    let image = tables(&everything(254, 64)).unwrap();
    let (_, _, dsdt) = walk(&image);
    assert!(contains(dsdt, b"VGEN") && contains(dsdt, b"VM_Gen_Counter"));
    assert!(contains(dsdt, &(layout::VM_GENERATION_ID as u32).to_le_bytes()));
    assert!(layout::ACPI_RSDP + image.len() as u64 <= layout::VM_GENERATION_ID);
}

#[test]
fn fadt_is_hardware_reduced_with_reset_and_sleep_registers() {
    let image = tables(&everything(1, 0)).unwrap();
    let (fadt, _, _) = walk(&image);
    assert_eq!(fadt.len(), 276);
    let flags = number::<4>(fadt, 112);
    assert_eq!(
        (flags >> 20 & 1, flags >> 10 & 1),
        (1, 1),
        "HW_REDUCED_ACPI and RESET_REG_SUP"
    );
    let register = |at: usize| (fadt[at], fadt[at + 1], number::<8>(fadt, at + 4));
    let io = 1;
    assert_eq!(register(116), (io, 8, layout::ACPI_RESET_PORT.into()));
    assert_eq!(fadt[128], layout::ACPI_RESET);
    assert_eq!(register(244), (io, 8, layout::ACPI_SLEEP_CONTROL_PORT.into()));
    assert_eq!(register(256), (io, 8, layout::ACPI_SLEEP_STATUS_PORT.into()));
}

#[test]
fn soft_off_type_is_what_the_power_off_value_carries() {
    let image = tables(&everything(1, 0)).unwrap();
    let (_, _, dsdt) = walk(&image);
    // Name (_S5, Package (4) { 5, 0, 0, 0 })
    assert!(contains(
        dsdt,
        &[
            0x08,
            b'_',
            b'S',
            b'5',
            b'_',
            0x12,
            7,
            4,
            0x0a,
            layout::ACPI_S5_TYPE,
            0,
            0,
            0
        ]
    ));
    assert_eq!(layout::ACPI_POWER_OFF >> 2 & 7, layout::ACPI_S5_TYPE);
}

#[test]
fn devices_appear_only_if_the_machine_has_them() {
    let all = tables(&everything(1, 2)).unwrap();
    for (mark, device) in [
        ("COM1", AcpiDevice::Com1),
        ("COM2", AcpiDevice::Com2),
        ("RTC_", AcpiDevice::CmosClock),
        ("QEMU0001", AcpiDevice::Pvpanic),
        ("VM01", AcpiDevice::VirtioMmio(1)),
    ] {
        assert!(contains(walk(&all).2, mark.as_bytes()), "{mark}");
        let mut machine = everything(1, 2);
        machine.devices.retain(|&other| other != device);
        assert!(
            !contains(walk(&tables(&machine).unwrap()).2, mark.as_bytes()),
            "{mark}"
        );
    }
}

#[test]
fn virtio_windows_carry_their_address_and_interrupt() {
    let image = tables(&everything(1, 3)).unwrap();
    let (_, _, dsdt) = walk(&image);
    for window in 0..3 {
        let address = layout::virtio_mmio_address(window).unwrap() as u32;
        let mut resources = vec![0x86, 9, 0, 1];
        resources.extend(address.to_le_bytes());
        resources.extend(0x1000u32.to_le_bytes());
        // Consumer, edge, active high, shared.
        resources.extend([0x89, 6, 0, 0b1011, 1]);
        resources.extend(layout::virtio_gsi(window).to_le_bytes());
        assert!(contains(dsdt, &resources), "window {window}");
    }
}

#[test]
fn impossible_machines_are_refused() {
    for cpus in [0, 255] {
        let error = tables(&everything(cpus, 0)).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("ACPI tables describe 1 to 254 processors, not {cpus}")
        );
    }
    let error = tables(&Machine {
        cpus: 1,
        devices: vec![AcpiDevice::VirtioMmio(64)],
    })
    .unwrap_err()
    .to_string();
    assert_eq!(error, "virtio-mmio window 64 does not exist; there are 64");
}

#[test]
fn memory_that_ends_too_early_is_an_error() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0xe_0000)]).unwrap();
    assert!(matches!(
        write(&memory, &everything(1, 0)),
        Err(AcpiError::Memory { .. })
    ));
}

proptest! {
    #[test]
    fn every_machine_has_sound_tables_that_fit(cpus in 1..=layout::MAX_CPUS, windows in 0..=layout::VIRTIO_MMIO_MAX) {
        let image = tables(&everything(cpus, windows)).unwrap();
        prop_assert!(image.len() as u64 <= layout::ACPI_END - layout::ACPI_RSDP);
        let (_, madt, _) = walk(&image);
        let (mut at, mut ids, mut ioapics) = (44, vec![], vec![]);
        while at < madt.len() {
            match madt[at] {
                0 => ids.push(u32::from(madt[at + 3])),
                1 => ioapics.push((madt[at + 2], number::<4>(madt, at + 4))),
                other => prop_assert!(false, "structure of type {}", other),
            }
            at += usize::from(madt[at + 1]);
        }
        prop_assert_eq!(ids, (0..cpus).collect::<Vec<_>>());
        prop_assert_eq!(ioapics, vec![(cpus as u8, layout::IOAPIC)]);
    }
}
