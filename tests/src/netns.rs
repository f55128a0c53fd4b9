//! A network namespace of the test's own, with a tap in it. It is gone with the test, however that ends.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::tools;

/// A network namespace, kept by a process that waits for the end of its input: the end of the test.
pub struct Netns {
    holder: Child,
}

impl Netns {
    /// A new one, with its loopback up.
    pub fn new() -> Self {
        tools::need_root("makes a network namespace");
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; exec cat >/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| tools::missing("unshare", &error));
        // The line says that the namespace is there.
        let read = holder.stdout.as_mut().expect("it is piped").read_exact(&mut [0]);
        read.unwrap_or_else(|error| panic!("the host gives no network namespace (unshare --net): {error}"));
        let netns = Self { holder };
        netns.ip("link set lo up");
        netns
    }

    /// The same with a tap called `tap` that has `address` (as `10.0.0.1/24`) and is up.
    pub fn with_tap(tap: &str, address: &str) -> Self {
        let netns = Self::new();
        netns.ip(&format!("tuntap add dev {tap} mode tap"));
        netns.ip(&format!("address add {address} dev {tap}"));
        netns.ip(&format!("link set {tap} up"));
        netns
    }

    /// What stands before a command so that it runs in here, as the same process.
    pub fn prefix(&self) -> Vec<String> {
        [
            "nsenter".to_owned(),
            format!("--net={}", self.path()),
            "--".to_owned(),
        ]
        .into()
    }

    /// Runs `ip` with these words.
    pub fn ip(&self, words: &str) -> String {
        let prefix = self.prefix();
        let words = prefix[1..]
            .iter()
            .map(String::as_str)
            .chain(["ip"])
            .chain(words.split(' '));
        String::from_utf8_lossy(&tools::run(&prefix[0], words).stdout).into_owned()
    }

    /// Runs `work` on a thread inside; sockets it makes stay inside and may be used anywhere.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).expect("the holder lives");
        std::thread::scope(|scope| {
            let inside = move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter a network namespace");
                work()
            };
            scope
                .spawn(inside)
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // It ends by itself; waiting leaves no zombie.
        let _ = self.holder.wait();
    }
}
