//! The serial port: a 16550A (PC16550D data sheet) with interrupts both ways.
//!
//! Registers, receive FIFO, loopback and output are vm-superio's. On top of it stand
//!
//! - the interrupt: one condition per source, in the data sheet's order, and an edge whenever the first of them comes true.
//!   vm-superio gives two pending sources as a third one, and knows no modem status;
//! - the modem status register with the carrier, which a terminal program on the guest takes for the line's end;
//! - the FIFO control register: FIFOs on or off, and clearing the receiver's;
//! - flow control by RTS: a guest that has raised it and drops it gets no input until it raises it again.
//!
//! Input is not lost while nobody listens. A kernel that opens a terminal clears the receiver first, and a program's piped
//! input would be gone. So [`SerialPort::enqueue`] takes nothing until the guest enables the receive interrupt, or polls the
//! line status so often in a row that it can only be waiting for input; [`SerialPort::input_space`] then says so.

use std::io::{self, Write};
use std::sync::Mutex;

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial, SerialState};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{lock, read_bytes, write_bytes};
use crate::bus::BusDevice;
use crate::warn_guest;

const DATA: u8 = 0;
const IER: u8 = 1;
/// Interrupt identification when read, FIFO control when written.
const IIR_FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;
const REGISTERS: u64 = 8;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
const IER_MODEM_STATUS: u8 = 1 << 3;
const IER_VALID: u8 = 0x0f;

const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_FIFOS_ON: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const LCR_DIVISOR: u8 = 1 << 7;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_LOOPBACK: u8 = 1 << 4;
const LSR_DATA_READY: u8 = 1 << 0;

const MSR_CARRIER_CHANGED: u8 = 1 << 3;
const MSR_CLEAR_TO_SEND: u8 = 1 << 4;
const MSR_DATA_SET_READY: u8 = 1 << 5;
const MSR_CARRIER: u8 = 1 << 7;

/// vm-superio's FIFO.
const FIFO_SIZE: usize = 64;
/// Reads of the line status in a row, with nothing else between, after which the guest must be waiting for input. Output is
/// never waited for here, so a driver that sends reads it once or twice for each byte.
const POLLS: u16 = 64;

/// All that the port remembers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a latch or a wire of its own"
)]
pub struct SerialPortState {
    /// Divisor latch, low byte.
    pub divisor_low: u8,
    /// Divisor latch, high byte.
    pub divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Line control register.
    pub line_control: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Scratch register.
    pub scratch: u8,
    /// The FIFOs are on.
    pub fifos: bool,
    /// Bytes the guest has not read yet, 64 at most.
    pub received: Vec<u8>,
    /// The transmitter became empty and the guest was not told.
    pub transmitter_empty: bool,
    /// The carrier is there.
    pub carrier: bool,
    /// The carrier changed and the guest has not read it.
    pub carrier_changed: bool,
    /// The carrier drops when the guest has read all bytes.
    pub carrier_drops: bool,
    /// The guest waits for input by polling.
    pub polled: bool,
    /// The guest has used RTS to say when it wants input.
    pub uses_rts: bool,
}

/// vm-superio's interrupt, which is not used: the port computes its own.
struct NoTrigger;

impl Trigger for NoTrigger {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        Ok(())
    }
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a latch or a wire of its own"
)]
struct Port {
    /// Its output is collected here and leaves when the lock is gone.
    uart: Serial<NoTrigger, NoEvents, Vec<u8>>,
    /// Mirrors vm-superio's, which shows the divisor's high byte in its place at times.
    interrupt_enable: u8,
    fifos: bool,
    transmitter_empty: bool,
    carrier: bool,
    carrier_changed: bool,
    carrier_drops: bool,
    /// An interrupt is pending: the line is high.
    line: bool,
    /// Reads of the line status in a row.
    polls: u16,
    polled: bool,
    /// The guest has raised RTS at least once, so RTS low means that it wants no input now.
    uses_rts: bool,
    /// The host's wish: no input before the guest raises OUT1.
    waits_for_out1: bool,
    /// `enqueue` could not take all; someone waits for room.
    wanted: bool,
}

/// A serial port.
pub struct SerialPort {
    port: Mutex<Port>,
    /// Locked apart from the registers, and never while they are: a slow reader holds up the guest, not the sender.
    output: Mutex<Box<dyn Write + Send>>,
    irq: EventFd,
    input_space: EventFd,
}

impl SerialPort {
    /// Ports it takes.
    pub const PORTS: u64 = REGISTERS;

