//! Each way in which a guest can end, and the exit code and sentence for it.

use std::time::Duration;

use berth_tests::guests;
use berth_tests::invocation::{run, tiny};
use rustix::process::Signal;

use crate::codes;

#[test]
fn a_byte_on_the_exit_port_is_the_exit_code_and_needs_no_words() {
    for status in [0, 1, 42, 255] {
        let outcome = tiny(&format!("exit:{status}")).finish();
        outcome.expect_code(status);
        assert_eq!(outcome.err(), "", "{outcome}");
    }
}

#[test]
fn a_guest_that_has_ended_itself_does_not_run_on() {
    for _ in 0..20 {
        // On one processor the thread that ends the VM has to wait for the one that runs the guest.
        let outcome = tiny("linger:7").behind(["taskset", "--cpu-list", "0"]).finish();
        outcome.expect_code(7);
        assert_eq!(outcome.out(), "", "{outcome}");
    }
}

#[test]
fn shutdown_by_acpi_ends_with_0_and_needs_no_words() {
    let outcome = tiny("shutdown").finish();
    outcome.expect_code(codes::SHUTDOWN);
    assert_eq!(outcome.err(), "", "{outcome}");
}

#[test]
fn reset_by_keyboard_controller_or_acpi_has_its_code_and_sentence() {
    for task in ["reset", "acpi-reset"] {
        let sentence = tiny(task).finish().sentence(codes::RESET);
        assert!(sentence.contains("reset"), "{task}: {sentence}");
    }
}

#[test]
fn panic_has_its_code_and_sentence() {
    let sentence = tiny("panic").finish().sentence(codes::PANIC);
    assert!(sentence.contains("panic"), "{sentence}");
}

#[test]
fn linux_that_panics_has_the_code_and_its_last_words() {
    let outcome = run(["--kernel"])
        .arg(guests::linux())
        .args(["--cmdline", "quiet root=/dev/nowhere"])
        .finish();
    let sentence = outcome.sentence(codes::PANIC);
    assert!(sentence.contains("Unable to mount root fs"), "{outcome}");
}

#[test]
fn triple_fault_has_its_code_and_sentence() {
    let sentence = tiny("triple").finish().sentence(codes::TRIPLE_FAULT);
    assert!(sentence.contains("triple fault"), "{sentence}");
}

#[test]
fn a_guest_that_spins_or_halts_past_the_timeout_has_its_code_and_sentence() {
    for task in ["spin", "halt"] {
        let outcome = tiny(task)
            .args(["--timeout", "1"])
            .within(Duration::from_secs(20))
            .finish();
        let sentence = outcome.sentence(codes::TIMEOUT);
        assert!(
            sentence.contains("timeout") || sentence.contains("1 s"),
            "{sentence}"
        );
        assert!(outcome.elapsed >= Duration::from_secs(1), "{outcome}");
    }
}

#[test]
fn a_signal_ends_a_guest_in_any_state_with_the_shells_code() {
    for (task, said) in [("spin", "spinning"), ("halt", "halted")] {
        for (signal, number) in [(Signal::TERM, 15), (Signal::INT, 2)] {
            let mut running = tiny(task).within(Duration::from_secs(20)).start();
            running.wait_for(said);
            running.signal(signal);
            running.finish().expect_code(codes::SIGNAL + number);
        }
    }
}

#[test]
fn the_serial_port_carries_bytes_both_ways_whole_and_in_order() {
    // Every byte but the one that ends the guest, many times over: far more than the port's queue holds.
    let bytes: Vec<u8> = (0..20_000_u32)
        .map(|n| (n * 7 % 251) as u8)
        .map(|byte| if byte == 4 { 5 } else { byte })
        .collect();
    let mut sent = bytes.clone();
    sent.push(4);
    let outcome = tiny("echo").input(sent).finish();
    outcome.expect_code(0);
    let echoed = outcome
        .stdout
        .strip_prefix(b"ready\n")
        .expect("the guest says so first");
    assert!(
        echoed == bytes,
        "{} of {} bytes came back, or others",
        echoed.len(),
        bytes.len()
    );
}
