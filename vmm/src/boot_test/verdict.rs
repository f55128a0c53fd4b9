//! How a case went, and what there is to show for it.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use super::faults::KernelFault;
use super::plan::Case;

/// What was wrong, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The kernel told of a fault.
    Kernel(KernelFault),
    /// The CPU shut down.
    TripleFault,
    /// The guest said and did nothing any more.
    Hang,
    /// Something took too long.
    Timeout,
    /// Something was said that must never be.
    Never,
    /// The guest ended where it should not, or otherwise than it should.
    Ended,
    /// A command ended with another status.
    Status,
    /// A command's output, a file or bytes are not as they should be.
    Content,
    /// The VM's process failed.
    Vmm,
    /// The VM cannot be made as the file describes it.
    Refused,
}

impl Kind {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kernel(fault) => fault.word(),
            Self::TripleFault => "triple-fault",
            Self::Hang => "hang",
            Self::Timeout => "timeout",
            Self::Never => "never",
            Self::Ended => "ended",
            Self::Status => "status",
            Self::Content => "content",
            Self::Vmm => "vmm",
            Self::Refused => "refused",
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// In a word.
    pub kind: Kind,
    /// In a sentence.
    pub message: String,
    /// Which step it was in, from 0, and its line.
    pub step: Option<(usize, Option<usize>)>,
    /// The console's last lines.
    pub lines: Vec<String>,
}

/// When the marks of a boot were passed, since the VM's process was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    /// The console's first byte.
    pub first_output: Option<Duration>,
    /// `Linux version`.
    pub kernel: Option<Duration>,
    /// `Run … as init process`.
    pub init: Option<Duration>,
    /// What the file calls ready, or what it first expects.
    pub ready: Option<Duration>,
}

/// How long a step took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepTime {
    /// The step.
    pub step: String,
    /// How long.
    pub took: Duration,
}

/// One attempt at a case.
#[derive(Debug, Clone, Default)]
pub struct Attempt {
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// Whether it was cut short from outside.
    pub interrupted: bool,
    /// How long it took.
    pub took: Duration,
    /// Its boot.
    pub marks: Marks,
    /// The steps that were done.
    pub steps: Vec<StepTime>,
    /// Where its log and the rest are kept, if they are.
    pub folder: Option<PathBuf>,
}

impl Attempt {
    /// Whether all went well.
    pub fn has_passed(&self) -> bool {
        self.failure.is_none() && !self.interrupted
    }

    /// One that could not begin.
    pub fn impossible(message: String) -> Self {
        Self {
            failure: Some(Failure {
                kind: Kind::Vmm,
                message,
                step: None,
                lines: Vec::new(),
            }),
            ..Self::default()
        }
    }
}

/// How a case went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Well, at once.
    Passed,
    /// Well, but not at once.
    Flaky,
    /// Badly.
    Failed,
    /// It was not to be run.
    Skipped(&'static str),
    /// It was cut short.
    Interrupted,
}

/// A case and how it went.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The test file.
    pub file: PathBuf,
    /// The case.
    pub name: String,
    /// Its values.
    pub parameters: Vec<(String, String)>,
    /// All attempts, in their order.
    pub attempts: Vec<Attempt>,
    /// How it went.
    pub outcome: Outcome,
}

impl Verdict {
    /// Of a case that was not run.
    pub fn skipped(case: &Case, outcome: Outcome) -> Self {
        Self::of(case, Vec::new(), outcome)
    }

    /// Of a case with these attempts.
    pub fn judge(case: &Case, attempts: Vec<Attempt>) -> Self {
        let outcome = match attempts.last() {
            None => Outcome::Interrupted,
            Some(last) if last.interrupted => Outcome::Interrupted,
            Some(last) if last.failure.is_some() => Outcome::Failed,
            Some(_) if attempts.len() > 1 => Outcome::Flaky,
            Some(_) => Outcome::Passed,
        };
        Self::of(case, attempts, outcome)
    }

    fn of(case: &Case, attempts: Vec<Attempt>, outcome: Outcome) -> Self {
        Self {
            file: case.file.clone(),
            name: case.name.clone(),
            parameters: case.parameters.clone(),
            attempts,
            outcome,
        }
    }

    /// The failure that counts: the last attempt's.
    pub fn failure(&self) -> Option<&Failure> {
        self.attempts.last()?.failure.as_ref()
    }

    /// How long all attempts took.
    pub fn took(&self) -> Duration {
        self.attempts.iter().map(|attempt| attempt.took).sum()
    }
}
