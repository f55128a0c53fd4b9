//! The metadata service as a guest meets it: smoltcp again, as the guest's own stack, on the card's queues.

use std::net::Ipv4Addr;

use serde_json::json;
use smoltcp::iface::{Config as StackConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use super::*;
use crate::virtio::net::mmds::{DEFAULT_ADDRESS, MMDS_COUNTS, MetadataStore, Mmds, MmdsConfig};

const ADDRESS: IpAddress = IpAddress::Ipv4(DEFAULT_ADDRESS);
const FRAME: u64 = 0x1_0000;
const RECEIVE_BUFFERS: u64 = 16;
const RECEIVE_BUFFER: u64 = 0x800;
/// More than the service keeps.
const MANY: usize = 40;

fn store() -> Arc<MetadataStore> {
    let store = MetadataStore::default();
    store
        .put(json!({"name": "berth", "large": "x".repeat(50_000)}))
        .unwrap();
    Arc::new(store)
}

fn served(cable: Cable, store: Arc<MetadataStore>) -> Net {
    let config = MmdsConfig {
        address: DEFAULT_ADDRESS,
        tokens: false,
        imds_compat: false,
    };
    let mmds = Mmds::new(Box::new(cable), config, store).unwrap();
    Net::new(Box::new(mmds), MAC)
}

/// A guest with a stack of its own on a card.
struct Guest {
    port: Port,
    interface: Interface,
    sockets: SocketSet<'static>,
    end: End,
    store: Arc<MetadataStore>,
    next_port: u16,
}

/// The card as the guest's driver has it.
struct Port {
    machine: Machine,
    receive: Ring,
    transmit: Ring,
    /// Checksums are left to the card.
    offload: bool,
    /// The longest frame.
    mtu: usize,
}

impl Guest {
    fn new(features: u64, mtu: usize) -> Self {
        let (cable, end) = cable();
        let store = store();
        let machine = Machine::new(Box::new(served(cable, store.clone())));
        let mut rings = machine.bring_up(features).into_iter();
        let (receive, transmit) = (rings.next().unwrap(), rings.next().unwrap());
        let offload = features & 1 << VIRTIO_NET_F_CSUM != 0;
        let mut port = Port {
            machine,
            receive,
            transmit,
            offload,
            mtu,
        };
        for number in 0..RECEIVE_BUFFERS {
            port.post(number);
        }
        port.machine.notify(RECEIVE);
        let mut config = StackConfig::new(EthernetAddress(MAC).into());
        config.random_seed = 1;
        let mut interface = Interface::new(config, &mut port, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(IpAddress::v4(10, 0, 0, 2), 24))
                .unwrap();
            addresses
                .push(IpCidr::new(IpAddress::v4(169, 254, 0, 2), 16))
                .unwrap();
        });
        Self {
            port,
            interface,
            sockets: SocketSet::new(Vec::new()),
            end,
            store,
            next_port: 40_000,
        }
    }

    /// What the service has counted as `name`.
    fn counted(&self, name: &str) -> u64 {
        let at = MMDS_COUNTS.iter().position(|(known, _)| *known == name);
        self.store.counts()[at.expect("it is counted")]
    }

    fn poll(&mut self) {
        self.port.machine.device.pump();
        self.interface
            .poll(Instant::now(), &mut self.port, &mut self.sockets);
    }

    fn connect(&mut self) -> SocketHandle {
        let buffer = |len| tcp::SocketBuffer::new(vec![0; len]);
        let mut socket = tcp::Socket::new(buffer(1 << 16), buffer(1 << 14));
        self.next_port += 1;
        let context = self.interface.context();
        socket.connect(context, (ADDRESS, 80), self.next_port).unwrap();
        let handle = self.sockets.add(socket);
        for _ in 0..10 {
            self.poll();
        }
        handle
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn say(&mut self, handle: SocketHandle, text: &str) {
        assert_eq!(self.socket(handle).send_slice(text.as_bytes()), Ok(text.len()));
    }

    /// What comes until the connection has said `end`.
    fn hear(&mut self, handle: SocketHandle, end: &str) -> String {
        let mut heard = Vec::new();
        for _ in 0..10_000 {
            self.poll();
            let socket = self.socket(handle);
            while socket.can_recv() {
                socket
                    .recv(|bytes| {
                        heard.extend_from_slice(bytes);
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            if heard.ends_with(end.as_bytes()) {
                return String::from_utf8(heard).unwrap();
            }
        }
        panic!("only {:?} came", String::from_utf8_lossy(&heard));
    }

    /// Asks for the name and is told.
    fn ask(&mut self, handle: SocketHandle) {
        self.say(handle, "GET /name HTTP/1.1\r\n\r\n");
        let answer = self.hear(handle, "berth");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }

    /// Sends a frame as it is, and whether it went out on the cable.
    fn passes(&mut self, frame: &[u8]) -> bool {
        self.port.send([0; HEADER], frame);
        match self.end.take() {
            Some(sent) => {
                assert_eq!(sent[HEADER..], *frame);
                true
            }
            None => false,
        }
    }
}

impl Port {
    fn post(&mut self, number: u64) {
        let at = BUFFERS + number * RECEIVE_BUFFER;
        self.receive.add(&[Part::Write(at, RECEIVE_BUFFER as u32)]);
    }

    fn send(&mut self, header: [u8; HEADER], frame: &[u8]) {
        let at = BUFFERS + RECEIVE_BUFFERS * RECEIVE_BUFFER + FRAME;
        let memory = &self.machine.memory;
        memory.write_slice(&header, GuestAddress(at)).unwrap();
        memory.write_slice(frame, GuestAddress(at + 0x40)).unwrap();
        self.transmit.add(&[
            Part::Read(at, HEADER as u32),
            Part::Read(at + 0x40, frame.len() as u32),
        ]);
        self.machine.notify(TRANSMIT);
        assert!(self.transmit.take_used().is_some());
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        // Buffers come back in the order in which they were posted, and each goes to where it was.
        let (head, len) = self.receive.take_used()?;
        let number = u64::from(head) % RECEIVE_BUFFERS;
        let mut frame = bytes(&self.machine, BUFFERS + number * RECEIVE_BUFFER, len as usize);
        self.post(number);
        self.machine.notify(RECEIVE);
        assert_eq!(frame[10..12], [1, 0], "one buffer");
        frame.drain(..HEADER);
        Some(frame)
    }
}

impl Device for Port {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _: Instant) -> Option<(In, Out<'_>)> {
        let frame = self.take()?;
        Some((In(frame), Out(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Out<'_>> {
        Some(Out(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu;
        if self.offload {
            capabilities.checksum = ChecksumCapabilities::ignored();
        }
        capabilities
    }
}

struct In(Vec<u8>);

impl RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        look(&self.0)
    }
}

struct Out<'a>(&'a mut Port);

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        let mut header = [0; HEADER];
        if self.0.offload && frame[12..14] == [8, 0] {
            // TCP's checksum is the card's to fill in, at 16 of its header, which is at 34 of the frame.
            header[..2].copy_from_slice(&[1, u8::from(len > 1514)]);
            header[4..10].copy_from_slice(&[0, 5, 34, 0, 16, 0]);
        }
        self.0.send(header, &frame);
        result
    }
}

/// An Ethernet header and an IPv4 header to `to`, fields by their places in the frame.
fn packet(to: Ipv4Addr, fields: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = vec![0; 80];
    frame[..14].copy_from_slice(&[6, 1, 35, 69, 103, 1, 2, 0, 0, 0, 0, 42, 8, 0]);
    frame[14] = 0x45;
    frame[17] = 66;
    frame[22..24].copy_from_slice(&[64, 6]);
    frame[26..30].copy_from_slice(&[10, 0, 0, 2]);
    frame[30..34].copy_from_slice(&to.octets());
    for (at, value) in fields {
        frame[*at] = *value;
    }
    frame
}

#[test]
fn conforms_with_the_service_before_the_backend() {
    conformance::run(&subject(|cable| served(cable, store())));
}

#[test]
fn a_guest_reads_metadata_over_tcp_and_nothing_of_it_leaves_the_card() {
    let mut guest = Guest::new(MERGEABLE, 1514);
    let connection = guest.connect();
    guest.ask(connection);
    // The connection stays for the next request.
    guest.ask(connection);
    guest.say(connection, "GET /large HTTP/1.1\r\nConnection: close\r\n\r\n");
    let answer = guest.hear(connection, "xxxx");
    assert!(answer.contains("Content-Length: 50000\r\n"), "{answer}");
    let mut length = answer.len();
    while guest.socket(connection).may_recv() {
        guest.poll();
        let socket = guest.socket(connection);
        while let Ok(read @ 1..) = socket.recv(|bytes| (bytes.len(), bytes.len())) {
            length += read;
        }
    }
    let head = answer.find("\r\n\r\n").unwrap() + 4;
    assert_eq!(length - head, 50_000);
    assert_eq!(guest.end.take(), None);
    assert!(guest.counted("tx_bytes") > 50_000);
    assert_eq!(guest.counted("rx_accepted"), guest.counted("rx_count"));
    let counted = ["connections_created", "rx_no_token"].map(|name| guest.counted(name));
    assert_eq!(counted, [1, 0]);
}

#[test]
fn checksums_and_segments_left_to_the_card_are_taken_as_they_are() {
    let features = MERGEABLE | 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;
    let mut guest = Guest::new(features, 9000);
    let connection = guest.connect();
    let padding = "x".repeat(3000);
    guest.say(
        connection,
        &format!("GET /name HTTP/1.1\r\nX-Padding: {padding}\r\n\r\n"),
    );
    assert!(guest.hear(connection, "berth").starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(guest.end.take(), None);
}

#[test]
fn everything_for_the_address_stays_and_everything_else_passes() {
    let mut guest = Guest::new(MERGEABLE, 1514);
    let service = DEFAULT_ADDRESS;
    for (what, fields) in [
        ("UDP", &[(23, 17)][..]),
        ("ICMP", &[(23, 1)]),
        ("another port's segment", &[(37, 81), (46, 0x50)]),
        ("a first fragment", &[(20, 0x20)]),
        ("a later fragment", &[(21, 9)]),
        (
            "a packet from the service itself",
            &[(26, 169), (27, 254), (28, 169), (29, 254)],
        ),
        ("a packet from nobody", &[(26, 0), (29, 0)]),
        ("a header that is cut off", &[(14, 0x4f)]),
        ("another version's header", &[(14, 0x65)]),
        ("a multicast sender", &[(6, 3)]),
    ] {
        assert!(!guest.passes(&packet(service, fields)), "{what}");
    }
    for to in [
        Ipv4Addr::new(169, 254, 169, 253),
        Ipv4Addr::new(10, 0, 0, 1),
        Ipv4Addr::BROADCAST,
    ] {
        assert!(guest.passes(&packet(to, &[])), "{to}");
    }
    // What the service's address lies in the wrong place of, and what is too short to have one.
    assert!(guest.passes(&packet(service, &[(12, 0x86), (13, 0xdd)])));
    let whole = packet(Ipv4Addr::new(10, 0, 0, 1), &[]);
    for len in [14, 20, 33, 41, 42, 43, 80] {
        assert!(guest.passes(&whole[..len]), "{len} bytes");
    }
    assert!(guest.passes(&packet(service, &[])[..33]));
}

#[test]
fn a_question_for_the_service_is_answered_and_one_for_others_passes() {
    let mut guest = Guest::new(MERGEABLE, 1514);
    let question = |target: [u8; 4]| {
        let mut frame = vec![0xff; 6];
        frame.extend(MAC);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(MAC);
        frame.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
        frame.extend(target);
        frame
    };
    assert!(guest.passes(&question([10, 0, 0, 1])));
    assert!(!guest.passes(&question(DEFAULT_ADDRESS.octets())));
    let answer = guest.port.take().unwrap();
    let mac = [6, 1, 35, 69, 103, 1];
    assert_eq!((&answer[..6], &answer[6..12]), (&MAC[..], &mac[..]));
    assert_eq!(answer[20..22], [0, 2], "a reply");
    assert_eq!(
        (&answer[22..28], &answer[28..32]),
        (&mac[..], &[169, 254, 169, 254][..])
    );
    assert_eq!((&answer[32..38], &answer[38..42]), (&MAC[..], &[10, 0, 0, 2][..]));
    assert_eq!(guest.port.take(), None);
}

#[test]
fn one_connection_too_many_takes_the_place_of_the_most_silent() {
    let mut guest = Guest::new(MERGEABLE, 1514);
    let first = guest.connect();
    let second = guest.connect();
    guest.ask(first);
    for _ in 0..MANY {
        let next = guest.connect();
        guest.ask(next);
        guest.ask(first);
    }
    guest.say(second, "GET /name HTTP/1.1\r\n\r\n");
    for _ in 0..10 {
        guest.poll();
    }
    assert_eq!(guest.socket(second).state(), tcp::State::Closed, "it was reset");
    let [made, ended] = ["connections_created", "connections_destroyed"].map(|name| guest.counted(name));
    assert_eq!(made, MANY as u64 + 2);
    assert!(ended > 0 && made - ended <= 16, "{ended}");
}

#[test]
fn a_guest_that_takes_no_frames_makes_no_more_than_a_few_wait() {
    let mut guest = Guest::new(MERGEABLE, 1514);
    let mut arp = vec![0xff; 6];
    arp.extend(MAC);
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend(MAC);
    arp.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 169, 254, 169, 254]);
    for _ in 0..1000 {
        guest.port.send([0; HEADER], &arp);
    }
    let mut count = 0;
    while guest.port.take().is_some() {
        count += 1;
    }
    assert_eq!(
        count,
        RECEIVE_BUFFERS + 32,
        "those with a buffer, and those that waited"
    );
    let counted = [
        "rx_accepted",
        "rx_count",
        "rx_accepted_err",
        "tx_count",
        "tx_frames",
        "tx_bytes",
    ];
    let counted = counted.map(|name| guest.counted(name));
    assert_eq!(counted, [1000, count, 1000 - count, count, count, count * 42]);
    // And then it answers as before.
    let connection = guest.connect();
    guest.ask(connection);
}

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn survives_any_driver_with_the_service(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        for fuzz in [conformance::fuzz_mmio, conformance::fuzz_queue] {
            let (cable, _end) = cable();
            fuzz(Box::new(served(cable, store())), &data);
        }
    }
}
