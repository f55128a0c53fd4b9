//! Cases and verdicts for tests.

use std::path::PathBuf;
use std::time::Duration;

use super::faults::KernelFault;
use super::plan::{Case, Hang};
use super::schedule::Options;
use super::verdict::{Attempt, Failure, Kind, Marks, Outcome, Verdict};
use crate::spec::VmSpec;

pub(crate) fn case(file: &str, name: &str) -> Case {
    Case {
        file: file.into(),
        name: name.to_owned(),
        parameters: Vec::new(),
        spec: VmSpec::default(),
        steps: Vec::new(),
        timeout: Duration::from_secs(1),
        hang: Hang::Usual,
        slow: false,
        warm: false,
        allow: Vec::new(),
        never: Vec::new(),
        ready: None,
    }
}

pub(crate) fn options() -> Options {
    Options {
        jobs: 1,
        memory: 1 << 30,
        retries: 0,
        fail_fast: false,
        slow: false,
        keep: false,
        output: PathBuf::from("/nonexistent"),
        usual_hang: Duration::from_secs(60),
    }
}

/// One of each kind.
pub(crate) fn verdicts() -> Vec<Verdict> {
    let passed = Attempt {
        took: Duration::from_secs(1),
        marks: Marks {
            init: Some(Duration::from_millis(500)),
            ..Marks::default()
        },
        ..Attempt::default()
    };
    let failed = Attempt {
        failure: Some(Failure {
            kind: Kind::Kernel(KernelFault::Panic),
            message: "kernel panic: no root".to_owned(),
            step: Some((1, Some(7))),
            lines: vec!["tail \u{1b}[2J & <x>".to_owned()],
        }),
        took: Duration::from_millis(200),
        ..Attempt::default()
    };
    let kept = Attempt {
        folder: Some(PathBuf::from("/tmp/x")),
        ..failed.clone()
    };
    let mut boots = case("tests/a.test.toml", "boots [memory=1G]");
    boots.parameters = vec![("memory".to_owned(), "1G".to_owned())];
    vec![
        Verdict::judge(&boots, vec![passed.clone()]),
        Verdict::judge(&case("tests/a.test.toml", "panics # early"), vec![kept]),
        Verdict::judge(&case("tests/b.test.toml", "wavers"), vec![failed, passed]),
        Verdict::skipped(
            &case("tests/b.test.toml", "takes long"),
            Outcome::Skipped("it is slow"),
        ),
    ]
}
