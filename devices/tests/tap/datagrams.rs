//! Long datagrams, which the kernel cuts and joins where it is agreed on.

use std::os::fd::AsRawFd;

use berth_devices::virtio::device::VirtioDevice;

use super::*;

const HOST_UFO: u64 = 1 << 14;
const GUEST_USO: u64 = 0b11 << 54;
const HOST_USO: u64 = 1 << 56;

/// Whether the kernel cuts datagrams for guests, which it does from 6.2 on.
fn cuts_datagrams() -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_str().unwrap().to_owned();
    let mut numbers = release
        .split('.')
        .map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 2)
}

#[test]
fn long_datagrams_are_cut_by_whom_it_was_agreed() {
    const PART: u16 = 1000;
    in_namespace(|| {
        host_tap();
        let (host, port) = host_socket();
        let sent: Vec<u8> = (0..6 * PART).map(|at| (at / 7) as u8).collect();
        let mut data = vec![0; 9000];
        let header = |kind| {
            let [low, high] = PART.to_le_bytes();
            [1, kind, 42, 0, low, high, 34, 0, 6, 0, 0, 0]
        };
        let offered = Net::new(Box::new(Tap::open("t0").unwrap()), MAC[0])
            .traits()
            .features;
        assert_eq!(
            offered & (HOST_USO | GUEST_USO) == HOST_USO | GUEST_USO,
            cuts_datagrams()
        );
        assert_eq!(offered & (HOST_USO | GUEST_USO) == 0, !cuts_datagrams());

        // One datagram in fragments, which it is again when it arrives.
        if offered & HOST_UFO != 0 {
            let mut guest = Guest::new("t0", 0, CSUM | HOST_UFO);
            guest.send(header(3), &udp(port, &sent, false));
            let len = host.recv(&mut data).unwrap();
            assert!(data[..len] == sent, "{len} bytes came");
        }
        if !cuts_datagrams() {
            return;
        }
        // Many datagrams.
        let mut guest = Guest::new("t0", 0, CSUM | HOST_USO | MRG_RXBUF);
        guest.send(header(5), &udp(port, &sent, false));
        for part in sent.chunks(PART.into()) {
            let len = host.recv(&mut data).unwrap();
            assert!(data[..len] == *part, "{len} bytes came");
        }
        drop(guest);
        for agreed in [0, GUEST_CSUM | GUEST_USO] {
            let mut guest = Guest::new("t0", 0, MRG_RXBUF | agreed);
            send_in_parts(&host, &sent, PART);
            if agreed == 0 {
                for part in sent.chunks(PART.into()) {
                    let (header, frame) = guest.take();
                    assert_eq!(header[..2], [0, 0]);
                    assert!(frame[42..] == *part && checksum_is_right(&frame));
                }
            } else {
                let (found, frame) = guest.take();
                assert_eq!((found[1], &found[4..6]), (5, &PART.to_le_bytes()[..]));
                assert!(frame[42..] == sent);
            }
        }
    });
}

/// Has the host's kernel make datagrams of `part` bytes of it.
fn send_in_parts(socket: &UdpSocket, data: &[u8], part: u16) {
    const UDP_SEGMENT: libc::c_int = 103;
    let value = libc::c_int::from(part);
    // SAFETY: the option takes an int, which `value` is while the call lasts.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            UDP_SEGMENT,
            std::ptr::from_ref(&value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "UDP_SEGMENT: {}", std::io::Error::last_os_error());
    socket.send_to(data, "10.0.0.2:4000").unwrap();
}
