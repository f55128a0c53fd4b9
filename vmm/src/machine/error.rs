//! Why a machine does not do what it was asked to.

use std::io;

use super::MachineState;
use crate::api::ApiStartError;
use crate::snapshot::SnapshotError;
use crate::spec::Fault;
use crate::vm::BuildError;

/// Why a machine does not do what it was asked to. Displays as a sentence, or one line per fault of its description.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Not in this state.
    #[error("the VM is {state} and cannot {what}")]
    State {
        /// What was asked for: `be paused`.
        what: &'static str,
        /// What it is.
        state: MachineState,
    },
    /// The description is wrong.
    #[error("{}", sentences(.0))]
    Faults(Vec<Fault>),
    /// The VM cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A snapshot cannot be taken or restored.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// There is no API to drive it by.
    #[error(transparent)]
    Api(#[from] ApiStartError),
    /// The host refused something.
    #[error("the host refused {what}: {cause}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}

impl MachineError {
    /// Whether what the user asked for is wrong, and not the host or Berth.
    pub fn is_user(&self) -> bool {
        match self {
            Self::State { .. } | Self::Faults(_) | Self::Snapshot(_) => true,
            Self::Build(error) => error.is_user(),
            Self::Api(error) => matches!(error, ApiStartError::Socket(_)),
            Self::Host { .. } => false,
        }
    }

    /// Whether it is the snapshot that cannot be used, and not the machine's surroundings.
    pub(crate) fn is_of_snapshot(&self) -> bool {
        matches!(
            self,
            Self::Snapshot(_) | Self::Build(BuildError::State(_) | BuildError::Memory(_))
        )
    }

    /// A sentence for each fault.
    pub fn sentences(&self) -> Vec<String> {
        match self {
            Self::Faults(faults) => faults.iter().map(ToString::to_string).collect(),
            other => vec![other.to_string()],
        }
    }
}

fn sentences(faults: &[Fault]) -> String {
    let sentences: Vec<_> = faults.iter().map(ToString::to_string).collect();
    sentences.join("\n")
}
