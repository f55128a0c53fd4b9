use std::path::Path;

use proptest::prelude::*;

use super::*;

/// Mostly no limit, which flags can say too.
fn limit() -> impl Strategy<Value = Option<RateLimitSpec>> {
    let number = || 0..=i64::MAX as u64;
    let bandwidth =
        (any::<u64>(), number(), any::<u64>()).prop_map(|(size, refill_ms, burst)| BandwidthSpec {
            size: ByteSize(size),
            refill_ms,
            burst: ByteSize(burst),
        });
    let ops = (number(), number(), number()).prop_map(|(size, refill_ms, burst)| OpsSpec {
        size,
        refill_ms,
        burst,
    });
    let limits = (proptest::option::of(bandwidth), proptest::option::of(ops));
    let limits = limits.prop_map(|(bandwidth, ops)| RateLimitSpec { bandwidth, ops });
    proptest::option::weighted(0.1, limits)
}

fn pmem() -> impl Strategy<Value = PmemSpec> {
    let fields = (
        proptest::option::of(".{1,20}"),
        ".{1,20}",
        any::<bool>(),
        any::<u32>(),
        limit(),
    );
    fields.prop_map(|(id, path, read_only, io_thread, rate_limit)| PmemSpec {
        id,
        path: path.into(),
        read_only,
        io_thread,
        rate_limit,
    })
}

fn disk() -> impl Strategy<Value = DiskSpec> {
    let fields = (
        ".{1,20}",
        proptest::option::of(".{1,20}"),
        any::<bool>(),
        proptest::option::of("[ -~]{0,20}"),
        any::<(u16, u32)>(),
        any::<bool>(),
        (0..3_usize, 0..4_usize, 0..3_usize),
        limit(),
    );
    let formats = [FormatSpec::Raw, FormatSpec::Qcow2, FormatSpec::Detect];
    let caches = [
        CacheSpec::Writeback,
        CacheSpec::Writethrough,
        CacheSpec::default(),
    ];
    let engines = [
        EngineSpec::Auto,
        EngineSpec::IoUring,
        EngineSpec::Threads,
        EngineSpec::Sync,
    ];
    fields.prop_map(
        move |(
            path,
            overlay,
            read_only,
            serial,
            (queues, io_thread),
            direct,
            (cache, engine, format),
            rate_limit,
        )| DiskSpec {
            id: None,
            path: path.into(),
            format: formats[format],
            overlay: overlay.map(Into::into),
            read_only,
            serial,
            queues,
            cache: caches[cache],
            direct,
            engine: engines[engine],
            io_thread,
            rate_limit,
        },
    )
}

fn net() -> impl Strategy<Value = NetSpec> {
    let mac = proptest::option::of("02(:[0-9a-f]{2}){5}");
    let ports = ["80:80", "127.0.0.1:8080:80", "[::1]:53:53/udp"].map(|port| port.parse().unwrap());
    let publish = proptest::sample::subsequence(ports.to_vec(), 0..=3);
    let user = (any::<bool>(), publish, any::<bool>());
    (
        "[a-z0-9]{1,15}",
        any::<(bool, u32, u16, bool)>(),
        user,
        mac,
        limit(),
        limit(),
    )
        .prop_map(
            |(
                tap,
                (create, io_thread, queues, spread),
                (user, publish, loopback),
                mac,
                rx_rate_limit,
                tx_rate_limit,
            )| {
                NetSpec {
                    id: None,
                    tap,
                    create,
                    queues,
                    spread,
                    user,
                    publish,
                    loopback,
                    mac,
                    io_thread,
                    rx_rate_limit,
                    tx_rate_limit,
                }
            },
        )
}

fn console() -> impl Strategy<Value = ConsoleSpec> {
    let path = || proptest::option::of(".{0,20}");
    ("[a-z.]{0,10}", path(), path()).prop_map(|(name, socket, file)| ConsoleSpec {
        name,
        socket: socket.map(Into::into),
        file: file.map(Into::into),
    })
}

fn balloon() -> impl Strategy<Value = BalloonSpec> {
    (any::<u64>(), any::<[bool; 3]>(), 0..=i64::MAX as u64).prop_map(|(target, switches, stats_interval)| {
        let [deflate_on_oom, free_page_reporting, free_page_hinting] = switches;
        BalloonSpec {
            target: ByteSize(target),
            deflate_on_oom,
            stats_interval,
            free_page_reporting,
            free_page_hinting,
        }
    })
}

