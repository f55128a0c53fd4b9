use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use proptest::arbitrary::any;
use proptest::proptest;
use proptest::test_runner::Config;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::conformance::ring::{Part, Ring};
use crate::virtio::conformance::{self, BUFFERS, Machine, Request, Subject, VERSION_1};

const DRIVER: u64 = VERSION_1 | MULTIPORT;

/// Keeps what is written, as long as there is room.
#[derive(Clone)]
struct Kept {
    bytes: Arc<Mutex<Vec<u8>>>,
    room: Arc<Mutex<usize>>,
}

impl Kept {
    fn new() -> Self {
        Self {
            bytes: Arc::default(),
            room: Arc::new(Mutex::new(usize::MAX)),
        }
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.bytes.lock().unwrap())
    }
}

impl PortBackend for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.room.lock().unwrap();
        let len = bytes.len().min(*room);
        if len == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        *room -= len;
        self.bytes.lock().unwrap().extend(&bytes[..len]);
        Ok(len)
    }
}

fn console(ports: Vec<Box<dyn PortBackend>>) -> (Console, ConsoleHandle) {
    let names = ["console", "agent", ""].map(str::to_owned);
    Console::new(names.into_iter().zip(ports).collect()).unwrap()
}

/// A started console, whose second port is a socket.
struct Bench {
    machine: Machine,
    rings: Vec<Ring>,
    handle: ConsoleHandle,
    kept: Kept,
    folder: TempDir,
    /// Buffers posted for control messages.
    posted: u16,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new();
        let socket = SocketPort::bind(&folder.path().join("socket")).unwrap();
        let (console, handle) = console(vec![Box::new(kept.clone()), Box::new(socket), Box::new(NullPort)]);
        let machine = Machine::new(Box::new(console));
        let rings = machine.bring_up(DRIVER);
        Self {
            machine,
            rings,
            handle,
            kept,
            folder,
            posted: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn send(&mut self, queue: u16, bytes: &[u8]) {
        self.machine
            .memory
            .write_slice(bytes, GuestAddress(BUFFERS))
            .unwrap();
        self.rings[usize::from(queue)].add(&[Part::Read(BUFFERS, bytes.len() as u32)]);
        self.machine.notify(queue);
    }

    /// Sends a control message.
    fn say(&mut self, id: u32, event: Event, value: u16) {
        let message = Message {
            id,
            event,
            value,
            rest: Vec::new(),
        };
        self.send(3, &message.bytes());
    }

    /// Posts one buffer to `queue`.
    fn post(&mut self, queue: u16) {
        self.rings[usize::from(queue)].add(&[Part::Write(BUFFERS + 0x1_0000 * (1 + u64::from(queue)), 100)]);
        self.machine.notify(queue);
    }

    /// What was put into the last buffer posted to `queue`.
    fn taken(&mut self, queue: u16) -> Option<Vec<u8>> {
        let (_, len) = self.rings[usize::from(queue)].take_used()?;
        let mut bytes = vec![0; len as usize];
        let at = GuestAddress(BUFFERS + 0x1_0000 * (1 + u64::from(queue)));
        self.machine.memory.read_slice(&mut bytes, at).unwrap();
        Some(bytes)
    }

    /// The next control message.
    fn hear(&mut self) -> Option<(u32, u16, u16, Vec<u8>)> {
        let mut taken = self.taken(2);
        // One buffer at a time, for all lie in the same place.
        if taken.is_none() && self.rings[2].used_index() == self.posted {
            self.posted += 1;
            self.post(2);
            taken = self.taken(2);
        }
        let bytes = taken?;
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Some((u32::from(word(0)), word(4), word(6), bytes[8..].to_vec()))
    }

    /// The next control message, which is to come.
    fn await_message(&mut self) -> (u32, u16, u16, Vec<u8>) {
        loop {
            self.machine.device.pump();
            if let Some(message) = self.hear() {
                return message;
            }
            std::thread::yield_now();
        }
    }

    /// From the driver's start to a port that is open at both ends but for the host's.
    fn open(&mut self, id: u32) {
        self.say(id, Event::PortReady, 1);
        self.say(id, Event::PortOpen, 1);
        while self.hear().is_some() {}
    }

    /// Waits until the device has done something about the world outside.
    fn wait(&self, done: impl FnMut() -> bool) {
        self.machine.device.wait(done);
    }
}

fn subject() -> Subject {
    let kept = Kept::new();
    let (made, prepared, verified) = (kept.clone(), kept.clone(), kept);
    let text = |number: u32| format!("request {number}\n");
    Subject {
        make: Box::new(move || Box::new(console(vec![Box::new(made.clone()), Box::new(NullPort)]).0)),
        request: Request {
            queue: 1,
            prepare: Box::new(move |memory, base, number| {
                // What was asked for before is answered and looked at.
                prepared.take();
                let text = text(number);
                memory.write_slice(text.as_bytes(), GuestAddress(base)).unwrap();
                vec![Part::Read(base, 3), Part::Read(base + 3, text.len() as u32 - 3)]
            }),
            verify: Box::new(move |_, _, number, written| {
                assert_eq!(written, 0);
                let bytes = verified.bytes.lock().unwrap();
                let bytes = String::from_utf8_lossy(&bytes);
                assert!(bytes.contains(&text(number)), "{number} is not in {bytes}");
            }),
        },
    }
}

#[test]
fn conforms() {
    conformance::run(&subject());
}

#[test]
fn without_multiport_there_is_one_console_that_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let socket = SocketPort::bind(&path).unwrap();
    let (console, _) = console(vec![Box::new(socket)]);
    let machine = Machine::new(Box::new(console));
    let mut rings = machine.bring_up(VERSION_1);
    let mut other = UnixStream::connect(&path).unwrap();
    other.write_all(b"hello").unwrap();
    rings[0].add(&[Part::Write(BUFFERS, 100)]);
    machine.notify(0);
    machine.device.wait(|| rings[0].used_index() == 1);
    assert_eq!(rings[0].take_used(), Some((0, 5)));
    machine
        .memory
        .write_slice(b"answer", GuestAddress(BUFFERS))
        .unwrap();
    rings[1].add(&[Part::Read(BUFFERS, 6)]);
    machine.notify(1);
    let mut answer = [0; 6];
    other.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
}

