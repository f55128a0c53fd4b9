//! The `berth` program under test, built if it is not there.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// The program in the profile of the code that calls, so that tests run it with its assertions and benchmarks without.
///
/// Cargo builds it first, so that no test runs yesterday's. The variable `BERTH` names another one to test.
pub fn berth() -> &'static Path {
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| match env::var_os("BERTH") {
        Some(path) => PathBuf::from(path),
        None => build("berth", "berth"),
    });
    &PATH
}

/// The floor of the start-up benchmark.
pub fn floor() -> &'static Path {
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| build("berth-tests", "floor"));
    &PATH
}

/// The I/O benchmark (`bin/io-bench`).
pub fn io_bench() -> &'static Path {
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| build("berth-tests", "io-bench"));
    &PATH
}

/// A page-fault handler (`bin/pager.rs`).
pub fn pager() -> &'static Path {
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| build("berth-tests", "pager"));
    &PATH
}

/// What kills a program at a chosen step (`bin/killer.rs`).
pub fn killer() -> &'static Path {
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| build("berth-tests", "killer"));
    &PATH
}

/// The target that `.cargo/config.toml` names; what is built for it lies in a folder of that name.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The folder of the running program's profile, where cargo puts programs.
fn profile_folder() -> PathBuf {
    let own = env::current_exe().expect("the system names the running program");
    let folder = own.parent().expect("a program lies in a folder");
    let folder = if folder.ends_with("deps") {
        folder.parent().expect("deps lies in the profile's folder")
    } else {
        folder
    };
    folder.to_owned()
}

/// Cargo's target folder, which holds everything that it makes.
fn target_folder() -> PathBuf {
    let profile = profile_folder();
    let folder = profile.parent().expect("a profile lies in the target folder");
    let folder = if folder.ends_with(TARGET) {
        folder.parent().expect("a target's folder lies in cargo's")
    } else {
        folder
    };
    folder.to_owned()
}

/// A folder that outlives a run of the tests, for what is costly to make.
pub fn cache() -> PathBuf {
    let folder = target_folder().join("berth-tests");
    std::fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    folder
}

fn build(package: &str, program: &str) -> PathBuf {
    let folder = profile_folder();
    let profile = folder
        .file_name()
        .expect("a profile has a name")
        .to_string_lossy();
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            package,
            "--bin",
            program,
            "--profile",
        ])
        .arg(if profile == "debug" { "dev" } else { &profile })
        .arg("--target-dir")
        .arg(target_folder())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cargo, to build {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} does not build: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    folder.join(program)
}
