//! Ports of the guest's console in a description.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::options::{OptionError, key_value, lossy, set, split};
use super::validate::Faults;
use crate::unix::PATH_MAX;

const FORM: &str = "name=NAME and socket=PATH, file=PATH or null";
/// A name's length in bytes; it is a file's name in Linux guests.
const NAME_MAX: usize = 64;

/// A port of the virtio console. The first one is a console (`hvc0` in Linux), the others are known by their names
/// (`/dev/virtio-ports/NAME`). Without a place its output goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSpec {
    /// What the guest calls the port.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// A Unix socket at this path, for one client at a time.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// Output is appended to this file; there is no input.
    #[serde(default)]
    pub file: Option<PathBuf>,
}

impl ConsoleSpec {
    /// Reads `name=NAME` and `socket=PATH`, `file=PATH` or `null`, in any order.
    pub fn from_option(text: &OsStr) -> Result<Self, OptionError> {
        let (mut name, mut port, mut null) = (None, Self::default(), false);
        for part in split(text) {
            let place = |value: &[u8]| Some(PathBuf::from(OsStr::from_bytes(value)));
            let (twice, option) = match key_value(&part) {
                (b"name", Some(value)) => {
                    set(&mut name, value, "name")?;
                    (false, "name")
                }
                (b"socket", Some(value)) => (
                    std::mem::replace(&mut port.socket, place(value)).is_some(),
                    "socket",
                ),
                (b"file", Some(value)) => (std::mem::replace(&mut port.file, place(value)).is_some(), "file"),
                (b"null", None) => (std::mem::replace(&mut null, true), "null"),
                _ => {
                    return Err(OptionError::Unknown {
                        option: lossy(&part),
                        form: FORM,
                    });
                }
            };
            if twice {
                return Err(OptionError::Twice(option));
            }
        }
        if [port.socket.is_some(), port.file.is_some(), null]
            .iter()
            .filter(|place| **place)
            .count()
            != 1
        {
            return Err(OptionError::Missing {
                text: lossy(text),
                what: "place, or more than one",
                form: FORM,
            });
        }
        Ok(Self {
            name: name.unwrap_or_default(),
            ..port
        })
    }

    /// Every path in it.
    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.socket.iter_mut().chain(&mut self.file)
    }

    /// Every path in it.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.socket.iter().chain(&self.file)
    }
}

/// Finds what is wrong with the ports.
pub(super) fn check(faults: &mut Faults, ports: &[ConsoleSpec]) {
    let most = berth_devices::virtio::console::MAX_PORTS;
    if ports.len() > most {
        let count = ports.len();
        faults.add(
            "consoles",
            format!("{count} ports are more than a console has; leave some out, {most} are the most"),
        );
        return;
    }
    for (index, port) in ports.iter().enumerate() {
        let field = format!("console {}", index + 1);
        let name = &port.name;
        if name.len() > NAME_MAX {
            let length = name.len();
            faults.add(
                &field,
                format!("the name {name:?} has {length} characters; it can have at most {NAME_MAX}"),
            );
        } else if let Some(character) = name.chars().find(|c| !c.is_ascii_graphic() || *c == '/') {
            faults.add(
                &field,
                format!("the name {name:?} holds {character:?}; name one such as agent.0"),
            );
        } else if !name.is_empty()
            && let Some(other) = ports[..index].iter().position(|other| other.name == *name)
        {
            faults.add(
                &field,
                format!(
                    "the name {name} is console {}'s already; give it another",
                    other + 1
                ),
            );
        }
        if port.socket.is_some() && port.file.is_some() {
            faults.add(&field, "a port leads to one place; give a socket or a file");
        }
        if let Some(path) = &port.file {
            faults.path(&field, path, "name a file, as in file=console.log");
        }
        if let Some(path) = &port.socket {
            faults.path(&field, path, "name a socket, as in socket=console.sock");
            let length = path.as_os_str().len();
            if length > PATH_MAX {
                let path = path.display();
                faults.add(
                    &field,
                    format!("the socket's path {path} has {length} bytes; Linux allows {PATH_MAX}"),
                );
            }
            let others = ports[..index]
                .iter()
                .position(|other| other.socket.as_ref() == Some(path));
            if let Some(other) = others {
                let path = path.display();
                faults.add(
                    &field,
                    format!(
                        "the socket {path} is console {}'s already; give it another",
                        other + 1
                    ),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Fault, Limits, VmSpec, validate};

    #[test]
    fn the_flag_names_a_port_and_one_place() {
        let read = |text: &str| ConsoleSpec::from_option(text.as_ref());
        let socket = ConsoleSpec {
            name: "agent".to_owned(),
            socket: Some("a,b".into()),
            file: None,
        };
        assert_eq!(read("socket=a,,b,name=agent"), Ok(socket));
        assert_eq!(read("null"), Ok(ConsoleSpec::default()));
        for (text, expected) in [
            (
                "name=x",
                "\"name=x\" names no place, or more than one; write it as name=NAME and socket=PATH, file=PATH or null",
            ),
            (
                "null,file=x",
                "\"null,file=x\" names no place, or more than one; write it as name=NAME and socket=PATH, file=PATH or null",
            ),
            ("file=x,file=y", "the option file is given twice; give it once"),
            (
                "pty",
                "unknown option \"pty\"; it takes name=NAME and socket=PATH, file=PATH or null, and a comma that is part of a name \
                 is written twice",
            ),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn ports_have_names_and_places_of_their_own() {
        let port = |name: &str, socket: Option<&str>, file: Option<&str>| ConsoleSpec {
            name: name.to_owned(),
            socket: socket.map(Into::into),
            file: file.map(Into::into),
        };
        let faults = |consoles: Vec<ConsoleSpec>| -> Vec<String> {
            let spec = VmSpec {
                consoles,
                ..VmSpec::default()
            };
            let faults = validate(&spec, Limits::NONE).err().unwrap_or_default();
            faults.iter().map(Fault::to_string).collect()
        };
        let fine = vec![
            port("", None, None),
            port("a", Some("s"), None),
            port("", None, Some("f")),
        ];
        assert_eq!(faults(fine), Vec::<String>::new());
        let found = faults(vec![
            port("a", Some("s"), Some("f")),
            port("a", Some("s"), None),
            port("a/b", Some(""), None),
        ]);
        let expected = [
            "console 1: a port leads to one place; give a socket or a file",
            "console 2: the name a is console 1's already; give it another",
            "console 2: the socket s is console 1's already; give it another",
            "console 3: the name \"a/b\" holds '/'; name one such as agent.0",
            "console 3: the path is empty; name a socket, as in socket=console.sock",
        ];
        assert_eq!(found, expected);
        let many = vec![ConsoleSpec::default(); 17];
        assert_eq!(
            faults(many),
            ["consoles: 17 ports are more than a console has; leave some out, 16 are the most"]
        );
    }
}
