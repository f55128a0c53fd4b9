use std::sync::{Arc, Mutex};

use super::super::tests::byte;
use super::*;

/// Keeps what is written, until it is told to fail.
#[derive(Clone, Default)]
struct Screen {
    bytes: Arc<Mutex<Vec<u8>>>,
    fails: bool,
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.fails {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.bytes.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        panic!("a flush per byte");
    }
}

struct Guest {
    port: SerialPort,
    irq: EventFd,
    screen: Screen,
}

impl Guest {
    fn new() -> Self {
        Self::with(Screen::default())
    }

    fn with(screen: Screen) -> Self {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let port = SerialPort::new(irq.try_clone().unwrap(), Box::new(screen.clone())).unwrap();
        Self { port, irq, screen }
    }

    /// A guest that has opened its terminal: FIFOs on, and these interrupts.
    fn listening(interrupts: u8) -> Self {
        let guest = Self::new();
        guest.write(IIR_FCR, FCR_ENABLE);
        guest.write(IER, interrupts);
        guest
    }

    fn read(&self, register: u8) -> u8 {
        byte(&self.port, register.into())
    }

    fn write(&self, register: u8, value: u8) {
        self.port.write(register.into(), &[value]);
    }

    fn interrupts(&self) -> u64 {
        self.irq.read().unwrap_or(0)
    }

    fn space(&self) -> bool {
        self.port.input_space().read().is_ok()
    }

    /// Reads what there is, as a driver does.
    fn drain(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.read(LSR) & LSR_DATA_READY != 0 {
            bytes.push(self.read(DATA));
        }
        bytes
    }
}

#[test]
fn output_reaches_the_writer_and_the_transmitter_is_empty_again_at_once() {
    let guest = Guest::listening(IER_TRANSMITTER_EMPTY);
    assert_eq!(guest.interrupts(), 1, "enabling tells that it is empty");
    assert_eq!(guest.read(IIR_FCR), 0xc2);
    assert_eq!(guest.read(IIR_FCR), 0xc1, "reading acknowledges");
    for byte in *b"hi" {
        assert_eq!(guest.read(LSR) & 0x60, 0x60);
        guest.write(DATA, byte);
    }
    assert_eq!(*guest.screen.bytes.lock().unwrap(), b"hi");
    assert_eq!(guest.interrupts(), 1, "one edge until it is acknowledged");
    assert_eq!([guest.read(IIR_FCR), guest.read(IIR_FCR)], [0xc2, 0xc1]);
}

#[test]
fn a_writer_that_fails_loses_bytes_and_nothing_else() {
    let guest = Guest::with(Screen {
        fails: true,
        ..Screen::default()
    });
    guest.write(IER, IER_TRANSMITTER_EMPTY);
    for _ in 0..1000 {
        guest.write(DATA, b'x');
        assert_eq!(guest.read(IIR_FCR), IIR_TRANSMITTER_EMPTY);
    }
}

#[test]
fn input_interrupts_until_it_is_read_and_room_is_told_when_all_is_read() {
    let guest = Guest::listening(IER_RECEIVED);
    let bytes: Vec<u8> = (0..100).collect();
    assert_eq!(guest.port.enqueue(&bytes), 64);
    assert_eq!(guest.port.enqueue(&bytes[64..]), 0);
    assert_eq!(guest.interrupts(), 1);
    assert_eq!([guest.read(IIR_FCR), guest.read(IIR_FCR)], [0xc4; 2]);
    for byte in 0..63 {
        assert_eq!(guest.read(DATA), byte);
    }
    assert!(!guest.space());
    assert_eq!(guest.drain(), [63]);
    assert!(guest.space() && !guest.space());
    assert_eq!(guest.read(IIR_FCR), 0xc1);
    assert_eq!(guest.port.enqueue(&bytes[64..]), 36);
    assert_eq!(guest.interrupts(), 1);
    assert_eq!(guest.drain(), bytes[64..]);
    assert!(!guest.space(), "nobody waits for room");
    assert_eq!(guest.port.enqueue(&[]), 0);
    assert!(!guest.space());
}

#[test]
fn the_interrupt_comes_back_when_a_driver_masks_it_and_enables_it_again() {
    let guest = Guest::listening(IER_RECEIVED);
    // Linux's console output: all interrupts off, and back on.
    guest.write(IER, 0);
    assert_eq!(guest.port.enqueue(b"x"), 0);
    guest.write(IER, IER_RECEIVED);
    assert!(guest.space());
    assert_eq!(guest.port.enqueue(b"x"), 1);
    assert_eq!(guest.interrupts(), 1);
    guest.write(IER, 0);
    assert_eq!(guest.read(IIR_FCR), 0xc1);
    guest.write(IER, IER_RECEIVED);
    assert_eq!(guest.interrupts(), 1);
}

