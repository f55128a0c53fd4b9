use proptest::prelude::*;

use super::*;
use crate::boot_test::plan::{Action, ExitReason, FileCheck, ImageRef};
use crate::image::Partial;
use crate::spec::ByteSize;

/// A file that is there.
const KERNEL: &str = env!("CARGO_MANIFEST_PATH");

fn with(text: &str, flags: &[(&str, &str)]) -> Result<Vec<Case>, String> {
    let flags = flags
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let flags = flags.collect();
    let outside = Outside {
        flags: &flags,
        environment: &|name| (name == "SET").then(|| "from outside".to_owned()),
        images: Path::new("/images"),
    };
    let text = text.replace("KERNEL", KERNEL);
    Source::parse(Path::new("folder/boot.test.toml"), text)
        .and_then(|source| expand(&source, &outside))
        .map(|expanded| expanded.cases)
        .map_err(|fault| fault.to_string())
}

fn cases(text: &str) -> Vec<Case> {
    with(text, &[]).unwrap()
}

#[track_caller]
fn fault(text: &str, expected: &str) {
    let sentence = with(text, &[]).unwrap_err();
    assert_eq!(sentence, format!("folder/boot.test.toml: {expected}"), "{text}");
}

/// The sentence for a step that cannot be, in a test that is good otherwise.
#[track_caller]
fn step_fault(steps: &str, expected: &str) {
    let text = format!("[vm]\nkernel = \"KERNEL\"\n[[vm.disks]]\npath = \"KERNEL\"\n{steps}");
    let sentence = with(&text, &[]).unwrap_err();
    assert!(sentence.contains(expected), "{steps}: {sentence}");
}

#[test]
fn the_least_file_is_the_shipped_guest_and_a_step() {
    let cases = cases("[[step]]\nrun = \"true\"\n");
    assert_eq!(cases.len(), 1);
    assert_eq!(cases[0].name, "boot");
    assert!(cases[0].is_shipped() && !cases[0].warm);
    assert_eq!(cases[0].spec, VmSpec::default());
}

#[test]
fn a_matrix_makes_a_case_of_each_combination_and_sets_the_vms_fields() {
    let cases = cases(
        "name = \"boots\"\n[vm]\nkernel = \"${kernel}\"\ncmdline = \"x=${memory}\"\n[vars]\nkernel = \"KERNEL\"\n\
         [matrix]\nmemory = [\"128M\", \"1G\"]\ncpus = [1, 2]\n[[step]]\nexpect = \"${cpus} CPUs\"\n",
    );
    let names: Vec<_> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "boots [cpus=1, memory=128M]",
            "boots [cpus=1, memory=1G]",
            "boots [cpus=2, memory=128M]",
            "boots [cpus=2, memory=1G]"
        ]
    );
    let last = &cases[3];
    assert_eq!((last.spec.cpus, last.spec.memory), (2, ByteSize(1 << 30)));
    assert_eq!(last.spec.cmdline, "x=1G");
    assert_eq!(last.steps[0].to_string(), "expect \"2 CPUs\"");
}

#[test]
fn variables_come_from_the_file_from_flags_and_from_the_environment() {
    let text = "[vars]\na = 1\nb = { env = \"SET\" }\nc = { env = \"UNSET\", default = true }\n[matrix]\nd = [\"x\", \"y\"]\n\
                [[step]]\nsend = \"${a} ${b} ${c} ${d}\"\n";
    let sent = |flags: &[(&str, &str)]| -> Vec<String> {
        let cases = with(text, flags).unwrap();
        cases.iter().map(|case| case.steps[0].to_string()).collect()
    };
    assert_eq!(
        sent(&[]),
        ["send \"1 from outside true x\"", "send \"1 from outside true y\""]
    );
    assert_eq!(
        sent(&[("a", "2"), ("b", "flag"), ("c", "false"), ("d", "z")]),
        ["send \"2 flag false z\""]
    );
    let error = with(text, &[("a", "two")]).unwrap_err();
    assert!(
        error.ends_with("line 2: vars.a: \"two\", from outside the file, is not a whole number"),
        "{error}"
    );
}

