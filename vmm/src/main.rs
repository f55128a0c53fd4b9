//! The `berth` program. All of it is in the library, where tests reach it.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    berth::cli::main(Instant::now())
}
