//! Sockets between Linux in the guest and programs of the host, across pauses and a restore.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use berth_tests::guests;
use berth_tests::invocation::{Invocation, Running, berth, run, script};
use berth_tests::noise;
use tempfile::TempDir;

use crate::codes;

const MIB: usize = 1 << 20;
/// Ports of the host's program and of the guest's server.
const HOST: u32 = 7000;
const GUEST: u32 = 5000;
/// The guest's program, from the disk that it comes on.
const FETCH: &str = "set -e
    cat /dev/vdb >/tmp/sockets
    chmod +x /tmp/sockets
    ";

/// A folder with the guest's program as a disk in it, and the sockets.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut program = fs::read(guests::sockets()).unwrap();
        program.resize(program.len().next_multiple_of(512), 0);
        fs::write(folder.path().join("disk"), program).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `berth run` of the shipped guest with this script behind the program's arrival.
    fn guest(&self, text: &str) -> Invocation {
        script(&format!("{FETCH}{text}"))
            .arg("--disk")
            .arg(format!("{},ro", self.path("disk").display()))
            .arg("--vsock")
            .arg(format!("cid=42,path={}", self.path("v").display()))
    }
}

/// A host program that gives back what comes over `count` connections, all at once.
fn echo(path: &Path, count: usize) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let each = (0..count).map(|_| {
            let (stream, _) = listener.accept().unwrap();
            thread::spawn(move || {
                std::io::copy(&mut &stream, &mut &stream).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            })
        });
        let each: Vec<_> = each.collect();
        for one in each {
            one.join().unwrap();
        }
    })
}

/// Connects to the guest's port; the server is there.
fn connect(path: &Path, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    writeln!(stream, "CONNECT {port}").unwrap();
    let line = line(&mut stream);
    let number = line
        .strip_prefix("OK ")
        .and_then(|number| number.parse::<u32>().ok());
    assert!(number.is_some_and(|number| number >= 1 << 30), "{line:?}");
    stream
}

fn line(stream: &mut UnixStream) -> String {
    let mut line = String::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        if byte == *b"\n" {
            return line;
        }
        line.push(byte[0].into());
    }
}

/// Sends `data` and compares what comes back, up to both ends.
fn exchange(stream: &UnixStream, data: &[u8], mut meanwhile: impl FnMut()) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = stream;
            stream.write_all(data).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let reader = scope.spawn(|| {
            let mut back = Vec::new();
            let mut stream = stream;
            stream.read_to_end(&mut back).unwrap();
            back
        });
        while !reader.is_finished() {
            meanwhile();
        }
        let back = reader.join().unwrap();
        assert!(
            back == data,
            "{} of {} bytes came back, or others",
            back.len(),
            data.len()
        );
    });
}

/// Asks Berth's API.
fn ask(path: &Path, request: &str, body: &str) {
    let mut api = UnixStream::connect(path).unwrap();
    api.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let length = body.len();
    write!(
        api,
        "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    api.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204"), "{request}: {answer}");
}

#[test]
fn data_passes_both_ways_and_each_side_ends_its_half() {
    let place = Place::new();
    let data = noise(3 * MIB);
    let host = echo(&place.path(&format!("v_{HOST}")), 1);
    let mut running = place
        .guest(&format!(
            "/tmp/sockets connect {} 1 1
             /tmp/sockets connect {HOST} 1 {}
             /tmp/sockets serve {GUEST}",
            HOST + 1,
            2 * MIB
        ))
        .start();
    // Nobody listens on the second port: ECONNRESET.
    running.wait_for("refused 104\n");
    running.wait_for("good 1\n");
    host.join().unwrap();
    running.wait_for("serving\n");
    // Nor on this one of the guest's.
    let mut refused = UnixStream::connect(place.path("v")).unwrap();
    refused.write_all(b"CONNECT 1\n").unwrap();
    assert_eq!(refused.read(&mut [0]).unwrap(), 0);
    assert_eq!(line(&mut connect(&place.path("v"), GUEST + 2)), "42");
    exchange(&connect(&place.path("v"), GUEST), &data, thread::yield_now);
    connect(&place.path("v"), GUEST + 1);
    running.finish().expect_code(0);
    assert!(!place.path("v").exists(), "the socket goes with the VM");
}

#[test]
fn hundreds_of_connections_live_side_by_side_from_both_sides() {
    const EACH: usize = 200;
    let place = Place::new();
    let host = echo(&place.path(&format!("v_{HOST}")), EACH);
    let mut running = place
        .guest(&format!(
            "/tmp/sockets connect {HOST} {EACH} 100\n/tmp/sockets serve {GUEST}"
        ))
        .start();
    running.wait_for(&format!("good {EACH}\n"));
    host.join().unwrap();
    running.wait_for("serving\n");
    let mut streams: Vec<_> = (0..EACH).map(|_| connect(&place.path("v"), GUEST)).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        writeln!(stream, "this is {number}").unwrap();
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        assert_eq!(line(stream), format!("this is {number}"));
        stream.shutdown(Shutdown::Write).unwrap();
    }
    for stream in &mut streams {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    connect(&place.path("v"), GUEST + 1);
    running.finish().expect_code(0);
}

