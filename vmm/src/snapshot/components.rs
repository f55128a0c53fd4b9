//! The parts of a machine's state, each under a name and a version of its own.
//!
//! Rules: a component's state is a serde type with a version. A field is added, removed or changed in meaning only together with
//! a new version. A Berth that meets a component or a version that it does not know refuses the snapshot by name; it never
//! guesses. A Berth may read older versions for as long as somebody takes care of that.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A machine's state by the names of its parts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Components(BTreeMap<String, Component>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Component {
    version: u32,
    state: Value,
}

/// Why components do not make a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComponentError {
    /// It is not there.
    #[error("the component {name:?}, which this machine has, is missing")]
    Missing {
        /// Its name.
        name: String,
    },
    /// Nobody took it.
    #[error("the component {name:?} is not known to this Berth")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// Of another version.
    #[error("the component {name:?} has version {found}, but this Berth reads version {expected}")]
    Version {
        /// Its name.
        name: String,
        /// Its version.
        found: u32,
        /// What can be read.
        expected: u32,
    },
    /// Its state does not fit.
    #[error("the component {name:?} cannot be read: {cause}")]
    State {
        /// Its name.
        name: String,
        /// What is wrong.
        cause: String,
    },
}

impl Components {
    /// Adds a component.
    pub fn put(
        &mut self,
        name: impl Into<String>,
        version: u32,
        state: &impl Serialize,
    ) -> Result<(), ComponentError> {
        let name = name.into();
        let state = serde_json::to_value(state).map_err(|error| ComponentError::State {
            name: name.clone(),
            cause: error.to_string(),
        })?;
        self.0.insert(name, Component { version, state });
        Ok(())
    }

    /// Takes a component out.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str, version: u32) -> Result<T, ComponentError> {
        let component = self.0.remove(name).ok_or_else(|| ComponentError::Missing {
            name: name.to_owned(),
        })?;
        if component.version != version {
            return Err(ComponentError::Version {
                name: name.to_owned(),
                found: component.version,
                expected: version,
            });
        }
        serde_path_to_error::deserialize(component.state).map_err(|error| ComponentError::State {
            name: name.to_owned(),
            cause: error.to_string(),
        })
    }

    /// All must have been taken.
    pub fn finish(self) -> Result<(), ComponentError> {
        match self.0.into_keys().next() {
            Some(name) => Err(ComponentError::Unknown { name }),
            None => Ok(()),
        }
    }

    /// Names and versions.
    pub fn names(&self) -> impl Iterator<Item = (&str, u32)> {
        self.0
            .iter()
            .map(|(name, component)| (name.as_str(), component.version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_taken_once_and_the_rest_is_named() {
        let mut components = Components::default();
        components.put("a", 1, &[1, 2]).unwrap();
        components.put("b", 3, &"x").unwrap();
        assert_eq!(components.take::<Vec<u8>>("a", 1), Ok(vec![1, 2]));
        assert!(matches!(
            components.take::<Vec<u8>>("a", 1),
            Err(ComponentError::Missing { .. })
        ));
        assert!(matches!(
            components.clone().take::<String>("b", 4),
            Err(ComponentError::Version {
                found: 3,
                expected: 4,
                ..
            })
        ));
        assert!(matches!(
            components.clone().take::<u8>("b", 3),
            Err(ComponentError::State { .. })
        ));
        assert_eq!(
            components.finish(),
            Err(ComponentError::Unknown { name: "b".to_owned() })
        );
    }
}
