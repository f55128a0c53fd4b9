//! The i8042 keyboard controller (IBM PS/2 technical reference): all commands answered, and nothing plugged in.
//!
//! It is there for one command, the reset that Linux writes with `reboot=k`. But a kernel that finds the port probes it, and
//! half a controller costs it seconds of time-outs: so this one answers each command at once. Its port tests say "no
//! line", and a byte for the keyboard comes back as a time-out. There is no interrupt. vm-superio's i8042 knows the reset
//! only and reads as zero, which a probe takes half a second per command to give up on.

use std::sync::Mutex;

use super::{MachineEvent, MachineEvents, lock, read_bytes, write_bytes};
use crate::bus::BusDevice;

const DATA: u64 = 0;
const COMMAND: u64 = 4;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
/// The last write was a command.
const STATUS_COMMAND: u8 = 1 << 3;
/// The keyboard lock is open.
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_TIMEOUT: u8 = 1 << 6;

/// Both ports off, scan codes translated, power-on self-test passed.
const DEFAULT_CONFIGURATION: u8 = 0x74;
const AUX_DISABLED: u8 = 1 << 5;
const KEYBOARD_DISABLED: u8 = 1 << 4;

const SELF_TEST_PASSED: u8 = 0x55;
/// Answer to a port test: the clock line is stuck, as where nothing is soldered.
const NO_LINE: u8 = 0x01;
/// What the controller makes of a device that does not answer.
const RESEND: u8 = 0xfe;
/// Output port: address line 20 on, no reset.
const OUTPUT_PORT: u8 = 0x03;
const OUTPUT_NO_RESET: u8 = 1 << 0;
/// Input port: keyboard not locked.
const INPUT_PORT: u8 = 0x80;

/// All that the controller remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct I8042State {
    /// Configuration byte.
    pub configuration: u8,
    /// The answer that waits in the output buffer, and whether it stands for a time-out.
    pub output: Option<(u8, bool)>,
    /// The command that the next data byte belongs to.
    pub command: Option<u8>,
    /// Whether the last write was a command.
    pub last_was_command: bool,
}

impl Default for I8042State {
    fn default() -> Self {
        Self {
            configuration: DEFAULT_CONFIGURATION,
            output: None,
            command: None,
            last_was_command: true,
        }
    }
}

/// The controller: data at offset 0 (port 0x60), status and commands at offset 4 (port 0x64). Port 0x61 between them is
/// the timer's; place the two with [`At`](super::At).
pub struct I8042 {
    state: Mutex<I8042State>,
    events: MachineEvents,
}

impl I8042 {
    /// A controller as after power-on; resets are reported to `events`.
    pub fn new(events: MachineEvents) -> Self {
        Self {
            state: Mutex::default(),
            events,
        }
    }

    /// All that it remembers.
    pub fn save(&self) -> I8042State {
        *lock(&self.state)
    }

    /// Becomes what was saved.
    pub fn restore(&self, state: I8042State) {
        *lock(&self.state) = state;
    }
}

impl I8042State {
    fn read_data(&mut self) -> u8 {
        self.output.take().map_or(0, |(value, _)| value)
    }

    fn status(self) -> u8 {
        // The input buffer is never full: a command is done before the write that gave it returns.
        let mut status = STATUS_SYSTEM | STATUS_UNLOCKED;
        if let Some((_, timeout)) = self.output {
            status |= STATUS_OUTPUT_FULL | if timeout { STATUS_TIMEOUT } else { 0 };
        }
        if self.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }

    fn answer(&mut self, value: u8) {
        self.output = Some((value, false));
    }

    /// Does a command. True if it resets the machine.
    fn run(&mut self, command: u8) -> bool {
        self.last_was_command = true;
        self.command = None;
        match command {
            0x20 => self.answer(self.configuration),
            0x21..=0x3f => self.answer(0),
            // These take a data byte.
            0x60..=0x7f | 0xd1..=0xd4 => self.command = Some(command),
            0xa7 => self.configuration |= AUX_DISABLED,
            0xa8 => self.configuration &= !AUX_DISABLED,
            0xa9 | 0xab => self.answer(NO_LINE),
            0xaa => self.answer(SELF_TEST_PASSED),
            0xad => self.configuration |= KEYBOARD_DISABLED,
            0xae => self.configuration &= !KEYBOARD_DISABLED,
            0xc0 => self.answer(INPUT_PORT),
            0xd0 => self.answer(OUTPUT_PORT),
            // Pulses the output lines whose bit is clear; line 0 is the processor's reset.
            0xf0..=0xff => return command & OUTPUT_NO_RESET == 0,
            _ => {}
        }
        false
    }