/// Starts a guest that serves and can be asked by the API.
fn serving(place: &Place) -> Running {
    let mut running = place
        .guest(&format!("/tmp/sockets serve {GUEST}"))
        .arg("--api-sock")
        .arg(place.path("api"))
        .start();
    running.wait_for("serving\n");
    running
}

#[test]
fn pauses_with_data_on_the_way_lose_no_byte() {
    let place = Place::new();
    let running = serving(&place);
    let data = noise(3 * MIB);
    let mut pauses = 0;
    exchange(&connect(&place.path("v"), GUEST), &data, || {
        ask(&place.path("api"), "PATCH /vm", r#"{"state": "Paused"}"#);
        ask(&place.path("api"), "PATCH /vm", r#"{"state": "Resumed"}"#);
        pauses += 1;
    });
    assert!(pauses > 2, "{pauses} pauses");
    // Whoever comes during a pause is served after it.
    ask(&place.path("api"), "PATCH /vm", r#"{"state": "Paused"}"#);
    let mut early = UnixStream::connect(place.path("v")).unwrap();
    writeln!(early, "CONNECT {GUEST}\nhello").unwrap();
    ask(&place.path("api"), "PATCH /vm", r#"{"state": "Resumed"}"#);
    assert!(line(&mut early).starts_with("OK "));
    assert_eq!(line(&mut early), "hello");
    connect(&place.path("v"), GUEST + 1);
    running.finish().expect_code(0);
}

#[test]
fn a_restored_guest_sees_its_connections_end_and_serves_new_ones_under_another_cid() {
    let place = Place::new();
    let running = serving(&place);
    let mut open = connect(&place.path("v"), GUEST);
    open.write_all(b"open\n").unwrap();
    assert_eq!(line(&mut open), "open");
    let snapshot = place.path("snapshot");
    let body = format!(
        r#"{{"path": {:?}, "kind": "full", "resume": true}}"#,
        snapshot.to_str().unwrap()
    );
    ask(&place.path("api"), "POST /berth/v1/snapshot", &body);
    // The parent's connection does not notice.
    open.write_all(b"still open\n").unwrap();
    assert_eq!(line(&mut open), "still open");
    let mut clone = run([Path::new("--restore"), &snapshot])
        .arg("--vsock")
        .arg(format!("cid=43,path={}", place.path("clone").display()))
        .start();
    // Linux has ECONNRESET for a poll and ENOTCONN for the read that follows.
    clone.wait_for("reset 107\n");
    let mut stream = connect(&place.path("clone"), GUEST);
    stream.write_all(b"new\n").unwrap();
    assert_eq!(line(&mut stream), "new");
    assert_eq!(line(&mut connect(&place.path("clone"), GUEST + 2)), "43");
    open.write_all(b"and still\n").unwrap();
    assert_eq!(line(&mut open), "and still");
    connect(&place.path("clone"), GUEST + 1);
    clone.finish().expect_code(0);
    let end = stream.read(&mut [0]);
    assert!(
        matches!(&end, Ok(0))
            || end
                .as_ref()
                .is_err_and(|cause| cause.kind() == ErrorKind::ConnectionReset),
        "{end:?}"
    );
    connect(&place.path("v"), GUEST + 1);
    running.finish().expect_code(0);
}

#[test]
fn a_place_that_is_taken_is_refused_with_a_sentence() {
    let place = Place::new();
    fs::write(place.path("v"), "kept").unwrap();
    let outcome = place.guest("true").finish();
    assert!(
        outcome
            .sentence(2)
            .contains("v: something that is not a socket stands there"),
        "{outcome}"
    );
    assert_eq!(fs::read(place.path("v")).unwrap(), b"kept");
}

#[test]
fn a_connection_says_that_a_guest_is_ready_and_a_restored_one_is_not_listened_for() {
    let place = Place::new();
    let saved = place.path("saved");
    // How its connection ends is not the guest's concern.
    let text = format!("/tmp/sockets connect {HOST} 1 0 || true; echo on");
    let sign = format!("vsock={HOST}");
    let outcome = place
        .guest(&text)
        .args(["--ready", &sign, "--snapshot-when-ready"])
        .arg(&saved)
        .finish();
    assert_eq!(outcome.expect_code(0).out(), "");
    let service = place.path(&format!("v_{HOST}"));
    assert!(!service.exists(), "the socket goes with the sign");
    // Somebody else's now.
    let _listener = UnixListener::bind(&service).unwrap();
    let outcome = berth(["run", "--restore"]).arg(&saved).finish();
    assert!(outcome.expect_code(0).out().ends_with("on\n"), "{outcome}");
    let refused = place.guest(&text).args(["--ready", &sign, "--cold"]).finish();
    let sentence = refused.sentence(codes::USER);
    assert!(
        sentence.contains("ready: ") && sentence.contains("another program listens there"),
        "{sentence}"
    );
}
