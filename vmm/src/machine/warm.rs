//! Warm starts: a guest that was saved when it was ready, or that is now.

use super::{LoadRequest, Machine, MachineError, Overrides};
use crate::guest::{self, Streams};
use crate::snapshot::SnapshotTarget;
use crate::spec::{self, Fault, Limits, VmSpec};
use crate::warm::{self, Entry};

/// Bytes of the words for a command that a waiting guest has room for, with what comes before them to spare.
const COMMAND_MOST: usize = 64_000;

fn check_command(spec: &VmSpec) -> Result<(), MachineError> {
    let bytes = guest::init_words(spec, Streams::Piped).len();
    if bytes <= COMMAND_MOST {
        return Ok(());
    }
    let message = format!(
        "its words take {bytes} bytes, more than the {COMMAND_MOST} that the shipped guest can be told; put them in a script on a disk \
         or on its standard input"
    );
    Err(MachineError::Faults(vec![Fault::new("command", message)]))
}

impl Machine {
    /// Starts the guest from `entry` if it is there; otherwise boots it and keeps it there when it is ready.
    pub fn start_warm(&mut self, entry: Entry) -> Result<(), MachineError> {
        check_command(&self.spec)?;
        if let Some(from) = entry.snapshot() {
            match self.restore_warm(from) {
                Ok(()) => return Ok(()),
                // Only what is wrong with the entry is a reason to boot: a boot would meet all else again.
                Err(error) if !error.is_of_snapshot() => return Err(error),
                Err(error) => {
                    tracing::warn!("the guest kept in the cache cannot be used, so it boots: {error}");
                    entry.remove();
                }
            }
        }
        let shipped = self.spec.kernel.is_none();
        self.boot(shipped)?;
        if !shipped {
            // What is kept must hold nothing of what this run is fed.
            self.live("be held")?.console.input.hold();
        }
        self.warming = Some(entry);
        Ok(())
    }

    fn restore_warm(&mut self, from: SnapshotTarget) -> Result<(), MachineError> {
        let spec = spec::validate(&self.spec, Limits::of_host(&self.spec)).map_err(MachineError::Faults)?;
        let streams = self.streams(&spec);
        let shipped = spec.kernel.is_none();
        self.load(&LoadRequest {
            from,
            resume: !shipped,
            overrides: Overrides {
                serial: Some(spec.serial.clone()),
                timeout: spec.timeout,
                command: Some(spec.command.clone()),
                streams: Some(streams),
                // The shipped guest is told the time.
                keep_clock: shipped,
                ..Overrides::default()
            },
            verify: false,
            handler: None,
            prefetch: false,
        })?;
        if !shipped {
            return Ok(());
        }
        self.instruct(streams)?;
        self.resume()
    }

    /// The guest says that it is ready. If it boots to be kept, it is, and then told what to run.
    pub(crate) fn guest_is_ready(&mut self) -> Result<(), MachineError> {
        let Some(entry) = self.warming.take() else {
            return Ok(());
        };
        if let Err(error) = self.keep(&entry) {
            // The next start will be as slow as this one; nothing else is lost.
            tracing::warn!("the booted guest cannot be kept: {error}");
        }
        let live = self.live("be told what to run")?;
        if live.spec.kernel.is_some() {
            live.console.input.say(&[]);
            return Ok(());
        }
        let streams = live.vm.streams();
        self.instruct(streams)
    }

    fn keep(&mut self, entry: &Entry) -> Result<(), MachineError> {
        let host = |cause: std::io::Error| MachineError::Host {
            what: "a place in the cache",
            cause: std::io::Error::new(cause.kind(), format!("{}: {cause}", entry.folder().display())),
        };
        let request = entry.request().map_err(host)?;
        self.pause()?;
        let saved = self.snapshot(&request);
        self.resume()?;
        saved?;
        entry.keep().map_err(host)
    }

    /// Tells the waiting guest what to run.
    fn instruct(&mut self, streams: Streams) -> Result<(), MachineError> {
        let line = warm::words(&self.spec, streams).map_err(|cause| MachineError::Host {
            what: "random bytes",
            cause,
        })?;
        self.live("be told what to run")?
            .console
            .input
            .say(line.as_bytes());
        Ok(())
    }
}
