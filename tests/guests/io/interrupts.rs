//! Interrupts: one vector, by an I/O APIC's pin or a message, taken only while halted.

use core::arch::asm;

use crate::mem::{out8, read32, read64, write32, write64};

const IOAPIC: u64 = 0xfec0_0000;
const LAPIC: u64 = 0xfee0_0000;
const LAPIC_EOI: u64 = LAPIC + 0xb0;
const LAPIC_SPURIOUS: u64 = LAPIC + 0xf0;
const LAPIC_ID: u64 = LAPIC + 0x20;

const VECTOR: u32 = 0x40;
const SPURIOUS: u32 = 0xff;

/// How a device interrupts.
pub enum Line {
    /// By a pin of the I/O APIC.
    Pin(u32),
    /// By a message, see [`message`].
    Message,
}

unsafe extern "C" {
    fn wait_gate();
    fn interrupt_gate();
    fn fault_gate();
    static interrupts: u64;
}

fn set_gate(vector: u32, gate: unsafe extern "C" fn()) {
    let at = &raw const crate::idt as u64 + 16 * vector as u64;
    let address = gate as usize as u64;
    // An interrupt gate to ring 0's code segment.
    write64(
        at,
        address & 0xffff | 8 << 16 | 0x8e00 << 32 | (address >> 16 & 0xffff) << 48,
    );
    write64(at + 8, address >> 32);
}

/// Fills in the interrupt descriptor table: what is not there is a triple fault.
pub fn set_gates() {
    set_gate(6, wait_gate);
    set_gate(13, fault_gate);
    set_gate(14, fault_gate);
    set_gate(VECTOR, interrupt_gate);
    set_gate(SPURIOUS, interrupt_gate);
}

/// Masks the old controllers, switches the local APIC on and routes a pin.
pub fn start(line: Line) {
    for port in [0x21, 0xa1] {
        out8(port, 0xff);
    }
    write32(LAPIC_SPURIOUS, 0x100 | SPURIOUS);
    if let Line::Pin(pin) = line {
        // Physical destination, edge, active high.
        for (register, value) in [(0x11 + 2 * pin, read32(LAPIC_ID)), (0x10 + 2 * pin, VECTOR)] {
            write32(IOAPIC, register);
            write32(IOAPIC + 0x10, value);
        }
    }
}

/// Address and data of the message that interrupts.
pub fn message() -> (u64, u32) {
    (LAPIC | (read32(LAPIC_ID) >> 24 << 12) as u64, VECTOR)
}

/// Halts until there was an interrupt.
pub fn wait() {
    // SAFETY: the handler of #UD, ours, skips the instruction and changes nothing but memory that only `count` reads.
    unsafe { asm!("ud2", options(nostack)) }
}

pub fn end_of_interrupt() {
    write32(LAPIC_EOI, 0);
}

/// How many interrupts there were.
pub fn count() -> u64 {
    read64(&raw const interrupts as u64)
}
