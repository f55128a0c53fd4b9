//! Where the guest's serial port, the log and the terminal lead, and what is left of them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_tests::invocation::{Running, berth, run, tiny};
use rustix::process::Signal;

use crate::codes;

#[test]
fn a_serial_port_in_a_file_is_appended() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("console");
    fs::write(&file, "before\n").unwrap();
    let outcome = tiny("entry")
        .args(["--serial", &format!("file={}", file.display())])
        .finish();
    outcome.expect_code(0);
    assert_eq!(outcome.out(), "");
    assert_eq!(fs::read_to_string(&file).unwrap(), "before\nentry P\n");
}

#[test]
fn a_serial_port_nowhere_says_nothing() {
    let outcome = tiny("entry").args(["--serial", "null"]).finish();
    outcome.expect_code(0);
    assert_eq!(outcome.out() + &outcome.err(), "");
}

#[test]
fn a_serial_port_on_a_socket_talks_to_a_client_and_leaves_no_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let running = tiny("echo")
        .args(["--serial", &format!("socket={}", path.display())])
        .start();
    let mut client = connect(&path);
    client.write_all(b"over the socket\n\x04").unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert!(said.ends_with("over the socket\n"), "{said:?}");
    running.finish().expect_code(0);
    assert!(!path.exists(), "the socket is left behind");
}

/// Connects as soon as somebody listens. Nothing announces that; to connect is the way to ask.
fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(path) {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_serial_port_on_a_pseudo_terminal_says_its_name_and_talks_to_who_opens_it() {
    let mut running = tiny("echo").args(["--serial", "pty"]).start();
    running.wait_for_error("the serial line is ");
    let name = running.wait_for_error("\n");
    let mut line = File::options().read(true).write(true).open(name.trim()).unwrap();
    line.write_all(b"over the line").unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"over the line") {
        let mut byte = [0];
        line.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    // Its end takes the terminal away, with all that was not read.
    line.write_all(b"\x04").unwrap();
    running.finish().expect_code(0);
}

#[test]
fn a_configuration_file_describes_the_same_vm_as_flags_and_its_dry_run_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = berth_tests::guests::tiny().display().to_string();
    let file = folder.path().join("vm.toml");
    fs::write(
        &file,
        format!("kernel = {kernel:?}\nmemory = \"64M\"\ncmdline = \"do=exit:5\"\n"),
    )
    .unwrap();
    let config = file.to_str().unwrap();
    run(["--config", config]).finish().expect_code(5);
    run(["--config", config, "--cmdline", "do=exit:6"])
        .finish()
        .expect_code(6);
    let resolved = run(["--config", config, "--dry-run"]).finish();
    resolved.expect_code(0);
    fs::write(&file, resolved.stdout).unwrap();
    run(["--config", config]).finish().expect_code(5);
}

#[test]
fn the_log_goes_to_its_file_and_boot_timing_to_standard_error() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let outcome = tiny("exit:0")
        .args(["--log-level", "debug", "--boot-timing", "--log-file"])
        .arg(&log)
        .finish();
    outcome.expect_code(0);
    assert!(!fs::read_to_string(&log).unwrap().is_empty());
    let timing = outcome.err();
    assert!(
        timing.contains("exec to main") && timing.contains("vCPU"),
        "{outcome}"
    );
}

#[test]
fn doctor_finds_this_host_fit_to_run_guests() {
    let text = berth(["doctor"]).finish();
    text.expect_code(0);
    assert!(text.out().contains("/dev/kvm"), "{text}");
    let json = berth(["doctor", "--json"]).finish();
    json.expect_code(0);
    let parsed: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(parsed.is_object(), "{json}");
}

/// Lets `end` end a guest that has the terminal, and sees that the terminal is as it was.
#[track_caller]
fn restores_the_terminal(task: &str, code: i32, end: impl FnOnce(&mut Running)) {
    let mut running = tiny(task).on_terminal().start();
    end(&mut running);
    running.wait_for_end();
    running.terminal().expect_as_before();
    running.finish().expect_code(code);
}

#[test]
fn the_terminal_is_restored_on_every_way_out() {
    restores_the_terminal("exit:3", 3, |_| ());
    restores_the_terminal("panic", codes::PANIC, |_| ());
    restores_the_terminal("triple", codes::TRIPLE_FAULT, |_| ());
    for (signal, number) in [(Signal::TERM, 15), (Signal::HUP, 1), (Signal::INT, 2)] {
        restores_the_terminal("halt", codes::SIGNAL + number, |running| {
            running.wait_for("halted");
            assert!(running.terminal().is_raw());
            running.signal(signal);
        });
    }
    restores_the_terminal("spin", 0, |running| {
        running.wait_for("spinning");
        running.send("\x01x");
    });
}
