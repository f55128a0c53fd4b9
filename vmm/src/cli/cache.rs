//! `berth cache`: what warm starts keep.

use std::fmt::Write;
use std::path::Path;

use super::args::{CacheArgs, CacheVerb};
use super::say::{complain, print};
use crate::exit_code;
use crate::spec::Fault;
use crate::warm::{self, Listed};

/// Runs it. Returns the exit code.
pub(super) fn run(args: &CacheArgs) -> u8 {
    let Some(folder) = warm::folder() else {
        complain(&Fault::new(
            "BERTH_CACHE_DIR",
            "there is no home folder to keep booted guests in; name a folder, by its full path",
        ));
        return exit_code::USER;
    };
    match args.verb {
        None => show(&folder, args.json),
        Some(CacheVerb::Clear) => match warm::clear(&folder) {
            Ok(freed) => print(&format!("{} MiB freed\n", freed.div_ceil(1 << 20))),
            Err(cause) => failed(&folder, &cause),
        },
    }
}

fn show(folder: &Path, json: bool) -> u8 {
    let list = match warm::list(folder) {
        Ok(list) => list,
        Err(cause) => return failed(folder, &cause),
    };
    if json {
        // Paths and numbers can be written as JSON, unless a path is not text.
        return match serde_json::to_string_pretty(&list) {
            Ok(text) => print(&format!("{text}\n")),
            Err(cause) => failed(folder, &cause),
        };
    }
    print(&table(folder, &list))
}

fn table(folder: &Path, list: &[Listed]) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let total: u64 = list.iter().map(|entry| entry.bytes).sum();
    let mut text = format!(
        "{} booted guests, {} MiB, in {}\n",
        list.len(),
        mib(total),
        folder.display()
    );
    for entry in list {
        let name = entry.path.file_name().unwrap_or_default().to_string_lossy();
        let used = std::time::UNIX_EPOCH + std::time::Duration::from_secs(entry.used);
        let used = humantime::format_rfc3339_seconds(used);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name}  {:>5} MiB  last used {used}", mib(entry.bytes));
    }
    text
}

fn failed(folder: &Path, cause: &dyn std::fmt::Display) -> u8 {
    complain(&format_args!("{}: {cause}", folder.display()));
    exit_code::USER
}