fn cpu_template() -> impl Strategy<Value = CpuTemplateSpec> {
    let bitmap = |most| proptest::string::string_regex(&format!("0b[01x]{{1,{most}}}")).unwrap();
    let register = prop_oneof![
        Just(Register::Eax),
        Just(Register::Ebx),
        Just(Register::Ecx),
        Just(Register::Edx)
    ];
    let register = (register, bitmap(32)).prop_map(|(register, bitmap)| RegisterModifier {
        register,
        bitmap: bitmap.parse().unwrap(),
    });
    let registers = proptest::collection::vec(register, 0..3);
    let leaf = (any::<[u32; 3]>(), registers).prop_map(|([leaf, subleaf, flags], modifiers)| CpuidModifier {
        leaf: Number(leaf),
        subleaf: Number(subleaf),
        flags,
        modifiers,
    });
    let msr = (any::<u32>(), bitmap(64)).prop_map(|(addr, bitmap)| MsrModifier {
        addr: Number(addr),
        bitmap: bitmap.parse().unwrap(),
    });
    let capability = any::<(u32, bool)>().prop_map(|(number, needed)| Capability { number, needed });
    let list = 0..3;
    (
        proptest::collection::vec(capability, list.clone()),
        proptest::collection::vec(leaf, list.clone()),
        proptest::collection::vec(msr, list),
    )
        .prop_map(
            |(kvm_capabilities, cpuid_modifiers, msr_modifiers)| CpuTemplateSpec {
                kvm_capabilities,
                cpuid_modifiers,
                msr_modifiers,
            },
        )
}

fn mmds() -> impl Strategy<Value = MmdsSpec> {
    let version = prop_oneof![Just(MmdsVersion::V1), Just(MmdsVersion::V2)];
    let nets = proptest::collection::vec(".{0,5}", 0..3);
    let file = proptest::option::of(".{0,20}");
    (version, nets, any::<u32>(), any::<bool>(), file).prop_map(
        |(version, nets, address, imds_compat, file)| MmdsSpec {
            version,
            nets,
            address: address.into(),
            imds_compat,
            file: file.map(Into::into),
        },
    )
}

fn vsock() -> impl Strategy<Value = VsockSpec> {
    (any::<u32>(), ".{1,20}").prop_map(|(cid, path)| VsockSpec {
        cid,
        path: path.into(),
    })
}

fn serial() -> impl Strategy<Value = SerialSpec> {
    prop_oneof![
        Just(SerialSpec::Stdio),
        Just(SerialSpec::Null),
        Just(SerialSpec::Pty),
        ".{0,20}".prop_map(|path| SerialSpec::File(path.into())),
        ".{0,20}".prop_map(|path| SerialSpec::Socket(path.into())),
        ".{0,20}".prop_map(|path| SerialSpec::Kept(path.into())),
    ]
}

fn sign() -> impl Strategy<Value = ReadySpec> {
    prop_oneof![
        Just(ReadySpec::Port),
        ".{0,20}".prop_map(ReadySpec::Line),
        any::<u32>().prop_map(ReadySpec::Vsock),
    ]
}

fn threads() -> impl Strategy<Value = ThreadsSpec> {
    let lists = || proptest::collection::vec("[0-9]{1,2}-99|[0-9]|1,7", 0..3);
    let lists = || lists().prop_map(|lists| lists.iter().map(|list| list.parse().unwrap()).collect());
    let parts = (any::<u32>(), any::<u32>(), lists(), lists());
    parts.prop_map(|(io, poll_us, vcpu_cpus, io_cpus)| ThreadsSpec {
        io,
        poll_us,
        vcpu_cpus,
        io_cpus,
    })
}

