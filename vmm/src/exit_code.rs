//! What the `berth` program's exit code means. Everything that ends it takes its code from here.
//!
//! A command in the guest ends Berth with its own status, which may be any. Berth's codes for what it has to say itself lie
//! where few programs put theirs, and follow `timeout`, `env` and `docker run`: 124 for a time limit, 125 for a failure of
//! the runner rather than of what it runs, 128 and up for signals.
#![forbid(unsafe_code)]

use crate::spec::VmSpec;
use crate::stop::StopReason;

/// All went well; the guest shut down.
pub const OK: u8 = 0;
/// What the user asked for cannot be: a flag, a VM file, or a file or device it names.
pub const USER: u8 = 2;
/// The guest asked for a reset.
pub const RESET: u8 = 120;
/// The guest's kernel panicked.
pub const PANIC: u8 = 121;
/// The guest's CPU shut down at a triple fault.
pub const TRIPLE_FAULT: u8 = 122;
/// The guest still ran when its time was over.
pub const TIMEOUT: u8 = 124;
/// The host, KVM or Berth itself cannot go on.
pub const FAULT: u8 = 125;
/// Ended by a signal: this and the signal's number.
pub const SIGNAL: u8 = 128;

/// For the help of `berth run`.
pub const HELP: &str = "\
Exit codes:
  0         the guest shut down, or its command ended with 0
  N         the guest's command ended with status N
  2         an argument, a VM file, or a file or device they name is wrong
  120       the guest asked for a reset
  121       the guest's kernel panicked
  122       triple fault: the guest's CPU shut down
  124       the guest still ran after --timeout
  125       the host, KVM or Berth failed
  128+N     Berth was ended by signal N (130: by Ctrl-A x before the guest's command ended)
Each end but the first two comes with one sentence on standard error.";

/// The signal that a terminal's Ctrl-C sends; a command that is cut short by Ctrl-A x ends as if by it.
const SIGINT: u8 = 2;

/// The exit code for a VM described by `spec` that stopped for `reason`, and what to say about it.
pub fn of(reason: &StopReason, spec: &VmSpec) -> (u8, Option<String>) {
    let said = |code, sentence: &str| (code, Some(sentence.to_owned()));
    match reason {
        StopReason::Shutdown => (OK, None),
        StopReason::Exit(status) => (*status, None),
        StopReason::Reset => said(
            RESET,
            "the guest asked for a reset; berth run starts a guest once, so it ended",
        ),
        StopReason::Panicked(None) => said(PANIC, "the guest's kernel panicked; its console says why"),
        StopReason::Panicked(Some(message)) => {
            (PANIC, Some(format!("the guest's kernel panicked: {message}")))
        }
        StopReason::TripleFault => said(
            TRIPLE_FAULT,
            "the guest's CPU shut down at a triple fault: it could not even report a fault of its kernel",
        ),
        StopReason::TimedOut => {
            let limit = spec.timeout.unwrap_or_default();
            (
                TIMEOUT,
                Some(format!(
                    "the guest still ran after the timeout of {limit} s and was ended"
                )),
            )
        }
        StopReason::Killed(Some(signal)) => (
            of_signal(*signal),
            Some(format!("ended by signal {signal}{}", signal_name(*signal))),
        ),
        StopReason::Killed(None) if spec.command.is_empty() => (OK, None),
        StopReason::Killed(None) => said(
            SIGNAL + SIGINT,
            "ended by Ctrl-A x before the guest's command was done",
        ),
        StopReason::Fault(sentence) => said(FAULT, sentence),
    }
}

/// The exit code for an end by `signal`.
pub fn of_signal(signal: i32) -> u8 {
    SIGNAL.saturating_add(u8::try_from(signal).unwrap_or_default())
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        3 => " (SIGQUIT)",
        13 => " (SIGPIPE): nobody reads what the guest says",
        15 => " (SIGTERM)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_code_and_only_the_normal_ones_are_silent() {
        let shell = VmSpec {
            timeout: Some(5),
            ..VmSpec::default()
        };
        let command = VmSpec {
            command: vec!["true".to_owned()],
            ..VmSpec::default()
        };
        for (reason, spec, code, sentence) in [
            (StopReason::Shutdown, &shell, 0, None),
            (StopReason::Exit(0), &command, 0, None),
            (StopReason::Exit(121), &command, 121, None),
            (StopReason::Killed(None), &shell, 0, None),
            (
                StopReason::Killed(None),
                &command,
                130,
                Some("ended by Ctrl-A x before the guest's command was done"),
            ),
            (
                StopReason::Reset,
                &shell,
                120,
                Some("the guest asked for a reset; berth run starts a guest once, so it ended"),
            ),
            (
                StopReason::Panicked(None),
                &shell,
                121,
                Some("the guest's kernel panicked; its console says why"),
            ),
            (
                StopReason::Panicked(Some("no init".to_owned())),
                &shell,
                121,
                Some("the guest's kernel panicked: no init"),
            ),
            (
                StopReason::TripleFault,
                &shell,
                122,
                Some(
                    "the guest's CPU shut down at a triple fault: it could not even report a fault of its kernel",
                ),
            ),
            (
                StopReason::TimedOut,
                &shell,
                124,
                Some("the guest still ran after the timeout of 5 s and was ended"),
            ),
            (
                StopReason::Fault("KVM_RUN failed".to_owned()),
                &shell,
                125,
                Some("KVM_RUN failed"),
            ),
            (
                StopReason::Killed(Some(15)),
                &shell,
                143,
                Some("ended by signal 15 (SIGTERM)"),
            ),
            (
                StopReason::Killed(Some(13)),
                &command,
                141,
                Some("ended by signal 13 (SIGPIPE): nobody reads what the guest says"),
            ),
            (
                StopReason::Killed(Some(40)),
                &shell,
                168,
                Some("ended by signal 40"),
            ),
        ] {
            assert_eq!(
                of(&reason, spec),
                (code, sentence.map(str::to_owned)),
                "{reason:?}"
            );
        }
    }

    #[test]
    fn the_help_names_every_code() {
        for code in [OK, USER, RESET, PANIC, TRIPLE_FAULT, TIMEOUT, FAULT, SIGNAL] {
            assert!(
                HELP.lines()
                    .any(|line| line.trim().starts_with(&code.to_string())),
                "{code}"
            );
        }
    }
}
