//! The `berth` program: its arguments, its verbs, and what it says.
#![forbid(unsafe_code)]

use std::backtrace::Backtrace;
use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::path::Path;
use std::process::{self, ExitCode};
use std::time::Instant;

use berth_devices::contained;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use schemars::schema_for;

mod args;
mod cache;
mod completion;
mod deferred;
mod firecracker;
mod fleet;
mod image;
mod kernel;
mod refusal;
mod run;
mod say;
mod snapshot;
mod test;

pub use args::{
    Cli, Command, DoctorArgs, EntryArg, RunArgs, SchemaArg, SnapshotArgs, SnapshotInfoArgs,
    SnapshotMergeArgs, SnapshotVerb,
};
pub use run::resolve;
pub use test::TestArgs;

use crate::boot_test::file::TestFile;
use crate::spec::VmSpec;
use crate::{doctor, exit_code};
use deferred::Deferred;
use say::{complain, print, printed};

/// Runs the program with the process's arguments. `start` is when it began.
pub fn main(start: Instant) -> ExitCode {
    end_on_panic();
    completion::answer();
    let cli = match Cli::try_parse_from(words()) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error).into(),
    };
    let code = match cli.command {
        Command::Run(Deferred(args)) => run::run(*args, start),
        Command::Firecracker(Deferred(args)) => firecracker::run(*args, start),
        Command::Create(Deferred(args)) => fleet::create(*args),
        Command::Start(Deferred(args)) => fleet::start(args),
        Command::Stop(Deferred(args)) => fleet::stop(args),
        Command::Kill(Deferred(args)) => fleet::kill(args),
        Command::Pause(Deferred(args)) => fleet::pause(args),
        Command::Resume(Deferred(args)) => fleet::resume(args),
        Command::Ps(Deferred(args)) => fleet::ps(args),
        Command::Inspect(Deferred(args)) => fleet::inspect(args),
        Command::Console(Deferred(args)) => fleet::console(args),
        Command::Logs(Deferred(args)) => fleet::logs(args),
        Command::Restore(Deferred(args)) => fleet::restore(args),
        Command::Fork(Deferred(args)) => fleet::fork(args),
        Command::Wait(Deferred(args)) => fleet::wait(&args),
        Command::Rm(Deferred(args)) => fleet::remove(args),
        Command::Events(Deferred(args)) => fleet::events(args),
        Command::Image(Deferred(args)) => image::run(&args),
        Command::Kernel(Deferred(args)) => kernel::run(&args),
        Command::Cache(Deferred(args)) => cache::run(&args),
        Command::Doctor(Deferred(args)) => examine(&args),
        Command::Snapshot(Deferred(args)) => match &args.verb {
            Some(verb) => snapshot::run(verb),
            None => fleet::snapshot(args.save),
        },
        Command::Test(Deferred(args)) => test::run(&args),
        Command::Schema { of } => print(&schema(of.unwrap_or_default())),
        Command::Man { folder } => manual(folder.as_deref()),
        Command::Completions { shell } => completion::script(shell),
    };
    code.into()
}

/// The process's arguments; under Firecracker's name they are those of that verb.
fn words() -> Vec<OsString> {
    let mut words: Vec<OsString> = env::args_os().collect();
    if firecracker::is_called(words.first()) {
        words.splice(..1, ["berth", "firecracker"].map(Into::into));
    }
    words
}

/// Prints or writes the manual pages.
fn manual(folder: Option<&Path>) -> u8 {
    let Some(folder) = folder else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
        return match rendered {
            Ok(()) => print(&String::from_utf8_lossy(&page)),
            Err(error) => printed(Err(error)),
        };
    };
    match clap_mangen::generate_to(Cli::command(), folder) {
        Ok(()) => exit_code::OK,
        Err(error) => {
            complain(&format_args!(
                "{}: manual pages cannot be written: {error}",
                folder.display()
            ));
            exit_code::USER
        }
    }
}

/// What clap does not pass on: its help goes where it wants, a mistake is one sentence.
fn refuse(error: &clap::Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => printed(error.print()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // To standard error; if nobody reads it, the exit code must do.
            let _ = error.print();
            exit_code::USER
        }
        _ => {
            complain(&refusal::sentence(error));
            exit_code::USER
        }
    }
}

fn examine(args: &DoctorArgs) -> u8 {
    let report = berth_arch::probe::report();
    let printed = if args.json {
        print(&doctor::json(&report))
    } else {
        print(&doctor::text(
            &report,
            doctor::unicode(|name| env::var(name).ok()),
        ))
    };
    if printed == exit_code::OK {
        doctor::exit_code(&report)
    } else {
        printed
    }
}

/// The JSON Schema of VM files or test files.
pub fn schema(of: SchemaArg) -> String {
    let schema = match of {
        SchemaArg::Vm => schema_for!(VmSpec),
        SchemaArg::Test => schema_for!(TestFile),
    };
    // A schema is JSON already: writing it cannot fail.
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}

/// From here on a panic of any thread ends the program with one sentence: a VM with a thread missing would only hang. Libraries whose
/// panics are caught are another matter.
pub fn end_on_panic() {
    panic::set_hook(Box::new(|info| {
        if contained::is_here() {
            // Whoever catches it says what it means.
            tracing::error!("{info}");
        } else {
            report_panic(info);
        }
    }));
}

fn report_panic(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = info
        .location()
        .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    complain(&format_args!(
        "a fault in Berth itself at {place}: {message}; please report it at {}/issues",
        env!("CARGO_PKG_REPOSITORY")
    ));
    if env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        let _ = writeln!(io::stderr(), "{}", Backtrace::force_capture());
    }
    process::exit(exit_code::FAULT.into());
}

#[cfg(test)]
mod tests;