#[test]
fn a_base_file_is_below_the_fields_of_the_test() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("kernel"), "").unwrap();
    std::fs::write(
        folder.path().join("vm.toml"),
        "cpus = 3\nmemory = \"64M\"\nkernel = \"kernel\"\nserial = \"null\"\ntimeout = 5\n",
    )
    .unwrap();
    let path = folder.path().join("a.test.toml");
    let text = "[vm]\nbase = \"vm.toml\"\nmemory = \"1G\"\n[[step]]\nexpect = \"x\"\n".to_owned();
    let source = Source::parse(&path, text).unwrap();
    let outside = Outside {
        flags: &BTreeMap::new(),
        environment: &|_| None,
        images: Path::new("/images"),
    };
    let spec = expand(&source, &outside).unwrap().cases.remove(0).spec;
    assert_eq!(
        (spec.cpus, spec.memory, spec.timeout),
        (3, ByteSize(1 << 30), None)
    );
    assert_eq!(spec.kernel, Some(folder.path().join("kernel")));
    assert_eq!(spec.serial, spec::SerialSpec::Stdio);
}

#[test]
fn an_image_is_made_if_a_case_uses_it_and_its_path_is_a_variable() {
    let text = "[vars]\nbase = \"rootfs\"\n[image.root]\nfrom = [\"${base}\", \"/layer.tar\"]\nowner = \"0:0\"\n\
                [image.unused]\nfrom = [\"x\"]\n[vm]\ndisks = [{ path = \"${image.root}\" }]\n[[step]]\nexpect = \"x\"\n";
    let source = Source::parse(Path::new("folder/a.test.toml"), text.to_owned()).unwrap();
    let outside = Outside {
        flags: &BTreeMap::new(),
        environment: &|_| None,
        images: Path::new("/images"),
    };
    let expanded = expand(&source, &outside).unwrap();
    let [image] = expanded.images.as_slice() else {
        panic!("{:?}", expanded.images);
    };
    assert_eq!(
        image.options.from,
        [Path::new("folder/rootfs"), Path::new("/layer.tar")]
    );
    assert!(image.options.output.to_string_lossy().ends_with("-root.ext4"));
    assert_eq!(expanded.cases[0].spec.disks[0].path, image.options.output);
    let error = image.build(&Partial::default()).unwrap_err().to_string();
    assert!(
        error.starts_with("folder/a.test.toml: line 3: image.root: "),
        "{error}"
    );
}

#[test]
fn every_step_becomes_what_it_says() {
    let cases = cases(
        "[vm]\nkernel = \"KERNEL\"\n[[vm.disks]]\nid = \"data\"\npath = \"KERNEL\"\nread_only = true\n[[vm.disks]]\npath = \"KERNEL\"\nread_only = true\n\
         [[step]]\nexpect_regex = \"a+\"\nwithin = \"1m 30s\"\n\
         [[step]]\nrun = \"x\"\nstatus = 3\nstdout = \"y\"\n\
         [[step]]\nattach = \"data\"\nimage = \"KERNEL\"\n\
         [[step]]\nsnapshot = \"s\"\n[[step]]\nrestore = \"s\"\n\
         [[step]]\npress = \"power\"\n\
         [[step]]\nexit = \"exit\"\nstatus = 4\n\
         [[step]]\nfile = \"/a\"\ndisk = \"disk2\"\ncontains = \"\"\n\
         [[step]]\noffset = 510\nimage = \"i\"\nhex = \"55 aa\"\n",
    );
    let steps = &cases[0].steps;
    assert_eq!(steps[0].within, Some(Duration::from_secs(90)));
    assert_eq!(steps[1].line, Some(14));
    let actions: Vec<_> = steps.iter().map(|step| &step.action).collect();
    assert!(matches!(
        actions[1],
        Action::Run {
            status: 3,
            stdout: Some(_),
            ..
        }
    ));
    assert!(matches!(actions[2], Action::Attach { disk: 0, .. }));
    assert!(matches!(actions[3], Action::Snapshot { ends: true, .. }));
    assert!(matches!(
        actions[6],
        Action::Exit {
            reason: ExitReason::Exit,
            status: Some(4)
        }
    ));
    assert!(matches!(
        actions[7],
        Action::File {
            image: ImageRef::Disk(1),
            check: FileCheck::Contains(_),
            ..
        }
    ));
    assert!(matches!(
        actions[8],
        Action::Bytes { image: ImageRef::File(path), offset: 510, bytes } if path.as_path() == Path::new("folder/i") && bytes == &[0x55, 0xaa]
    ));
}

