//! A network interface over a tap, in a network namespace of the test's own.

use std::io::{Read, Write};
use std::net::TcpListener;

use berth_tests::invocation::script;
use berth_tests::netns::Netns;
use berth_tests::noise;
use berth_tests::tools;

const MIB: usize = 1 << 20;

#[test]
fn pings_and_a_tcp_transfer_pass_both_ways_unchanged() {
    let netns = Netns::with_tap("tap0", "10.77.0.1/24");
    let listener = netns.enter(|| TcpListener::bind("10.77.0.1:7000")).unwrap();
    let sent = noise(4 * MIB);
    let expected = sent.clone();
    // The host sends all of it; the guest keeps it, sends it back, and says its checksum.
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        back
    });
    let mut running = script(
        "set -e
         ip address add 10.77.0.2/24 dev eth0
         ip link set eth0 up
         cat /sys/class/net/eth0/address
         ping -c 2 -W 20 10.77.0.1 >/dev/null
         echo pinged
         read line
         nc 10.77.0.1 7000 </dev/null >/tmp/data
         nc 10.77.0.1 7000 </tmp/data >/dev/null
         sha256sum </tmp/data",
    )
    .args(["--net", "tap=tap0,mac=02:00:00:00:00:77"])
    .inside(&netns)
    .open_input()
    .start();
    assert!(running.wait_for("pinged").contains("02:00:00:00:00:77"));
    let ping = netns.prefix();
    let words = ping[1..]
        .iter()
        .map(String::as_str)
        .chain(["ping", "-c", "2", "-W", "20", "10.77.0.2"]);
    tools::run(&ping[0], words);
    running.send("go on\n");
    let outcome = running.finish();
    outcome.expect_code(0);
    let back = server.join().unwrap();
    assert!(
        back == expected,
        "{} of {} bytes came back, or others",
        back.len(),
        expected.len()
    );
    let sum = tools::feed("sha256sum", [] as [&str; 0], &expected);
    let sum = String::from_utf8_lossy(&sum.stdout)
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned();
    assert!(
        outcome.out().contains(&sum),
        "the guest's checksum differs from {sum}: {outcome}"
    );
}
