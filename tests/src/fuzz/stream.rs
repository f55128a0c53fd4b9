//! A network card at the end of a stream that says anything.

use std::io::Write;
use std::os::unix::net::UnixStream;

use berth_devices::virtio::conformance::ring::Part;
use berth_devices::virtio::conformance::{BUFFERS, Machine, NEEDS_RESET, VERSION_1};
use berth_devices::virtio::net::{Net, Stream};

/// The bytes come in pieces as long as the first of them says, to a driver that has a few buffers and no more.
pub(super) fn run(data: &[u8]) {
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    let (ours, mut end) = UnixStream::pair().expect("the host gives a pair of sockets");
    end.set_nonblocking(true).expect("a socket can be nonblocking");
    let stream = Stream::new(ours).expect("a socket can be nonblocking");
    let machine = Machine::new(Box::new(Net::new(Box::new(stream), [2, 0, 0, 0, 0, 1])));
    let mut rings = machine.bring_up(VERSION_1 | 1 << 15);
    for number in 0..8 {
        rings[0].add(&[Part::Write(BUFFERS + 0x1000 * number, 0x400)]);
    }
    machine.notify(0);
    for piece in rest.chunks(1 + usize::from(*first)) {
        // What does not fit any more is lost, as the fuzzer may have it.
        let _ = end.write(piece);
        machine.device.poke();
    }
    drop(end);
    machine.device.poke();
    assert_eq!(machine.status() & NEEDS_RESET, 0, "nothing is the driver's fault");
}

/// Two frames in a row, and one that is cut.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let frame = |len: u32| [&len.to_be_bytes()[..], &vec![0x5a; len as usize]].concat();
    vec![
        [vec![0xff], frame(60), frame(1500)].concat(),
        [vec![6], frame(14), frame(60)[..30].to_vec()].concat(),
    ]
}