#[test]
fn what_is_wrong_with_a_file_is_one_sentence_with_its_place() {
    let step = "[[step]]\nexpect = \"x\"\n";
    for (text, expected) in [
        (
            "",
            "it has no steps; say what is to happen, as in [[step]] and expect = \"login: \"",
        ),
        ("nmae = \"x\"", "line 1: nmae: unknown field; did you mean name?"),
        (
            "[[step]]\nexpct = \"x\"",
            "line 2: step[0].expct: unknown field; did you mean expect?",
        ),
        (
            "[step]\nexpect = \"x\"",
            "line 1: step: a table is not a list; in TOML, put its name in double brackets",
        ),
        ("name = 5", "line 1: name: 5 is not text; put it in quotes"),
        (
            &format!("timeout = \"60\"\n{step}"),
            "line 1: timeout: \"60\" is no duration; write a number and its unit, as in 500ms, 30s or 5m",
        ),
        (
            &format!("timeout = \"0s\"\n{step}"),
            "line 1: timeout: \"0s\" cannot be waited for; give more than nothing and at most 7 days",
        ),
        (
            &format!("never = [\"a\", \"(\"]\n{step}"),
            "line 1: never[1]: \"(\" is no regular expression: unclosed group",
        ),
        (
            &format!("allow = [\"ops\"]\n{step}"),
            "line 1: allow[0]: unknown value \"ops\"; did you mean oops?",
        ),
        (
            &format!("[vm]\ncpu = 2\n{step}"),
            "line 2: vm.cpu: unknown field; did you mean cpus?",
        ),
        (
            &format!("[vm]\ncpus = 0\n{step}"),
            "line 2: vm.cpus: 0 vCPUs cannot run anything; give at least 1",
        ),
        (
            &format!("[vm]\nmemory = \"1X\"\n{step}"),
            "line 2: vm.memory: \"1X\" is not a size; write a whole number, alone or with K, M, G or T behind it, as in 512M",
        ),
        (
            &format!("[vm]\nkernel = \"none\"\n{step}"),
            "line 2: vm.kernel: folder/none: there is no such file; paths are taken from the test file's folder",
        ),
        (
            &format!("[vm]\nserial = \"null\"\n{step}"),
            "line 2: vm.serial: the test itself is at the serial port's other end; leave it out",
        ),
        (
            &format!("[vm]\ncmdline = \"${{a}}\"\n{step}"),
            "line 2: vm.cmdline: there is no variable a; name it below [vars] or [matrix], or write $${a} for the guest's own",
        ),
        (
            &format!("[vars]\n\"a b\" = 1\n{step}"),
            "line 2: vars.a b: \"a b\" is no name for a variable, which has letters, digits, dot, dash and underscore, and begins with a letter",
        ),
        (
            &format!("[vars]\na = {{ env = \"UNSET\" }}\n{step}"),
            "line 2: vars.a: the environment has no UNSET; set it, give it a default, or use --var a=VALUE",
        ),
        (
            &format!("[vars]\na = {{ evn = \"X\" }}\n{step}"),
            "line 2: vars.a.evn: unknown field; did you mean env?",
        ),
        (
            &format!("[vars]\na = \"${{b}}\"\n{step}"),
            "line 2: vars.a: a variable's value cannot hold another variable; put both where they are used",
        ),
        (
            &format!("[matrix]\nmemroy = [\"1G\"]\n{step}"),
            "line 2: matrix.memroy: it is no field of a VM and ${memroy} stands nowhere in this file; did you mean memory?",
        ),
        (
            &format!("[matrix]\ncpus = []\n{step}"),
            "line 2: matrix.cpus: it is no list with something in it; write it as [\"128M\", \"1G\"]",
        ),
        (
            &format!("[matrix]\ncpus = [1, 1]\n{step}"),
            "line 2: matrix.cpus[1]: it is in the list already; leave it out",
        ),
        (
            &format!("[matrix]\ncpus = [\"x\"]\n{step}"),
            "line 2: matrix.cpus: \"x\" is not a whole number",
        ),
    ] {
        fault(text, expected);
    }
}

