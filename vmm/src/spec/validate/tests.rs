use std::path::PathBuf;

use super::*;
use crate::spec::{DiskSpec, Format, parse};

const HOST: Limits = Limits {
    cpus: 8,
    memory: ByteSize(4 << 30),
    host_cpus: None,
};

/// The faults of a VM file, each as shown.
fn faults(toml: &str) -> Vec<String> {
    let spec = parse(toml, Format::Toml).expect("the text is no matter here");
    match validate(&spec, HOST) {
        Ok(valid) => {
            assert_eq!(valid.into_inner(), spec);
            Vec::new()
        }
        Err(faults) => faults.iter().map(Fault::to_string).collect(),
    }
}

#[test]
fn what_can_be_run_has_no_fault() {
    for toml in [
        "",
        "cpus = 8\nmemory = \"4G\"",
        "memory = \"2M\"",
        "kernel = \"vmlinux\"\ninitrd = \"initrd\"\nserial = { file = \"log\" }\ntimeout = 0",
        "command = [\"sh\", \"\", \"-c\", \"echo ä\"]",
        "cmdline = \"a=\\\"b c\\\" ~\"\ncmdline_replace = \"\"",
        "disks = [{ path = \"a\", serial = \"exactly-20-characters\" }]"
            .replace("-characters", "-character")
            .as_str(),
        "disks = [{ path = \"/nowhere/a\", read_only = true }, { path = \"/nowhere/a\", read_only = true }]",
        "disks = [{ path = \"/dev/null\" }, { path = \"/dev/null\" }]",
        "nets = [{ tap = \"fifteen-letters\", mac = \"02:00:00:aB:cd:EF\" }, { tap = \"tap1\" }]",
    ] {
        assert_eq!(faults(toml), Vec::<String>::new(), "{toml}");
    }
}

/// Each text has exactly the one fault.
fn each(table: &[(&str, &str)]) {
    for (toml, expected) in table {
        assert_eq!(faults(toml), [*expected], "{toml}");
    }
}

#[test]
fn each_fault_of_the_machine_names_its_field_its_value_and_the_remedy() {
    each(&[
        ("cpus = 0", "cpus: 0 vCPUs cannot run anything; give at least 1"),
        (
            "cpus = 255",
            "cpus: 255 vCPUs are more than a guest can have; give at most 254",
        ),
        (
            "cpus = 9",
            "cpus: 9 vCPUs are more than this host's KVM allows; give at most 8",
        ),
        (
            "memory = 0",
            "memory: 0 is too little to boot anything; give at least 2M",
        ),
        (
            "memory = 512",
            "memory: 512 is too little to boot anything; give at least 2M (a number alone is bytes; for 512 MiB write 512M)",
        ),
        (
            "memory = \"1M\"",
            "memory: 1M is too little to boot anything; give at least 2M",
        ),
        (
            "memory = \"5G\"",
            "memory: 5G is more than this host has; give at most 4G",
        ),
        (
            "memory = 2097153",
            "memory: 2097153 is no whole number of pages; give a multiple of 4K, such as 2M",
        ),
        (
            "timeout = 4294967296",
            "timeout: 4294967296 seconds are too long; give at most 4294967295, or nothing for no limit",
        ),
        (
            "kernel = \"\"",
            "kernel: the path is empty; name a file, or leave it out for the guest that ships with Berth",
        ),
        (
            "initrd = \"\"",
            "initrd: the path is empty; name a file, or leave it out",
        ),
        (
            "initrd = \"a\\u0000\"",
            "initrd: the path \"a\\0\" holds a zero byte, which no file's name can; name a file, or leave it out",
        ),
        (
            "cmdline = \"ümlaut\"",
            "cmdline: a kernel command line cannot hold 'ü'; write it in printable ASCII",
        ),
        (
            "cmdline_replace = \"a\\tb\"",
            "cmdline_replace: a kernel command line cannot hold '\\t'; write it in printable ASCII",
        ),
        (
            "kernel = \"k\"\ncommand = [\"ls\", \"-l\"]",
            "command: \"ls -l\" can only be run by the guest that ships with Berth; leave out the kernel or the command",
        ),
        (
            "command = [\"\", \"x\"]",
            "command: the program's name is empty; name a program of the guest, such as sh",
        ),
        (
            "command = [\"ls\", \"a\\u0000\"]",
            "command: the word \"a\\0\" holds a zero byte, which no program can be given; leave it out",
        ),
    ]);
}

