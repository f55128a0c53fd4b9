use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use clap::{CommandFactory, Parser};
use proptest::prelude::*;

use super::*;
use crate::spec::tests::any_spec;
use crate::spec::{
    BalloonSpec, ByteSize, ConsoleSpec, DiskSpec, Entry, Limits, NetSpec, PmemSpec, ReadySpec, SerialSpec,
    ThreadsSpec, VsockSpec, validate,
};

fn parse<S: Into<OsString>>(arguments: impl IntoIterator<Item = S>) -> Result<RunArgs, clap::Error> {
    let words = ["berth", "run"]
        .into_iter()
        .map(OsString::from)
        .chain(arguments.into_iter().map(Into::into));
    match Cli::try_parse_from(words)?.command {
        Command::Run(Deferred(args)) => Ok(*args),
        other => panic!("{other:?}"),
    }
}

fn spec<S: Into<OsString>>(arguments: impl IntoIterator<Item = S>) -> VmSpec {
    resolve(parse(arguments).expect("good arguments")).expect("no file is read")
}

#[test]
fn clap_finds_no_mistake_in_the_definitions() {
    Cli::command().debug_assert();
}

#[test]
fn what_a_verb_says_of_itself_stands_when_its_arguments_are_described() {
    let (before, mut after) = (Cli::command(), Cli::command());
    after.build();
    for verb in before.get_subcommands() {
        let name = verb.get_name();
        let described = after.find_subcommand(name).unwrap();
        assert_eq!(described.get_about(), verb.get_about(), "{name}");
        assert_eq!(described.get_long_about(), verb.get_long_about(), "{name}");
    }
    let create = after.find_subcommand("create").unwrap();
    assert!(
        create
            .get_arguments()
            .any(|argument| argument.get_id() == "memory")
    );
    let help = create.get_after_long_help().map(ToString::to_string);
    assert!(help.is_some_and(|help| help.contains("berth create --name web")));
}

#[test]
fn no_argument_is_the_guest_that_ships_with_berth() {
    assert_eq!(spec::<&str>([]), VmSpec::default());
}

#[test]
fn each_flag_fills_its_field() {
    let text = "--cpus 4 --memory 2G --kernel k --entry pvh --initrd i --cmdline a=b --cmdline -c --cmdline-replace r --cmdline-base s \
        --disk a,ro --disk b,serial=x --pmem p,ro,id=x --net tap=t --vsock cid=7,path=v --balloon size=64M,stats=5 --console socket=s,name=n --rng off --serial file=log --timeout 5 --ready line=^up,$ --io-threads 2 --io-poll 0 --vcpu-cpus 0-1 --io-cpus 1 --assist off -- sh -c true";
    let expected = VmSpec {
        cpus: 4,
        cpu_template: None,
        memory: ByteSize(2 << 30),
        kernel: Some("k".into()),
        entry: Entry::Pvh,
        initrd: Some("i".into()),
        cmdline: "a=b -c".to_owned(),
        cmdline_replace: Some("r".to_owned()),
        cmdline_base: Some("s".to_owned()),
        command: ["sh", "-c", "true"].map(str::to_owned).to_vec(),
        disks: vec![
            DiskSpec {
                id: None,
                path: "a".into(),
                read_only: true,
                ..DiskSpec::default()
            },
            DiskSpec {
                id: None,
                path: "b".into(),
                serial: Some("x".to_owned()),
                ..DiskSpec::default()
            },
        ],
        pmem: vec![PmemSpec {
            id: Some("x".to_owned()),
            path: "p".into(),
            read_only: true,
            ..PmemSpec::default()
        }],
        nets: vec![NetSpec {
            id: None,
            tap: "t".to_owned(),
            ..NetSpec::default()
        }],
        mmds: None,
        vsock: Some(VsockSpec {
            cid: 7,
            path: "v".into(),
        }),
        balloon: Some(BalloonSpec {
            target: ByteSize(64 << 20),
            stats_interval: 5,
            ..BalloonSpec::default()
        }),
        consoles: vec![ConsoleSpec {
            name: "n".to_owned(),
            socket: Some("s".into()),
            file: None,
        }],
        rng: false,
        rng_rate_limit: None,
        serial: SerialSpec::File("log".into()),
        serial_rate_limit: None,
        timeout: Some(5),
        warm: false,
        ready: ReadySpec::Line("^up,$".to_owned()),
        threads: ThreadsSpec {
            io: 2,
            poll_us: 0,
            vcpu_cpus: vec!["0-1".parse().unwrap()],
            io_cpus: vec!["1".parse().unwrap()],
        },
        assist: false,
    };
    assert_eq!(spec(text.split_whitespace()), expected);
}

