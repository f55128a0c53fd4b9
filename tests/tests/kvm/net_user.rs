//! User-mode networks by passt, in a network namespace of the test's own that stands for the host.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;

use berth_tests::invocation::{Invocation, run, script};
use berth_tests::netns::Netns;
use berth_tests::program;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// The host's address in its network.
const HOST: &str = "10.77.0.1";

/// The same by IPv6.
const HOST6: &str = "fd77::1";

/// A host with a network, default routes, and users who may ping.
fn network() -> Netns {
    let netns = Netns::with_tap("tap0", "10.77.0.1/24");
    netns.ip("route add default via 10.77.0.254 dev tap0");
    // passt serves IPv6 only where the host has an address of this link, which no carrier has given this one.
    netns.ip("address add fe80::1/64 dev tap0 nodad");
    netns.ip("address add fd77::1/64 dev tap0 nodad");
    netns.ip("-6 route add default via fd77::fe dev tap0");
    let range = "/proc/sys/net/ipv4/ping_group_range";
    netns.enter(|| fs::write(range, "0 2147483647")).unwrap();
    netns
}

/// Answers one connection by each protocol with what it got in capitals, and requests for a file by UDP.
fn serve(netns: &Netns) {
    for host in [HOST, HOST6] {
        let tcp = netns.enter(|| TcpListener::bind((host, 7000))).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = tcp.accept().unwrap();
            let mut text = String::new();
            BufReader::new(&stream).read_line(&mut text).unwrap();
            stream.write_all(text.to_uppercase().as_bytes()).unwrap();
        });
    }
    let udp = netns.enter(|| UdpSocket::bind((HOST, 7001))).unwrap();
    std::thread::spawn(move || {
        // A file's only block by TFTP (RFC 1350), for a request; there are acknowledgements too.
        let mut bytes = [0; 1000];
        while let Ok((_, from)) = udp.recv_from(&mut bytes) {
            if bytes[..2] == [0, 1] {
                udp.send_to(b"\0\x03\0\x01BY UDP\n", from).unwrap();
            }
        }
    });
}

/// What a guest does to be sure of its network, both ways. It leaves the end of a connection to the server: the passt of March
/// 2023 loses the server's end if the guest's came first.
const BOTH_WAYS: &str = "set -e
     ip -4 address show dev eth0 | grep -q 'inet 10.0.2.15/24'
     exec 3>&1
     nc 10.77.0.1 7000 -e sh -c 'echo by tcp; cat >&3'
     tftp -g -l - -r x 10.77.0.1 7001
     ping -c 1 10.77.0.1
     until ip -6 route | grep -q ^default; do :; done
     nc fd77::1 7000 -e sh -c 'echo by tcp and ipv6; cat >&3'
     echo listening
     nc -l -p 80 -e cat";

/// What the published port answers.
fn exchange(text: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect("127.0.0.1:8080")?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut back = String::new();
    stream.read_to_string(&mut back)?;
    Ok(back)
}

/// Runs [`BOTH_WAYS`] and has the host use the published port.
fn both_ways(netns: &Netns, invocation: Invocation) {
    serve(netns);
    let mut running = invocation.args(["--net", "user,publish=8080:80"]).start();
    running.wait_for("listening");
    // Until the guest listens, whoever connects is turned away.
    let sent = "by the published port";
    while !netns.enter(|| exchange(sent)).is_ok_and(|back| back == sent) {}
    let outcome = running.finish();
    outcome.expect_code(0);
    for part in ["BY TCP\n", "BY UDP", "1 packets received", "BY TCP AND IPV6"] {
        assert!(outcome.out().contains(part), "{part}: {outcome}");
    }
}

#[test]
fn a_guest_reaches_others_by_every_protocol_and_is_reached_at_a_published_port() {
    let netns = network();
    both_ways(&netns, script(BOTH_WAYS).inside(&netns));
}

#[test]
fn who_is_not_root_has_a_network_too() {
    let folder = tempfile::tempdir().unwrap();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder.path(), open).unwrap();
    let program = folder.path().join("berth");
    fs::copy(program::berth(), &program).unwrap();
    let netns = network();
    // No user but root's right to files, for /dev/kvm; none to any interface.
    let user = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all,+dac_override",
        "--ambient-caps=-all,+dac_override",
        "--bounding-set=-all,+dac_override",
    ];
    both_ways(
        &netns,
        script(BOTH_WAYS).program(&program).inside(&netns).behind(user),
    );
}

#[test]
fn the_hosts_loopback_is_out_of_reach_unless_it_is_asked_for() {
    let netns = network();
    let listener = netns.enter(|| TcpListener::bind("127.0.0.1:7002")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"private\n").unwrap();
    });
    let guest = |net: &str, ask: &str| script(ask).args(["--net", net]).inside(&netns).start().finish();
    guest("user", "nc -w 5 10.0.2.2 7002 -e true").expect_code(1);
    assert!(!server.is_finished());
    guest("user,loopback", "nc 10.0.2.2 7002 -e grep -q private").expect_code(0);
    server.join().unwrap();
}

/// The one child of the process `id`.
fn child(id: u32) -> Pid {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).unwrap();
    let lists = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap());
    let lists: Vec<_> = lists.collect();
    let ids = lists.concat();
    Pid::from_raw(ids.trim().parse().unwrap()).unwrap()
}

#[test]
fn passt_ends_with_the_vm_however_that_ends() {
    let netns = network();
    let mut running = script("echo up; read line")
        .args(["--net", "user"])
        .inside(&netns)
        .open_input()
        .start();
    running.wait_for("up");
    let passt = pidfd_open(child(running.id()), PidfdFlags::empty()).unwrap();
    running.signal(Signal::KILL);
    running.wait_for_end();
    let patience = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    let ended = poll(&mut [PollFd::new(&passt, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ended, 1, "passt still runs");
}

#[test]
fn the_cable_is_pulled_when_passt_ends() {
    let netns = network();
    let mut running =
        script("echo up; until ip link show eth0 | grep -q NO-CARRIER; do :; done; echo pulled")
            .args(["--net", "user"])
            .inside(&netns)
            .start();
    running.wait_for("up");
    kill_process(child(running.id()), Signal::KILL).unwrap();
    let outcome = running.finish();
    outcome.expect_code(0);
    assert!(outcome.out().contains("pulled"), "{outcome}");
}

#[test]
fn what_is_wrong_with_a_user_mode_network_is_one_sentence() {
    let netns = network();
    let taken = netns.enter(|| TcpListener::bind("127.0.0.1:8080")).unwrap();
    for (net, sentence) in [
        (
            "user,publish=8080:80",
            "net 1: port 8080 of the host cannot be published as 8080:80: another program has it; publish another one",
        ),
        ("user,tap=tap0", "net 1: it cannot be both on a tap and user-mode"),
        ("user,publish=8080", "\"8080\" publishes no port; "),
        (
            "tap=tap0,publish=80:80",
            "net 1: publish is for user-mode networks",
        ),
    ] {
        let outcome = run(["--net", net]).inside(&netns).start().finish();
        outcome.expect_code(2);
        assert!(outcome.err().contains(sentence), "{outcome}");
    }
    drop(taken);
    let alone = Netns::new();
    let outcome = run(["--net", "user"]).inside(&alone).start().finish();
    outcome.expect_code(2);
    assert!(outcome.err().contains("net 1: "), "{outcome}");
}
