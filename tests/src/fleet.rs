//! A state directory of the test's own, and the verbs that make, drive and remove VMs in it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::invocation::{Invocation, Outcome, berth};
use crate::{guests, program};

/// A state directory of the test's own. Dropped, it ends what still runs.
pub struct Fleet {
    folder: TempDir,
}

impl Fleet {
    /// A new one, which is empty.
    #[must_use]
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("the host has room"),
        }
    }

    /// The state directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of a VM.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        self.path().join("vms").join(name)
    }

    /// A verb, with its arguments.
    pub fn verb<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Invocation {
        berth(words)
            .args([OsStr::new("--state-dir"), self.folder.path().as_os_str()])
            .within(Duration::from_secs(60))
            .beside()
    }

    /// Runs a verb to its end.
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Outcome {
        self.verb(words).finish()
    }

    /// What a verb that goes well prints.
    #[track_caller]
    pub fn good<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> String {
        let outcome = self.run(words);
        outcome.expect_code(0);
        assert_eq!(outcome.err(), "", "{outcome}");
        outcome.out()
    }

    /// What a verb that goes well prints as JSON.
    #[track_caller]
    pub fn json<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Value {
        let text = self.good(words);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Makes a VM of the test guest.
    #[track_caller]
    pub fn create(&self, name: &str, task: &str) {
        let made = self.tiny("create", task).args(["--name", name]).finish();
        assert_eq!(made.expect_code(0).out(), format!("{name}\n"));
    }

    /// `create` or `run` of the test guest.
    pub fn tiny(&self, verb: &str, task: &str) -> Invocation {
        self.verb([verb, "--memory", "64M"])
            .arg(format!("--kernel={}", guests::tiny().display()))
            .args(["--cmdline", &format!("do={task}")])
    }

    /// What is known about a VM.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> Value {
        self.json(["inspect", name])[0].take()
    }

    /// Where a VM is in its life.
    #[track_caller]
    pub fn state(&self, name: &str) -> String {
        self.inspect(name)["state"]
            .as_str()
            .expect("a state is a word")
            .to_owned()
    }

    /// Attaches, sends `typed`, waits for each of `expected`, and detaches.
    #[track_caller]
    pub fn attach(&self, name: &str, typed: &str, expected: &[&str]) -> String {
        let mut console = self.verb(["console", name]).open_input().start();
        let mut heard = String::new();
        console.send(typed);
        for text in expected {
            heard += &console.wait_for(text);
        }
        console.send("\x01d");
        let outcome = console.finish();
        outcome.expect_code(0);
        assert!(outcome.err().contains("detached"), "{outcome}");
        heard
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let berth = || {
            let mut command = Command::new(program::berth());
            command.env("BERTH_STATE_DIR", self.folder.path());
            command
        };
        let ids = berth()
            .args(["ps", "--quiet"])
            .output()
            .map(|output| output.stdout);
        for id in String::from_utf8_lossy(&ids.unwrap_or_default()).lines() {
            let _ = berth().args(["kill", id]).output();
        }
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}