#[test]
fn several_pairs_of_queues_are_for_taps_and_need_as_many_threads_as_they_are_spread_over() {
    each(&[
        (
            "nets = [{ tap = \"t\", queues = 0 }]",
            "net 1: queues: 0 is not 1 to 16; one for each CPU is enough",
        ),
        (
            "nets = [{ user = true, queues = 2 }]",
            "net 1: queues: 2 are for a tap, and a user-mode network has one pair of queues; leave it out",
        ),
        (
            "nets = [{ tap = \"t\", queues = 2 }]\nmmds = {}",
            "net 1: queues: 2 cannot be where the guest asks for metadata, which is answered on one pair of queues; leave it \
             out, or name other interfaces in mmds.nets",
        ),
        (
            "nets = [{ tap = \"t\", spread = true }]",
            "net 1: spread is for several pairs of queues, and it has one; give queues=2 or more, or leave it out",
        ),
        (
            "nets = [{ tap = \"t\", queues = 2, spread = true, io_thread = 1 }]\nthreads = { io = 2 }",
            "net 1: spread: 2 pairs of queues from I/O thread 1 on need 3 threads; raise threads.io, which is 2, or leave it out",
        ),
        (
            "nets = [{ tap = \"t\", queues = 2, spread = true, tx_rate_limit = { ops = { size = 1, refill_ms = 100 } } }]\nthreads = { io = 2 }",
            "net 1: spread: limits are for what one thread serves; leave out them or spread",
        ),
    ]);
}

#[test]
fn each_fault_of_a_device_names_its_field_its_value_and_the_remedy() {
    each(&[
        (
            "disks = [{ path = \"a\" }, { path = \"\" }]",
            "disk 2: the path is empty; name an image file or a block device",
        ),
        (
            "disks = [{ path = \"a\", serial = \"more-than-20-characters\" }]",
            "disk 1: the serial \"more-than-20-characters\" has 23 characters; it can have at most 20",
        ),
        (
            "disks = [{ path = \"a\", serial = \"ä\" }]",
            "disk 1: the serial \"ä\" holds 'ä'; write it in printable ASCII",
        ),
        (
            "disks = [{ path = \"/nowhere/a\" }, { path = \"b\" }, { path = \"/nowhere/a\", read_only = true }]",
            "disk 3: /nowhere/a is disk 1 already; give it once, or both times read-only",
        ),
        (
            "nets = [{ tap = \"\" }]",
            "net 1: the tap's name is empty; name a tap interface of the host, such as tap0, or set user",
        ),
        (
            "nets = [{ tap = \"a-name-too-long-\" }]",
            "net 1: the tap's name \"a-name-too-long-\" has 16 bytes; Linux allows 15",
        ),
        (
            "nets = [{ tap = \"tap%d\" }]",
            "net 1: the tap's name \"tap%d\" holds '%'; name one such as tap0",
        ),
        (
            "nets = [{ tap = \"a b\" }]",
            "net 1: the tap's name \"a b\" holds ' '; name one such as tap0",
        ),
        (
            "nets = [{ tap = \"..\" }]",
            "net 1: \"..\" cannot be the name of a tap; name one such as tap0",
        ),
        (
            "nets = [{}]",
            "net 1: the tap's name is empty; name a tap interface of the host, such as tap0, or set user",
        ),
        (
            "nets = [{ tap = \"t\", user = true }]",
            "net 1: it cannot be both on a tap and user-mode; leave out tap and create, or leave out user",
        ),
        (
            "nets = [{ tap = \"t\", publish = [\"80:80\"] }]",
            "net 1: publish is for user-mode networks, and this one is on a tap; leave it out, or set user instead of tap",
        ),
        (
            "nets = [{ user = true, publish = [\"80:80\"] }, { user = true, publish = [\"1.2.3.4:80:81\"] }]",
            "net 2: the host's port of 1.2.3.4:80:81 is published as 80:80 already; publish another one",
        ),
        (
            "nets = [{ tap = \"t\" }, { tap = \"t\" }]",
            "net 2: the tap t is net 1's already; make another tap for it",
        ),
        (
            "nets = [{ tap = \"t\", mac = \"no:mac\" }]",
            "net 1: the mac \"no:mac\" is no hardware address; write it as 02:00:00:00:00:01",
        ),
        (
            "nets = [{ tap = \"t\", mac = \"00:00:00:00:00:00\" }]",
            "net 1: the mac 00:00:00:00:00:00 means no address at all; give one such as 02:00:00:00:00:01",
        ),
        (
            "nets = [{ tap = \"t\", mac = \"03:00:00:00:00:01\" }]",
            "net 1: the mac 03:00:00:00:00:01 is a multicast address; give one whose first byte is even, such as \
             02:00:00:00:00:01",
        ),
        (
            "nets = [{ tap = \"t\", mac = \"02:00:00:00:00:0a\" }, { tap = \"u\", mac = \"02:00:00:00:00:0A\" }]",
            "net 2: the mac 02:00:00:00:00:0A is net 1's already; give it another",
        ),
        (
            "serial = { file = \"\" }",
            "serial: the path is empty; name a file, as in file=console.log",
        ),
        (
            "serial = { socket = \"\" }",
            "serial: the path is empty; name a socket, as in socket=console.sock",
        ),
        (
            &format!("serial = {{ socket = \"{}\" }}", "s".repeat(108)),
            &format!(
                "serial: the socket's path {} has 108 bytes; Linux allows 107",
                "s".repeat(108)
            ),
        ),
    ]);
}

