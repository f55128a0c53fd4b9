//! The serial port, and the end of the machine.

use core::arch::asm;
use core::fmt;

use crate::mem::{out8, words};

const COM1: u16 = 0x3f8;
const I8042_COMMAND: u16 = 0x64;
const RESET_CONTROL: u16 = 0xcf9;
/// Berth's: ends the machine with the status that is written.
const EXIT_PORT: u16 = 0xf4;

/// Writes to the first serial port. No monitor makes a guest wait for it, so it is not asked whether it has room.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out8(COM1, byte));
        Ok(())
    }
}

/// Ends the machine in every way there is, the last of which is a triple fault.
pub fn end(status: u8) -> ! {
    out8(EXIT_PORT, status);
    out8(I8042_COMMAND, 0xfe);
    out8(RESET_CONTROL, 0x0e);
    words(&raw const crate::idt as u64, 4096).fill(0);
    loop {
        // SAFETY: no handler is left, so nothing goes on after it.
        unsafe { asm!("ud2") }
    }
}