#[test]
fn flags_override_the_file_and_a_list_replaces_the_files_list() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.toml");
    std::fs::write(
        &path,
        "cpus = 2\nmemory = \"1G\"\nrng = false\ndisks = [{ path = \"a\" }, { path = \"b\" }]",
    )
    .unwrap();
    let config = path.to_str().unwrap();
    let changed = spec(["--config", config, "--memory", "64M", "--disk", "c"]);
    assert_eq!(
        (changed.cpus, changed.memory, changed.rng),
        (2, ByteSize(64 << 20), false)
    );
    assert_eq!(
        changed.disks,
        [DiskSpec {
            id: None,
            path: "c".into(),
            ..DiskSpec::default()
        }]
    );
    assert_eq!(spec(["--config", config]).disks[0].path, folder.path().join("a"));
}

#[test]
fn each_mistake_is_one_sentence_that_names_the_argument() {
    let levels = "off, error, warn, info, debug, trace";
    for (arguments, expected) in [
        (
            &["--cpus", "two"][..],
            "cpus: \"two\" is not a number of vCPUs; give 1 to 254",
        ),
        (
            &["--cpus=-1"],
            "cpus: \"-1\" is not a number of vCPUs; give 1 to 254",
        ),
        (
            &["--memory", "lots"],
            "memory: \"lots\" is not a size; write a whole number, alone or with K, M, G or T behind it, as in 512M",
        ),
        (
            &["--memory="],
            "memory: \"\" is not a size; write a whole number, alone or with K, M, G or T behind it, as in 512M",
        ),
        (&["--memory"], "memory: the value is missing; write one behind it"),
        (
            &["--kernel", ""],
            "kernel: the value is missing; write one behind it",
        ),
        (
            &["--kernel", "a", "--kernel", "b"],
            "kernel: given more than once; give it once",
        ),
        (
            &["--disk", ""],
            "disk: \"\" names no file; write it as PATH[,ro][,format=FORMAT][,overlay=FILE][,serial=NAME][,queues=N][,cache=writethrough][,direct][,engine=ENGINE][,io-thread=N][,bandwidth=SIZE][,ops=NUMBER]",
        ),
        (
            &["--disk", "x,bandwith=1M"],
            "disk: unknown option \"bandwith=1M\"; did you mean bandwidth?",
        ),
        (
            &["--net", "mac=x"],
            "net: \"mac=x\" names no tap; write it as tap=NAME[,create][,queues=N][,spread] or user[,publish=HOST:GUEST]…[,loopback], and [,mac=ADDRESS][,io-thread=N][,bandwidth=SIZE][,ops=NUMBER]",
        ),
        (
            &["--serial", "stdout"],
            "serial: \"stdout\" is no place for a serial port; use stdio, null, pty, file=PATH, socket=PATH or kept=FOLDER",
        ),
        (&["--rng", "yes"], "rng: \"yes\" is neither on nor off"),
        (
            &["--entry", "pvm"],
            "entry: unknown value \"pvm\"; did you mean pvh?",
        ),
        (
            &["--entry", "x"],
            "entry: unknown value \"x\"; use one of auto, linux64, pvh",
        ),
        (
            &["--timeout", "1s"],
            "timeout: \"1s\" is not a number of seconds; give a whole number, 0 for no limit",
        ),
        (
            &["--log-level", "wran"],
            &format!("log-level: \"wran\" is no level; use {levels} or directives"),
        ),
        (
            &["--memroy", "1G"],
            "unknown argument \"--memroy\"; did you mean --memory?",
        ),
        (&["--xyzzy"], "unknown argument \"--xyzzy\"; see berth run --help"),
        (
            &["stray"],
            "unexpected argument \"stray\"; a command for the guest goes behind --, as in berth run -- stray",
        ),
    ] {
        let error = parse(arguments.iter().copied()).expect_err(expected);
        assert_eq!(refusal::sentence(&error), expected, "{arguments:?}");
    }
}

