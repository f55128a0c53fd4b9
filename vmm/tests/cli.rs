//! The program as its users meet it, as far as no VM is needed: arguments, VM files, help, what it prints and its exit codes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use berth::exit_code;
use berth::spec::{Limits, read, validate};

/// `berth` with these arguments, in `folder`.
fn berth_in(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command.output().expect("the program was built for this test")
}

fn berth(arguments: &[&str]) -> Output {
    berth_in(Path::new("/"), arguments)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("Berth says everything in UTF-8")
}

#[track_caller]
fn ends_with(output: &Output, code: u8) {
    assert_eq!(output.status.code(), Some(code.into()), "{output:?}");
}

/// What it printed, if it ended well and had nothing to complain about.
#[track_caller]
fn printed(output: &Output) -> &str {
    ends_with(output, exit_code::OK);
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout)
}

/// Its complaints, if there is nothing else and it ended as for a mistake of the user's.
#[track_caller]
fn refused(output: &Output) -> Vec<&str> {
    ends_with(output, exit_code::USER);
    assert_eq!(text(&output.stdout), "");
    let complaints: Option<_> = text(&output.stderr)
        .lines()
        .map(|line| line.strip_prefix("berth: "))
        .collect();
    complaints.unwrap_or_else(|| panic!("a line is no sentence of Berth's: {output:?}"))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn a_mistake_in_a_file_is_one_sentence_with_its_line_and_the_nearest_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content, expected) in [
        (
            "vm.toml",
            "cpus = 1\nmemroy = \"1G\"\n",
            "vm.toml: line 2: memroy: unknown field; did you mean memory?",
        ),
        (
            "vm.json",
            "{\n\"cpu\": 1}",
            "vm.json: line 2: cpu: unknown field; did you mean cpus?",
        ),
        (
            "vm.yaml",
            "",
            "vm.yaml: its name ends neither in .toml nor in .json; rename it to what it holds",
        ),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
        for more in [&[][..], &["--dry-run"]] {
            let arguments = [&["run", "--config", name], more].concat();
            assert_eq!(refused(&berth_in(folder.path(), &arguments)), [expected]);
        }
    }
    let missing = berth_in(folder.path(), &["run", "--config", "missing.toml"]);
    assert_eq!(
        refused(&missing),
        ["missing.toml: No such file or directory (os error 2)"]
    );
}

#[test]
fn a_fault_names_the_file_where_it_is_the_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("vm.toml"), "cpus = 0\n").unwrap();
    let output = berth_in(folder.path(), &["run", "--config", "vm.toml", "--memory", "1M"]);
    let expected = [
        "vm.toml: cpus: 0 vCPUs cannot run anything; give at least 1",
        "memory: 1M is too little to boot anything; give at least 2M",
    ];
    assert_eq!(refused(&output), expected);
}

#[test]
fn a_state_directory_that_cannot_be_made_is_a_mistake_with_a_way_out() {
    let output = berth(&["create", "--state-dir", "/proc/nowhere"]);
    let expected = "state-dir: /proc/nowhere: VMs cannot be kept there: No such file or directory (os error 2); name another folder with --state-dir";
    assert_eq!(refused(&output), [expected]);
}

#[test]
fn flags_for_a_restore_are_not_dropped_where_nothing_is_restored() {
    for flag in ["verify", "prefetch", "keep-clock"] {
        let output = berth(&["run", &format!("--{flag}"), "--", "true"]);
        let expected = format!(
            "{flag}: it says how a snapshot is restored; leave it out, or name the snapshot with --restore"
        );
        assert_eq!(refused(&output), [expected]);
    }
}

