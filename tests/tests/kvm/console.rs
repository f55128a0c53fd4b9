//! The virtio console: bytes pass both ways between a port in the guest and a socket of the host.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use berth_tests::api;
use berth_tests::fleet::Fleet;
use berth_tests::invocation::script;
use rustix::process::Signal;
use serde_json::json;

use crate::codes;

#[test]
fn a_console_and_a_named_port_talk_to_sockets_of_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let [console, agent] = ["console", "agent"].map(|name| folder.path().join(name));
    // The console echoes one line, the port another; then each learns that the other end has gone.
    let mut running = script(
        "set -e
         echo $(cat /sys/class/virtio-ports/*/name)
         port=$(ls /dev/vport*p1)
         exec 3<>/dev/hvc0
         stty -F /dev/hvc0 raw -echo
         echo ready
         read line <&3
         echo \"console: $line\" >&3
         exec 4<>$port
         read line <&4
         echo \"agent: $line\" >&4
         exec 4<&-
         echo closed",
    )
    .args([
        "--console",
        &format!("name=org.berth.console,socket={}", console.display()),
    ])
    .args([
        "--console",
        &format!("name=org.berth.agent,socket={}", agent.display()),
    ])
    .start();
    let said = running.wait_for("ready");
    assert!(said.contains("org.berth.console org.berth.agent"), "{said}");
    let talk = |path: &std::path::Path, text: &str| {
        let mut client = UnixStream::connect(path).unwrap();
        writeln!(client, "{text}").unwrap();
        let mut answer = String::new();
        let mut reader = BufReader::new(client);
        reader.read_line(&mut answer).unwrap();
        (answer, reader)
    };
    let (answer, _console) = talk(&console, "hello console");
    assert_eq!(answer, "console: hello console\n");
    let (answer, mut agent) = talk(&agent, "hello agent");
    assert_eq!(answer, "agent: hello agent\n");
    // The guest has closed its end.
    let mut rest = String::new();
    assert_eq!(agent.read_line(&mut rest).unwrap(), 0, "{rest}");
    let outcome = running.finish();
    outcome.expect_code(0);
    assert!(outcome.out().ends_with("closed\n"), "{outcome}");
    assert!(!console.exists(), "the socket is left behind");
}

#[test]
fn the_guest_learns_the_size_of_the_window_that_shows_its_console() {
    let fleet = Fleet::new();
    let socket = fleet.path().join("hvc0");
    let made = fleet
        .verb(["run", "--detach", "--name", "web"])
        .arg(format!("--console=name=main,socket={}", socket.display()))
        .command([
            "sh",
            "-c",
            "exec <>/dev/hvc0 >&0 2>/dev/null; while :; do stty size; usleep 200000; done",
        ])
        .finish();
    made.expect_code(0);
    let mut console = fleet
        .verb(["console", "web", "--port", "main"])
        .on_terminal()
        .start();
    console.terminal().resize(33, 99);
    console.signal(Signal::WINCH);
    console.wait_for("33 99");
    console.terminal().resize(44, 111);
    console.signal(Signal::WINCH);
    console.wait_for("44 111");
    console.send("\x01d");
    console.finish().expect_code(0);
    let api = fleet.inspect("web")["api_socket"].as_str().unwrap().to_owned();
    let window = json!({ "rows": 1, "columns": 2 });
    let answer = api::request(api.as_ref(), "PATCH", "/berth/v1/console/2", &window);
    assert_eq!(answer.status, 400, "{answer:?}");
    let sentence = fleet
        .run(["console", "web", "--port", "none"])
        .sentence(codes::USER);
    assert!(
        sentence.starts_with("web: its console has no port \"none\"; "),
        "{sentence}"
    );
}