#[test]
fn a_mistake_with_any_verb_is_one_sentence_that_says_where_to_look() {
    for (arguments, expected) in [
        (
            &["ps", "-q", "--json"][..],
            "quiet and json exclude each other; give one of them",
        ),
        (&["ps", "web"], "unexpected argument \"web\"; see berth ps --help"),
        (
            &["stop", "web", "--xyzzy"],
            "unknown argument \"--xyzzy\"; see berth stop --help",
        ),
        (
            &["stop", "web", "-t", "x"],
            "time: \"x\" is not a number of seconds; give one such as 10 or 0.5",
        ),
        (
            &["logs", "web", "--tail", "x"],
            "tail: \"x\" is not a whole number; give one from 0 on",
        ),
        (
            &["logs", "web", "--tail", "99999999999999999999"],
            "tail: \"99999999999999999999\" is too large; give a smaller number",
        ),
        (
            &["logs", "web", "--tail", "-1"],
            "-1 is negative, and no number here may be; give one from 0 on",
        ),
        (
            &["fork", "web", "-n", "0"],
            "count: \"0\" is not 1 to 10000; give a number in that range",
        ),
        (
            &["run", "--restore", "d", "--", "ls"],
            "restore and COMMAND exclude each other; give one of them",
        ),
        (&["inspect"], "VM is missing; see berth inspect --help"),
        (
            &["image", "build"],
            "--output and SOURCE are missing; see berth image build --help",
        ),
        (
            &["cache", "xyzzy"],
            "there is no verb \"xyzzy\"; berth cache --help lists them",
        ),
        (
            &["--state-dir", "d", "ps"],
            "unknown argument \"--state-dir\"; the verb comes first, see berth --help",
        ),
    ] {
        let arguments = ["berth"].iter().chain(arguments);
        assert_eq!(
            refusal::sentence(&Cli::try_parse_from(arguments).unwrap_err()),
            expected
        );
    }
    for (verb, expected) in [
        ("docter", "there is no verb \"docter\"; did you mean doctor?"),
        ("xyzzy", "there is no verb \"xyzzy\"; berth --help lists them"),
    ] {
        assert_eq!(
            refusal::sentence(&Cli::try_parse_from(["berth", verb]).unwrap_err()),
            expected
        );
    }
}

#[test]
fn paths_may_be_any_bytes_and_texts_may_not() {
    let argument = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let kernel = argument(b"--kernel=\xff");
    assert_eq!(spec([kernel]).kernel.unwrap().as_os_str().as_bytes(), b"\xff");
    let error = parse([argument(b"--cmdline=\xff")]).unwrap_err();
    assert_eq!(
        refusal::sentence(&error),
        "an argument is not valid UTF-8; only paths may be that"
    );
}

#[test]
fn help_shows_every_option_that_a_flags_value_can_have() {
    let mut all = Cli::command();
    all.build();
    let run = all.find_subcommand("run").unwrap();
    for (flag, refused) in [
        ("disk", DiskSpec::from_option("".as_ref()).unwrap_err()),
        ("pmem", PmemSpec::from_option("".as_ref()).unwrap_err()),
        ("net", NetSpec::from_option("".as_ref()).unwrap_err()),
        ("vsock", VsockSpec::from_option("".as_ref()).unwrap_err()),
    ] {
        let flag = run
            .get_arguments()
            .find(|argument| argument.get_id() == flag)
            .unwrap();
        let form = flag.get_value_names().unwrap()[0].as_str();
        let refused = refused.to_string();
        assert!(refused.ends_with(&format!("; write it as {form}")), "{refused}");
    }
}

