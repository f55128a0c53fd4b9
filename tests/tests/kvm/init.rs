//! The shipped guest's init beyond a plain command: words that come late, and an end that is asked for.

use std::time::{SystemTime, UNIX_EPOCH};

use berth_tests::invocation::{Running, run};

/// A guest whose init waits for its words. The command named here is for the host's end only: it makes the streams pipes.
fn waiting() -> Running {
    let mut running = run(["--cold", "--cmdline", "-- wait", "--log-level", "debug"])
        .command(["true"])
        .open_input()
        .start();
    running.wait_for_error("the guest is ready");
    running
}

/// Sends the words and the line's end. The host sends its input in frames, up to 255 bytes after their number: that one is a
/// word that init does not know.
fn words(running: &mut Running, words: &str) {
    let line = format!(" {words}\n");
    assert!(line.len() <= 255 && line.len() != 10 && line.len() != 32);
    running.send(line);
}

#[test]
fn a_guest_that_waits_does_what_its_line_says_and_takes_input() {
    let mut running = waiting();
    let id = "0123456789abcdef0123456789abcdef";
    let command =
        "run=sh%00-c%00hostname;cat%20/etc/machine-id;date%20+%25s;cat;cat%20/proc/self/status>&2;exit%209";
    words(
        &mut running,
        &format!("hostname=box machine-id={id} time=2000000000.5 entropy=00ff piped {command}"),
    );
    // The host makes one frame of what it gets at once, and input must not be in the one with the words.
    running.wait_for(id);
    let input: Vec<u8> = (0..=255).cycle().take(5000).collect();
    running.send(&input);
    running.end_input();
    let outcome = running.finish();
    outcome.expect_code(9);
    let head = format!("box\n{id}\n20000000");
    assert!(outcome.stdout.starts_with(head.as_bytes()), "{outcome}");
    assert!(outcome.stdout.ends_with(&input), "input came through");
    // The command starts with nothing of init's: no signal is ignored or blocked.
    for nothing in ["SigIgn:\t0000000000000000", "SigBlk:\t0000000000000000"] {
        assert!(outcome.err().contains(nothing), "{outcome}");
    }
}

#[test]
fn a_guest_that_waits_and_is_told_nothing_for_itself_has_the_hosts_time_and_no_machine_id() {
    let mut running = waiting();
    words(
        &mut running,
        "piped run=sh%00-c%00date%20+%25s;hostname;test%20!%20-e%20/etc/machine-id;%20echo%20$?",
    );
    running.end_input();
    let outcome = running.finish();
    outcome.expect_code(0);
    let out = outcome.out();
    let (time, rest) = out.split_once('\n').unwrap();
    assert_eq!(rest, "berth\n0\n", "{outcome}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(time.parse().unwrap()) < 300, "{outcome}");
}

#[test]
fn ctrl_alt_del_lets_a_command_end_and_then_the_machine() {
    let script = "trap 'echo \"good\"bye; exit 5' TERM; echo star\"\"ted; while :; do sleep 1; done";
    let mut running = run::<&str>([])
        .command(["sh", "-c", script])
        .on_terminal()
        .start();
    running.wait_for("started");
    running.send("\x01c");
    running.wait_for("goodbye");
    running.finish().expect_code(0);
}
