//! A serial port: a 16550A (National Semiconductor's data sheet) over `vm-superio`, with what that leaves out.
//!
//! Added here: output that does not hold the registers while its reader is slow, flow control by RTS, so that whoever
//! sends to the guest waits when its driver says so, and a word when there is room for input again.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::warn_guest;

/// Line status: data ready. Needed here to know that the guest has read everything.
const LSR: u8 = 5;
const LSR_DATA_READY: u8 = 1;
/// Modem control: what the guest says of itself.
const MCR: u8 = 4;
const MCR_RTS: u8 = 1 << 1;
const DATA: u8 = 0;
/// Ports of a 16550.
const REGISTERS: u64 = 8;

/// An edge on the port's line.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

struct Registers {
    uart: Serial<Line, NoEvents, Vec<u8>>,
    /// The guest has raised RTS at least once, so RTS low means that it wants no input now.
    uses_rts: bool,
}

/// A serial port.
pub struct SerialPort {
    registers: Mutex<Registers>,
    /// Locked apart from the registers, and never while they are: a slow reader holds up the guest, not the sender.
    output: Mutex<Box<dyn Write + Send>>,
    input_space: EventFd,
    /// Someone has more input than there was room for.
    input_waits: AtomicBool,
}

impl SerialPort {
    /// A port that pulses `irq` and writes its output to `out`, byte by byte as the guest does.
    ///
    /// # Errors
    /// If the host has no event descriptor to give.
    pub fn new(irq: EventFd, out: Box<dyn Write + Send>) -> io::Result<Self> {
        Ok(Self {
            registers: Mutex::new(Registers {
                uart: Serial::new(Line(irq), Vec::new()),
                uses_rts: false,
            }),
            output: Mutex::new(out),
            input_space: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            input_waits: AtomicBool::new(false),
        })
    }

    /// Sends `bytes` to the guest; returns how many there was room for. If that is not all, [`input_space`](Self::input_space)
    /// tells when to try again.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        let mut registers = self.lock();
        let taken = if registers.takes_input() {
            // Fails if the FIFO is full, and then nothing is taken; or if the line's counter is, and then an edge is pending.
            registers.uart.enqueue_raw_bytes(bytes).unwrap_or(0)
        } else {
            0
        };
        if taken < bytes.len() {
            self.input_waits.store(true, Ordering::Relaxed);
        }
        taken
    }

    /// Readable when [`enqueue`](Self::enqueue) could not take all and can take more now.
    pub fn input_space(&self) -> &EventFd {
        &self.input_space
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, register: u8) -> u8 {
        let mut registers = self.lock();
        let value = registers.uart.read(register);
        if register == DATA {
            self.tell_of_space(&mut registers);
        }
        value
    }

    fn write_register(&self, register: u8, value: u8) {
        let mut registers = self.lock();
        if let Err(error) = registers.uart.write(register, value) {
            // Only the line can fail here: its counter is full and an edge is pending, or the VM is going.
            warn_guest!("a serial port cannot interrupt: {error}");
        }
        let sent = std::mem::take(registers.uart.writer_mut());
        if register == MCR {
            registers.uses_rts |= value & MCR_RTS != 0;
            self.tell_of_space(&mut registers);
        }
        drop(registers);
        if !sent.is_empty() {
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = output.write_all(&sent) {
                warn_guest!("the serial port's output is lost: {error}");
            }
        }
    }

    fn tell_of_space(&self, registers: &mut Registers) {
        let empty = registers.uart.read(LSR) & LSR_DATA_READY == 0;
        if empty && registers.takes_input() && self.input_waits.swap(false, Ordering::Relaxed) {
            // Fails only when the counter is full, and then the sender is being woken anyway.
            let _ = self.input_space.write(1);
        }
    }
}