#[test]
fn help_has_examples_and_in_its_long_form_the_exit_codes() {
    let mut command = Cli::command();
    let run = command.find_subcommand_mut("run").unwrap();
    let short = run.render_help().to_string();
    assert!(
        short.contains("berth run -- uname -a") && !short.contains(exit_code::HELP),
        "{short}"
    );
    let long = run.render_long_help().to_string();
    assert!(long.contains(exit_code::HELP), "{long}");
}

fn ready_flag(ready: &ReadySpec) -> String {
    match ready {
        ReadySpec::Port => "--ready=port".to_owned(),
        ReadySpec::Line(line) => format!("--ready=line={line}"),
        ReadySpec::Vsock(port) => format!("--ready=vsock={port}"),
    }
}

/// An interface as a flag.
fn net_flag(net: &NetSpec) -> String {
    let mac = net
        .mac
        .as_ref()
        .map_or_else(String::new, |mac| format!(",mac={mac}"));
    let create = if net.create { ",create" } else { "" };
    let spread = if net.spread { ",spread" } else { "" };
    let user = if net.user { ",user" } else { "" };
    let loopback = if net.loopback { ",loopback" } else { "" };
    let publish: Vec<_> = net
        .publish
        .iter()
        .map(|port| format!(",publish={port}"))
        .collect();
    let publish = publish.concat();
    format!(
        "--net=tap={}{create}{user}{publish}{loopback}{mac},io-thread={},queues={}{spread}",
        net.tap, net.io_thread, net.queues
    )
}

/// The same VM by flags alone; `None` where a flag cannot say it.
fn flags(spec: &VmSpec) -> Option<Vec<OsString>> {
    let double = |text: &str| text.replace(',', ",,");
    let switch = |on| if on { "on" } else { "off" };
    let path = |path: &std::path::Path| path.to_str().map(str::to_owned).filter(|path| !path.is_empty());
    let mut words = vec![
        format!("--cpus={}", spec.cpus),
        format!("--memory={}", spec.memory),
        format!("--entry={}", word(&spec.entry)),
        format!("--cmdline={}", spec.cmdline),
        format!("--rng={}", switch(spec.rng)),
        format!("--assist={}", switch(spec.assist)),
        format!("--io-threads={}", spec.threads.io),
        format!("--io-poll={}", spec.threads.poll_us),
    ];
    let (vcpus, io) = (&spec.threads.vcpu_cpus, &spec.threads.io_cpus);
    words.extend(vcpus.iter().map(|cpus| format!("--vcpu-cpus={cpus}")));
    words.extend(io.iter().map(|cpus| format!("--io-cpus={cpus}")));
    if let Some(kernel) = &spec.kernel {
        words.push(format!("--kernel={}", path(kernel)?));
    }
    if let Some(initrd) = &spec.initrd {
        words.push(format!("--initrd={}", path(initrd)?));
    }
    words.extend(
        spec.cmdline_replace
            .iter()
            .map(|text| format!("--cmdline-replace={text}")),
    );
    words.extend(
        spec.cmdline_base
            .iter()
            .map(|text| format!("--cmdline-base={text}")),
    );
    words.extend(spec.warm.then(|| "--warm".to_owned()));
    words.push(ready_flag(&spec.ready));
    words.extend(spec.timeout.map(|seconds| format!("--timeout={seconds}")));
    if spec.rng_rate_limit.is_some()
        || spec.mmds.is_some()
        || spec.cpu_template.is_some()
        || spec.serial_rate_limit.is_some()
    {
        return None;
    }
    for disk in &spec.disks {
        words.push(disk_flag(disk)?);
    }
    for pmem in &spec.pmem {
        words.push(pmem_flag(pmem)?);
    }
    for port in &spec.consoles {
        let name = double(&port.name);
        let place = match (&port.socket, &port.file) {
            (Some(path), None) => format!("socket={}", double(path.to_str()?)),
            (None, Some(path)) => format!("file={}", double(path.to_str()?)),
            (None, None) => "null".to_owned(),
            (Some(_), Some(_)) => return None,
        };
        words.push(format!("--console=name={name},{place}"));
    }
    for net in &spec.nets {
        if net.rx_rate_limit.is_some() || net.tx_rate_limit.is_some() {
            return None;
        }
        words.push(net_flag(net));
    }
    if let Some(vsock) = &spec.vsock {
        let path = vsock.path.to_str()?.replace(',', ",,");
        words.push(format!("--vsock=cid={},path={path}", vsock.cid));
    }
    if let Some(balloon) = &spec.balloon {
        let switches = [
            (balloon.deflate_on_oom, ",deflate-on-oom"),
            (balloon.free_page_reporting, ",reporting"),
            (balloon.free_page_hinting, ",hinting"),
        ];
        let switches: String = switches
            .iter()
            .filter_map(|(on, word)| on.then_some(*word))
            .collect();
        words.push(format!(
            "--balloon=size={},stats={}{switches}",
            balloon.target, balloon.stats_interval
        ));
    }
    words.push(match &spec.serial {
        SerialSpec::Stdio => "--serial=stdio".to_owned(),
        SerialSpec::Null => "--serial=null".to_owned(),
        SerialSpec::Pty => "--serial=pty".to_owned(),
        SerialSpec::File(path) => format!("--serial=file={}", path.to_str()?),
        SerialSpec::Socket(path) => format!("--serial=socket={}", path.to_str()?),
        SerialSpec::Kept(path) => format!("--serial=kept={}", path.to_str()?),
    });
    words.push("--".to_owned());
    words.extend(spec.command.iter().cloned());
    Some(words.into_iter().map(OsString::from).collect())
}

