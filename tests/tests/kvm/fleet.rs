//! Many VMs in a state directory: the verbs that make, drive and remove them.

mod clones;
mod flags;

use std::time::Duration;

use berth_tests::fleet::Fleet;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::codes;

#[test]
fn a_vm_lives_from_create_to_rm_and_every_verb_says_so() {
    let fleet = Fleet::new();
    fleet.create("web", "tally");
    assert_eq!(fleet.state("web"), "created");
    assert_eq!(fleet.good(["start", "web"]), "web\n");
    let vm = fleet.inspect("web");
    assert_eq!(vm["state"], "running");
    let id = vm["id"].as_str().unwrap();
    assert!(fleet.good(["ps"]).lines().nth(1).unwrap().starts_with("web "));
    assert_eq!(fleet.good(["ps", "--quiet"]), format!("{id}\n"));

    assert_eq!(fleet.attach("web", "a", &["ready\n", "1\n"]), "ready\n1\n");
    assert_eq!(fleet.json(["pause", &id[..8], "--json"])[0]["state"], "paused");
    assert_eq!(fleet.good(["resume", "web"]), "web\n");
    assert_eq!(
        fleet.attach("web", "a", &["2\n"]),
        "2\n",
        "what was seen is not shown again"
    );
    assert_eq!(fleet.good(["logs", "web"]), "ready\n1\n2\n");
    assert_eq!(fleet.good(["logs", "web", "--tail", "1"]), "2\n");

    let mut waiter = fleet.verb(["wait", "web"]).start();
    let mut follower = fleet.verb(["logs", "--follow", "web"]).start();
    follower.wait_for("2\n");
    assert_eq!(fleet.good(["kill", "web"]), "web\n");
    waiter.wait_for("143\n");
    waiter.finish().expect_code(codes::SIGNAL + 15);
    follower.finish().expect_code(0);
    let vm = fleet.inspect("web");
    assert_eq!(
        (&vm["state"], &vm["reason"], &vm["exit_code"]),
        (&"stopped".into(), &"killed".into(), &143.into())
    );
    let listed = fleet.json(["ps", "--all", "--json"])[0].take();
    let guide = include_str!("../../../docs/fleet.md");
    for field in [&vm, &listed]
        .into_iter()
        .flat_map(|vm| vm.as_object().unwrap().keys())
    {
        assert!(
            guide.contains(&format!("`{field}`")),
            "{field} is not in the guide"
        );
    }
    assert_eq!(fleet.good(["ps", "--quiet"]), "");
    assert!(fleet.good(["ps", "--all"]).contains("exit code 143 (killed)"));

    assert_eq!(
        fleet.good(["start", "web"]),
        "web\n",
        "what has ended can run again"
    );
    assert_eq!(fleet.good(["rm", "--force", "web"]), "web\n");
    assert_eq!(fleet.json(["ps", "--all", "--json"]), Value::Array(Vec::new()));
    assert!(!fleet.folder("web").exists());

    let events = fleet.good(["events", "--no-follow", "--json"]);
    let told: Vec<Value> = events
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(
        told.iter()
            .all(|event| event["id"] == id && event["name"] == "web")
    );
    let kinds: Vec<_> = told
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "created", "started", "paused", "resumed", "stopped", "started", "stopped", "removed"
        ]
    );
}

#[test]
fn two_vms_run_side_by_side_and_verbs_take_both() {
    let fleet = Fleet::new();
    for name in ["one", "two"] {
        fleet.create(name, "tally");
    }
    assert_eq!(fleet.good(["start", "two", "one"]), "two\none\n");
    fleet.attach("one", "xx", &["2\n"]);
    fleet.attach("two", "x", &["1\n"]);
    assert_eq!(fleet.good(["logs", "one"]), "ready\n1\n2\n");
    assert_eq!(fleet.good(["logs", "two"]), "ready\n1\n");
    let outcome = fleet.run(["kill", "one", "none", "two"]);
    outcome.expect_code(codes::USER);
    assert_eq!(outcome.out(), "one\ntwo\n", "the others are done all the same");
    assert_eq!(
        outcome.sentence(codes::USER),
        "there is no VM \"none\"; did you mean one?"
    );
}

#[test]
fn a_guest_that_obeys_shuts_down_and_one_that_does_not_is_ended() {
    let fleet = Fleet::new();
    fleet.create("good", "obey");
    fleet.create("bad", "halt");
    fleet.good(["start", "good", "bad"]);
    // A paused guest can obey too.
    fleet.good(["pause", "good"]);
    let outcome = fleet.run(["stop", "--time", "30", "good"]);
    assert_eq!(outcome.expect_code(0).out(), "good\n");
    assert!(outcome.elapsed < Duration::from_secs(15), "{outcome}");
    let vm = fleet.inspect("good");
    assert_eq!((&vm["reason"], &vm["exit_code"]), (&"shutdown".into(), &0.into()));
    assert_eq!(fleet.good(["stop", "--time", "0.2", "bad"]), "bad\n");
    assert_eq!(fleet.inspect("bad")["reason"], "killed");
    assert_eq!(fleet.good(["stop", "bad"]), "bad\n", "it is stopped already");
}