    /// Takes a data byte. True if it resets the machine.
    fn take(&mut self, value: u8) -> bool {
        self.last_was_command = false;
        match self.command.take() {
            Some(0x60) => self.configuration = value,
            // The output port is written directly.
            Some(0xd1) => return value & OUTPUT_NO_RESET == 0,
            // To appear as if it came from the keyboard, or from the mouse: there is no line for that, and the status
            // bit that would say "mouse" stays clear, so nobody takes it for one.
            Some(0xd2 | 0xd3) => self.answer(value),
            // Other RAM of the controller: nothing is kept there.
            Some(0x61..=0x7f) => {}
            // For the mouse, or for the keyboard: nobody answers.
            _ => self.output = Some((RESEND, true)),
        }
        false
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = lock(&self.state);
        read_bytes(offset, data, |at| match at {
            DATA => Some(state.read_data()),
            COMMAND => Some(state.status()),
            _ => None,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut reset = false;
        write_bytes(offset, data, |at, value| {
            let mut state = lock(&self.state);
            reset |= match at {
                DATA => state.take(value),
                COMMAND => state.run(value),
                _ => false,
            };
        });
        if reset {
            (self.events)(MachineEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Log, byte};
    use super::*;

    /// Sends a command as Linux's `i8042_command` does, and takes its answer if there is one.
    fn command(device: &I8042, command: u8, data: Option<u8>) -> Option<u8> {
        assert_eq!(byte(device, 4) & 2, 0, "the input buffer is free");
        device.write(4, &[command]);
        if let Some(data) = data {
            assert_eq!(byte(device, 4) & 2, 0, "the input buffer is free");
            device.write(0, &[data]);
        }
        (byte(device, 4) & 1 != 0).then(|| byte(device, 0))
    }

    #[test]
    fn reset_commands_reset_and_others_do_not() {
        let log = Log::default();
        let device = I8042::new(log.events());
        device.write(4, &[0xfe]);
        assert_eq!(log.take(), [MachineEvent::Reset]);
        // The output port with its reset line low.
        command(&device, 0xd1, Some(0xfe));
        assert_eq!(log.take(), [MachineEvent::Reset]);
        device.write(0, &[0xfe]);
        for value in (0..=0xff_u8).filter(|value| value & 0xf1 != 0xf0) {
            device.write(4, &[value]);
            device.write(0, &[0xff]);
        }
        assert_eq!(log.take(), []);
    }

    #[test]
    fn a_probing_kernel_gets_every_answer_at_once_and_finds_no_ports() {
        let device = I8042::new(Log::default().events());
        assert_eq!(byte(&device, 4) & 1, 0, "nothing to flush");
        assert_ne!(byte(&device, 4) & 0x10, 0, "not locked");
        assert_eq!(command(&device, 0xaa, None), Some(0x55));
        assert_eq!(command(&device, 0x20, None), Some(0x74));
        assert_eq!(command(&device, 0x60, Some(0x65)), None);
        assert_eq!(command(&device, 0x20, None), Some(0x65));
        // Linux's test for a mouse: a loop-back that does not carry the mouse's mark, then a line test that fails.
        device.write(4, &[0xd3]);
        device.write(0, &[0x5a]);
        assert_eq!(byte(&device, 4) & 0x21, 0x01);
        assert_eq!(byte(&device, 0), 0x5a);
        assert_eq!(command(&device, 0xa9, None), Some(0x01));
        // A byte for the keyboard times out at once.
        device.write(0, &[0xff]);
        assert_eq!(byte(&device, 4) & 0x41, 0x41);
        assert_eq!(byte(&device, 0), 0xfe);
        assert_eq!(byte(&device, 4) & 0x41, 0);
    }

    #[test]
    fn state_survives_a_save() {
        let device = I8042::new(Log::default().events());
        device.write(4, &[0xaa]);
        device.write(4, &[0x60]);
        let other = I8042::new(Log::default().events());
        other.restore(device.save());
        other.write(0, &[0x41]);
        assert_eq!(byte(&other, 0), 0x55);
        assert_eq!(command(&other, 0x20, None), Some(0x41));
    }
}
