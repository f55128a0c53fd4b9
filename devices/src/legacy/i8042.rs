//! The i8042 keyboard controller (IBM PS/2 technical reference): all commands answered, a keyboard plugged in, no mouse.
//!
//! It is there for two things: the reset that Linux writes with `reboot=k`, and Ctrl-Alt-Del, by which a guest without ACPI
//! is asked to end. But a kernel that finds the port probes it, and half a controller costs it seconds of time-outs: so this
//! one answers each command at once. The mouse's port test says "no line", and a byte for the mouse comes back as a
//! time-out. vm-superio's i8042 knows the reset only and reads as zero, which a probe takes half a second per command to
//! give up on.
//!
//! The interrupt is the keyboard's, a pulse for each byte. The controller's own answers have none: drivers poll for them.

use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;

use super::keyboard::KeyboardState;
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

/// No interrupts, the mouse's port off, scan codes translated, power-on self-test passed: as firmware leaves it.
const DEFAULT_CONFIGURATION: u8 = 0x64;
const KEYBOARD_INTERRUPT: u8 = 1 << 0;
const TRANSLATE: u8 = 1 << 6;
const AUX_DISABLED: u8 = 1 << 5;
const KEYBOARD_DISABLED: u8 = 1 << 4;

const SELF_TEST_PASSED: u8 = 0x55;
/// Answer to a port test: all is well.
const LINE_FINE: u8 = 0x00;
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
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct I8042State {
    /// Configuration byte.
    pub configuration: u8,
    /// The controller's answer that waits in the output buffer, and whether it stands for a time-out.
    pub output: Option<(u8, bool)>,
    /// The command that the next data byte belongs to.
    pub command: Option<u8>,
    /// Whether the last write was a command.
    pub last_was_command: bool,
    /// What hangs on it.
    pub keyboard: KeyboardState,
}

impl Default for I8042State {
    fn default() -> Self {
        Self {
            configuration: DEFAULT_CONFIGURATION,
            output: None,
            command: None,
            last_was_command: true,
            keyboard: KeyboardState::default(),
        }
    }
}

/// The controller: data at offset 0 (port 0x60), status and commands at offset 4 (port 0x64). Port 0x61 between them is
/// the timer's; place the two with [`At`](super::At).
pub struct I8042 {
    state: Mutex<Controller>,
    irq: EventFd,
    events: MachineEvents,
}

#[derive(Default)]
struct Controller {
    state: I8042State,
    /// A byte of the keyboard is in the output buffer, and the guest was told if it wants to be.
    line: bool,
}

impl I8042 {
    /// A controller as after power-on; resets are reported to `events`. `irq` is the keyboard's interrupt.
    pub fn new(irq: EventFd, events: MachineEvents) -> Self {
        Self {
            state: Mutex::default(),
            irq,
            events,
        }
    }

    /// Presses and releases Ctrl, Alt and Delete. What comes of it is up to the guest.
    pub fn send_ctrl_alt_del(&self) {
        self.with(|state| {
            let translate = state.translates();
            state.keyboard.press_ctrl_alt_del(translate);
        });
    }

    /// All that it remembers.
    pub fn save(&self) -> I8042State {
        lock(&self.state).state.clone()
    }

    /// Becomes what was saved. A byte that waits is announced anew.
    pub fn restore(&self, state: I8042State) {
        lock(&self.state).line = false;
        self.with(|own| {
            *own = I8042State {
                keyboard: state.keyboard.sane(),
                ..state
            };
        });
    }

    fn take_byte(&self) -> u8 {
        lock(&self.state).line = false;
        self.with(I8042State::read_data)
    }

    /// Does something to the controller, then what follows for its interrupt.
    fn with<T>(&self, act: impl FnOnce(&mut I8042State) -> T) -> T {
        let mut controller = lock(&self.state);
        let result = act(&mut controller.state);
        let line = controller.state.announces();
        if line && !controller.line {
            // It fails only when the counter is full, and then an interrupt is pending anyway.
            let _ = self.irq.write(1);
        }
        controller.line = line;
        result
    }
}

impl I8042State {
    fn translates(&self) -> bool {
        self.configuration & TRANSLATE != 0
    }

    /// A byte of the keyboard is in the output buffer. The controller's own answer goes first.
    fn keyboard_speaks(&self) -> bool {
        self.output.is_none()
            && self.configuration & KEYBOARD_DISABLED == 0
            && !self.keyboard.waiting.is_empty()
    }

    fn announces(&self) -> bool {
        self.keyboard_speaks() && self.configuration & KEYBOARD_INTERRUPT != 0
    }

    fn read_data(&mut self) -> u8 {
        if self.keyboard_speaks() {
            return self.keyboard.next().unwrap_or(0);
        }
        self.output.take().map_or(0, |(value, _)| value)
    }