#[test]
fn what_a_killed_process_leaves_is_recognised_and_can_be_started_and_removed() {
    let fleet = Fleet::new();
    fleet.create("web", "tally");
    fleet.good(["start", "web"]);
    let pid = fleet.inspect("web")["pid"].as_i64().unwrap();
    let mut waiter = fleet.verb(["wait", "web"]).start();
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    waiter.wait_for_end();
    let sentence = waiter.finish().sentence(i32::from(berth::exit_code::FAULT));
    assert!(sentence.contains("web: its process was killed"), "{sentence}");
    assert_eq!(fleet.state("web"), "dead");
    assert!(
        fleet.folder("web").join("api.sock").exists(),
        "nothing was tidied up"
    );
    for verb in ["pause", "console", "kill"] {
        let sentence = fleet.run([verb, "web"]).sentence(codes::USER);
        assert!(sentence.starts_with("web is dead and cannot be "), "{sentence}");
    }
    fleet.good(["start", "web"]);
    assert_eq!(fleet.state("web"), "running");
    fleet.good(["rm", "--force", "web"]);
}

#[test]
fn a_start_that_fails_says_why_in_the_vms_words_and_leaves_nothing() {
    let fleet = Fleet::new();
    let outcome = fleet
        .verb([
            "run",
            "--detach",
            "--name",
            "web",
            "--kernel",
            "/nonexistent/vmlinux",
        ])
        .finish();
    let sentence = outcome.sentence(codes::USER);
    assert!(sentence.contains("/nonexistent/vmlinux"), "{sentence}");
    assert_eq!(outcome.out(), "");
    assert!(!fleet.folder("web").exists());

    fleet
        .verb(["create", "--name", "web", "--kernel", "/nonexistent/vmlinux"])
        .finish()
        .expect_code(0);
    assert_eq!(fleet.run(["start", "web"]).sentence(codes::USER), sentence);
    assert_eq!(fleet.state("web"), "created");
}

#[test]
fn of_many_that_are_made_with_one_name_exactly_one_is() {
    let fleet = Fleet::new();
    let codes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    fleet
                        .tiny("create", "halt")
                        .args(["--name", "web"])
                        .finish()
                        .code()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let made = codes.iter().filter(|code| **code == Some(0)).count();
    let refused = codes.iter().filter(|code| **code == Some(codes::USER)).count();
    assert_eq!((made, refused), (1, 5), "{codes:?}");
}

#[test]
fn each_mistake_is_one_sentence() {
    let fleet = Fleet::new();
    fleet.create("web", "tally");
    let sentence = |words: &[&str]| fleet.run(words).sentence(codes::USER);
    assert!(sentence(&["create", "--name", "Web"]).starts_with("name: \"Web\" is no name for a VM; "));
    assert_eq!(
        sentence(&["create", "--name", "web"]),
        "name: there is a VM named web already; choose another name, or remove it with berth rm web"
    );
    assert_eq!(
        sentence(&["start", "wbe"]),
        "there is no VM \"wbe\"; did you mean web?"
    );
    assert_eq!(
        sentence(&["stop", "../web"]),
        "there is no VM \"../web\"; berth ps --all lists them"
    );
    for verb in ["pause", "resume", "kill", "console", "wait"] {
        let said = sentence(&[verb, "web"]);
        assert!(said.starts_with("web is created and cannot "), "{said}");
    }
    fleet.good(["start", "web"]);
    assert_eq!(
        sentence(&["start", "web"]),
        "web is running and cannot be started again; stop it first"
    );
    assert_eq!(
        sentence(&["rm", "web"]),
        "web is running and cannot be removed; stop it first, or remove it with --force"
    );
    let _attached = {
        let mut first = fleet.verb(["console", "web"]).open_input().start();
        first.wait_for("ready\n");
        first
    };
    assert_eq!(
        sentence(&["console", "web"]),
        "web: somebody is attached to its console; berth logs --follow only looks"
    );
}

#[test]
fn who_comes_right_behind_one_that_left_can_attach_and_nothing_typed_is_lost() {
    let fleet = Fleet::new();
    fleet.create("web", "tally");
    fleet.good(["start", "web"]);
    for _ in 0..20 {
        fleet.attach("web", "x", &[]);
    }
    fleet.attach("web", "x", &["21\n"]);
}

#[test]
fn a_console_that_nobody_reads_ends_as_other_programs_in_a_pipe() {
    let fleet = Fleet::new();
    fleet.create("web", "tally");
    fleet.good(["start", "web"]);
    let unread = "exec 3> >(:); wait $!; exec \"$@\" >&3";
    let console = fleet.verb(["console", "web"]).behind(["bash", "-c", unread, "-"]);
    let outcome = console.open_input().finish();
    outcome.expect_code(codes::SIGNAL + 13);
    assert_eq!(outcome.err(), "", "{outcome}");
    assert_eq!(fleet.state("web"), "running");
}

