//! `berth test`: what passes, what fails and how that is told. The guests are real; most are tiny.

use std::fs;
use std::path::Path;
use std::time::Duration;

use berth_tests::invocation::{Invocation, Outcome, berth};
use berth_tests::{clients, debian, guests, tools};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use tempfile::TempDir;

/// A folder of test files.
struct Files(TempDir);

impl Files {
    /// One test of the test guest doing `task`.
    fn tiny(task: &str, rest: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.add("a", task, rest);
        files
    }

    fn add(&self, name: &str, task: &str, rest: &str) {
        let kernel = guests::tiny().display();
        // What belongs to the top stands before the first table.
        let (top, steps) = rest.split_at(if rest.starts_with('[') {
            0
        } else {
            rest.find("\n[").map_or(rest.len(), |at| at + 1)
        });
        let text = format!(
            "name = \"{name}\"\n{top}\n[vm]\nkernel = \"{kernel}\"\nmemory = \"64M\"\ncmdline = \"do={task}\"\n{steps}"
        );
        self.write(&format!("{name}.test.toml"), text);
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path().join(name), content).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn test(&self) -> Invocation {
        berth(["test"])
            .behind(["env", "LC_ALL=C"])
            .arg(self.path())
            .args(["--output"])
            .arg(self.path().join("out"))
    }

    fn passes(&self) -> Outcome {
        let outcome = self.test().finish();
        outcome.expect_code(0);
        outcome
    }

    fn fails(&self) -> Outcome {
        let outcome = self.test().finish();
        outcome.expect_code(1);
        outcome
    }
}

fn steps(steps: &[&str]) -> String {
    let steps = steps.iter().map(|step| format!("[[step]]\n{step}\n"));
    steps.collect::<Vec<_>>().concat()
}

/// What a JUnit report says to a reader that knows nothing of Berth; the schema must allow all that is in it.
fn read_by_others(report: &Path) -> String {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/junit.xsd");
    let words = ["--noout", "--nonet", "--schema", schema].map(Path::new);
    tools::run("xmllint", words.iter().chain([&report]));
    clients::drive("junit_read.py", [report])
}

#[test]
fn a_conversation_with_a_guest_passes_and_leaves_nothing_behind() {
    let files = Files::tiny(
        "echo",
        &steps(&[
            "expect = \"ready\\n\"",
            "send = \"over and out\"",
            "expect_regex = \"o[vu]er .* out\"\nwithin = \"10s\"",
            "send = \"\\u0004\"",
            "exit = \"exit\"\nstatus = 0",
        ]),
    );
    let outcome = files.passes();
    assert!(
        outcome.out().contains("ok    a (") && outcome.out().contains("1 passed in "),
        "{outcome}"
    );
    assert_eq!(outcome.err(), "", "{outcome}");
    assert!(!files.path().join("out/a-a").exists());
}

#[test]
fn each_way_to_fail_is_called_by_its_name_with_line_and_console() {
    for (task, rest, expected) in [
        (
            "exit:3",
            steps(&["expect = \"login: \""]),
            "line 8: \"login: \" was waited for, but the guest ended with status 3",
        ),
        (
            "exit:3",
            steps(&["exit = \"exit\"\nstatus = 4"]),
            "line 8: the guest ended with status 3 instead of 4",
        ),
        (
            "shutdown",
            steps(&["exit = \"reset\""]),
            "line 8: the guest shut down, and not by reset",
        ),
        (
            "triple",
            steps(&["expect = \"x\""]),
            "line 8: \"x\" was waited for, but the guest's CPU shut down at a triple fault",
        ),
        (
            "panic",
            steps(&["expect = \"x\""]),
            "line 8: \"x\" was waited for, but the guest's kernel panicked",
        ),
        (
            "echo",
            steps(&[
                "expect = \"ready\"",
                "send = \"x\"",
                "expect = \"y\"\nwithin = \"300ms\"",
            ]),
            "line 12: \"y\" did not come within 0.3 s",
        ),
        (
            "echo",
            "never = [\"[Rr]eady\"]\n".to_owned() + &steps(&["expect = \"x\""]),
            "line 9: the console said what it must never say, /[Rr]eady/: ready",
        ),
        (
            "halt",
            "hang = \"2s\"\n".to_owned() + &steps(&["expect = \"x\""]),
            "it said nothing and used no device while \"x\" was waited for, and its CPU stood still",
        ),
        (
            "spin",
            "hang = \"2s\"\n".to_owned() + &steps(&["expect = \"x\""]),
            "it said nothing and used no device while \"x\" was waited for, and its CPU was busy all the while",
        ),
    ] {
        let files = Files::tiny(task, &rest);
        let outcome = files.fails();
        assert!(outcome.out().contains(expected), "{task}: {expected}: {outcome}");
        let log = files.path().join("out/a-a/console.log");
        assert!(
            outcome.out().contains(&format!("kept: {}", log.display())),
            "{outcome}"
        );
        assert!(
            log.exists()
                && log.with_file_name("vm.toml").exists()
                && log.with_file_name("result.json").exists()
        );
    }
}