#[test]
fn the_driver_learns_of_ports_consoles_and_names() {
    let mut bench = Bench::new();
    assert_eq!(bench.machine.read(0x104), 3, "ports in the configuration");
    bench.say(0, Event::DeviceReady, 1);
    let ids = [(); 3].map(|()| bench.hear().unwrap());
    let added = [0, 1, 2].map(|id| (id, Event::DeviceAdd as u16, 1, Vec::new()));
    assert_eq!(ids, added);
    bench.say(0, Event::PortReady, 1);
    let said = [(); 3].map(|()| bench.hear().unwrap());
    let expected = [
        (0, Event::ConsolePort as u16, 1, Vec::new()),
        (0, Event::PortName as u16, 1, b"console".to_vec()),
        (0, Event::PortOpen as u16, 1, Vec::new()),
    ];
    assert_eq!(said, expected);
    bench.say(1, Event::PortReady, 1);
    let said = [(); 2].map(|()| bench.hear().unwrap());
    let expected = [
        (1, Event::PortName as u16, 1, b"agent".to_vec()),
        (1, Event::PortOpen as u16, 0, Vec::new()),
    ];
    assert_eq!(said, expected);
    assert_eq!(bench.hear(), None);
}

#[test]
fn a_client_and_the_guest_talk_and_each_learns_when_the_other_leaves() {
    let mut bench = Bench::new();
    bench.open(1);
    let mut client = UnixStream::connect(bench.path()).unwrap();
    client.write_all(b"to the guest").unwrap();
    bench.post(4);
    bench.wait(|| bench.rings[4].used_index() == 1);
    assert_eq!(bench.taken(4).unwrap(), b"to the guest");
    assert_eq!(bench.hear(), Some((1, Event::PortOpen as u16, 1, Vec::new())));
    bench.send(5, b"to the host");
    let mut bytes = [0; 11];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"to the host");
    // The host's end leaves; another comes.
    drop(client);
    assert_eq!(bench.await_message(), (1, Event::PortOpen as u16, 0, Vec::new()));
    let mut client = UnixStream::connect(bench.path()).unwrap();
    assert_eq!(bench.await_message(), (1, Event::PortOpen as u16, 1, Vec::new()));
    // The guest leaves.
    bench.say(1, Event::PortOpen, 0);
    assert_eq!(client.read(&mut bytes).unwrap(), 0);
}

#[test]
fn input_waits_until_the_guest_has_opened_the_port() {
    let mut bench = Bench::new();
    bench.say(1, Event::PortReady, 1);
    let mut client = UnixStream::connect(bench.path()).unwrap();
    client.write_all(b"early").unwrap();
    bench.post(4);
    bench.machine.device.pump();
    assert_eq!(bench.taken(4), None);
    bench.say(1, Event::PortOpen, 1);
    assert_eq!(bench.taken(4).unwrap(), b"early");
}

#[test]
fn one_client_at_a_time_is_served_and_the_next_one_after_it() {
    let mut bench = Bench::new();
    bench.open(1);
    let first = UnixStream::connect(bench.path()).unwrap();
    bench.machine.device.pump();
    let mut second = UnixStream::connect(bench.path()).unwrap();
    second.write_all(b"second").unwrap();
    bench.post(4);
    bench.machine.device.pump();
    assert_eq!(bench.taken(4), None);
    drop(first);
    bench.wait(|| bench.rings[4].used_index() == 1);
    assert_eq!(bench.taken(4).unwrap(), b"second");
}

