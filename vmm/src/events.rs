//! What happens to a machine, told to whoever listens: the API's clients, the state directory's log of all VMs.
//!
//! The machine tells its [`EventHub`]; listeners are closures that must not block, or channels of bounded length whose
//! reader, if it falls too far behind, is dropped rather than waited for. An event is one JSON object:
//!
//! ```json
//! {"time":"2026-01-02T03:04:05.678901Z","id":"0123456789ab","name":"web","event":"stopped","reason":"shutdown","exit_code":0}
//! ```
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Serialize, Serializer};

/// How many events a listener that comes late can still be told.
const REMEMBERED: usize = 64;
/// How many events may wait in a channel before its reader counts as gone.
const CHANNEL: usize = 256;

/// Which VM it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// Twelve hexadecimal digits.
    pub id: String,
    /// What its user calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Identity {
    /// A VM without a name, with an id of its own.
    pub fn new() -> std::io::Result<Self> {
        let mut bytes = [0; 6];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        let number = bytes
            .iter()
            .fold(0_u64, |number, &byte| number << 8 | u64::from(byte));
        Ok(Self {
            id: format!("{number:012x}"),
            name: None,
        })
    }
}

/// Something that happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum EventKind {
    /// It exists and has not started.
    Created,
    /// Its guest runs.
    Started,
    /// Its guest says that it is ready.
    Ready,
    /// Its guest stands still.
    Paused,
    /// Its guest goes on.
    Resumed,
    /// Its state was saved.
    Snapshot {
        /// Where.
        path: PathBuf,
        /// `full` or `diff`.
        kind: &'static str,
    },
    /// It was made from a snapshot.
    Restored {
        /// Which.
        path: PathBuf,
    },
    /// Its guest's kernel panicked.
    Panicked {
        /// What the kernel said, where it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// It has ended.
    Stopped {
        /// Why, in a word: `shutdown`, `exit`, `reset`, `panicked`, `triple-fault`, `timed-out`, `killed` or `fault`.
        reason: &'static str,
        /// The exit code of its process.
        exit_code: u8,
        /// The sentence for its user, if there is something to say.
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// It is no more: its folder was removed.
    Removed,
}

/// An event, when it was, and to which VM it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// To which VM.
    #[serde(flatten)]
    pub vm: Identity,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

impl Event {
    /// What happens to `vm` now.
    pub fn now(vm: Identity, kind: EventKind) -> Self {
        Self {
            time: SystemTime::now(),
            vm,
            kind,
        }
    }

    /// The event as a line of JSON, without the line's end.
    pub fn to_json(&self) -> String {
        // Paths that are not UTF-8 are all that cannot be said in JSON; such an event is told without its details.
        serde_json::to_string(self).unwrap_or_else(|_| {
            format!(
                r#"{{"time":"{}","id":"{}","event":"unknown"}}"#,
                timestamp(self.time),
                self.vm.id
            )
        })
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&timestamp(*time))
}

/// A point in time as `2026-01-02T03:04:05.678901Z`.
pub fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_micros(time).to_string()
}

/// Told every event; says whether it wants more.
type Listener = Box<dyn FnMut(&Arc<Event>) -> bool + Send>;

#[derive(Default)]
struct Hub {
    past: VecDeque<Arc<Event>>,
    listeners: Vec<Listener>,
}

/// Where a machine's events go; to be cloned freely.
#[derive(Clone)]
pub struct EventHub {
    vm: Identity,
    hub: Arc<Mutex<Hub>>,
}

impl std::fmt::Debug for EventHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventHub")
            .field("vm", &self.vm)
            .finish_non_exhaustive()
    }
}

impl EventHub {
    /// A hub that nobody listens to yet.
    pub fn new(vm: Identity) -> Self {
        Self {
            vm,
            hub: Arc::default(),
        }
    }

    /// Whose events these are.
    pub fn vm(&self) -> &Identity {
        &self.vm
    }

    /// Tells everybody. Listeners are called here and now, one after the other.
    pub fn emit(&self, kind: EventKind) {
        let event = Arc::new(Event::now(self.vm.clone(), kind));
        let mut hub = self.hub.lock().unwrap_or_else(PoisonError::into_inner);
        hub.listeners.retain_mut(|listener| listener(&event));
        if hub.past.len() == REMEMBERED {
            hub.past.pop_front();
        }
        hub.past.push_back(event);
    }

    /// Calls `listener` for every event, those of the past first if it wants them, until it returns false. It must not
    /// block, and must not use the hub.
    pub fn listen(&self, past: bool, mut listener: impl FnMut(&Arc<Event>) -> bool + Send + 'static) {
        let mut hub = self.hub.lock().unwrap_or_else(PoisonError::into_inner);
        if !past || hub.past.iter().all(&mut listener) {
            hub.listeners.push(Box::new(listener));
        }
    }

    /// The same by a channel. It is closed from this end if its reader lets too many events wait.
    pub fn subscribe(&self, past: bool) -> Receiver<Arc<Event>> {
        let (sender, receiver) = mpsc::sync_channel(CHANNEL);
        self.listen(past, move |event| sender.try_send(event.clone()).is_ok());
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;
    use std::time::Duration;

    fn hub() -> EventHub {
        EventHub::new(Identity {
            id: "0123456789ab".to_owned(),
            name: Some("web".to_owned()),
        })
    }

    #[test]
    fn an_event_is_one_json_object_with_time_vm_and_details() {
        let event = Event {
            time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_323_045_678_901),
            vm: hub().vm().clone(),
            kind: EventKind::Stopped {
                reason: "shutdown",
                exit_code: 0,
                message: None,
            },
        };
        assert_eq!(
            event.to_json(),
            r#"{"time":"2026-01-02T03:04:05.678901Z","id":"0123456789ab","name":"web","event":"stopped","reason":"shutdown","exit_code":0}"#
        );
    }

    #[test]
    fn an_event_with_a_path_that_is_no_text_is_told_nevertheless() {
        let path = std::ffi::OsString::from_vec(vec![0xff]).into();
        let event = Event::now(Identity::new().unwrap(), EventKind::Restored { path });
        assert!(
            event.to_json().contains(r#""event":"unknown""#),
            "{}",
            event.to_json()
        );
    }

    #[test]
    fn who_comes_late_can_hear_the_past() {
        let hub = hub();
        hub.emit(EventKind::Created);
        let (all, fresh) = (hub.subscribe(true), hub.subscribe(false));
        hub.emit(EventKind::Started);
        let kinds = |receiver: Receiver<Arc<Event>>| -> Vec<_> {
            receiver.try_iter().map(|event| event.kind.clone()).collect()
        };
        assert_eq!(kinds(all), [EventKind::Created, EventKind::Started]);
        assert_eq!(kinds(fresh), [EventKind::Started]);
    }

    #[test]
    fn a_reader_that_falls_behind_is_dropped_and_nobody_waits_for_it() {
        let hub = hub();
        let slow = hub.subscribe(false);
        for _ in 0..=CHANNEL {
            hub.emit(EventKind::Paused);
        }
        assert_eq!(slow.iter().count(), CHANNEL);
        assert!(hub.hub.lock().unwrap().listeners.is_empty());
        assert_eq!(hub.subscribe(true).try_iter().count(), REMEMBERED);
    }

    #[test]
    fn ids_are_twelve_hexadecimal_digits_and_differ() {
        let (one, other) = (Identity::new().unwrap(), Identity::new().unwrap());
        assert_ne!(one, other);
        assert!(one.id.len() == 12 && one.id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