#[test]
fn a_kernels_own_words_for_a_fault_end_a_test_at_once_unless_they_are_allowed() {
    // What is typed comes back as if the kernel had said it.
    let oops = "[    1.0] BUG: kernel NULL pointer dereference, address: 0\\n[    1.1] RIP: 0010:x\\n";
    let rest = steps(&[
        "expect = \"ready\"",
        &format!("send = \"{oops}\""),
        "expect = \"done\"",
    ]);
    let outcome = Files::tiny("echo", &rest).fails();
    assert!(
        outcome
            .out()
            .contains("line 12: kernel oops: [    1.0] BUG: kernel NULL pointer dereference, address: 0"),
        "{outcome}"
    );
    assert!(
        outcome.out().contains("    | [    1.1] RIP: 0010:x\n"),
        "{outcome}"
    );
    let rest = steps(&[
        "expect = \"ready\"",
        &format!("send = \"{oops}done\""),
        "expect = \"done\"",
    ]);
    Files::tiny("echo", &format!("allow = [\"oops\"]\n{rest}")).passes();
}

#[test]
fn a_folder_deeper_than_a_sockets_address_can_say_is_no_obstacle() {
    let files = Files::tiny(
        "obey",
        &steps(&["expect = \"waiting\"", "press = \"power\"", "exit = \"shutdown\""]),
    );
    let deep = files.path().join("out").join("d".repeat(120));
    let outcome = berth(["test", "--output"]).arg(&deep).arg(files.path()).finish();
    outcome.expect_code(0);
    assert_eq!(fs::read_dir(&deep).unwrap().count(), 1, "only the mark is left");
}

#[test]
fn a_matrix_runs_every_case_and_variables_reach_the_guest() {
    let files = Files::tiny(
        "exit:${status}",
        "[matrix]\ncpus = [1, 2]\nstatus = [0, 7]\n[[step]]\nexit = \"exit\"\nstatus = 7\n",
    );
    let outcome = files.fails();
    assert!(outcome.out().contains("2 passed, 2 failed"), "{outcome}");
    assert!(outcome.out().contains("FAIL  a [cpus=2, status=0]"), "{outcome}");
    let filtered = files.test().args(["--filter", "status=7"]).finish();
    assert!(filtered.expect_code(0).out().contains("2 passed"), "{filtered}");
    let listed = files.test().arg("--list").finish();
    assert_eq!(listed.expect_code(0).out().lines().count(), 4, "{listed}");
    let changed = files.test().args(["--var", "status=7"]).finish();
    assert!(changed.expect_code(0).out().contains("2 passed"), "{changed}");
}

#[test]
fn what_passes_only_when_tried_again_is_told_as_flaky_in_every_report() {
    // The first attempt leaves its result behind, and only the second one can find it.
    let files = Files::tiny(
        "exit:0",
        &steps(&[
            "exit = \"exit\"",
            "offset = 0\nimage = \"out/a-a/result.json\"\nbytes = \"{\"",
        ]),
    );
    let at = |name: &str| files.path().join(name);
    let outcome = files
        .test()
        .args(["--retries", "3", "--tap", "-", "--junit"])
        .arg(at("junit.xml"))
        .arg("--json")
        .arg(at("report.json"))
        .finish();
    outcome.expect_code(0);
    assert!(
        outcome.out().contains("ok 1 - a # flaky: passed at attempt 2\n"),
        "{outcome}"
    );
    assert!(outcome.err().contains("passed at attempt 2 only"), "{outcome}");
    assert!(outcome.err().contains("1 flaky in"), "{outcome}");
    let read = read_by_others(&at("junit.xml"));
    let flaky = "a | FlakyFailure content: ";
    assert!(read.starts_with(flaky) && read.lines().count() == 1, "{read}");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(at("report.json")).unwrap()).unwrap();
    assert_eq!(
        (&json["flaky"], &json["cases"][0]["outcome"]),
        (&1.into(), &"flaky".into())
    );
}