#[test]
fn an_overlay_needs_an_image() {
    each(&[(
        "disks = [{ path = \"/dev/null\", overlay = \"/nowhere/a\" }]",
        "disk 1: an overlay stands on an image, and /dev/null is none; leave the overlay out",
    )]);
}

#[test]
fn every_fault_is_told_and_not_only_the_first() {
    let toml = "cpus = 0\nmemory = 0\ncmdline = \"ä\"\nserial = { file = \"\" }\ndisks = [{ path = \"\" }]\nnets = [{ tap = \"\", mac = \"x\" }]";
    let fields: Vec<String> = faults(toml)
        .iter()
        .map(|fault| fault.split(':').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(
        fields,
        ["cpus", "memory", "cmdline", "disk 1", "net 1", "net 1", "serial"]
    );
}

#[test]
fn one_file_under_two_names_is_one_disk() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let link = folder.path().join("link");
    std::fs::write(&image, "").unwrap();
    std::os::unix::fs::symlink(&image, &link).unwrap();
    let disk = |path: PathBuf, read_only| DiskSpec {
        id: None,
        path,
        read_only,
        ..DiskSpec::default()
    };
    for (first, second, refused) in [(false, false, true), (true, false, true), (true, true, false)] {
        let disks = vec![disk(image.clone(), first), disk(link.clone(), second)];
        let result = validate(
            &VmSpec {
                disks,
                ..VmSpec::default()
            },
            HOST,
        );
        assert_eq!(result.is_err(), refused, "{first} {second}");
    }
}

#[test]
fn a_file_in_memory_is_nothing_else_unless_it_is_only_read() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    std::fs::write(&image, "").unwrap();
    let image = image.display();
    for (toml, expected) in [
        (
            format!("disks = [{{ path = \"{image}\", read_only = true }}]\npmem = [{{ path = \"{image}\" }}]"),
            vec![format!("pmem 1: {image} is disk 1 already; give it once, or both times read-only")],
        ),
        (
            format!(
                "pmem = [{{ path = \"{image}\", read_only = true }}, {{ path = \"{image}\" }}, {{ path = \"{image}\", read_only = true }}]"
            ),
            vec![
                format!("pmem 2: {image} is pmem 1 already; give it once, or both times read-only"),
                format!("pmem 3: {image} is pmem 2 already; give it once, or both times read-only"),
            ],
        ),
        (
            format!(
                "disks = [{{ path = \"{image}\", read_only = true }}]\npmem = [{{ path = \"{image}\", read_only = true }}]"
            ),
            Vec::new(),
        ),
        (
            "pmem = [{ path = \"\", io_thread = 3 }]".to_owned(),
            vec![
                "pmem 1: the path is empty; name a file".to_owned(),
                "pmem 1: io_thread: there is no I/O thread 3, they are counted from 0; raise threads.io, which is 1".to_owned(),
            ],
        ),
    ] {
        assert_eq!(faults(&toml), expected);
    }
}

#[test]
fn a_limit_lets_something_through() {
    for (toml, expected) in [
        (
            "disks = [{ path = \"a\", rate_limit = { bandwidth = { size = 0 } } }]",
            "disk 1: rate_limit: bandwidth has a size of 0, with which nothing could pass; give at least 1, or leave bandwidth out \
             for no limit",
        ),
        (
            "nets = [{ tap = \"t\", tx_rate_limit = { ops = { size = 1, refill_ms = 0 } } }]",
            "net 1: tx_rate_limit: ops has a refill_ms of 0, with which nothing could pass; give at least 1, or leave ops out for \
             no limit",
        ),
        (
            "rng_rate_limit = { ops = { size = 0 } }",
            "rng_rate_limit: ops has a size of 0, with which nothing could pass; give at least 1, or leave ops out for no limit",
        ),
    ] {
        assert_eq!(faults(toml), [expected]);
    }
    let toml = "nets = [{ tap = \"t\", rx_rate_limit = { bandwidth = { size = \"1M\", burst = \"9M\" }, ops = { size = 5 } } }]";
    assert_eq!(faults(toml), Vec::<String>::new());
}

