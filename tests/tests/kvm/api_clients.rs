//! The API as clients see it that were written for Firecracker, by others: Python's firecracker-python and pyrecracker.

use std::ffi::OsString;

use berth_tests::invocation::run;
use berth_tests::served::Served;
use berth_tests::{clients, guests};
use serde_json::Value;

/// A command for the shipped init on a kernel booted as Firecracker boots one.
fn arguments(command: &str) -> String {
    format!("console=ttyS0 reboot=k panic=1 pci=off quiet rootfstype=erofs -- run={command}")
}

fn words(first: &[&str], served: &Served, rest: &[&str]) -> Vec<OsString> {
    let mut words: Vec<OsString> = first.iter().map(OsString::from).collect();
    words.push(served.socket().into());
    words.extend(rest.iter().map(OsString::from));
    words
}

#[test]
fn firecracker_python_configures_starts_pauses_and_resumes_a_guest() {
    let served = Served::start(run(["--api-only"]));
    let (kernel, root) = (
        guests::linux().to_str().unwrap(),
        guests::root().to_str().unwrap(),
    );
    clients::drive(
        "firecracker_python.py",
        words(&[], &served, &[kernel, root, &arguments("uname%00-r")]),
    );
    let outcome = served.running.finish();
    outcome.expect_code(0);
    assert!(outcome.out().contains("-berth"), "{outcome}");
}

#[test]
fn pyrecracker_boots_a_guest_saves_it_and_goes_on_elsewhere() {
    let mut served = Served::start(run(["--api-only"]));
    let (kernel, root) = (
        guests::linux().to_str().unwrap(),
        guests::root().to_str().unwrap(),
    );
    let command = "sh%00-c%00i=0;%20while%20[%20$i%20-lt%2012%20];%20do%20i=$((i+1));%20echo%20step%20$i;%20sleep%201;%20done;%20exit%2017";
    clients::drive(
        "pyrecracker_client.py",
        words(&["boot"], &served, &[kernel, root, &arguments(command)]),
    );
    served.running.wait_for("step 2");
    let (state, memory) = (served.path("state"), served.path("memory"));
    let files = [state.to_str().unwrap(), memory.to_str().unwrap()];
    clients::drive("pyrecracker_client.py", words(&["save"], &served, &files));

    served.tell("POST", "/berth/v1/kill", &Value::Null);
    served.running.finish().expect_code(0);

    let mut other = Served::start(run(["--api-only"]));
    clients::drive("pyrecracker_client.py", words(&["restore"], &other, &files));
    other.running.wait_for("step 12");
    other.running.finish().expect_code(17);
}
