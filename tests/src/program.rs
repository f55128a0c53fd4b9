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

/// Where cargo puts what it makes, and the name of the profile there.
fn target() -> (PathBuf, String) {
    let own = env::current_exe().expect("the system names the running program");
    let mut folder = own.parent().expect("a program lies in a folder");
    if folder.ends_with("deps") {
        folder = folder.parent().expect("deps lies in the profile's folder");
    }
    let profile = folder
        .file_name()
        .expect("a profile has a name")
        .to_string_lossy();
    let target = folder.parent().expect("a profile lies in the target folder");
    (target.to_owned(), profile.into_owned())
}

/// A folder that outlives a run of the tests, for what is costly to make.
pub fn cache() -> PathBuf {
    let folder = target().0.join("berth-tests");
    std::fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    folder
}

fn build(package: &str, program: &str) -> PathBuf {
    let (target, profile) = target();
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
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cargo, to build {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} does not build: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    target.join(profile).join(program)
}