#[test]
fn a_vsock_has_a_number_of_its_own_and_a_path_with_room_for_a_port() {
    let long = "p".repeat(97);
    for (text, expected) in [
        (
            "vsock = { cid = 2, path = \"v\" }".to_owned(),
            "vsock: the cid 2 is taken (1 is any machine itself, 2 the host); give 3 or more".to_owned(),
        ),
        (
            "vsock = { cid = 4294967295, path = \"v\" }".to_owned(),
            "vsock: the cid 4294967295 means any machine; give a smaller one".to_owned(),
        ),
        (
            "vsock = { path = \"\" }".to_owned(),
            "vsock: the path is empty; name a socket for Berth to make, as in path=vm.vsock".to_owned(),
        ),
        (
            format!("vsock = {{ path = {long:?} }}"),
            format!("vsock: the path {long} has 97 bytes; with a port behind it Linux allows 96"),
        ),
    ] {
        assert_eq!(faults(&text), [expected]);
    }
    assert_eq!(faults(&format!("vsock = {{ path = {:?} }}", &long[1..])), [""; 0]);
}

#[test]
fn metadata_is_answered_on_interfaces_that_are_there_at_an_address_for_it() {
    let nets = "nets = [{ tap = \"a\" }, { tap = \"b\", id = \"eth1\" }]\n";
    for (text, expected) in [
        (
            "mmds = {}".to_owned(),
            "mmds: there is no network interface for it to answer on; give one, or leave it out",
        ),
        (
            format!("{nets}mmds = {{ nets = [\"net1\", \"net2\"] }}"),
            "mmds: there is no network interface \"net2\"; there are net1, eth1",
        ),
        (
            format!("{nets}mmds = {{ address = \"169.254.0.1\" }}"),
            "mmds: the address 169.254.0.1 is not for metadata; give one from 169.254.1.0 to 169.254.254.255",
        ),
        (
            format!("{nets}mmds = {{ file = \"\" }}"),
            "mmds: the path is empty; name a file with a JSON object, or leave it out",
        ),
    ] {
        assert_eq!(faults(&text), [expected]);
    }
    let good = "mmds = { version = \"V2\", nets = [\"eth1\", \"net1\"], address = \"169.254.170.2\", file = \"m.json\" }";
    assert_eq!(faults(&format!("{nets}{good}")), [""; 0]);
}

#[test]
fn a_balloon_holds_less_than_the_memory_and_whole_pages() {
    for (toml, expected) in [
        (
            "balloon = { target = \"256M\" }",
            "balloon: a guest with 256M of memory cannot give back 256M; give a smaller target",
        ),
        (
            "balloon = { target = 5000 }",
            "balloon: the target 5000 is no whole number of pages; give a multiple of 4K, such as 4K",
        ),
        (
            "balloon = { stats_interval = 5000000000 }",
            "balloon: 5000000000 seconds between two reports are too long; give at most 4294967295, or 0 for no reports",
        ),
    ] {
        assert_eq!(faults(toml), [expected]);
    }
    assert_eq!(
        faults("balloon = { target = \"255M\", stats_interval = 1 }"),
        Vec::<String>::new()
    );
}

#[test]
fn the_guests_own_devices_take_room_too() {
    let spec = |kernel: Option<&str>, rng, disks: usize| VmSpec {
        kernel: kernel.map(PathBuf::from),
        rng,
        disks: (0..disks)
            .map(|index| DiskSpec {
                id: None,
                path: format!("/nowhere/{index}").into(),
                ..DiskSpec::default()
            })
            .collect(),
        ..VmSpec::default()
    };
    for (kernel, rng, most) in [
        (None, true, 62),
        (None, false, 63),
        (Some("k"), true, 63),
        (Some("k"), false, 64),
    ] {
        assert!(validate(&spec(kernel, rng, most), HOST).is_ok());
        let faults = validate(&spec(kernel, rng, most + 1), HOST).unwrap_err();
        let expected = format!(
            "disks: {} disks and 0 network interfaces are more than the {most} devices a guest has room for; leave some out",
            most + 1
        );
        assert_eq!(
            faults.iter().map(Fault::to_string).collect::<Vec<_>>(),
            [expected]
        );
    }
}

#[test]
fn the_hosts_limits_allow_the_least_guest() {
    let limits = Limits::of_host(&VmSpec {
        cpus: 2,
        ..VmSpec::default()
    });
    assert!(limits.cpus >= 1 && limits.memory >= MEMORY_MIN, "{limits:?}");
}
