use std::fs;

use proptest::prelude::*;

use super::*;
use crate::spec::{ByteSize, SerialSpec};

fn sentence(text: &str, format: Format) -> String {
    match parse(text, format) {
        Ok(spec) => panic!("{text:?} is no fault but {spec:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn each_fault_in_toml_has_its_line_field_and_remedy() {
    const FIELDS: &str = "cpus, cpu_template, memory, kernel, entry, initrd, cmdline, cmdline_replace, cmdline_base, command, disks, pmem, nets, mmds, vsock, \
        balloon, consoles, rng, rng_rate_limit, serial, serial_rate_limit, timeout, warm, ready, threads, assist";
    let unknown = |at: &str| format!("{at}: unknown field; the known ones are {FIELDS}");
    for (text, expected) in [
        (
            "memroy = 1",
            "line 1: memroy: unknown field; did you mean memory?",
        ),
        (
            "\n# CPUs\ncpu = 1",
            "line 3: cpu: unknown field; did you mean cpus?",
        ),
        ("zzz = 1", &unknown("line 1: zzz")),
        ("a.b = 1", &unknown("line 1: a")),
        (
            "[[disks]]\npath = \"x\"\nreadonly = true",
            "line 3: disks[0].readonly: unknown field; did you mean read_only?",
        ),
        (
            "disks = [{ path = \"x\", ro = true }]",
            "line 1: disks[0].ro: unknown field; the known ones are id, path, format, overlay, read_only, serial, queues, cache, direct, engine, io_thread, rate_limit",
        ),
        ("cpus = \"many\"", "line 1: cpus: \"many\" is not a whole number"),
        (
            "cpus = \"2\"",
            "line 1: cpus: \"2\" is not a whole number; leave out the quotes",
        ),
        ("cpus = -1", "line 1: cpus: -1 is out of range"),
        (
            "cpus = 99999999999999999999",
            "line 1: cpus: 99999999999999999999 is not a whole number",
        ),
        (
            "cpus = 1\ncpus = 2",
            "line 2: cpus: the field is given twice; give it once",
        ),
        ("rng = 1", "line 1: rng: 1 is not true or false"),
        (
            "rng = \"true\"",
            "line 1: rng: \"true\" is not true or false; leave out the quotes",
        ),
        ("kernel = 3", "line 1: kernel: 3 is not a path; put it in quotes"),
        (
            "cmdline = []",
            "line 1: cmdline: a list is not text; put it in quotes",
        ),
        (
            "command = \"ls\"",
            "line 1: command: \"ls\" is not a list; put it in brackets",
        ),
        (
            "nets = [[\"tap0\"]]",
            "line 1: nets[0]: a list is not a network interface; give a table with its tap, or with user",
        ),
        (
            "[disks]",
            "line 1: disks: a table is not a list; in TOML, put its name in double brackets",
        ),
        (
            "disks = [\"x\"]",
            "line 1: disks[0]: \"x\" is not a disk; give a table with its path",
        ),
        (
            "disks = [{ read_only = true }]",
            "line 1: disks[0]: the field path is missing; add it",
        ),
        (
            "entry = \"PVH\"",
            "line 1: entry: unknown value \"PVH\"; did you mean pvh?",
        ),
        (
            "memory = true",
            "line 1: memory: true is not a size such as \"512M\"",
        ),
        (
            "memory = \"1.5G\"",
            "line 1: memory: \"1.5G\" is not a whole number; write it in a smaller unit, as in 1536M for 1.5G",
        ),
        (
            "serial = \"stdoi\"",
            "line 1: serial: unknown value \"stdoi\"; did you mean stdio?",
        ),
        (
            "serial = { fil = \"x\" }",
            "line 1: serial.fil: unknown field; did you mean file?",
        ),
        (
            "serial = { file = \"a\", socket = \"b\" }",
            "line 1: serial: give exactly one of file, socket and kept",
        ),
        (
            "serial = \"file=log\"",
            "line 1: serial: \"file=log\" needs its path in a table; write { file = \"PATH\" }, { socket = \"PATH\" } \
             or { kept = \"FOLDER\" } in TOML, with colons in JSON",
        ),
        ("\n\ncpus = = 1", "line 3: extra `=`, expected nothing"),
        ("cpus", "line 1: key with no value, expected `=`"),
    ] {
        assert_eq!(sentence(text, Format::Toml), expected, "{text:?}");
    }
}

#[test]
fn each_fault_in_json_has_its_line_field_and_remedy() {
    for (text, expected) in [
        (
            "",
            "line 1: the text is empty; write {} for the guest that ships with Berth",
        ),
        ("[1]", "line 1: a VM in JSON is an object; begin it with {"),
        (
            "{\"cpus\": ",
            "line 1: the text ends too early; see whether a bracket or a quote is left open",
        ),
        ("{\n\"cpus\": 1,\n}", "line 3: trailing comma"),
        ("{} x", "line 1: there is more text behind its end; leave it out"),
        ("{\n\"cpu\": 2}", "line 2: cpu: unknown field; did you mean cpus?"),
        (
            "{\"cpus\": 1, \"cpus\": 2}",
            "line 1: cpus: the field is given twice; give it once",
        ),
        ("{\"cpus\": 1.5}", "line 1: cpus: 1.5 is not a whole number"),
        (
            "{\"disks\": [{\"path\": \"x\"}, {\"path\": \"y\", \"readonly\": 1}]}",
            "line 1: disks[1].readonly: unknown field; did you mean read_only?",
        ),
        (
            "{\"disks\": [[\"x\"]]}",
            "line 1: disks[0]: a list is not a disk; give a table with its path",
        ),
        (
            "{\"disks\": [{}]}",
            "line 1: disks[0]: the field path is missing; add it",
        ),
        (
            "{\"serial\": {\"file\": 1}}",
            "line 1: serial.file: 1 is not a path; put it in quotes",
        ),
        (
            "{\"serial\": {}}",
            "line 1: serial: give exactly one of file, socket and kept",
        ),
        (
            "{\"serial\": 1}",
            "line 1: serial: 1 is not a place for the serial port; name stdio, null or pty, or give a table with file, \
             socket or kept",
        ),
    ] {
        assert_eq!(sentence(text, Format::Json), expected, "{text:?}");
    }
}

#[test]
fn nesting_without_end_is_refused() {
    let deep = |begin: &str, again: &str| format!("{begin}{}", again.repeat(100_000));
    for (text, format) in [
        (deep("a = ", "["), Format::Toml),
        (deep("a = ", "{ a ="), Format::Toml),
        (deep("[a", ".a"), Format::Toml),
        (deep("{\"disks\": ", "["), Format::Json),
        (deep("", "{\"serial\": "), Format::Json),
    ] {
        assert!(parse(&text, format).is_err());
    }
}

#[test]
fn an_empty_file_is_the_guest_that_ships_with_berth() {
    for (text, format) in [
        ("", Format::Toml),
        ("\u{feff}# nothing", Format::Toml),
        ("{}", Format::Json),
    ] {
        assert_eq!(parse(text, format), Ok(VmSpec::default()), "{text:?}");
    }
}

#[test]
fn both_languages_say_the_same() {
    let toml = r#"
        memory = "1GiB"
        kernel = "vmlinux"
        serial = { file = "console.log" }
        [[disks]]
        path = "a.img"
        read_only = true
        [[nets]]
        tap = "tap0"
    "#;
    let json = r#"{
        "memory": 1073741824, "kernel": "vmlinux", "initrd": null, "serial": {"file": "console.log"},
        "disks": [{"path": "a.img", "read_only": true}], "nets": [{"tap": "tap0", "mac": null}]
    }"#;
    let spec = parse(toml, Format::Toml).unwrap();
    assert_eq!(spec, parse(json, Format::Json).unwrap());
    assert_eq!(spec.memory, ByteSize(1 << 30));
    assert_eq!(spec.serial, SerialSpec::File("console.log".into()));
}

#[test]
fn relative_paths_are_taken_from_the_files_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.toml");
    let text = "kernel = \"vmlinux\"\ninitrd = \"/boot/initrd\"\nserial = { socket = \"s\" }\ndisks = [{ path = \"d\" }, { path = \"\" }]";
    fs::write(&path, text).unwrap();
    let spec = read(&path).unwrap();
    assert_eq!(spec.kernel, Some(folder.path().join("vmlinux")));
    assert_eq!(spec.initrd, Some("/boot/initrd".into()));
    assert_eq!(spec.serial, SerialSpec::Socket(folder.path().join("s")));
    let disks: Vec<_> = spec.disks.into_iter().map(|disk| disk.path).collect();
    assert_eq!(disks, [folder.path().join("d"), PathBuf::new()]);
}