#[test]
fn every_fault_has_its_sentence_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "run",
        "--cpus",
        "0",
        "--memory",
        "1K",
        "--net",
        "tap=tap0,mac=x",
        "--log-file",
        "log",
    ];
    assert_eq!(
        refused(&berth_in(folder.path(), &arguments)),
        [
            "cpus: 0 vCPUs cannot run anything; give at least 1",
            "memory: 1K is too little to boot anything; give at least 2M (a number alone is bytes; for 1024 MiB write 1024M)",
            "net 1: the mac \"x\" is no hardware address; write it as 02:00:00:00:00:01",
        ]
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_vm_that_cannot_be_built_leaves_no_log_behind() {
    let folder = tempfile::tempdir().unwrap();
    let output = berth_in(
        folder.path(),
        &["run", "--log-file", "log", "--disk", "/nonexistent"],
    );
    assert_eq!(refused(&output).len(), 1);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn memory_beyond_the_hosts_is_refused() {
    let complaint = berth(&["run", "--dry-run", "--memory", "900T"]);
    let [complaint] = refused(&complaint)[..] else {
        panic!("{complaint:?}")
    };
    assert!(
        complaint.starts_with("memory: 900T is more than this host has; give at most "),
        "{complaint}"
    );
}

#[test]
fn a_wrong_argument_is_one_sentence() {
    for (arguments, expected) in [
        (
            &["run", "--memroy", "1G"][..],
            "unknown argument \"--memroy\"; did you mean --memory?",
        ),
        (
            &["run", "--log-level", "wran"],
            "log-level: \"wran\" is no level; use off, error, warn, info, debug, trace or directives",
        ),
        (
            &["run", "--log-file", "/nonexistent/log"],
            "log-file: /nonexistent/log: No such file or directory (os error 2); make the folder /nonexistent first",
        ),
        (
            &["run", "--kernel", "vmlinux", "--", "ls"],
            "command: \"ls\" can only be run by the guest that ships with Berth; leave out the kernel or the command",
        ),
    ] {
        assert_eq!(refused(&berth(arguments)), [expected]);
    }
}

#[test]
fn a_dry_run_prints_a_file_that_means_itself_wherever_it_lies() {
    let (here, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let vms: [&[&str]; 3] = [
        &[],
        &[
            "--cpus",
            "2",
            "--memory",
            "1G",
            "--cmdline",
            "a=\"b c\" d",
            "--timeout",
            "9",
            "--",
            "sh",
            "-c",
            "echo \"$x\" 'ä'",
        ],
        &[
            "--kernel",
            "k",
            "--disk",
            "a,,b,ro",
            "--disk",
            "/c,serial=n",
            "--net",
            "tap=t",
            "--serial",
            "file=log",
        ],
    ];
    for arguments in vms {
        let first = berth_in(here.path(), &[&["run", "--dry-run"], arguments].concat());
        let first = printed(&first);
        let file = elsewhere.path().join("vm.toml");
        fs::write(&file, first).unwrap();
        let again = berth(&["run", "--dry-run", "--config", file.to_str().unwrap()]);
        assert_eq!(printed(&again), first);
    }
    assert_eq!(fs::read_dir(here.path()).unwrap().count(), 0);
}

#[test]
fn standard_input_can_be_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for content in ["cpus = 3", "{\"cpus\": 3}"] {
        let path = folder.path().join("input");
        fs::write(&path, content).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_berth"))
            .args(["run", "--dry-run", "--config", "-"])
            .stdin(File::open(&path).unwrap())
            .output()
            .unwrap();
        assert!(printed(&output).starts_with("cpus = 3\n"));
    }
}

#[test]
fn the_examples_are_valid() {
    let mut count = 0;
    for entry in fs::read_dir(repository().join("resources/examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let spec = read(&path).unwrap_or_else(|error| panic!("{error}"));
        validate(&spec, Limits::NONE).unwrap_or_else(|faults| panic!("{}: {faults:?}", path.display()));
        count += 1;
    }
    assert!(count >= 4);
}

#[test]
fn the_schema_of_test_files_has_every_field_and_each_is_in_the_manual() {
    let output = berth(&["schema", "test"]);
    let schema: serde_json::Value = serde_json::from_str(printed(&output)).unwrap();
    let manual = fs::read_to_string(repository().join("docs/ci.md")).unwrap();
    let step = &schema["$defs"]["StepTable"];
    for object in [&schema, step] {
        for field in object["properties"].as_object().unwrap().keys() {
            assert!(
                manual.contains(&format!("`{field}`")),
                "docs/ci.md says nothing of {field}"
            );
        }
    }
    assert!(schema["$defs"]["VmTable"]["properties"]["memory"].is_object());
}

#[test]
fn the_schema_is_json_and_each_of_its_fields_is_in_the_manual() {
    let output = berth(&["schema"]);
    let schema: serde_json::Value = serde_json::from_str(printed(&output)).unwrap();
    assert_eq!(schema["title"], "VmSpec");
    let manual = fs::read_to_string(repository().join("docs/spec.md")).unwrap();
    for object in [&schema, &schema["$defs"]["DiskSpec"], &schema["$defs"]["NetSpec"]] {
        for field in object["properties"].as_object().unwrap().keys() {
            assert!(
                manual.contains(&format!("\n| `{field}` |")),
                "docs/spec.md has no row for {field}"
            );
        }
    }
}

#[test]
fn the_manuals_defaults_are_the_schemas() {
    let schema: serde_json::Value =
        serde_json::from_str(&berth::cli::schema(berth::cli::SchemaArg::Vm)).unwrap();
    let manual = fs::read_to_string(repository().join("docs/spec.md")).unwrap();
    for (field, property) in schema["properties"].as_object().unwrap() {
        let default = &property["default"];
        let row = manual
            .lines()
            .find(|line| line.starts_with(&format!("| `{field}` |")))
            .unwrap();
        assert!(
            default.is_null() || row.contains(&format!("| `{default}` |")),
            "{field}: {default} is not in: {row}"
        );
    }
}

#[test]
fn the_doctor_reports_in_json_and_in_words() {
    let output = berth(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let can_run = report["can_run"].as_bool().unwrap();
    let code = if can_run { exit_code::OK } else { exit_code::FAULT };
    ends_with(&output, code);
    let words = Command::new(env!("CARGO_BIN_EXE_berth"))
        .arg("doctor")
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    ends_with(&words, code);
    for fact in report["facts"].as_array().unwrap() {
        let name = fact["name"].as_str().unwrap();
        assert!(text(&words.stdout).contains(&format!(" {name} ")), "{name}");
    }
    assert!(words.stdout.is_ascii());
    assert!(text(&words.stdout).contains(if can_run {
        "Guests can run here"
    } else {
        "Guests cannot run here"
    }));
}

#[test]
fn the_version_and_the_help_go_to_standard_output() {
    assert_eq!(
        printed(&berth(&["--version"])),
        format!("berth {}\n", env!("CARGO_PKG_VERSION"))
    );
    for arguments in [
        &["--help"][..],
        &["run", "-h"],
        &["run", "--help"],
        &["doctor", "--help"],
        &["help", "run"],
        &["schema", "--help"],
    ] {
        assert!(
            printed(&berth(arguments)).contains("Usage: berth"),
            "{arguments:?}"
        );
    }
    assert!(printed(&berth(&["run", "--help"])).contains(exit_code::HELP));
}

#[test]
fn no_verb_is_a_mistake_answered_with_the_help() {
    let output = berth(&[]);
    ends_with(&output, exit_code::USER);
    assert_eq!(text(&output.stdout), "");
    assert!(text(&output.stderr).contains("Usage: berth"), "{output:?}");
}

/// A state directory with two VMs, for completions.
fn with_vms() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["web-1", "worker"] {
        let made = Command::new(env!("CARGO_BIN_EXE_berth"))
            .args(["create", "--name", name])
            .env("BERTH_STATE_DIR", folder.path())
            .output()
            .unwrap();
        ends_with(&made, exit_code::OK);
    }
    folder
}

#[test]
fn every_shell_is_told_the_names_of_vms_and_the_flags_of_verbs() {
    let folder = with_vms();
    for shell in ["bash", "zsh", "fish"] {
        assert!(printed(&berth(&["completions", shell])).contains("BERTH_COMPLETE"));
        let complete = |words: &[&str]| {
            let output = Command::new(env!("CARGO_BIN_EXE_berth"))
                .args([&["--", "berth"], words].concat())
                .env("BERTH_STATE_DIR", folder.path())
                .env("BERTH_COMPLETE", shell)
                .env("_CLAP_COMPLETE_INDEX", words.len().to_string())
                .env("_CLAP_IFS", "\n")
                .output()
                .unwrap();
            text(&output.stdout).to_owned()
        };
        for verb in ["start", "stop", "console", "logs", "fork", "snapshot", "rm"] {
            let said = complete(&[verb, "w"]);
            assert!(
                said.contains("web-1") && said.contains("worker"),
                "{shell} {verb}: {said}"
            );
            let said = complete(&[verb, "wo"]);
            assert!(
                !said.contains("web-1") && said.contains("worker"),
                "{shell} {verb}: {said}"
            );
        }
        let said = complete(&["run", "--cmdline-r"]);
        assert!(said.contains("--cmdline-replace"), "{shell}: {said}");
        for (flag, begun, word) in [
            ("--rng", "o", "off"),
            ("--serial", "so", "socket="),
            ("--log-level", "d", "debug"),
            ("--ready", "v", "vsock="),
        ] {
            let said = complete(&["run", flag, begun]);
            assert!(said.contains(word), "{shell} {flag}: {said}");
        }
    }
}

#[test]
fn bash_completes_the_name_of_a_vm() {
    let folder = with_vms();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_berth"));
    let script = "source <(berth completions bash)
        COMP_WORDS=(berth console we); COMP_CWORD=2; COMP_TYPE=9
        _clap_complete_berth berth we console
        echo \"${COMPREPLY[@]}\"";
    let path = std::env::join_paths(
        [program.parent().unwrap().to_owned()]
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let output = Command::new("bash")
        .args(["-c", script])
        .env("PATH", path.unwrap())
        .env("BERTH_STATE_DIR", folder.path())
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout).trim(), "web-1", "{output:?}");
}

#[test]
fn a_reader_that_goes_away_causes_no_panic() {
    for arguments in [
        &["schema"][..],
        &["run", "--help"],
        &["run", "--dry-run"],
        &["completions", "bash"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_berth"))
            .args(arguments)
            .stdout(writer)
            .output()
            .unwrap();
        ends_with(&output, exit_code::SIGNAL + 13);
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn a_full_disk_under_standard_output_is_told() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_berth"))
        .arg("schema")
        .stdout(full)
        .output()
        .unwrap();
    ends_with(&output, exit_code::FAULT);
    let expected = "berth: standard output cannot be written: No space left on device (os error 28)\n";
    assert_eq!(text(&output.stderr), expected);
}

/// Set for the child that is to panic.
const PANICS: &str = "BERTH_TEST_PANICS";

#[test]
fn a_panic_is_one_sentence_with_the_code_of_a_fault() {
    let name = "a_panic_is_one_sentence_with_the_code_of_a_fault";
    if std::env::var_os(PANICS).is_some() {
        berth::cli::end_on_panic();
        panic!("lost the {}", "anchor");
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", name, "--nocapture"])
        .env(PANICS, "1")
        .env("RUST_BACKTRACE", "0");
    let output = child.output().unwrap();
    ends_with(&output, exit_code::FAULT);
    let said = text(&output.stderr);
    let [sentence] = said.lines().collect::<Vec<_>>()[..] else {
        panic!("{said}")
    };
    assert!(
        sentence.starts_with("berth: a fault in Berth itself at "),
        "{sentence}"
    );
    assert!(
        sentence.contains("tests/cli.rs:") && sentence.contains(": lost the anchor; please report it at "),
        "{sentence}"
    );
}

#[test]
fn names_of_files_cannot_command_the_terminal() {
    let complaint = berth(&["run", "--config", "/nonexistent/\u{1b}[2J\n.toml"]);
    assert_eq!(
        refused(&complaint),
        ["/nonexistent/\\u{1b}[2J\\n.toml: No such file or directory (os error 2)"]
    );
}