#[test]
fn reports_say_how_each_case_went() {
    let files = Files::tiny("exit:0", &steps(&["exit = \"exit\""]));
    files.add("b", "triple", &steps(&["exit = \"exit\""]));
    files.add(
        "c",
        "exit:0",
        &format!("slow = true\n{}", steps(&["exit = \"exit\""])),
    );
    let at = |name: &str| files.path().join(name);
    let outcome = files
        .test()
        .arg("--junit")
        .arg(at("junit.xml"))
        .arg("--json")
        .arg(at("report.json"))
        .args(["--tap", "-", "--retries", "1"])
        .finish();
    outcome.expect_code(1);
    let tap = outcome.out();
    for line in [
        "1..3",
        "ok 1 - a",
        "not ok 2 - b",
        "  kind: triple-fault",
        "ok 3 - c # SKIP it is slow; --slow runs it",
    ] {
        assert!(tap.lines().any(|found| found == line), "{line}: {tap}");
    }
    assert!(
        outcome.err().contains("1 passed, 1 failed, 1 skipped"),
        "{outcome}"
    );
    let json: serde_json::Value = serde_json::from_slice(&fs::read(at("report.json")).unwrap()).unwrap();
    assert_eq!(json["cases"][1]["attempts"][0]["failure"]["kind"], "triple-fault");
    let failed = "the guest's CPU shut down at a triple fault, and not by exit";
    assert_eq!(
        read_by_others(&at("junit.xml")),
        format!(
            "a\nb | Failure triple-fault: {failed} | RerunFailure triple-fault: {failed}\nc | Skipped None: it is slow; --slow runs it\n"
        )
    );
}

#[test]
fn ctrl_c_ends_the_vms_and_the_reports_say_so() {
    let files = Files::tiny("halt", &steps(&["expect = \"halted\"", "expect = \"for ever\""]));
    let junit = files.path().join("junit.xml");
    let mut running = files
        .test()
        .arg("--junit")
        .arg(&junit)
        .behind(["env", "TERM=xterm"])
        .on_terminal()
        .start();
    // A terminal is shown what runs and what it does.
    running.wait_for("expect \"for ever\"");
    running.signal(Signal::INT);
    let outcome = running.finish();
    outcome.expect_code(130);
    assert!(outcome.out().contains("a: it was interrupted"), "{outcome}");
    assert_eq!(
        read_by_others(&junit),
        "a | Error interrupted: it was interrupted\n"
    );
    // Its process is gone: nobody listens.
    let socket = files.path().join("out/a-a/api.sock");
    assert!(std::os::unix::net::UnixStream::connect(socket).is_err());
}

#[test]
fn ctrl_c_does_not_wait_for_an_image_and_leaves_nothing_of_it() {
    let files = Files(tempfile::tempdir().unwrap());
    files.write(
        "a.test.toml",
        "[image.data]\nfrom = [\"slow.tar\"]\n[vm]\ndisks = [{ path = \"${image.data}\" }]\n[[step]]\nexpect = \"x\"\n",
    );
    files.write("large", vec![1; 1 << 20]);
    let archive = tools::run(
        "tar",
        [
            "-c".as_ref(),
            "-C".as_ref(),
            files.path().as_os_str(),
            "large".as_ref(),
        ],
    )
    .stdout;
    // A tar file that never ends: the pipe takes no more until somebody reads it.
    let pipe = files.path().join("slow.tar");
    tools::run("mkfifo", [&pipe]);
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let pipe = rustix::fs::open(&pipe, flags, Mode::empty()).unwrap();
    let mut sent = 0;
    while let Ok(count) = rustix::io::write(&pipe, &archive[sent..]) {
        sent += count;
    }
    assert!(sent < archive.len());
    let junit = files.path().join("junit.xml");
    let running = files.test().arg("--junit").arg(&junit).start();
    let minute = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let read = poll(&mut [PollFd::new(&pipe, PollFlags::OUT)], Some(&minute)).unwrap();
    assert_eq!(read, 1, "nobody reads the source");
    running.signal(Signal::INT);
    let outcome = running.finish();
    outcome.expect_code(130);
    assert!(outcome.out().starts_with("1 interrupted in "), "{outcome}");
    assert_eq!(
        read_by_others(&junit),
        "a | Error interrupted: it was interrupted\n"
    );
    let left = fs::read_dir(files.path().join("out")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".berth-test"], "{outcome}");
}

