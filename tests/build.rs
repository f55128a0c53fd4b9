//! Builds the test guests from source: `guests/` holds C and assembly for ring 0, made with the system's C compiler, and in `guests/io`
//! a guest in Rust, most of which runs in ring 3.
#![forbid(unsafe_code)]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// No vector registers, no red zone, nothing that needs a runtime: the code runs in ring 0, on some hosts in an emulator.
const FLAGS: &[&str] = &[
    "-std=gnu11",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-mgeneral-regs-only",
    "-mno-red-zone",
    "-fno-stack-protector",
    "-fno-pic",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,--no-warn-rwx-segments",
    "-Wl,-z,max-page-size=4096",
];

fn main() {
    println!("cargo::rerun-if-changed=guests");
    build("guest", "guest.ld", &["entry.S", "guest.c", "hostile.c"]);
    build("byte", "byte.ld", &["byte.S"]);
    build_program("vectors", "vectors.c");
    build_program("init", "init.c");
    println!("cargo::rerun-if-changed=../resources/guest/init/request.h");
    build_program("words", "words.c");
    build_program("sockets", "sockets.c");
    build_program("load", "load.c");
    build_program("facts", "facts.c");
    build_rust("io-guest", "io");
}

fn guests() -> PathBuf {
    PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("guests")
}

fn output(name: &str) -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join(name)
}

/// A kernel.
fn build(name: &str, script: &str, sources: &[&str]) {
    let mut command = Command::new("gcc");
    command.args(FLAGS).arg("-T").arg(script).args(sources);
    run(command, name);
}

/// A program for Linux in the guest, static, so that it runs on any root.
fn build_program(name: &str, source: &str) {
    let mut command = Command::new("gcc");
    command.args([
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-static",
        source,
    ]);
    run(command, name);
}

/// A kernel in Rust without a standard library: the folder has `main.rs` and `guest.ld`.
///
/// It is not a package of the workspace because it is linked like a kernel, whatever the workspace is built for and however.
fn build_rust(name: &str, folder: &str) {
    const LINK: &str =
        "-Wl,-T,guest.ld,--build-id=none,-z,noexecstack,--no-warn-rwx-segments,-z,max-page-size=4096";
    let mut command = Command::new(env::var_os("RUSTC").expect("cargo sets it"));
    command
        .args(["--crate-name", "io_guest", "--edition", "2024", "-D", "warnings"])
        .args(["--target", "x86_64-unknown-linux-gnu", "-C", "linker=gcc"])
        .args([
            "-C",
            "opt-level=2",
            "-C",
            "panic=abort",
            "-C",
            "relocation-model=static",
        ])
        .args(
            ["-nostartfiles", "-nostdlib", "-static", "-no-pie", LINK]
                .map(|word| format!("-Clink-arg={word}")),
        )
        .arg("main.rs");
    run_in(command, name, &guests().join(folder));
}

fn run(command: Command, name: &str) {
    run_in(command, name, &guests());
}

fn run_in(mut command: Command, name: &str, folder: &Path) {
    command.current_dir(folder).arg("-o").arg(output(name));
    match command.status() {
        Ok(status) if status.success() => (),
        Ok(status) => panic!("building the test guest {name} failed ({status}): {command:?}"),
        Err(error) => panic!("the test guests need gcc (package gcc): {error}"),
    }
}