#[test]
fn a_matrix_that_explodes_is_refused_before_it_does() {
    let list: Vec<_> = (1..=100).map(|number| number.to_string()).collect();
    let list = list.join(", ");
    let axes: Vec<_> = (0..20).map(|axis| format!("a{axis} = [{list}]\n")).collect();
    let axes = axes.concat();
    fault(
        &format!("[matrix]\n{axes}[[step]]\nexpect = \"x\"\n"),
        "line 1: matrix: its lists combine to more than 512 cases; make them shorter, or two files of them",
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn a_step_that_cannot_be_is_refused_where_it_stands() {
    let end = "[[step]]\nexit = \"any\"\n";
    for (steps, expected) in [
        (
            "[[step]]\nwithin = \"1s\"\n",
            "line 5: step[0]: it does nothing; give it one of expect,",
        ),
        (
            "[[step]]\nexpect = \"a\"\nsend = \"b\"\n",
            "line 7: step[0].send: expect and send are two steps",
        ),
        (
            "[[step]]\nexpect = \"a\"\nstatus = 1\n",
            "step[0].status: it says nothing about expect, beside which can stand: within",
        ),
        ("[[step]]\nexpect = \"\"\n", "step[0].expect: it is empty"),
        (
            "[[step]]\nexpect_regex = \"x*\"\n",
            "step[0].expect_regex: \"x*\" matches an empty text",
        ),
        (
            "[[step]]\nexpect = \"a\"\nwithin = \"soon\"\n",
            "step[0].within: \"soon\" is no duration",
        ),
        (
            "[[step]]\nrun = \"true\"\n",
            "step[0].run: nothing tells when the guest's shell is there",
        ),
        (
            "[[step]]\nexpect = \"#\"\n[[step]]\nrun = \"a\\u0003\"\n",
            "step[1].run: '\\u{3}' would command the terminal",
        ),
        (
            "[[step]]\nexit = \"shutdwn\"\n",
            "step[0].exit: no guest ends by \"shutdwn\"; did you mean shutdown?",
        ),
        (
            "[[step]]\nexit = \"panic\"\nstatus = 1\n",
            "step[0].status: only a guest that ends by exit gives a status",
        ),
        (
            "[[step]]\nexit = \"exit\"\nstatus = 256\n",
            "step[0].status: 256 is no status; give 0 to 255",
        ),
        (
            "[[step]]\ndetach = \"disk2\"\n",
            "step[0].detach: the VM has no disk \"disk2\"; did you mean disk1?",
        ),
        (
            "[[step]]\nattach = \"disk1\"\n",
            "step[0].attach: the image is missing",
        ),
        (
            "[[step]]\nattach = \"disk2\"\nimage = \"KERNEL\"\n",
            "step[0].attach: the VM has no disk \"disk2\"; did you mean disk1?",
        ),
        (
            "[[step]]\nattach = \"disk1\"\nimage = \"none\"\n",
            "step[0].image: folder/none: there is no such file",
        ),
        (
            "[[step]]\npress = \"any\"\n",
            "step[0].press: there is no button \"any\"",
        ),
        (
            "[[step]]\nrestore = \"a\"\n",
            "step[0].restore: no step before saves a snapshot \"a\"",
        ),
        (
            "[[step]]\nsnapshot = \"a/b\"\n",
            "step[0].snapshot: \"a/b\" is no name for a snapshot",
        ),
        (
            "[[step]]\nsnapshot = \"a\"\n[[step]]\nexpect = \"x\"\n[[step]]\nrestore = \"a\"\n",
            "step[2].restore: the guest may have written its disks since it was saved",
        ),
        (
            "[[step]]\nfile = \"/a\"\ndisk = \"disk1\"\n",
            "step[0]: the guest still has the disk; put an exit step before it",
        ),
        (
            &format!("{end}[[step]]\nfile = \"a\"\ndisk = \"disk1\"\n"),
            "step[1].file: \"a\" does not begin at the file system's root",
        ),
        (
            &format!("{end}[[step]]\nfile = \"/a\"\n"),
            "step[1]: it does not say where to look",
        ),
        (
            &format!("{end}[[step]]\nfile = \"/a\"\ndisk = \"disk1\"\nabsent = true\ncontains = \"x\"\n"),
            "contains, matches and absent exclude each other",
        ),
        (
            &format!("{end}[[step]]\noffset = 0\ndisk = \"disk1\"\nhex = \"5\"\n"),
            "step[1].hex: \"5\" is no row of hexadecimal digits",
        ),
        (
            &format!("{end}[[step]]\nsend = \"x\"\n"),
            "step[1]: the guest has ended in a step before",
        ),
    ] {
        step_fault(steps, expected);
    }
}

#[test]
fn folders_are_searched_for_test_files_and_nothing_else() {
    use crate::boot_test::file::find;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert!(
        find(folder.path())
            .unwrap_err()
            .to_string()
            .contains("there is no test file in this folder")
    );
    std::fs::create_dir(at("below")).unwrap();
    for name in ["b.test.toml", "a.test.toml", "vm.toml", "below/c.test.toml"] {
        std::fs::write(at(name), "").unwrap();
    }
    let expected = ["a.test.toml", "b.test.toml", "below/c.test.toml"].map(at);
    assert_eq!(find(folder.path()).unwrap(), expected);
    assert_eq!(find(&at("vm.toml")).unwrap(), [at("vm.toml")]);
    assert!(
        Source::read(&at("none"))
            .unwrap_err()
            .to_string()
            .contains("there is no such file")
    );
}

proptest! {
    #[test]
    fn the_cases_are_all_combinations_each_once(sizes in prop::collection::vec(1_usize..5, 0..4)) {
        let axes: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(axis, size)| format!("v{axis} = {:?}\n", (0..*size).collect::<Vec<_>>()))
            .collect();
        let used: Vec<_> = (0..sizes.len()).map(|axis| format!("${{v{axis}}} ")).collect();
        let (axes, used) = (axes.concat(), used.concat());
        let cases = cases(&format!("[matrix]\n{axes}[[step]]\nsend = \"{used}\"\n"));
        let names: BTreeSet<_> = cases.iter().map(|case| case.name.clone()).collect();
        let sent: BTreeSet<_> = cases.iter().map(|case| case.steps[0].to_string()).collect();
        prop_assert_eq!(cases.len(), sizes.iter().product::<usize>());
        prop_assert_eq!(names.len(), cases.len());
        prop_assert_eq!(sent.len(), cases.len());
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(\\[(vm|vars|matrix)\\]\n|\\[\\[step\\]\\]\n|[a-z_]{1,8} = (\"[^\"]{0,12}\"|[0-9]|\\[[0-9, ]*\\]|true)\n){0,8}") {
        let _ = with(&text, &[]);
    }
}
