//! Reading ahead what a restored machine needs until it is ready, as the machine before it did.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use crate::memory::image::{Identity, Origin};
use crate::memory::working_set::{WorkingSet, path_beside};
use crate::snapshot::Found;
use crate::vm::Vm;

/// Where the record of what a machine needed is.
pub(super) struct Ahead {
    path: PathBuf,
}

/// A record to be made when the machine is ready, or ends.
pub(super) struct Record {
    path: PathBuf,
    identity: Identity,
}

impl Ahead {
    pub(super) fn of(found: &Found) -> Self {
        Self {
            path: path_beside(&found.memory),
        }
    }

    /// Has the pages of the record read, or has one made if there is none that can be used.
    pub(super) fn begin(self, vm: &Vm) -> Option<Record> {
        let path = self.path;
        let (memory, origin) = vm.memory();
        let Origin::Image(image) = origin else { return None };
        let identity = image.identity;
        match WorkingSet::read(&path, identity) {
            Ok(Some(set)) => {
                if let Err(error) = set.prefetch(memory.clone()) {
                    tracing::warn!("nothing is read ahead: no thread for it: {error}");
                }
                return None;
            }
            Ok(None) => tracing::info!("{}: there is no record of pages yet; it is made", path.display()),
            Err(error) => tracing::warn!("{}: {error}; it is made anew", path.display()),
        }
        Some(Record { path, identity })
    }
}

impl Record {
    /// Writes down what `vm` has touched until now.
    pub(super) fn make(self, vm: &Vm) {
        let (memory, _) = vm.memory();
        let made = WorkingSet::of(memory).and_then(|set| {
            set.write(&self.path, self.identity)?;
            Ok(set.bytes())
        });
        match made {
            Ok(bytes) => tracing::info!("{}: {} KiB of working set", self.path.display(), bytes >> 10),
            Err(error) => tracing::warn!("{}: cannot be written: {error}", self.path.display()),
        }
    }
}