    fn status(&self) -> u8 {
        // The input buffer is never full: a command is done before the write that gave it returns.
        let mut status = STATUS_SYSTEM | STATUS_UNLOCKED;
        if let Some((_, timeout)) = self.output {
            status |= STATUS_OUTPUT_FULL | if timeout { STATUS_TIMEOUT } else { 0 };
        } else if self.keyboard_speaks() {
            status |= STATUS_OUTPUT_FULL;
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
            0xa9 => self.answer(NO_LINE),
            0xaa => self.answer(SELF_TEST_PASSED),
            0xab => self.answer(LINE_FINE),
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
        let translate = self.translates();
        match self.command.take() {
            Some(0x60) => self.configuration = value,
            // The output port is written directly.
            Some(0xd1) => return value & OUTPUT_NO_RESET == 0,
            // To appear as if it came from the keyboard.
            Some(0xd2) => self.keyboard.send(&[value], false),
            // To appear as if it came from the mouse: the status bit that would say so stays clear, so nobody takes it for
            // one.
            Some(0xd3) => self.answer(value),
            // Other RAM of the controller: nothing is kept there.
            Some(0x61..=0x7f) => {}
            // For the mouse: nobody answers.
            Some(0xd4) => self.output = Some((RESEND, true)),
            // A byte for the keyboard switches its port on.
            _ => {
                self.configuration &= !KEYBOARD_DISABLED;
                self.keyboard.take(value, translate);
            }
        }
        false
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| match at {
            // The line falls while the byte is taken: another one that waits is a new edge.
            DATA => Some(self.take_byte()),
            COMMAND => Some(lock(&self.state).state.status()),
            _ => None,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut reset = false;
        write_bytes(offset, data, |at, value| {
            reset |= match at {
                DATA => self.with(|state| state.take(value)),
                COMMAND => self.with(|state| state.run(value)),
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
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn new_device(log: &Log) -> I8042 {
        I8042::new(EventFd::new(EFD_NONBLOCK).unwrap(), log.events())
    }

    /// How often the guest was interrupted since the last look.
    fn interrupts(device: &I8042) -> u64 {
        device.irq.read().unwrap_or(0)
    }

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
        let device = new_device(&log);
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
    fn a_probing_kernel_gets_every_answer_at_once_and_finds_a_keyboard_and_no_mouse() {
        let device = new_device(&Log::default());
        assert_eq!(byte(&device, 4) & 1, 0, "nothing to flush");
        assert_ne!(byte(&device, 4) & 0x10, 0, "not locked");
        assert_eq!(command(&device, 0xaa, None), Some(0x55));
        assert_eq!(command(&device, 0x20, None), Some(0x64));
        assert_eq!(command(&device, 0x60, Some(0x65)), None);
        assert_eq!(command(&device, 0x20, None), Some(0x65));
        // Linux's test for a mouse: a loop-back that does not carry the mouse's mark, then a line test that fails.
        device.write(4, &[0xd3]);
        device.write(0, &[0x5a]);
        assert_eq!(byte(&device, 4) & 0x21, 0x01);
        assert_eq!(byte(&device, 0), 0x5a);
        assert_eq!(command(&device, 0xa9, None), Some(0x01));
        // A byte for the mouse times out at once.
        device.write(4, &[0xd4]);
        device.write(0, &[0xff]);
        assert_eq!(byte(&device, 4) & 0x41, 0x41);
        assert_eq!(byte(&device, 0), 0xfe);
        assert_eq!(byte(&device, 4) & 0x41, 0);
        // One for the keyboard does not, and each byte of its answer has an interrupt.
        assert_eq!(command(&device, 0xab, None), Some(0x00));
        assert_eq!(interrupts(&device), 0);
        device.write(0, &[0xf2]);
        for expected in [0xfa, 0xab, 0x41] {
            assert_eq!(interrupts(&device), 1);
            assert_eq!(byte(&device, 4) & 0x61, 0x01);
            assert_eq!(byte(&device, 0), expected);
        }
        assert_eq!(interrupts(&device), 0);
    }

    #[test]
    fn ctrl_alt_del_reaches_a_guest_that_listens_byte_by_byte() {
        let device = new_device(&Log::default());
        command(&device, 0x60, Some(0x65));
        device.send_ctrl_alt_del();
        let mut said = Vec::new();
        while byte(&device, 4) & 1 != 0 {
            assert_eq!(interrupts(&device), 1);
            said.push(byte(&device, 0));
        }
        assert_eq!(said, [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]);
        assert_eq!(interrupts(&device), 0);
    }

    #[test]
    fn keys_wait_for_a_guest_that_does_not_listen_yet() {
        let device = new_device(&Log::default());
        device.send_ctrl_alt_del();
        assert_eq!(interrupts(&device), 0);
        // The controller answers all the same, and first.
        assert_eq!(command(&device, 0x20, None), Some(0x64));
        device.write(4, &[0xad]);
        assert_eq!(byte(&device, 4) & 1, 0, "the keyboard's port is off");
        device.write(4, &[0x60]);
        device.write(0, &[0x65]);
        assert_eq!(interrupts(&device), 1);
        assert_eq!(byte(&device, 0), 0x1d);
    }

    #[test]
    fn state_survives_a_save() {
        let device = new_device(&Log::default());
        device.write(4, &[0xaa]);
        device.write(4, &[0x60]);
        let other = new_device(&Log::default());
        other.restore(device.save());
        other.write(0, &[0x41]);
        assert_eq!(byte(&other, 0), 0x55);
        assert_eq!(command(&other, 0x20, None), Some(0x41));
        assert_eq!(interrupts(&other), 0);
        other.send_ctrl_alt_del();
        assert_eq!(interrupts(&other), 1);
        byte(&other, 0);
        let third = new_device(&Log::default());
        third.restore(other.save());
        assert_eq!(interrupts(&third), 1, "what waits is announced anew");
        assert_eq!(byte(&third, 0), 0x38);
        assert_eq!(third.save().keyboard.waiting.len(), 6);
    }
}
