//! Why the VMs of a state directory are not as their user wants them. Each displays as a sentence.

use std::io;
use std::path::{Path, PathBuf};

use super::State;

/// Why something cannot be done with a VM.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// There is no place for VMs.
    #[error("state-dir: neither XDG_STATE_HOME nor HOME is set; say where VMs are kept with --state-dir")]
    NoRoot,
    /// No name for a VM.
    #[error(
        "name: {name:?} is no name for a VM; it has 1 to 63 characters of a to z, 0 to 9, dot, dash and underscore, and begins with a \
         letter or digit"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// Another has that name.
    #[error(
        "name: there is a VM named {name} already; choose another name, or remove it with berth rm {name}"
    )]
    Taken {
        /// The name.
        name: String,
    },
    /// No such VM.
    #[error("there is no VM {reference:?}; {}", hint(.near.as_deref()))]
    Missing {
        /// What was asked for.
        reference: String,
        /// What may have been meant.
        near: Option<String>,
    },
    /// More than one.
    #[error("the ids of several VMs begin with {reference:?}: {}; write more of it", .names.join(", "))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// Theirs.
        names: Vec<String>,
    },
    /// It runs.
    #[error("{name} is running and cannot be {what}; {hint}")]
    Runs {
        /// Which.
        name: String,
        /// What it cannot be.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// It does not run.
    #[error("{name} is {state} and cannot {what}; berth start {name} starts it")]
    RunsNot {
        /// Which.
        name: String,
        /// What it is.
        state: State,
        /// What it cannot.
        what: &'static str,
    },
    /// The description cannot be written down.
    #[error("this VM cannot be kept: {cause}")]
    Spec {
        /// Why.
        cause: String,
    },
    /// A file of the state directory is broken.
    #[error("{}: cannot be read: {cause}; if nothing can be saved, remove the folder it is in", .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The host refused something.
    #[error("{}: cannot be {what}: {cause}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it cannot be.
        what: &'static str,
        /// What the system said.
        cause: io::Error,
    },
    /// It cannot be forked or restored so.
    #[error("{why}")]
    Fork {
        /// Why.
        why: String,
    },
    /// There is no place for VMs.
    #[error("state-dir: {}: VMs cannot be kept there: {cause}; name another folder with --state-dir", .path.display())]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The VM's process said why it cannot start.
    #[error("{}", .sentences.join("\n"))]
    Start {
        /// In its words.
        sentences: Vec<String>,
        /// Its exit code.
        code: u8,
    },
    /// The VM's server refused, or cannot be reached.
    #[error("{name}: {cause}")]
    Refused {
        /// Which.
        name: String,
        /// In its words.
        cause: String,
        /// Whether the user asked for what cannot be.
        user: bool,
    },
}

fn hint(near: Option<&str>) -> String {
    match near {
        Some(name) => format!("did you mean {name}?"),
        None => "berth ps --all lists them".to_owned(),
    }
}

impl FleetError {
    /// The exit code of a verb that ends with this.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Start { code, .. } => *code,
            Self::Io { .. } | Self::Broken { .. } | Self::Refused { user: false, .. } => {
                crate::exit_code::FAULT
            }
            _ => crate::exit_code::USER,
        }
    }

    /// A sentence for each thing that is wrong.
    pub fn sentences(&self) -> Vec<String> {
        match self {
            Self::Start { sentences, .. } => sentences.clone(),
            other => vec![other.to_string()],
        }
    }
}

/// Names the file that a call of the system was about.
pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FleetError {
    let path = path.to_owned();
    move |cause| FleetError::Io { path, what, cause }
}