    /// A port as after reset, with a carrier. The guest's output goes to `out`, byte by byte as it comes, on the vCPU's
    /// thread, which waits as long as `out` does. Bytes that it refuses are lost. It is never flushed.
    pub fn new(irq: EventFd, out: Box<dyn Write + Send>) -> io::Result<Self> {
        let input_space = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let port = Port {
            uart: Serial::new(NoTrigger, Vec::new()),
            interrupt_enable: 0,
            fifos: false,
            transmitter_empty: false,
            carrier: true,
            carrier_changed: false,
            carrier_drops: false,
            line: false,
            polls: 0,
            polled: false,
            uses_rts: false,
            waits_for_out1: false,
            wanted: false,
        };
        Ok(Self {
            port: Mutex::new(port),
            output: Mutex::new(out),
            irq,
            input_space,
        })
    }

    /// Sends `bytes` to the guest. Returns how many the FIFO took; for the rest, wait for [`input_space`](Self::input_space).
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        self.with(|port| port.enqueue(bytes))
    }

    /// Keeps input back until the guest raises its output OUT1: for software that has to prepare its end first.
    pub fn hold_input_until_out1(&self) {
        self.with(|port| port.waits_for_out1 = true);
    }

    /// Readable when bytes that [`enqueue`](Self::enqueue) could not take may be offered again. Whoever waits reads it first.
    pub fn input_space(&self) -> &EventFd {
        &self.input_space
    }

    /// Raises or drops the carrier. It drops only when the guest has read what is in the FIFO, since what it has not read
    /// by then it will never see: a terminal that loses its carrier hangs up.
    pub fn set_carrier(&self, up: bool) {
        self.with(|port| port.set_carrier(up));
    }

    /// All that the port remembers.
    pub fn save(&self) -> SerialPortState {
        lock(&self.port).save()
    }

    /// Becomes what was saved. A pending interrupt is raised anew, and input may be offered anew.
    pub fn restore(&self, state: &SerialPortState) {
        self.with(|port| port.restore(state));
    }

    /// Does something to the port, then what follows for its interrupt and for whoever waits for room.
    fn with<T>(&self, act: impl FnOnce(&mut Port) -> T) -> T {
        let mut port = lock(&self.port);
        let result = act(&mut port);
        port.settle_carrier();
        let pending = port.pending() != IIR_NONE;
        // Both fail only when the counter is full, and then it is readable anyway.
        if pending && !port.line {
            let _ = self.irq.write(1);
        }
        port.line = pending;
        if port.wanted && port.takes_input() && port.received() == 0 {
            port.wanted = false;
            let _ = self.input_space.write(1);
        }
        let sent = std::mem::take(port.uart.writer_mut());
        drop(port);
        if !sent.is_empty()
            && let Err(cause) = lock(&self.output).write_all(&sent)
        {
            warn_guest!("serial port: the guest's output is lost: {cause}");
        }
        result
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.with(|port| {
            read_bytes(offset, data, |at| (at < REGISTERS).then(|| port.read(at as u8)));
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        write_bytes(offset, data, |at, value| {
            if at < REGISTERS {
                self.with(|port| port.write(at as u8, value));
            }
        });
    }
}

impl Port {
    fn read(&mut self, register: u8) -> u8 {
        if register == LSR {
            self.polls = self.polls.saturating_add(1);
            self.polled |= self.polls >= POLLS;
        } else {
            self.polls = 0;
        }
        match register {
            IIR_FCR => self.identify(),
            MSR if !self.loopback() => self.modem_status(),
            _ => self.uart.read(register),
        }
    }

    fn write(&mut self, register: u8, value: u8) {
        self.polls = 0;
        let divisor = self.uart.read(LCR) & LCR_DIVISOR != 0;
        match register {
            DATA if !divisor => self.transmitter_empty = true,
            IER if !divisor => {
                let enabled = value & IER_VALID;
                // The transmitter is always empty, and enabling its interrupt says so.
                let rising = enabled & !self.interrupt_enable;
                self.transmitter_empty |= rising & IER_TRANSMITTER_EMPTY != 0;
                self.interrupt_enable = enabled;
                // A guest that uses the interrupt need not poll.
                self.polled &= enabled & IER_RECEIVED == 0;
            }
            // In a loopback test RTS goes nowhere.
            MCR => self.uses_rts |= value & (MCR_RTS | MCR_LOOPBACK) == MCR_RTS,
            IIR_FCR => {
                self.fifos = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVER != 0 {
                    self.clear_receiver();
                }
                return;
            }
            _ => {}
        }
        self.feed(register, value);
    }

    fn feed(&mut self, register: u8, value: u8) {
        // It fails only if the output or the interrupt does, and neither is the real one.
        let _ = self.uart.write(register, value);
    }

    fn loopback(&mut self) -> bool {
        self.uart.read(MCR) & MCR_LOOPBACK != 0
    }

    fn received(&self) -> usize {
        FIFO_SIZE - self.uart.fifo_capacity()
    }

    /// The source that the interrupt identification register names, highest priority first.
    fn pending(&mut self) -> u8 {
        let enabled = |bit| self.interrupt_enable & bit != 0;
        if enabled(IER_RECEIVED) && self.received() > 0 {
            IIR_RECEIVED
        } else if enabled(IER_TRANSMITTER_EMPTY) && self.transmitter_empty {
            IIR_TRANSMITTER_EMPTY
        } else if enabled(IER_MODEM_STATUS) && self.carrier_changed {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    fn identify(&mut self) -> u8 {
        let source = self.pending();
        // Reading is this source's acknowledgement; the others go with their cause.
        if source == IIR_TRANSMITTER_EMPTY {
            self.transmitter_empty = false;
        }
        source | if self.fifos { IIR_FIFOS_ON } else { 0 }
    }

    fn modem_status(&mut self) -> u8 {
        let mut status = MSR_CLEAR_TO_SEND | MSR_DATA_SET_READY;
        if self.carrier {
            status |= MSR_CARRIER;
        }
        if std::mem::take(&mut self.carrier_changed) {
            status |= MSR_CARRIER_CHANGED;
        }
        status
    }

    fn clear_receiver(&mut self) {
        // The data register shows the divisor at times.
        let line_control = self.uart.read(LCR);
        self.feed(LCR, line_control & !LCR_DIVISOR);
        while self.received() > 0 {
            self.uart.read(DATA);
        }
        self.feed(LCR, line_control);
    }

    /// Whether the guest would see input, and not throw it away.
    fn takes_input(&mut self) -> bool {
        let listens = self.interrupt_enable & IER_RECEIVED != 0 || self.polled;
        let modem_control = self.uart.read(MCR);
        let refuses = self.uses_rts && modem_control & MCR_RTS == 0
            || self.waits_for_out1 && modem_control & MCR_OUT1 == 0;
        listens && !refuses && !self.loopback()
    }

    fn enqueue(&mut self, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        let taken = if self.takes_input() {
            self.uart.enqueue_raw_bytes(bytes).unwrap_or(0)
        } else {
            0
        };
        self.wanted |= taken < bytes.len();
        taken
    }

    fn set_carrier(&mut self, up: bool) {
        self.carrier_drops = !up;
        if up {
            self.change_carrier(true);
        }
    }

    fn settle_carrier(&mut self) {
        if self.carrier_drops && self.received() == 0 {
            self.carrier_drops = false;
            self.change_carrier(false);
        }
    }

    fn change_carrier(&mut self, up: bool) {
        self.carrier_changed |= self.carrier != up;
        self.carrier = up;
    }

    fn save(&self) -> SerialPortState {
        let uart = self.uart.state();
        SerialPortState {
            divisor_low: uart.baud_divisor_low,
            divisor_high: uart.baud_divisor_high,
            interrupt_enable: self.interrupt_enable,
            line_control: uart.line_control,
            modem_control: uart.modem_control,
            scratch: uart.scratch,
            fifos: self.fifos,
            received: uart.in_buffer,
            transmitter_empty: self.transmitter_empty,
            carrier: self.carrier,
            carrier_changed: self.carrier_changed,
            carrier_drops: self.carrier_drops,
            polled: self.polled,
            uses_rts: self.uses_rts,
        }
    }

    fn restore(&mut self, state: &SerialPortState) {
        let mut received = state.received.clone();
        received.truncate(FIFO_SIZE);
        let data_ready = if received.is_empty() { 0 } else { LSR_DATA_READY };
        let fresh = SerialState::default();
        let uart = SerialState {
            baud_divisor_low: state.divisor_low,
            baud_divisor_high: state.divisor_high,
            interrupt_enable: state.interrupt_enable & IER_VALID,
            line_control: state.line_control,
            line_status: fresh.line_status | data_ready,
            modem_control: state.modem_control,
            scratch: state.scratch,
            in_buffer: received,
            ..fresh
        };
        // It fails only for a FIFO that is too full.
        if let Ok(uart) = Serial::from_state(&uart, NoTrigger, NoEvents, Vec::new()) {
            self.uart = uart;
        }
        self.interrupt_enable = state.interrupt_enable & IER_VALID;
        self.fifos = state.fifos;
        self.transmitter_empty = state.transmitter_empty;
        self.carrier = state.carrier;
        self.carrier_changed = state.carrier_changed;
        self.carrier_drops = state.carrier_drops;
        self.polled = state.polled;
        self.uses_rts = state.uses_rts;
        self.polls = 0;
        self.line = false;
        self.wanted = true;
    }
}

#[cfg(test)]
mod tests;
