//! How a program ended, and what a test may expect of that.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its status.
    pub status: ExitStatus,
    /// From its start to its end.
    pub elapsed: Duration,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// How it was called.
    pub(crate) shown: String,
}

impl Outcome {
    /// Its standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Its exit code, or `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Fails unless it ended with `code`.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert!(self.code() == Some(code), "expected exit code {code}: {self}");
        self
    }

    /// Fails unless it ended with `code` and one sentence on standard error, which is given without its `berth: `.
    #[track_caller]
    pub fn sentence(&self, code: i32) -> String {
        self.expect_code(code);
        let text = self.err();
        let sentence = text
            .strip_suffix('\n')
            .and_then(|line| line.strip_prefix("berth: "));
        match sentence {
            Some(sentence) if !sentence.contains('\n') => sentence.to_owned(),
            _ => panic!("expected one sentence that begins with `berth: `: {self}"),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}\n--- {}{}, after {:.1?}\n--- standard output\n{}\n--- standard error\n{}",
            self.shown,
            self.status,
            if self.status.signal().is_some() {
                " (signal)"
            } else {
                ""
            },
            self.elapsed,
            self.out(),
            self.err()
        )
    }
}