#[test]
fn received_data_goes_before_the_transmitter_and_that_before_the_modem() {
    let guest = Guest::listening(IER_RECEIVED | IER_TRANSMITTER_EMPTY | IER_MODEM_STATUS);
    guest.port.set_carrier(false);
    guest.port.set_carrier(true);
    guest.port.enqueue(b"x");
    assert_eq!(guest.read(IIR_FCR), 0xc4);
    guest.drain();
    assert_eq!(guest.read(IIR_FCR), 0xc2);
    assert_eq!(guest.read(IIR_FCR), 0xc0);
    guest.read(MSR);
    assert_eq!(guest.read(IIR_FCR), 0xc1);
}

#[test]
fn a_carrier_that_drops_interrupts_after_the_last_byte_was_read() {
    let guest = Guest::listening(IER_RECEIVED | IER_MODEM_STATUS);
    assert_eq!(guest.read(MSR), 0xb0);
    guest.port.enqueue(b"ab");
    guest.port.set_carrier(false);
    assert_eq!(guest.read(MSR), 0xb0);
    assert_eq!(guest.interrupts(), 1);
    assert_eq!(guest.drain(), b"ab");
    assert_eq!(guest.read(IIR_FCR), 0xc0);
    assert_eq!([guest.read(MSR), guest.read(MSR)], [0x38, 0x30]);
    guest.port.set_carrier(false);
    assert_eq!(guest.read(MSR), 0x30, "nothing changed");
    assert_eq!(guest.interrupts(), 0);
    guest.port.set_carrier(true);
    assert_eq!(guest.interrupts(), 1);
    assert_eq!(guest.read(MSR), 0xb8);
}

#[test]
fn input_waits_for_a_guest_that_opens_its_terminal_and_none_is_thrown_away() {
    let guest = Guest::new();
    assert_eq!(guest.port.enqueue(b"typed ahead"), 0);
    // serial8250_do_startup: clear the FIFOs, read everything once, enable.
    guest.write(IIR_FCR, FCR_ENABLE | 0x06);
    guest.write(IIR_FCR, 0);
    for register in [LSR, DATA, IIR_FCR, MSR] {
        guest.read(register);
    }
    assert!(!guest.space());
    guest.write(IER, IER_RECEIVED | 0x04);
    assert!(guest.space());
    assert_eq!(guest.port.enqueue(b"typed ahead"), 11);
    assert_eq!(guest.drain(), b"typed ahead");
}

#[test]
fn a_guest_that_polls_gets_its_input_without_interrupts() {
    let guest = Guest::new();
    assert_eq!(guest.port.enqueue(b"x"), 0);
    for _ in 0..1000 {
        guest.read(LSR);
        guest.write(DATA, b'.');
    }
    assert!(!guest.space(), "a guest that sends does not wait for input");
    while !guest.space() {
        assert_eq!(guest.read(LSR) & LSR_DATA_READY, 0);
    }
    assert_eq!(guest.port.enqueue(b"x"), 1);
    assert_eq!(guest.drain(), b"x");
    assert_eq!(guest.interrupts(), 0);
}

#[test]
fn linux_finds_a_16550a() {
    // autoconfig() of drivers/tty/serial/8250/8250_port.c, Linux 6.12.
    let guest = Guest::new();
    guest.write(IER, 0);
    assert_eq!(guest.read(IER) & 0x0f, 0);
    guest.write(IER, 0x0f);
    assert_eq!(guest.read(IER) & 0x0f, 0x0f);
    guest.write(IER, 0);
    let mcr = guest.read(MCR);
    guest.write(MCR, 0x10 | 0x0a);
    assert_eq!(guest.read(MSR) & 0xf0, 0x90, "loopback");
    guest.write(MCR, mcr);
    guest.write(LCR, 0xbf);
    guest.write(IIR_FCR, 0);
    guest.write(LCR, 0);
    guest.write(IIR_FCR, FCR_ENABLE);
    assert_eq!(guest.read(IIR_FCR) >> 6, 3, "working FIFOs");
    // Not one of the newer chips that show another register here.
    for line_control in [0x80, 0xbf] {
        guest.write(LCR, line_control);
        assert_ne!(guest.read(IIR_FCR), 0);
    }
    guest.write(LCR, 0xe0);
    assert_eq!((guest.read(IIR_FCR) ^ mcr) & 0x10, 0, "no National Semiconductor");
    guest.write(LCR, 0);
    guest.write(IIR_FCR, FCR_ENABLE | 0x20);
    assert_eq!(guest.read(IIR_FCR) & 0x20, 0, "no FIFO of 64");
    guest.write(IER, 0x40);
    assert_eq!(guest.read(IER) & 0x40, 0, "no XScale");
    // serial8250_do_startup: the transmitter's interrupt is asserted each time it is enabled.
    for _ in 0..2 {
        guest.write(IER, IER_TRANSMITTER_EMPTY);
        assert_eq!(guest.read(IIR_FCR) & 0x0f, IIR_TRANSMITTER_EMPTY);
        guest.write(IER, 0);
    }
}

