//! Starting a VM's process in the background: Berth itself once more, apart from the terminal, watched until its guest runs.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{Entry, Fleet, FleetError, error::io_error, process};
use crate::exit_code;

/// A VM whose process has been started and has not said yet that its guest runs.
#[derive(Debug)]
pub struct Launch {
    child: Child,
    entry: Entry,
}

/// Starts the process of `entry`.
pub fn begin(fleet: &Fleet, entry: &Entry) -> Result<Launch, FleetError> {
    let program = program();
    let child = Command::new(&program)
        .arg0("berth")
        .args(["run", "--state-dir"])
        .arg(fleet.root())
        .arg("--managed")
        .arg(entry.folder())
        .current_dir(entry.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io_error("started", &program))?;
    Ok(Launch {
        child,
        entry: entry.clone(),
    })
}

/// The program that runs: the file it was started from, or, once that was replaced, what the kernel still has of it.
pub(crate) fn program() -> PathBuf {
    match std::env::current_exe() {
        Ok(path) if path.exists() => path,
        _ => Path::new("/proc/self/exe").to_owned(),
    }
}

impl Launch {
    /// Which VM.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Waits until the guest runs, or says in the process's own words why it does not.
    pub fn finish(mut self) -> Result<Entry, FleetError> {
        let (mut said, mut complaints) = (Vec::new(), String::new());
        // Both are closed when the guest runs or when the process ends, and hold a few lines at most.
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut complaints);
        }
        if let Some(mut stdout) = self.child.stdout.take() {
            let _ = stdout.read_to_end(&mut said);
        }
        if said == process::STARTED {
            return Ok(self.entry);
        }
        let status = self
            .child
            .wait()
            .map_err(io_error("started", self.entry.folder()))?;
        let mut sentences: Vec<_> = complaints
            .lines()
            .map(|line| line.strip_prefix("berth: ").unwrap_or(line).to_owned())
            .collect();
        if sentences.is_empty() {
            sentences.push(format!(
                "{}: its process ended before its guest ran: {status}",
                self.entry.name()
            ));
        }
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Err(FleetError::Start {
            sentences,
            code: code
                .filter(|&code| code != exit_code::OK)
                .unwrap_or(exit_code::FAULT),
        })
    }
}
