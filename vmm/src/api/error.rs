//! What the API answers when it does not do what it was asked to: a status and a sentence.

use hyper::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::Gone;
use crate::machine::{MachineError, MachineState};

/// Why a request was not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(crate) struct Fault {
    /// What is wrong, in a sentence.
    pub(crate) fault_message: String,
}

/// How Firecracker's clients know that it is too late for something.
const TOO_LATE: &str = "The requested operation is not supported after starting the microVM";
/// How they know that it is too early.
const TOO_EARLY: &str = "The requested operation is not supported before starting the microVM";

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// What was asked for is wrong.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Berth cannot do this.
    pub(crate) fn lacks(field: &str, what: &str) -> Self {
        Self::bad(format!("{field}: {what}"))
    }

    /// Only a machine that has not started can do this.
    pub(crate) fn too_late(state: MachineState) -> Self {
        Self::bad(format!("{TOO_LATE}: it is {state}."))
    }

    /// Only a machine that has started can do this.
    pub(crate) fn too_early() -> Self {
        Self::bad(format!("{TOO_EARLY}."))
    }

    /// The body to send.
    pub(crate) fn body(&self) -> Vec<u8> {
        let fault = Fault {
            fault_message: self.message.clone(),
        };
        // A string is JSON whatever it holds.
        serde_json::to_vec(&fault).unwrap_or_default()
    }
}

impl From<MachineError> for ApiError {
    fn from(error: MachineError) -> Self {
        if let MachineError::State { state, .. } = error {
            return match state {
                MachineState::NotStarted => Self::bad(format!("{TOO_EARLY}: {error}.")),
                _ => Self::bad(format!("{TOO_LATE}: {error}.")),
            };
        }
        let status = if error.is_user() {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        Self::new(status, error.sentences().join("; "))
    }
}

impl From<Gone> for ApiError {
    fn from(gone: Gone) -> Self {
        Self::bad(format!("{gone}."))
    }
}
