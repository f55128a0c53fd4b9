//! What completes arguments in the user's shell: a script that asks Berth itself, which knows the names of VMs.

use std::env;
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, Shell};

use super::Cli;
use super::say::{complain, print, printed};
use crate::exit_code;
use crate::fleet::Fleet;

/// The variable by which a script asks.
const VARIABLE: &str = "BERTH_COMPLETE";

/// Answers a script that asks, and ends the program; returns if none does.
pub(super) fn answer() {
    if env::var_os(VARIABLE).is_some() {
        CompleteEnv::with_factory(Cli::command).var(VARIABLE).complete();
    }
}

/// Prints the script for `shell`.
pub(super) fn script(shell: Shell) -> u8 {
    let shells = Shells::builtins();
    let Some(completer) = shells.completer(&shell.to_string()) else {
        complain(&format_args!("shell: there are no completions for {shell}"));
        return exit_code::USER;
    };
    let mut script = Vec::new();
    match completer.write_registration(VARIABLE, "berth", "berth", "berth", &mut script) {
        Ok(()) => print(&String::from_utf8_lossy(&script)),
        Err(error) => printed(Err(error)),
    }
}

/// The VMs of the state directory, each with its state. One that `--state-dir` names is not looked at: who completes does not know
/// of it.
pub(super) fn vms() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let root = env::var_os("BERTH_STATE_DIR").map(PathBuf::from);
        let entries = Fleet::open(root).and_then(|fleet| fleet.list());
        // There is nobody to tell what is wrong.
        let entries = entries.unwrap_or_default().into_iter();
        let candidates = entries.map(|entry| {
            let state = entry.status().ok().map(|status| status.state.to_string().into());
            CompletionCandidate::new(entry.name()).help(state)
        });
        candidates.collect()
    })
}

/// Words that a value can be or begin with.
pub(super) fn words(words: &'static [&'static str]) -> ArgValueCandidates {
    ArgValueCandidates::new(|| words.iter().map(CompletionCandidate::new).collect())
}
