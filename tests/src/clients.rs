//! Clients of Firecracker's API and a reader of reports that nobody here wrote (`clients/`), in a Python environment of the tests' own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use sha2::{Digest, Sha256};

use crate::{program, tools};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");
const REQUIREMENTS: &str = include_str!("../clients/requirements.txt");

/// Runs a script of `clients/` with these arguments; it must succeed, and say that it did all it was to do. Gives what it said before.
pub fn drive<S: AsRef<OsStr>>(script: &str, arguments: impl IntoIterator<Item = S>) -> String {
    let mut words = vec![Path::new(FOLDER).join(script).into_os_string()];
    words.extend(arguments.into_iter().map(|word| word.as_ref().to_owned()));
    let output = tools::run(&python().to_string_lossy(), words);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match said.strip_suffix("driven\n") {
        Some(said) => said.to_owned(),
        None => panic!("{script}: {said}"),
    }
}

/// The interpreter that knows the packages.
fn python() -> &'static Path {
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
        let sum = Sha256::digest(REQUIREMENTS);
        let name = sum
            .iter()
            .take(6)
            .fold(0_u64, |name, &byte| name << 8 | u64::from(byte));
        let folder = program::cache().join(format!("clients-{name:012x}"));
        let python = folder.join("bin/python3");
        let done = folder.join("done");
        if !done.exists() {
            let requirements = Path::new(FOLDER).join("requirements.txt");
            tools::run(
                "python3",
                [
                    OsStr::new("-m"),
                    "venv".as_ref(),
                    "--clear".as_ref(),
                    folder.as_ref(),
                ],
            );
            let pip: [&OsStr; 9] = [
                "-m".as_ref(),
                "pip".as_ref(),
                "install".as_ref(),
                "--quiet".as_ref(),
                "--disable-pip-version-check".as_ref(),
                "--require-hashes".as_ref(),
                "--ignore-requires-python".as_ref(),
                "--requirement".as_ref(),
                requirements.as_ref(),
            ];
            tools::run(&python.to_string_lossy(), pip);
            std::fs::write(&done, "").expect("the cache can be written");
        }
        python
    });
    &PATH
}
