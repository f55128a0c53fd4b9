//! The other side of the guest's network card: answers its frames and sends it frames, see `guests/io/net.rs`.

use std::io::{self, IoSlice};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_tests::netns::Netns;
use rustix::net::{MMsgHdr, RecvFlags, SendAncillaryBuffer, SendFlags, sendmmsg};

pub(crate) const TAP: &str = "tap0";
pub(crate) const ETHERTYPE: u16 = 0x88b5;
pub(crate) const START: u8 = 1;
pub(crate) const END: u8 = 2;
pub(crate) const DATA: u8 = 3;
pub(crate) const ANSWER: u8 = 4;
/// Where a frame says what it is, and its number.
pub(crate) const KIND: usize = 16;
pub(crate) const NUMBER: usize = 20;

/// Frames that are sent by one system call, and between two looks for an end.
const BATCH: usize = 32;

/// How long the tap's queue, once it is full, is left to its reader: it holds a thousand frames, and in this time no reader takes them all.
const REST: Duration = Duration::from_micros(100);

/// A raw socket on the tap, for our frames alone, that waits for a frame no longer than some milliseconds. It sends past the queueing
/// discipline, and so is told when the tap's queue is full.
pub(crate) fn socket(netns: &Netns) -> OwnedFd {
    let open = || {
        let protocol = i32::from(ETHERTYPE.to_be());
        // SAFETY: no memory is involved; the result is a descriptor that nobody else has, or an error.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        check(fd as isize, "socket");
        // SAFETY: as said.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let index = rustix::net::netdevice::name_to_index(&socket, TAP).expect("the namespace has the tap");
        // SAFETY: zeros are a value of this plain structure.
        let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ETHERTYPE.to_be();
        address.sll_ifindex = index as i32;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the pointer is to a live address of the length that is said.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
        check(bound as isize, "bind");
        let bypass = 1_i32;
        // SAFETY: the option's value is a live integer of the length that is said.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const bypass).cast(),
                size_of::<i32>() as u32,
            )
        };
        check(set as isize, "setsockopt");
        let timeout = Some(Duration::from_millis(20));
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, timeout)
            .expect("sockets have it");
        socket
    };
    netns.enter(open)
}

fn check(result: isize, what: &str) {
    assert!(
        result >= 0,
        "the partner's {what}: {}",
        io::Error::last_os_error()
    );
}

/// Answers and sends until `stop`. The frames that it sends are `bs` bytes long.
pub(crate) fn serve(socket: &OwnedFd, bs: usize, stop: &AtomicBool) {
    let mut frame = vec![0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let Some(len) = receive(socket, &mut frame, RecvFlags::empty()) else {
            continue;
        };
        match frame[KIND] {
            DATA => {
                frame[KIND] = ANSWER;
                // A frame that is lost is sent again by whoever waits for the answer.
                let _ = rustix::net::send(socket, &frame[..len], SendFlags::empty());
            }
            START => flood(socket, bs, stop),
            _ => (),
        }
    }
}

fn receive(socket: &OwnedFd, frame: &mut [u8], flags: RecvFlags) -> Option<usize> {
    let (len, _) = rustix::net::recv(socket, frame, flags).ok()?;
    (len > NUMBER).then_some(len)
}

/// Sends frames as fast as they go until an end is asked for. What does not fit the tap's queue is sent again: to have it dropped would only
/// take a processor from the reader, who may have no other.
fn flood(socket: &OwnedFd, bs: usize, stop: &AtomicBool) {
    let mut heard = vec![0; 2048];
    let mut first = vec![0; bs];
    first[..6].fill(0xff);
    first[6..12].copy_from_slice(&[2, 0x62, 0x65, 0x72, 0x74, 1]);
    first[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    first[KIND] = DATA;
    let mut frames = vec![first; BATCH];
    let ramp: Vec<u8> = (0..bs + 256).map(|place| place as u8).collect();
    let mut number = 0_u32;
    loop {
        for frame in &mut frames {
            frame[NUMBER..NUMBER + 4].copy_from_slice(&number.to_le_bytes());
            let from = number as usize % 256 + NUMBER + 4;
            frame[NUMBER + 4..].copy_from_slice(&ramp[from..from + bs - NUMBER - 4]);
            number = number.wrapping_add(1);
        }
        let mut left = &frames[..];
        while !left.is_empty() {
            let slices: Vec<_> = left.iter().map(|frame| [IoSlice::new(frame)]).collect();
            let mut none: Vec<_> = left.iter().map(|_| SendAncillaryBuffer::default()).collect();
            let headers = slices.iter().zip(&mut none);
            let mut headers: Vec<_> = headers.map(|(slice, none)| MMsgHdr::new(slice, none)).collect();
            let sent = sendmmsg(socket, &mut headers, SendFlags::empty()).unwrap_or(0);
            left = &left[sent..];
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if !left.is_empty() {
                std::thread::sleep(REST);
            }
        }
        let asked = receive(socket, &mut heard, RecvFlags::DONTWAIT).is_some();
        if asked && heard[KIND] == END {
            return;
        }
    }
}