impl Registers {
    fn takes_input(&mut self) -> bool {
        !self.uses_rts || self.uart.read(MCR) & MCR_RTS != 0
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..REGISTERS).zip(data) {
            *byte = self.read_register(register as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset..REGISTERS).zip(data) {
            self.write_register(register as u8, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel};

    const IER: u64 = 1;
    const IIR: u64 = 2;

    struct Channel(std::sync::mpsc::Sender<u8>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            for byte in bytes {
                self.0.send(*byte).map_err(io::Error::other)?;
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn port() -> (SerialPort, EventFd, Receiver<u8>) {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let (out, output) = channel();
        let port = SerialPort::new(irq.try_clone().unwrap(), Box::new(Channel(out))).unwrap();
        (port, irq, output)
    }

    fn read(port: &SerialPort, register: u64) -> u8 {
        let mut data = [0xff];
        port.read(register, &mut data);
        data[0]
    }

    #[test]
    fn input_is_announced_read_in_order_and_then_there_is_room_again() {
        let (port, irq, _) = port();
        port.write(IER, &[1]);
        let bytes: Vec<u8> = (0..100).collect();
        assert_eq!(port.enqueue(&bytes), 64);
        assert_eq!(irq.read().unwrap(), 1);
        assert_eq!(read(&port, IIR) & 0xf, 4, "received data");
        for expected in 0..64 {
            assert!(port.input_space().read().is_err());
            assert_eq!(read(&port, 0), expected);
        }
        assert_eq!(port.input_space().read().unwrap(), 1);
        assert_eq!(port.enqueue(&bytes[64..]), 36);
        assert_eq!(irq.read().unwrap(), 1);
    }

    #[test]
    fn a_guest_that_drops_rts_gets_no_input_until_it_raises_it() {
        let (port, _, _) = port();
        assert_eq!(
            port.enqueue(b"a"),
            1,
            "a guest that never uses RTS takes input always"
        );
        port.write(u64::from(MCR), &[MCR_RTS]);
        read(&port, 0);
        port.write(u64::from(MCR), &[0]);
        assert_eq!(port.enqueue(b"b"), 0);
        assert!(port.input_space().read().is_err());
        port.write(u64::from(MCR), &[MCR_RTS]);
        assert_eq!(port.input_space().read().unwrap(), 1);
        assert_eq!(port.enqueue(b"b"), 1);
    }

    #[test]
    fn output_leaves_byte_by_byte_and_is_announced_as_sent() {
        let (port, irq, output) = port();
        port.write(IER, &[2]);
        irq.read().unwrap();
        read(&port, IIR);
        port.write(0, b"x");
        assert_eq!(output.recv().unwrap(), b'x');
        assert_eq!(irq.read().unwrap(), 1);
    }

    #[test]
    fn a_slow_reader_does_not_hold_the_registers() {
        /// Waits until it is told to go on.
        struct Slow(Receiver<()>);
        impl Write for Slow {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.recv().map_err(io::Error::other)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (go_on, wait) = channel();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let port = Arc::new(SerialPort::new(irq, Box::new(Slow(wait))).unwrap());
        let guest = std::thread::spawn({
            let port = port.clone();
            move || port.write(0, b"x")
        });
        assert_eq!(port.enqueue(b"input"), 5);
        go_on.send(()).unwrap();
        guest.join().unwrap();
    }

    #[test]
    fn a_lost_reader_and_every_access_size_are_survived() {
        let (port, _, output) = port();
        drop(output);
        for offset in 0..8 {
            for len in 1..=8 {
                port.write(offset, &[0x55; 8][..len]);
                let mut data = [0; 8];
                port.read(offset, &mut data[..len]);
            }
        }
    }

    #[test]
    fn linux_finds_a_16550a() {
        let (port, _, _) = port();
        // serial8250's autoconfig: IER keeps its low bits, loopback shows the outputs, FIFO bits show in IIR.
        port.write(IER, &[0xff]);
        assert_eq!(read(&port, IER), 0x0f);
        port.write(u64::from(MCR), &[0x1a]);
        assert_eq!(read(&port, 6) & 0xf0, 0x90);
        assert_eq!(read(&port, IIR) & 0xc0, 0xc0);
    }
}