#[test]
fn the_name_says_the_language_and_the_text_where_the_name_does_not() {
    for (name, text, format) in [
        ("vm.toml", "{", Some(Format::Toml)),
        ("vm.JSON", "", Some(Format::Json)),
        ("vm", " {}", Some(Format::Json)),
        ("vm", "cpus = 1", Some(Format::Toml)),
        ("-", "{}", Some(Format::Json)),
        ("vm.yaml", "", None),
    ] {
        assert_eq!(Format::of(name.as_ref(), text), format, "{name}");
    }
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, expected) in [
        (
            "wrong.toml",
            &b"\ncpu = 1"[..],
            "line 2: cpu: unknown field; did you mean cpus?",
        ),
        (
            "latin.toml",
            b"# \xe4",
            "it is not UTF-8 text; name a .toml or .json file",
        ),
        (
            "vm.yaml",
            b"",
            "its name ends neither in .toml nor in .json; rename it to what it holds",
        ),
        (
            "large.toml",
            &vec![b'\n'; SIZE_MAX as usize + 1],
            "it is longer than 1 MiB, which no VM file needs; name a .toml or .json file",
        ),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert_eq!(
            read(&path).unwrap_err().to_string(),
            format!("{}: {expected}", path.display())
        );
    }
    let missing = folder.path().join("missing.toml");
    let expected = format!("{}: No such file or directory (os error 2)", missing.display());
    assert_eq!(read(&missing).unwrap_err().to_string(), expected);
    let expected = format!("{}: Is a directory (os error 21)", folder.path().display());
    assert_eq!(read(folder.path()).unwrap_err().to_string(), expected);
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "[\\[\\]{}a-z_=\",.0-9\n -]{0,60}|.*") {
        let _ = (parse(&text, Format::Toml), parse(&text, Format::Json));
    }

    #[test]
    fn every_fault_of_a_known_field_is_one_line(
        field in "cpus|memory|kernel|entry|disks|nets|serial|rng|timeout|command|cmdlin",
        value in "-?[0-9]{1,30}|true|\"[^\"\\\\\n]{0,9}\"|\\[[0-9]?\\]|\\{\\}|\\{ ?file ?= ?[0-9]\\}|[0-9]\\.[0-9]",
    ) {
        if let Err(error) = parse(&format!("{field} = {value}"), Format::Toml) {
            let text = error.to_string();
            prop_assert!(!text.contains('\n') && text.starts_with("line 1: "), "{}", text);
        }
    }
}
