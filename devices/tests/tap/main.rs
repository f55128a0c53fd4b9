//! The network card over real tap interfaces, in network namespaces that these tests make: for root, with `ip` of iproute2 and
//! `/dev/net/tun`. Where one is missing they fail, and say so.

mod datagrams;
mod queues;

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use berth_devices::virtio::conformance::ring::{Part, Ring};
use berth_devices::virtio::conformance::{BUFFERS, Machine, NEEDS_RESET, VERSION_1};
use berth_devices::virtio::net::{HEADER, Net, NetBackend, Tap, TapError};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities, unshare_unsafe};
use vm_memory::{Bytes, GuestAddress};

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const HOST_TSO4: u64 = 1 << 11;
const MRG_RXBUF: u64 = 1 << 15;

/// Hardware addresses of the guests in these tests.
const MAC: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// And of the host's end of the first tap.
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
const HOST: [u8; 4] = [10, 0, 0, 1];
const GUEST: [u8; 4] = [10, 0, 0, 2];

/// Runs a test in a network namespace of its own: namespaces belong to threads.
fn in_namespace(test: fn()) {
    let thread = std::thread::spawn(move || {
        // SAFETY: only the network namespace of this thread changes; no memory and no descriptors are unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
            .expect("this test makes a network namespace, for which it must run as root");
        // The kernel's own IPv6 chatter would be among the frames.
        let quiet = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        assert!(quiet.is_ok() || !std::path::Path::new("/proc/sys/net/ipv6").exists());
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("this test needs ip, of the package iproute2");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Opens a tap, which a guest may just have let go of: a program that another test starts has it, too, until it is loaded.
fn open(tap: &str) -> Tap {
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        match Tap::open(tap) {
            Err(TapError::Busy { .. }) if Instant::now() < patience => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

/// Waits until the kernel has seen that someone holds the other end of `tap`: until then it drops frames for it.
fn wait_for_carrier(tap: &str) {
    const LINK_CHANGES: u32 = 1;
    // Routing is netlink's protocol 0.
    let (family, route) = (AddressFamily::NETLINK, None);
    let socket = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, route).unwrap();
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, LINK_CHANGES)).unwrap();
    while !ip(&format!("-o link show {tap}")).contains("state UP") {
        rustix::net::recv(&socket, &mut [0; 8192][..], RecvFlags::empty()).unwrap();
    }
}

/// A tap with the host's address on it, and a neighbour that nobody has to ask for.
fn host_tap() {
    ip("tuntap add t0 mode tap");
    ip("link set t0 address 02:00:00:00:00:99");
    ip("addr add 10.0.0.1/24 dev t0");
    ip("link set t0 up");
    ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:01 dev t0 nud permanent");
}

/// A socket of the host's in that network, and its port.
fn host_socket() -> (UdpSocket, u16) {
    let host = UdpSocket::bind("10.0.0.1:0").unwrap();
    host.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let port = host.local_addr().unwrap().port();
    (host, port)
}

/// A guest's driver, with 48 receive buffers of 1600 bytes.
struct Guest {
    machine: Machine,
    receive: Ring,
    transmit: Ring,
    mac: [u8; 6],
    /// The next receive buffer to be filled, and how many there are.
    next: u64,
}

const BUFFER_COUNT: u64 = 48;
const BUFFER_SIZE: u64 = 1600;
const FRAME: u64 = BUFFERS + 0x10_0000;

impl Guest {
    fn new(tap: &str, guest: usize, features: u64) -> Self {
        let open = open(tap);
        wait_for_carrier(tap);
        let machine = Machine::new(Box::new(Net::new(Box::new(open), MAC[guest])));
        let mut rings = machine.bring_up(VERSION_1 | features).into_iter();
        let mut guest = Self {
            receive: rings.next().unwrap(),
            transmit: rings.next().unwrap(),
            machine,
            mac: MAC[guest],
            next: 0,
        };
        for number in 0..BUFFER_COUNT {
            guest.post(number);
        }
        guest
    }

    fn post(&mut self, number: u64) {
        let buffer = Part::Write(BUFFERS + BUFFER_SIZE * number, BUFFER_SIZE as u32);
        self.receive.add(&[buffer]);
        self.machine.notify(0);
    }

    fn send(&mut self, header: [u8; HEADER], frame: &[u8]) {
        let bytes = [&header[..], frame].concat();
        self.machine
            .memory
            .write_slice(&bytes, GuestAddress(FRAME))
            .unwrap();
        self.transmit.add(&[Part::Read(FRAME, bytes.len() as u32)]);
        self.machine.notify(1);
        assert!(self.transmit.take_used().is_some(), "the frame was taken");
    }

    /// The next frame for this guest: its header and itself.
    fn take(&mut self) -> ([u8; HEADER], Vec<u8>) {
        loop {
            let (header, frame) = self.take_any();
            if frame[..6] == self.mac {
                return (header, frame);
            }
        }
    }

    fn take_any(&mut self) -> ([u8; HEADER], Vec<u8>) {
        let mut bytes = self.take_buffer();
        let header: [u8; HEADER] = bytes[..HEADER].try_into().unwrap();
        for _ in 1..u16::from_le_bytes([header[10], header[11]]) {
            bytes.extend(self.take_buffer());
        }
        (header, bytes.split_off(HEADER))
    }

    fn take_buffer(&mut self) -> Vec<u8> {
        let mut used = None;
        let receive = &mut self.receive;
        self.machine.device.wait(|| {
            used = used.or_else(|| receive.take_used());
            used.is_some()
        });
        let mut bytes = vec![0; used.unwrap().1 as usize];
        let number = self.next % BUFFER_COUNT;
        let at = GuestAddress(BUFFERS + BUFFER_SIZE * number);
        self.machine.memory.read_slice(&mut bytes, at).unwrap();
        self.next += 1;
        self.post(number);
        bytes
    }

    fn link_is_up(&self) -> bool {
        self.machine.read(0x104) >> 16 & 1 == 1
    }
}

/// Sum of 16-bit words as IP's checksums want it; 0xffff over data with a right checksum in it.
fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let words = bytes.chunks(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// What TCP and UDP sum up besides themselves.
fn pseudo_header(from: [u8; 4], to: [u8; 4], protocol: u8, len: usize) -> Vec<u8> {
    let len = (len as u16).to_be_bytes();
    [&from[..], &to, &[0, protocol], &len].concat()
}

fn ethernet_ip(
    to_mac: [u8; 6],
    from_mac: [u8; 6],
    addresses: [[u8; 4]; 2],
    protocol: u8,
    len: usize,
) -> Vec<u8> {
    let mut ip = vec![0x45, 0];
    ip.extend((20 + len as u16).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    ip.extend(addresses.concat());
    let check = !sum(&[&ip]);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    [&to_mac[..], &from_mac, &[8, 0], &ip].concat()
}

/// A UDP datagram from the guest to the host's port; without its checksum if the host is to do that.
fn udp(port: u16, data: &[u8], checksum: bool) -> Vec<u8> {
    let len = 8 + data.len();
    let mut udp = [
        4000_u16.to_be_bytes(),
        port.to_be_bytes(),
        (len as u16).to_be_bytes(),
        [0, 0],
    ]
    .concat();
    udp.extend(data);
    let pseudo = pseudo_header(GUEST, HOST, 17, len);
    let check = if checksum {
        !sum(&[&pseudo, &udp])
    } else {
        sum(&[&pseudo])
    };
    udp[6..8].copy_from_slice(&check.to_be_bytes());
    let mut frame = ethernet_ip(HOST_MAC, MAC[0], [GUEST, HOST], 17, len);
    frame.extend(udp);
    frame
}

/// Whether the checksum of the TCP or UDP part of a frame is right.
fn checksum_is_right(frame: &[u8]) -> bool {
    let addresses = |at: usize| <[u8; 4]>::try_from(&frame[at..at + 4]).unwrap();
    let len = usize::from(u16::from_be_bytes([frame[16], frame[17]])) - 20;
    let pseudo = pseudo_header(addresses(26), addresses(30), frame[23], len);
    sum(&[&pseudo, &frame[34..34 + len]]) == 0xffff
}

#[test]
fn interfaces_that_are_no_free_taps_are_refused_with_a_sentence() {
    in_namespace(|| {
        ip("tuntap add t0 mode tap");
        ip("tuntap add u0 mode tun");
        ip("tuntap add m0 mode tap multi_queue");
        let refusal = |name: &str| Tap::open(name).unwrap_err().to_string();
        for name in ["lo", "u0"] {
            let wanted = format!("{name} is not a tap interface; make one with: ip tuntap add NAME mode tap");
            assert_eq!(refusal(name), wanted);
        }
        let held = Tap::open("t0").unwrap();
        assert_eq!(
            refusal("t0"),
            "tap t0 is busy: another process, perhaps another VM, uses it"
        );
        drop(held);
        Tap::open("m0").expect("a tap made for several queues");
        assert_eq!(
            Tap::open_pairs("t0", 2, false).unwrap_err().to_string(),
            "tap t0 has one queue; make it anew for several with: ip tuntap add t0 mode tap multi_queue, or leave out queues"
        );
        for name in ["lo", "u0"] {
            let refusal = Tap::open_pairs(name, 2, true).unwrap_err().to_string();
            assert!(
                refusal.starts_with(&format!("{name} is not a tap interface")),
                "{refusal}"
            );
        }
        ip("tuntap del m0 mode tap multi_queue");
        assert!(refusal("m0").starts_with("tap m0 does not exist; make it with: ip tuntap add m0"));
    });
}

#[test]
fn a_tap_of_another_user_and_a_closed_device_are_refused_with_a_sentence() {
    in_namespace(|| {
        ip("tuntap add t0 mode tap user 12345");
        let none = CapabilitySet::empty();
        let sets = |effective| CapabilitySets {
            effective,
            permitted: effective,
            inheritable: none,
        };
        // Of this thread, which ends with the test.
        set_capabilities(None, sets(CapabilitySet::DAC_OVERRIDE)).unwrap();
        let error = Tap::open("t0").unwrap_err().to_string();
        assert!(
            error.starts_with("no right to use tap t0; its owner may:"),
            "{error}"
        );
    });
    in_namespace(|| {
        ip("tuntap add t0 mode tap");
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        // Where everyone may open it, there is nothing to refuse.
        if let Err(error) = Tap::open("t0") {
            assert!(error.to_string().starts_with("no right to "), "{error}");
        }
    });
}

#[test]
fn the_card_shows_the_taps_mtu() {
    in_namespace(|| {
        ip("tuntap add t0 mode tap");
        ip("link set t0 mtu 9000");
        assert_eq!(Tap::open("t0").unwrap().mtu(), 9000);
    });
}

#[test]
fn datagrams_go_both_ways_with_checksums_done_by_whom_it_was_agreed() {
    in_namespace(|| {
        host_tap();
        let (host, port) = host_socket();
        for features in [0, MRG_RXBUF, MRG_RXBUF | CSUM | GUEST_CSUM] {
            let mut guest = Guest::new("t0", 0, features);
            let mut data = [0; 2000];

            guest.send([0; HEADER], &udp(port, b"whole", true));
            let (len, from) = host.recv_from(&mut data).unwrap();
            assert_eq!(
                (&data[..len], from.to_string().as_str()),
                (&b"whole"[..], "10.0.0.2:4000")
            );
            if features & CSUM != 0 {
                guest.send([1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0], &udp(port, b"half", false));
                assert_eq!(host.recv(&mut data).unwrap(), 4);
            }

            host.send_to(&[0x5a; 1400], "10.0.0.2:4000").unwrap();
            let (header, frame) = guest.take();
            assert_eq!(frame[42..], [0x5a; 1400]);
            assert_eq!(header[10..], [1, 0]);
            if features & GUEST_CSUM == 0 {
                assert_eq!(header[..10], [0; 10]);
                assert!(checksum_is_right(&frame), "the host did the checksum");
            } else {
                assert_eq!(
                    header[..10],
                    [1, 0, 0, 0, 0, 0, 34, 0, 6, 0],
                    "it is left to the guest"
                );
            }
            assert_eq!(guest.machine.status() & NEEDS_RESET, 0);
        }
    });
}

#[test]
fn frames_that_find_no_buffer_wait_in_the_tap() {
    in_namespace(|| {
        const FRAMES: u32 = 400;
        host_tap();
        let host = UdpSocket::bind("10.0.0.1:0").unwrap();
        let mut guest = Guest::new("t0", 0, MRG_RXBUF);
        for number in 0..FRAMES {
            host.send_to(&number.to_be_bytes(), "10.0.0.2:4000").unwrap();
        }
        for number in 0..FRAMES {
            assert_eq!(guest.take().1[42..46], number.to_be_bytes());
        }
    });
}

/// Two guests on one bridge.
fn bridged(features: [u64; 2]) -> [Guest; 2] {
    ip("link add br0 type bridge");
    ip("link set br0 up");
    for tap in ["t0", "t1"] {
        ip(&format!("tuntap add {tap} mode tap"));
        ip(&format!("link set {tap} master br0"));
        ip(&format!("link set {tap} up"));
    }
    let mut guest = 0;
    features.map(|features| {
        guest += 1;
        Guest::new(["t0", "t1"][guest - 1], guest - 1, features)
    })
}

/// A TCP segment of `data`, its checksum left to be done.
fn tcp(data: &[u8]) -> Vec<u8> {
    let addresses = [[10, 0, 0, 2], [10, 0, 0, 3]];
    let len = 20 + data.len();
    let mut tcp = [4000_u16.to_be_bytes(), 80_u16.to_be_bytes()].concat();
    // Sequence numbers, no options, ACK, window.
    tcp.extend([0, 0, 0, 0, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff]);
    tcp.extend(sum(&[&pseudo_header(addresses[0], addresses[1], 6, len)]).to_be_bytes());
    tcp.extend([0, 0]);
    let mut frame = ethernet_ip(MAC[1], MAC[0], addresses, 6, len);
    frame.extend(tcp);
    frame.extend(data);
    frame
}

const SEGMENT: u16 = 1448;
/// TCP over IPv4, 54 bytes of headers, the checksum at 34 + 16.
const TSO: [u8; HEADER] = [
    1,
    1,
    54,
    0,
    SEGMENT as u8,
    (SEGMENT >> 8) as u8,
    34,
    0,
    16,
    0,
    0,
    0,
];

#[test]
fn a_long_segment_goes_from_guest_to_guest_in_one_piece() {
    in_namespace(|| {
        let [mut from, mut to] = bridged([CSUM | HOST_TSO4, MRG_RXBUF | GUEST_CSUM | GUEST_TSO4]);
        // The first is read with little room, and what follows with all.
        for _ in 0..3 {
            let data: Vec<u8> = (0..60_000_u32).map(|at| (at / 5) as u8).collect();
            from.send(TSO, &tcp(&data));
            let (header, frame) = to.take();
            assert!(frame[54..] == data, "the data is what was sent");
            assert_eq!(
                header[..2],
                [1, 1],
                "checksum and segmentation are left to be done"
            );
            assert_eq!(header[4..10], TSO[4..10]);
            assert_eq!(
                u64::from(header[10]),
                (60_000 + 54 + HEADER as u64).div_ceil(BUFFER_SIZE)
            );
        }
    });
}

#[test]
fn a_long_segment_is_cut_for_a_guest_that_did_not_ask_for_it() {
    in_namespace(|| {
        let [mut from, mut to] = bridged([CSUM | HOST_TSO4, MRG_RXBUF]);
        let data: Vec<u8> = (0..40_000_u32).map(|at| (at / 3) as u8).collect();
        from.send(TSO, &tcp(&data));
        let mut seen: Vec<u8> = Vec::new();
        while seen.len() < data.len() {
            let (header, frame) = to.take();
            assert_eq!(header[..10], [0; 10]);
            assert_eq!(header[10], 1);
            assert!(checksum_is_right(&frame), "the host did the checksum");
            let sequence = u32::from_be_bytes(frame[38..42].try_into().unwrap());
            assert_eq!(sequence as usize, seen.len(), "in order");
            assert!(frame.len() <= 54 + usize::from(SEGMENT));
            seen.extend(&frame[54..]);
        }
        assert!(seen == data, "the data is what was sent");
    });
}

#[test]
fn a_tap_that_is_down_swallows_frames_and_one_that_is_deleted_pulls_the_cable() {
    in_namespace(|| {
        host_tap();
        let (host, port) = host_socket();
        let mut guest = Guest::new("t0", 0, MRG_RXBUF);
        ip("link set t0 down");
        guest.send([0; HEADER], &udp(port, b"lost", true));
        assert!(guest.link_is_up(), "nobody pulled the cable");
        ip("link set t0 up");
        guest.send([0; HEADER], &udp(port, b"seen", true));
        let mut data = [0; 100];
        let len = host.recv(&mut data).unwrap();
        assert_eq!(&data[..len], b"seen");

        ip("link del t0");
        // What the event loop does when the descriptor says that something happened.
        guest.machine.device.poke();
        assert!(!guest.link_is_up());
        guest.send([0; HEADER], &udp(port, b"gone", true));
        assert_eq!(guest.machine.status() & NEEDS_RESET, 0);
    });
}

#[test]
fn a_deleted_tap_wakes_the_event_loop_once() {
    in_namespace(|| {
        host_tap();
        let tap = Tap::open("t0").unwrap();
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&poll, tap.fd().as_fd(), EventData::new_u64(1), flags).unwrap();
        let wait = |timeout: i64| {
            let mut events = Vec::with_capacity(4);
            let timeout = rustix::event::Timespec {
                tv_sec: timeout,
                tv_nsec: 0,
            };
            epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)).unwrap()
        };
        // It is writable from the beginning.
        assert_eq!(wait(20), 1);
        assert_eq!(wait(0), 0);
        ip("link del t0");
        assert_eq!(wait(20), 1);
        assert_eq!(wait(0), 0);
    });
}
