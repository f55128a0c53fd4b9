//! The guest that ships with Berth: commands, their output and status, and a shell on a terminal.

use berth_tests::invocation::{berth, run, script};

#[test]
fn a_command_has_its_output_errors_input_and_status() {
    // One boot for all of it: Linux takes its time where KVM interprets.
    let outcome = script("cat; echo \"two  words\" '$x' é; echo oops >&2; exit 7")
        .input("from the host\nno end of line")
        .finish();
    outcome.expect_code(7);
    assert_eq!(
        outcome.out(),
        "from the host\nno end of linetwo  words $x é\n",
        "{outcome}"
    );
    assert_eq!(outcome.err(), "oops\n", "{outcome}");
}

#[test]
fn bytes_of_every_value_pass_unchanged_and_four_processors_are_four() {
    let bytes: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let outcome = script("cat; nproc >&2; test -w /etc && echo writable >&2")
        .args(["--cpus", "4"])
        .input(bytes.clone())
        .finish();
    outcome.expect_code(0);
    assert!(outcome.stdout == bytes, "{outcome}");
    assert_eq!(outcome.err(), "4\nwritable\n", "{outcome}");
}

#[test]
fn a_command_whose_output_is_lost_ends_as_a_program_would() {
    let outcome = script("yes")
        .behind(["bash", "-c", "\"$@\" | head -1; exit ${PIPESTATUS[0]}", "-"])
        .finish();
    outcome.expect_code(141);
    assert_eq!(outcome.out(), "y\n", "{outcome}");
    assert!(
        outcome.err().contains("nobody reads what the guest says"),
        "{outcome}"
    );
    let outcome = script("yes")
        .behind(["sh", "-c", "exec \"$@\" >/dev/full", "-"])
        .finish();
    let sentence = outcome.sentence(125);
    assert!(
        sentence.contains("standard output cannot be written: No space"),
        "{outcome}"
    );
}

#[test]
fn an_interactive_shell_on_a_terminal_works_and_leaves_it_as_it_was() {
    let mut running = run::<&str>([]).on_terminal().start();
    running.wait_for("# ");
    assert!(running.terminal().is_raw());
    running.send("echo $((6*7)) $(tty)\r");
    running.wait_for("42 /dev/");
    running.wait_for("# ");
    // Ctrl-C is the guest's and interrupts what runs there.
    running.send("sh -c 'echo run\"\"ning; cat'\r");
    running.wait_for("running");
    running.send("\x03");
    running.wait_for("# ");
    running.send("\x01h");
    running.wait_for("ends the VM");
    running.send("\x01x");
    running.wait_for_end();
    running.terminal().expect_as_before();
    let outcome = running.finish();
    outcome.expect_code(0);
}

#[test]
fn a_shell_works_on_a_pipe_and_ends_with_its_input() {
    let outcome = berth(["run"]).input("echo $((40 + 2))\nexit 3\n").finish();
    outcome.expect_code(3);
    assert!(outcome.out().contains("42"), "{outcome}");
}