#[test]
fn a_console_ends_with_its_vm_and_with_its_exit_code() {
    let fleet = Fleet::new();
    let run = fleet
        .tiny("run", "echo")
        .args(["--detach", "--name", "web", "--rm"])
        .finish();
    assert_eq!(run.expect_code(0).out(), "web\n");
    let mut console = fleet.verb(["console", "web"]).on_terminal().start();
    console.wait_for("ready\n");
    assert!(console.terminal().is_raw());
    console.send("hello\x04");
    console.wait_for("hello");
    console.wait_for_end();
    console.terminal().expect_as_before();
    assert!(!fleet.folder("web").exists(), "it was to be removed");
}

#[test]
fn a_named_vm_in_the_foreground_is_known_to_the_other_verbs() {
    let fleet = Fleet::new();
    let mut running = fleet
        .tiny("run", "tally")
        .args(["--name", "web"])
        .open_input()
        .start();
    running.wait_for("ready\n");
    assert_eq!(fleet.state("web"), "running");
    let sentence = fleet.run(["console", "web"]).sentence(codes::USER);
    assert!(
        sentence.starts_with("web: its console is where it was started"),
        "{sentence}"
    );
    fleet.good(["pause", "web"]);
    fleet.good(["resume", "web"]);
    running.send("x\x04");
    let outcome = running.finish();
    assert_eq!(outcome.expect_code(0).out(), "ready\n1\n");
    assert_eq!(fleet.inspect("web")["reason"], "exit");
}

#[test]
fn events_follow_all_vms_or_one() {
    let fleet = Fleet::new();
    fleet.create("one", "halt");
    fleet.create("two", "panic");
    let mut all = fleet.verb(["events", "--json"]).start();
    let mut one = fleet.verb(["events", "--past", "one"]).start();
    one.wait_for("one created\n");
    fleet.good(["start", "two"]);
    all.wait_for("\"event\":\"started\"");
    all.wait_for("\"event\":\"panicked\"");
    all.wait_for("\"exit_code\":121");
    fleet.good(["start", "one"]);
    let heard = one.wait_for("one started\n");
    assert!(!heard.contains("two"), "{heard}");
    one.signal(Signal::TERM);
    all.signal(Signal::TERM);
}

#[test]
fn a_snapshot_is_restored_beside_the_vm_and_goes_on_from_there() {
    let fleet = Fleet::new();
    fleet.create("web", "tally");
    fleet.good(["start", "web"]);
    fleet.attach("web", "abc", &["3\n"]);
    let directory = fleet.good(["snapshot", "web"]);
    let directory = directory.trim();
    assert_eq!(fleet.state("web"), "running");
    assert_eq!(fleet.good(["restore", directory, "--name", "copy"]), "copy\n");
    assert_eq!(fleet.attach("copy", "d", &["4\n"]), "4\n");
    assert_eq!(fleet.attach("web", "d", &["4\n"]), "4\n");
    fleet.good(["kill", "copy"]);
    fleet.good(["start", "copy"]);
    assert!(
        fleet.attach("copy", "e", &["1\n"]).contains("ready"),
        "a second start boots"
    );
    for verb in ["restore", "fork"] {
        let sentence = fleet.run([verb, "/nonexistent"]).sentence(codes::USER);
        assert!(sentence.contains("/nonexistent/vm.json"), "{sentence}");
        assert!(
            sentence.ends_with("; name the directory of a snapshot"),
            "{sentence}"
        );
    }
}

#[test]
fn the_shipped_guest_ends_its_command_and_itself_when_it_is_stopped() {
    let fleet = Fleet::new();
    // One that says good-bye, and one that will not hear of it.
    for (name, trap) in [
        ("good", "trap 'echo bye; exit 3' TERM"),
        ("bad", "trap '' TERM HUP"),
    ] {
        let script = format!("{trap}; echo up; while :; do read -r line; done");
        let made = fleet
            .verb(["run", "--detach", "--name", name])
            .command(["sh", "-c", &script])
            .finish();
        made.expect_code(0);
        fleet.attach(name, "", &["up"]);
    }
    let outcome = fleet.run(["stop", "--time", "50", "good"]);
    assert_eq!(outcome.expect_code(0).out(), "good\n");
    let vm = fleet.inspect("good");
    assert_eq!(
        (&vm["reason"], &vm["exit_code"]),
        (&"exit".into(), &0.into()),
        "{vm}"
    );
    assert!(fleet.good(["logs", "good"]).contains("bye"));

    assert_eq!(fleet.good(["stop", "--time", "0.5", "bad"]), "bad\n");
    let vm = fleet.inspect("bad");
    assert_eq!(
        (&vm["reason"], &vm["exit_code"]),
        (&"killed".into(), &(codes::SIGNAL + 15).into()),
        "{vm}"
    );
}