#[test]
fn the_examples_do_what_they_say() {
    let folder = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../resources/examples/tests"
    ));
    let outcome = berth(["test"])
        .behind([
            "env".into(),
            "LC_ALL=C".into(),
            format!("KERNEL={}", guests::linux().display()),
            format!("IMAGE={}", debian::image().display()),
            // Slow, and so only read.
            format!("CLOUD_KERNEL={}", guests::linux().display()),
            format!("BUSYBOX={}", folder.display()),
        ])
        .arg(folder)
        .within(Duration::from_secs(400))
        .finish();
    outcome.expect_code(0);
    let out = outcome.out();
    assert!(out.contains("4 passed, 1 skipped in "), "{outcome}");
    assert!(
        out.contains("skip  Debian's cloud kernel reaches user space: it is slow"),
        "{outcome}"
    );
}

#[test]
fn a_kernel_that_panics_at_boot_is_told_as_that_with_its_last_lines() {
    let files = Files(tempfile::tempdir().unwrap());
    let kernel = guests::linux().display();
    files.write(
        "a.test.toml",
        format!(
            "[vm]\nkernel = \"{kernel}\"\ncmdline = \"root=/dev/nowhere\"\n[[step]]\nexpect = \"login: \"\n"
        ),
    );
    let outcome = files.fails();
    let out = outcome.out();
    assert!(
        out.contains("line 5: kernel panic: ") && out.contains("Unable to mount root fs"),
        "{outcome}"
    );
    assert!(
        out.lines().filter(|line| line.starts_with("    | ")).count() > 5,
        "{outcome}"
    );
}

#[test]
fn a_wrong_file_is_one_sentence_and_nothing_is_run() {
    let files = Files::tiny("exit:0", &steps(&["exit = \"exit\""]));
    files.add("b", "exit:0", &steps(&["expect_regex = \"(\""]));
    let sentence = files.test().finish().sentence(2);
    assert!(
        sentence.ends_with(
            "b.test.toml: line 8: step[0].expect_regex: \"(\" is no regular expression: unclosed group"
        ),
        "{sentence}"
    );
    assert!(!files.path().join("out").exists());
    files.write("c.test.toml", [0xff]);
    let sentence = berth(["test"])
        .arg(files.path().join("c.test.toml"))
        .finish()
        .sentence(2);
    assert!(sentence.contains("it is not UTF-8 text"), "{sentence}");
    for (arguments, expected) in [
        (
            &["--filter", "nothing"][..],
            "filter: \"nothing\" matches none of the 1 cases",
        ),
        (
            &["--var", "x=1"],
            "var: no test file has a variable \"x\"; they have none",
        ),
        (&["--var", "x"], "var: \"x\" gives nothing a value"),
        (
            &["--junit", "/nowhere/x"],
            "junit: /nowhere/x: No such file or directory",
        ),
        (&["--output", "/proc"], "output: /proc: there is something in it"),
    ] {
        let sentence = berth(["test"])
            .arg(files.path().join("a.test.toml"))
            .args(arguments)
            .finish()
            .sentence(2);
        assert!(sentence.starts_with(expected), "{sentence}");
    }
}

#[test]
fn what_this_host_cannot_run_is_said_with_another_code() {
    let files = Files::tiny(
        "exit:0",
        "[matrix]\nmemory = [\"900T\"]\n[[step]]\nexit = \"exit\"\n",
    );
    let sentence = files.test().finish().sentence(3);
    assert!(
        sentence.contains("memory: 900T is more than this host has"),
        "{sentence}"
    );
}
