//! Berth under the name and with the arguments of the `firecracker` binary.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use berth_tests::api::request;
use berth_tests::invocation::{Invocation, berth};
use berth_tests::{guests, program};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::codes;

/// A folder with the program in it as `firecracker`.
struct Installed {
    folder: TempDir,
}

impl Installed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        symlink(program::berth(), folder.path().join("firecracker")).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, value: &Value) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, value.to_string()).unwrap();
        path
    }

    fn run<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Invocation {
        Invocation::of(self.path("firecracker")).args(words)
    }

    /// A VM of the test guest that does `task`.
    fn config(&self, task: &str) -> PathBuf {
        self.write(
            "vm.json",
            &json!({
                "boot-source": {"kernel_image_path": guests::tiny(), "boot_args": format!("do={task}")},
                "machine-config": {"vcpu_count": 1, "mem_size_mib": 64},
                "drives": [],
            }),
        )
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn by_its_name_it_is_firecracker_and_as_a_verb_too() {
    let installed = Installed::new();
    let said = installed.run(["--version"]).finish();
    assert!(said.out().starts_with("Firecracker v1."), "{said}");
    let outcome = berth(["firecracker", "--version"]).finish();
    outcome.expect_code(0);
    assert_eq!(outcome.out(), said.out());
}

#[test]
fn a_configuration_file_boots_without_an_api_and_its_metrics_are_written() {
    let installed = Installed::new();
    let config = installed.config("spin");
    let metrics = installed.path("metrics");
    let mut running = installed
        .run([
            "--no-api",
            "--config-file",
            text(&config),
            "--metrics-path",
            text(&metrics),
        ])
        .args([
            "--id",
            "vm-7",
            "--level",
            "Warning",
            "--no-seccomp",
            "--start-time-us",
            "1",
        ])
        .args([
            "--start-time-cpu-us=2",
            "--parent-cpu-time-us",
            "3",
            "--show-level",
        ])
        .start();
    running.wait_for("spinning");
    running.signal(rustix::process::Signal::TERM);
    running.finish().expect_code(codes::SIGNAL + 15);
    let lines = std::fs::read_to_string(&metrics).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert!(first["vcpu"].is_object(), "{first}");
}

#[test]
fn the_api_is_served_with_the_limits_the_id_and_the_metadata_that_were_given() {
    let installed = Installed::new();
    let config = installed.config("spin");
    let metadata = installed.write("metadata.json", &json!({"a": {"b": 1}}));
    let (socket, log) = (installed.path("fc.sock"), installed.path("log"));
    let mut running = installed
        .run([
            "--api-sock",
            text(&socket),
            "--config-file",
            text(&config),
            "--id",
            "vm-8",
        ])
        .args([
            "--metadata",
            text(&metadata),
            "--mmds-size-limit",
            "60",
            "--http-api-max-payload-size",
            "200",
        ])
        .args(["--log-path", text(&log), "--level", "info"])
        .start();
    running.wait_for("spinning");
    let ask = |verb, path, body: &Value| request(&socket, verb, path, body);
    let info: Value = serde_json::from_str(&ask("GET", "/", &Value::Null).expect(200).body).unwrap();
    assert_eq!((&info["id"], &info["state"]), (&json!("vm-8"), &json!("Running")));
    let kept = ask("GET", "/mmds", &Value::Null);
    assert_eq!(kept.expect(200).body, "{\"a\":{\"b\":1}}");
    ask("PATCH", "/mmds", &json!({"c": "x".repeat(60)})).expect(413);
    ask("PUT", "/mmds", &json!({"c": "x".repeat(300)})).expect(413);
    ask("PATCH", "/mmds", &json!({"c": 2})).expect(204);
    ask("POST", "/berth/v1/kill", &Value::Null).expect(204);
    running.finish().expect_code(0);
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("api: served at"), "{log}");
}

#[test]
fn without_a_file_it_waits_for_the_api() {
    let installed = Installed::new();
    let socket = installed.path("fc.sock");
    let mut running = installed.run(["--api-sock", text(&socket)]).start();
    let boot = json!({"kernel_image_path": guests::tiny(), "boot_args": "do=spin"});
    request(&socket, "PUT", "/boot-source", &boot).expect(204);
    request(
        &socket,
        "PUT",
        "/actions",
        &json!({"action_type": "InstanceStart"}),
    )
    .expect(204);
    running.wait_for("spinning");
    request(&socket, "POST", "/berth/v1/kill", &Value::Null).expect(204);
    running.finish().expect_code(0);
}

#[test]
fn what_would_be_another_machine_is_a_sentence_and_nothing_is_left() {
    let installed = Installed::new();
    let wrong = installed.write(
        "wrong.json",
        &json!({"boot-source": {"kernel_image_path": "/none"}}),
    );
    let socket = installed.path("fc.sock");
    for (words, expected) in [
        (
            &["--boot-timer"][..],
            "--boot-timer: Berth has no boot timer device",
        ),
        (&["--enable-pci"], "--enable-pci: Berth's guests have no PCI"),
        (&["--seccomp-filter", "x"], "--seccomp-filter: "),
        (&["--describe-snapshot", "x"], "use berth snapshot info"),
        (&["--id", "a b"], "\"a b\" is no id"),
        (&["--no-api"], "--config-file"),
        (&["--config-file", "/none.json"], "/none.json: "),
        (&["--config-file", text(&wrong)], "kernel_image_path: "),
        (
            &["--metadata", text(&wrong), "--mmds-size-limit", "5"],
            "its limit is 5",
        ),
        (&["--level", "loud"], "level: \"loud\" is no level"),
    ] {
        let outcome = installed.run(["--api-sock", text(&socket)]).args(words).finish();
        let sentence = outcome.sentence(codes::USER);
        assert!(sentence.contains(expected), "{sentence}");
        assert!(!socket.exists());
    }
}
