//! What is left of a test file when its variables are filled in: cases, each a VM and its steps, with nothing in them that
//! cannot be.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::faults::KernelFault;
use super::pattern::Pattern;
use crate::spec::VmSpec;

/// A VM and what is to happen in it.
#[derive(Debug, Clone)]
pub struct Case {
    /// The test file.
    pub file: PathBuf,
    /// What the file calls the test, and which values it has.
    pub name: String,
    /// The values.
    pub parameters: Vec<(String, String)>,
    /// The VM.
    pub spec: VmSpec,
    /// What is to happen.
    pub steps: Vec<Step>,
    /// How long it may take.
    pub timeout: Duration,
    /// How long the guest may be silent and idle; the harness decides where the file does not say.
    pub hang: Hang,
    /// Only run when asked for.
    pub slow: bool,
    /// Whether the guest need not boot.
    pub warm: bool,
    /// Faults that do not fail it.
    pub allow: Vec<KernelFault>,
    /// What the console must never match.
    pub never: Vec<Pattern>,
    /// What says that the boot is done.
    pub ready: Option<Pattern>,
}

impl Case {
    /// Whether the shipped guest boots.
    pub fn is_shipped(&self) -> bool {
        self.spec.kernel.is_none()
    }

    /// Whether it ends by a panic that it waits for.
    pub fn must_panic(&self) -> bool {
        self.steps.iter().any(|step| {
            matches!(
                step.action,
                Action::Exit {
                    reason: ExitReason::Panic,
                    ..
                }
            )
        })
    }
}

/// How long a silent guest may be idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hang {
    /// As long as is usual on this host.
    Usual,
    /// So long.
    After(Duration),
    /// For ever.
    Never,
}

/// One thing to do or to wait for.
#[derive(Debug, Clone)]
pub struct Step {
    /// What.
    pub action: Action,
    /// How long it may take, if the test's time is not the limit.
    pub within: Option<Duration>,
    /// The line of the file.
    pub line: Option<usize>,
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Waits until the guest says this.
    Expect(Pattern),
    /// Types this.
    Send(String),
    /// Runs a command in the shell on the console.
    Run {
        /// The command.
        command: String,
        /// The status that it must end with.
        status: i64,
        /// What its output must match.
        stdout: Option<Pattern>,
    },
    /// Waits for the guest's end.
    Exit {
        /// Why it must end.
        reason: ExitReason,
        /// The status that it must give.
        status: Option<u8>,
    },
    /// Saves the VM.
    Snapshot {
        /// Under this name.
        name: String,
        /// Whether the next step ends the VM: it stays as it was saved until then.
        ends: bool,
    },
    /// Ends the VM and goes on from what was saved under this name.
    Restore(String),
    /// Puts another image into a disk.
    Attach {
        /// The disk, by its place.
        disk: usize,
        /// The image.
        image: PathBuf,
    },
    /// Takes the image out of a disk.
    Detach {
        /// The disk, by its place.
        disk: usize,
        /// What the file calls it.
        name: String,
    },
    /// Presses a button.
    Press(Button),
    /// Looks at a file.
    File {
        /// Where.
        image: ImageRef,
        /// Its path there.
        path: String,
        /// What is to be so.
        check: FileCheck,
    },
    /// Looks at bytes.
    Bytes {
        /// Where.
        image: ImageRef,
        /// From which byte on.
        offset: u64,
        /// What must be there.
        bytes: Vec<u8>,
    },
}

/// Why a guest is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// It shuts down.
    Shutdown,
    /// It asks for a reset.
    Reset,
    /// It writes to the exit port.
    Exit,
    /// Its kernel panics.
    Panic,
    /// A triple fault.
    TripleFault,
    /// Whatever.
    Any,
}

impl ExitReason {
    /// Their words.
    pub const WORDS: [(&str, Self); 6] = [
        ("shutdown", Self::Shutdown),
        ("reset", Self::Reset),
        ("exit", Self::Exit),
        ("panic", Self::Panic),
        ("triple-fault", Self::TripleFault),
        ("any", Self::Any),
    ];

    /// Its word.
    pub fn word(self) -> &'static str {
        let found = Self::WORDS.iter().find(|(_, reason)| *reason == self);
        found.map_or("any", |(word, _)| word)
    }
}

/// A button of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Button {
    /// The power button.
    Power,
    /// Ctrl-Alt-Del.
    CtrlAltDel,
}

/// An image to look into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRef {
    /// That of a disk of the VM, with what the guest has written, by its place.
    Disk(usize),
    /// A file.
    File(PathBuf),
}

/// What is to be so of a file.
#[derive(Debug, Clone)]
pub enum FileCheck {
    /// It is there.
    There,
    /// It is not.
    Absent,
    /// It holds this.
    Contains(String),
    /// It matches this.
    Matches(Pattern),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Action::Expect(pattern) => write!(f, "expect {pattern}"),
            Action::Send(text) => write!(f, "send {text:?}"),
            Action::Run { command, .. } => write!(f, "run {command:?}"),
            Action::Exit { reason, .. } => write!(f, "exit {}", reason.word()),
            Action::Snapshot { name, .. } => write!(f, "snapshot {name}"),
            Action::Restore(name) => write!(f, "restore {name}"),
            Action::Attach { image, .. } => write!(f, "attach {}", image.display()),
            Action::Detach { name, .. } => write!(f, "detach {name}"),
            Action::Press(Button::Power) => f.write_str("press power"),
            Action::Press(Button::CtrlAltDel) => f.write_str("press ctrl-alt-del"),
            Action::File { path, .. } => write!(f, "file {path}"),
            Action::Bytes { offset, .. } => write!(f, "bytes at {offset}"),
        }
    }
}