#[test]
fn output_that_finds_no_room_waits_and_holds_the_guest_up() {
    let mut bench = Bench::new();
    bench.open(0);
    *bench.kept.room.lock().unwrap() = 3;
    bench.send(1, b"abcdef");
    bench.send(1, b"ghi");
    assert_eq!(bench.rings[1].used_index(), 1, "the second one stays in the ring");
    // Through a pause, and a restore, not a byte is lost or comes twice.
    bench.machine.transport.pause();
    let state = bench.machine.transport.save().unwrap();
    bench.machine.transport.restore(&state).unwrap();
    bench.machine.transport.resume();
    *bench.kept.room.lock().unwrap() = usize::MAX;
    bench.machine.notify(1);
    assert_eq!(bench.rings[1].used_index(), 2);
    assert_eq!(bench.kept.take(), b"abcdefghi");
}

#[test]
fn a_slow_client_gets_every_byte() {
    let mut bench = Bench::new();
    bench.open(1);
    let client = UnixStream::connect(bench.path()).unwrap();
    bench.machine.device.pump();
    let reader = std::thread::spawn(move || {
        let mut client = client;
        let mut sum: Vec<u8> = Vec::new();
        let mut chunk = [0; 1000];
        while sum.len() < 40 * 20_000 {
            let read = client.read(&mut chunk).unwrap();
            assert_ne!(read, 0, "the device closed the connection");
            sum.extend(&chunk[..read]);
        }
        sum
    });
    let mut sent = Vec::new();
    for number in 0..40_u8 {
        let bytes: Vec<u8> = (0..20_000_u32).map(|at| at as u8 ^ number).collect();
        let used = bench.rings[5].used_index();
        bench.send(5, &bytes);
        bench.wait(|| bench.rings[5].used_index() != used);
        sent.extend(bytes);
    }
    while !reader.is_finished() {
        bench.machine.device.pump();
        std::thread::yield_now();
    }
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn a_window_has_a_size_in_the_configuration_and_by_message() {
    let mut bench = Bench::new();
    bench.open(0);
    bench.machine.acknowledge();
    let handle = bench.handle.clone();
    bench
        .machine
        .device
        .serve_while(|| handle.resize(132, 43))
        .unwrap();
    assert_eq!(bench.machine.read(0x100), (43 << 16) + 132);
    assert_eq!(bench.machine.acknowledge() & 2, 2);
    assert_eq!(
        bench.hear(),
        Some((0, Event::Resize as u16, 1, vec![132, 0, 43, 0]))
    );
}

#[test]
fn a_byte_can_be_written_before_there_are_queues() {
    let kept = Kept::new();
    let (console, _) = console(vec![Box::new(kept.clone())]);
    let machine = Machine::new(Box::new(console));
    assert!(machine.negotiate(VERSION_1 | EMERGENCY));
    machine.write(0x108, u32::from(b'!'));
    assert_eq!(kept.take(), b"!");
}

#[test]
fn a_restored_driver_learns_that_the_client_is_gone() {
    let mut bench = Bench::new();
    bench.open(1);
    let _client = UnixStream::connect(bench.path()).unwrap();
    bench.await_message();
    bench.machine.transport.pause();
    let state = bench.machine.transport.save().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = SocketPort::bind(&folder.path().join("socket")).unwrap();
    let (console, handle) = console(vec![Box::new(NullPort), Box::new(socket), Box::new(NullPort)]);
    bench.machine = Machine::with_memory(Box::new(console), bench.machine.memory.clone());
    bench.handle = handle;
    bench.folder = folder;
    bench.machine.transport.restore(&state).unwrap();
    bench.machine.transport.resume();
    assert_eq!(bench.hear(), Some((1, Event::PortOpen as u16, 0, Vec::new())));
    let (fewer, _) = console_of_two();
    let mut fewer: Box<dyn VirtioDevice> = Box::new(fewer);
    assert!(fewer.restore(&state.device).is_err());
}

fn console_of_two() -> (Console, ConsoleHandle) {
    console(vec![Box::new(NullPort), Box::new(NullPort)])
}

#[test]
fn a_socket_is_removed_and_what_is_there_already_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let socket = SocketPort::bind(&path).unwrap();
    let error = SocketPort::bind(&path).unwrap_err().to_string();
    assert!(error.contains("something is there already"), "{error}");
    drop(socket);
    assert!(!path.exists());
}

#[test]
fn a_file_keeps_what_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    std::fs::write(&path, "before\n").unwrap();
    FilePort::open(&path).unwrap().write(b"after\n").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nafter\n");
}

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn survives_any_driver(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        conformance::fuzz_mmio(Box::new(console_of_two().0), &data);
        conformance::fuzz_queue(Box::new(console_of_two().0), &data);
    }
}
