//! A network interface over a tap, in a network namespace of the test's own.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use berth_tests::api;
use berth_tests::invocation::{Running, berth, script};
use berth_tests::netns::Netns;
use berth_tests::noise;
use berth_tests::tools;
use rustix::process::Signal;
use serde_json::json;

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

/// How many of a tap's queues the kernel gives frames by.
fn queues(netns: &Netns, tap: &str) -> u32 {
    let said = netns.ip(&format!("-d -o link show {tap}"));
    let rest = said.split("multi_queue numqueues ").nth(1);
    let number = rest.and_then(|rest| rest.split(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("{said}"))
}

/// Gives each connection but every other one `data`, and takes the same from the others.
fn exchange(netns: &Netns, data: Vec<u8>, connections: usize) -> JoinHandle<()> {
    let listener = netns.enter(|| TcpListener::bind("10.77.0.1:7000")).unwrap();
    std::thread::spawn(move || {
        let streams = (0..connections).map(|_| listener.accept().unwrap().0);
        std::thread::scope(|scope| {
            for mut stream in streams {
                let data = &data;
                scope.spawn(move || {
                    let mut kind = [0];
                    stream.read_exact(&mut kind).unwrap();
                    if kind == *b"g" {
                        stream.write_all(data).unwrap();
                        return;
                    }
                    let mut came = Vec::new();
                    stream.read_to_end(&mut came).unwrap();
                    assert!(came == *data, "{} bytes came", came.len());
                });
            }
        });
    })
}

/// What the guest does over four connections at once, one way and then the other, whenever it is told to.
const FLOWS: &str = "set -e
    ip address add 10.77.0.2/24 dev eth0
    ip link set eth0 up
    ls -d /sys/class/net/eth0/queues/rx-* | wc -l
    ping -c 1 -W 20 10.77.0.1 >/dev/null
    echo ready
    while read line; do
        for n in 1 2 3 4; do
            (echo -n g | nc 10.77.0.1 7000 | tee /tmp/data$n | sha256sum) &
        done
        wait
        for n in 1 2 3 4; do
            (echo -n t; cat /tmp/data$n) | nc 10.77.0.1 7000 &
        done
        wait
        echo done
    done";

#[test]
fn a_guest_with_two_cpus_uses_two_pairs_of_queues_and_so_it_does_when_it_is_restored() {
    let data = noise(1 << 16);
    let sum = tools::feed("sha256sum", [] as [&str; 0], &data);
    let sum = String::from_utf8_lossy(&sum.stdout)
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned();
    let flows = |netns: &Netns, running: &mut Running| {
        let server = exchange(netns, data.clone(), 8);
        running.send("go\n");
        let said = running.wait_for("done\n");
        assert_eq!(said.matches(&sum).count(), 4, "{said}");
        server.join().unwrap();
    };
    for (net, threads) in [("queues=2", "1"), ("queues=2,spread", "2")] {
        let netns = Netns::new();
        netns.ip("tuntap add dev tap0 mode tap multi_queue");
        netns.ip("address add 10.77.0.1/24 dev tap0");
        netns.ip("link set tap0 up");
        let folder = tempfile::tempdir().unwrap();
        let socket = |name: &str| folder.path().join(name);
        let mut running = script(FLOWS)
            .args(["--cpus", "2", "--io-threads", threads])
            .args(["--net", &format!("tap=tap0,{net}"), "--api-sock"])
            .arg(socket("first"))
            .inside(&netns)
            .open_input()
            .start();
        assert!(running.wait_for("ready\n").contains("2\n"), "{net}");
        assert_eq!(queues(&netns, "tap0"), 2, "{net}");
        flows(&netns, &mut running);
        let snapshot = folder.path().join("snapshot");
        let body = json!({"path": snapshot, "kind": "full", "resume": false});
        let answer = api::request(&socket("first"), "POST", "/berth/v1/snapshot", &body);
        assert!(answer.status < 300, "{net}: {answer:?}");
        running.signal(Signal::KILL);
        running.finish();
        let mut running = berth(["run", "--restore"])
            .arg(&snapshot)
            .arg("--api-sock")
            .arg(socket("second"))
            .inside(&netns)
            .open_input()
            .start();
        flows(&netns, &mut running);
        assert_eq!(queues(&netns, "tap0"), 2, "{net}, restored");
        running.end_input();
        running.finish().expect_code(0);
    }
}