/// The flag for a disk; none if there is none.
fn disk_flag(disk: &DiskSpec) -> Option<String> {
    let double = |text: &str| text.replace(',', ",,");
    let path = |path: &Path| path.to_str().filter(|path| !path.is_empty()).map(double);
    if disk.rate_limit.is_some() {
        return None;
    }
    let switch = |on, word| if on { word } else { "" };
    let (ro, direct) = (switch(disk.read_only, ",ro"), switch(disk.direct, ",direct"));
    let serial = disk
        .serial
        .iter()
        .map(|serial| format!(",serial={}", double(serial)));
    let overlay = disk
        .overlay
        .iter()
        .map(|overlay| Some(format!(",overlay={}", path(overlay)?)));
    let named: Option<String> = serial.map(Some).chain(overlay).collect();
    let flag = format!(
        "--disk={}{ro}{direct}{},format={},queues={},cache={},engine={},io-thread={}",
        path(&disk.path)?,
        named?,
        word(&disk.format),
        disk.queues,
        word(&disk.cache),
        word(&disk.engine),
        disk.io_thread
    );
    Some(flag)
}

fn pmem_flag(pmem: &PmemSpec) -> Option<String> {
    let double = |text: &str| text.replace(',', ",,");
    let path = pmem.path.to_str().filter(|path| !path.is_empty())?;
    if pmem.rate_limit.is_some() {
        return None;
    }
    let ro = if pmem.read_only { ",ro" } else { "" };
    let id = pmem.id.as_ref().map(|id| format!(",id={}", double(id)));
    Some(format!(
        "--pmem={}{ro}{},io-thread={}",
        double(path),
        id.unwrap_or_default(),
        pmem.io_thread
    ))
}

/// The word that files have for a value.
fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap();
    value.as_str().unwrap().to_owned()
}

proptest! {
    #[test]
    fn a_vm_by_flags_is_the_vm_by_a_file(vm in any_spec()) {
        let Some(words) = flags(&vm) else { return Ok(()) };
        prop_assert_eq!(spec(words), vm);
    }

    #[test]
    fn no_arguments_make_the_program_panic(words in proptest::collection::vec("(--)?[a-z-]{1,8}(=[ -~]{0,9})?", 0..5)) {
        match parse(&words) {
            Ok(args) if args.config.is_none() => {
                let _ = validate(&resolve(args).unwrap(), Limits::NONE);
            }
            Ok(_) => {}
            Err(error) => prop_assert!(!refusal::sentence(&error).contains('\n')),
        }
    }
}
