//! What `berth run` takes means the same for a VM in the background, or is refused.

use std::fs;

use berth_tests::api;
use berth_tests::fleet::Fleet;
use berth_tests::invocation::berth;
use serde_json::Value;

use crate::codes;

#[test]
fn a_vm_in_the_background_logs_and_serves_its_api_where_it_was_told_to() {
    let fleet = Fleet::new();
    let [log, socket] = ["own.log", "own.sock"].map(|name| fleet.path().join(name));
    let made = fleet
        .tiny("create", "tally")
        .args(["--name", "web", "--log-level", "debug"])
        .arg("--log-file")
        .arg(&log)
        .arg("--api-sock")
        .arg(&socket)
        .finish();
    made.expect_code(0);
    for _ in 0..2 {
        fleet.good(["start", "web"]);
        assert_eq!(fleet.inspect("web")["api_socket"], socket.to_str().unwrap());
        let answer = api::request(&socket, "POST", "/berth/v1/pause", &Value::Null);
        assert!(answer.status < 300, "{answer:?}");
        assert_eq!(fleet.state("web"), "paused");
        fleet.good(["kill", "web"]);
    }
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("api: served at "), "{said}");
    assert_eq!(fleet.good(["logs", "--vmm", "web"]), said);
    for name in ["log", "api.sock"] {
        assert!(!fleet.folder("web").join(name).exists(), "{name}");
    }
}

#[test]
fn a_vm_in_the_background_is_saved_when_its_guest_is_ready_and_ends() {
    let fleet = Fleet::new();
    let saved = fleet.path().join("saved");
    let started = fleet
        .tiny("run", "rounds")
        .args(["--detach", "--name", "web", "--snapshot-when-ready"])
        .arg(&saved)
        .finish();
    started.expect_code(0);
    assert_eq!(fleet.good(["wait", "web"]), "0\n");
    let restored = berth(["run", "--serial", "stdio", "--restore"]).arg(&saved);
    let outcome = restored.input("ab\x04").finish();
    assert_eq!(outcome.expect_code(3).out(), "ab");
}

#[test]
fn a_vm_in_the_background_boots_when_it_is_to_start_cold() {
    let fleet = Fleet::new();
    let cache = fleet.path().join("cache");
    let verb = |words: &[&str]| {
        fleet
            .verb(words)
            .behind(["env", &format!("BERTH_CACHE_DIR={}", cache.display())])
    };
    verb(&["run", "--detach", "--name", "web", "--cold"])
        .command(["true"])
        .finish()
        .expect_code(0);
    assert_eq!(fleet.good(["wait", "web"]), "0\n");
    assert!(!cache.exists(), "nothing is kept");
}

#[test]
fn what_makes_no_sense_for_a_vm_that_is_kept_is_refused_and_nothing_is_made() {
    let fleet = Fleet::new();
    for (words, sentence) in [
        (
            vec!["create", "--detach"],
            "--detach: is not for berth create: berth start runs it in the background",
        ),
        (
            vec!["create", "--restore", "saved"],
            "--restore: is not for berth create: berth restore makes a VM that goes on from a snapshot",
        ),
        (
            vec!["create", "--api-only", "--api-sock", "s"],
            "--api-only: is not for berth create: a VM of the state directory is what it was made as; only berth run can \
             wait to be configured",
        ),
        (
            vec!["create", "--boot-timing"],
            "--boot-timing: is not for a VM in the background, which has no terminal to print on; use berth run without \
             --detach",
        ),
        (
            vec!["run", "--detach", "--boot-timing"],
            "--boot-timing: is not for a VM in the background, which has no terminal to print on; use berth run without \
             --detach",
        ),
        (
            vec!["run", "--json"],
            "--json: prints a VM that runs in the background; give --detach with it",
        ),
    ] {
        assert_eq!(fleet.run(&words).sentence(codes::USER), sentence, "{words:?}");
    }
    assert!(!fleet.path().join("vms").exists());
    let printed = fleet.good(["create", "--cpus", "2", "--dry-run"]);
    assert!(printed.contains("cpus = 2"), "{printed}");
    assert!(!fleet.path().join("vms").exists());
}