prop_compose! {
    /// Any description that files can hold, sensible or not.
    pub(crate) fn any_spec()(
        cpus: u32, memory: u64, rng: bool, assist: bool,
        kernel in proptest::option::of(".{0,20}"), initrd in proptest::option::of(".{0,20}"),
        entry in prop_oneof![Just(Entry::Auto), Just(Entry::Linux64), Just(Entry::Pvh)],
        cmdline in ".{0,40}", cmdline_replace in proptest::option::of(".{0,40}"),
        cmdline_base in proptest::option::of(".{0,40}"),
        command in proptest::collection::vec(".{0,10}", 0..4),
        disks in proptest::collection::vec(disk(), 0..4), nets in proptest::collection::vec(net(), 0..4),
        rng_rate_limit in limit(), (cpu_template, mmds, vsock, balloon, consoles) in (proptest::option::of(cpu_template()), proptest::option::of(mmds()), proptest::option::of(vsock()), proptest::option::of(balloon()), proptest::collection::vec(console(), 0..3)), serial in serial(), timeout in proptest::option::of(0..=i64::MAX as u64), (warm, ready, threads) in (any::<bool>(), sign(), threads()), pmem in proptest::collection::vec(pmem(), 0..3),
    ) -> VmSpec {
        VmSpec {
            cpus, cpu_template, memory: ByteSize(memory), kernel: kernel.map(Into::into), entry, initrd: initrd.map(Into::into),
            cmdline, cmdline_replace, cmdline_base, command, disks, pmem, nets, mmds, vsock, balloon, consoles, rng, serial_rate_limit: rng_rate_limit.as_ref().and_then(|limit: &RateLimitSpec| limit.bandwidth.clone()), rng_rate_limit, serial, timeout, warm, ready, threads, assist,
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back_as_the_same(spec in any_spec()) {
        let toml = toml::to_string(&spec).unwrap();
        prop_assert_eq!(&parse(&toml, Format::Toml).unwrap(), &spec, "{}", toml);
        let json = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(&parse(&json, Format::Json).unwrap(), &spec, "{}", json);
    }

    #[test]
    fn no_description_makes_the_validation_panic(spec in any_spec()) {
        let _ = validate(&spec, Limits::NONE);
    }
}

#[test]
fn a_hardware_address_is_six_bytes_in_hexadecimal() {
    let read = |mac: &str| {
        NetSpec {
            tap: String::new(),
            mac: Some(mac.to_owned()),
            ..NetSpec::default()
        }
        .mac_address()
    };
    assert_eq!(read("02:0a:0B:00:ff:01"), Some([2, 10, 11, 0, 255, 1]));
    for wrong in [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:01:",
        "2:0:0:0:0:1",
        "02-00-00-00-00-01",
        "+2:00:00:00:00:01",
        "0x:00:00:00:00:01",
    ] {
        assert_eq!(read(wrong), None, "{wrong}");
    }
    assert_eq!(
        NetSpec {
            tap: String::new(),
            ..NetSpec::default()
        }
        .mac_address(),
        None
    );
}

#[test]
fn the_schema_describes_every_field_and_knows_no_others() {
    let schema = serde_json::to_value(schemars::schema_for!(VmSpec)).unwrap();
    let written = serde_json::to_value(VmSpec::default()).unwrap();
    let properties = schema["properties"].as_object().unwrap();
    let names = |value: &serde_json::Map<_, _>| value.keys().cloned().collect::<Vec<String>>();
    assert_eq!(names(properties), names(written.as_object().unwrap()));
    assert_eq!(schema["additionalProperties"], false);
    let definitions = [
        "DiskSpec",
        "NetSpec",
        "BalloonSpec",
        "ConsoleSpec",
        "RateLimitSpec",
        "BandwidthSpec",
        "OpsSpec",
    ]
    .map(|name| &schema["$defs"][name]);
    for object in [&[&schema], &definitions[..]].concat() {
        for (name, property) in object["properties"].as_object().unwrap() {
            assert!(property["description"].is_string(), "{name} has no description");
        }
    }
}

#[test]
fn paths_are_taken_from_a_folder_unless_they_are_absolute() {
    let mut spec = VmSpec {
        kernel: Some("k".into()),
        initrd: Some("/i".into()),
        serial: SerialSpec::File("s".into()),
        ..VmSpec::default()
    };
    spec.take_paths_from(Path::new("/folder"));
    assert_eq!(spec.kernel, Some("/folder/k".into()));
    assert_eq!(spec.initrd, Some("/i".into()));
    assert_eq!(spec.serial, SerialSpec::File("/folder/s".into()));
}