#[test]
fn loopback_gives_the_guest_its_own_bytes_and_keeps_others_out() {
    let guest = Guest::listening(IER_RECEIVED);
    guest.write(MCR, MCR_LOOPBACK);
    assert_eq!(guest.port.enqueue(b"x"), 0);
    guest.write(DATA, b'l');
    assert_eq!(guest.drain(), b"l");
    assert!(guest.screen.bytes.lock().unwrap().is_empty());
    assert!(!guest.space());
    guest.write(MCR, 0);
    assert!(guest.space());
    for _ in 0..1000 {
        guest.write(MCR, MCR_LOOPBACK);
        guest.write(DATA, b'l');
    }
    assert_eq!(guest.drain().len(), FIFO_SIZE);
}

#[test]
fn clearing_the_receiver_throws_away_what_is_in_it_whatever_the_divisor_bit_says() {
    let guest = Guest::listening(IER_RECEIVED);
    guest.port.enqueue(b"lost");
    guest.write(LCR, LCR_DIVISOR | 3);
    guest.write(DATA, 0x42);
    guest.write(IIR_FCR, FCR_ENABLE | FCR_CLEAR_RECEIVER);
    assert_eq!(guest.read(DATA), 0x42);
    assert_eq!(guest.read(LCR), LCR_DIVISOR | 3);
    assert_eq!(guest.read(LSR) & LSR_DATA_READY, 0);
    assert_eq!(guest.read(IIR_FCR), 0xc1);
}

#[test]
fn restore_brings_everything_back_and_raises_the_interrupt_again() {
    let guest = Guest::listening(IER_RECEIVED | IER_MODEM_STATUS);
    guest.write(LCR, LCR_DIVISOR);
    guest.write(DATA, 1);
    guest.write(LCR, 3);
    guest.write(7, 0x5a);
    guest.port.enqueue(b"abc");
    guest.port.set_carrier(false);
    guest.read(DATA);
    let state = guest.port.save();
    let other = Guest::new();
    other.port.restore(&state);
    assert_eq!(other.port.save(), state);
    assert_eq!(other.interrupts(), 1);
    assert_eq!(other.drain(), b"bc");
    assert!(other.space());
    assert_eq!(other.read(IIR_FCR), 0xc0);
    assert_eq!(other.read(MSR), 0x38);
    other.write(DATA, b'o');
    assert_eq!(*other.screen.bytes.lock().unwrap(), b"o");
}

#[test]
fn a_saved_fifo_that_is_too_long_is_cut() {
    let guest = Guest::new();
    let mut state = guest.port.save();
    state.received = vec![7; 1000];
    guest.port.restore(&state);
    assert_eq!(guest.drain(), [7; FIFO_SIZE]);
}

#[test]
fn a_guest_that_drops_rts_gets_no_input_until_it_raises_it() {
    let guest = Guest::listening(IER_RECEIVED);
    guest.write(MCR, MCR_RTS | MCR_LOOPBACK);
    guest.write(MCR, 0);
    assert_eq!(guest.port.enqueue(b"a"), 1, "a guest that never used RTS");
    guest.drain();
    guest.write(MCR, MCR_RTS);
    guest.write(MCR, 0);
    assert_eq!(guest.port.enqueue(b"b"), 0);
    assert!(!guest.space());
    guest.write(MCR, MCR_RTS);
    assert!(guest.space());
    assert_eq!(guest.port.enqueue(b"b"), 1);
}

#[test]
fn a_slow_reader_holds_up_the_guest_and_not_the_sender() {
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Says that it was reached, and waits until it may go on.
    struct Slow(Sender<()>, Receiver<()>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(()).map_err(io::Error::other)?;
            self.1.recv().map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let ((reached, is_reached), (go_on, may_go_on)) = (channel(), channel());
    let irq = EventFd::new(EFD_NONBLOCK).unwrap();
    let port = Arc::new(SerialPort::new(irq, Box::new(Slow(reached, may_go_on))).unwrap());
    port.write(IER.into(), &[IER_RECEIVED]);
    let guest = std::thread::spawn({
        let port = port.clone();
        move || port.write(0, b"x")
    });
    is_reached.recv().unwrap();
    assert_eq!(port.enqueue(b"input"), 5);
    go_on.send(()).unwrap();
    guest.join().unwrap();
}

#[test]
fn input_that_is_held_waits_for_out1() {
    let guest = Guest::listening(IER_RECEIVED);
    guest.port.hold_input_until_out1();
    assert_eq!(guest.port.enqueue(b"a"), 0);
    assert!(!guest.space());
    guest.write(MCR, MCR_OUT1);
    assert!(guest.space());
    assert_eq!(guest.port.enqueue(b"a"), 1);
}
