//! The harness itself, with the shell in the place of Berth: what it says of a program is what the program did.
#![forbid(unsafe_code)]

use std::time::Duration;

use berth_tests::invocation::{Invocation, berth};
use berth_tests::netns::Netns;
use rustix::process::Signal;

fn shell(script: &str) -> Invocation {
    berth(["-c", script])
        .program("/bin/sh")
        .within(Duration::from_secs(20))
}

#[test]
fn output_errors_status_and_input_are_kept_apart_and_whole() {
    let input = vec![b'x'; 1 << 20];
    let outcome = shell("cat; echo oops >&2; exit 3").input(input.clone()).finish();
    outcome.expect_code(3);
    assert!(outcome.stdout == input);
    assert_eq!(outcome.err(), "oops\n");
}

#[test]
#[should_panic(expected = "the deadline passed")]
fn a_program_that_does_not_end_fails_at_its_deadline() {
    shell("echo here; exec cat")
        .open_input()
        .within(Duration::from_millis(300))
        .finish();
}

#[test]
#[should_panic(expected = "it ended")]
fn a_program_that_ends_before_it_says_what_is_waited_for_fails_at_once() {
    shell("echo this").start().wait_for("that");
}

#[test]
fn talk_goes_back_and_forth_and_signals_arrive() {
    let mut running = shell("read a; echo got $a; read b; echo then $b; exec cat")
        .open_input()
        .start();
    running.send("one\n");
    assert_eq!(running.wait_for("got one\n"), "got one\n");
    running.send("two\n");
    assert_eq!(running.wait_for("then two\n"), "then two\n");
    running.signal(Signal::TERM);
    let outcome = running.finish();
    assert_eq!(outcome.code(), None, "{outcome}");
}

#[test]
fn a_terminal_is_the_programs_own_and_its_settings_are_seen() {
    let mut running = shell("stty raw -echo; echo raw; read a; stty sane; test -t 0 && tty")
        .on_terminal()
        .start();
    running.wait_for("raw");
    assert!(running.terminal().is_raw());
    running.send("\n");
    running.wait_for("/dev/pts/");
    running.wait_for_end();
    assert!(!running.terminal().is_raw());
    running.finish().expect_code(0);
}

#[test]
fn a_namespace_has_its_own_interfaces_and_programs_and_sockets_in_it_see_them() {
    let netns = Netns::with_tap("tap7", "10.70.0.1/24");
    let outcome = shell("ip -brief address").inside(&netns).finish();
    assert!(outcome.out().contains("10.70.0.1/24"), "{outcome}");
    netns
        .enter(|| std::net::TcpListener::bind("10.70.0.1:0"))
        .unwrap();
    assert!(std::net::TcpListener::bind("10.70.0.1:0").is_err());
}
