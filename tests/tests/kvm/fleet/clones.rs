//! Clones: VMs that go on from where another one is, each with its own of everything.

use berth_tests::fleet::Fleet;
use berth_tests::netns::Netns;
use serde_json::Value;

use crate::codes;

#[test]
fn clones_go_on_from_where_the_vm_was_each_by_itself() {
    let fleet = Fleet::new();
    let disk = fleet.path().join("disk.img");
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let made = fleet
        .tiny("run", "tally")
        .args(["--detach", "--name", "web", "--disk"])
        .arg(&disk)
        .finish();
    made.expect_code(0);
    fleet.attach("web", "ab", &["2\n"]);
    let names = fleet.good(["fork", "web", "--count", "3"]);
    assert_eq!(names, "web-1\nweb-2\nweb-3\n");
    assert_eq!(fleet.state("web"), "running");
    fleet.attach("web-2", "xyz", &["5\n"]);
    for name in ["web", "web-1", "web-3"] {
        assert_eq!(fleet.attach(name, "c", &["3\n"]), "3\n");
    }
    // By reference or below an overlay, as the file system can.
    let disk = fleet.inspect("web-1")["spec"]["disks"][0].take();
    let own = disk["overlay"].as_str().or(disk["path"].as_str()).unwrap();
    assert!(own.starts_with(fleet.folder("web-1").to_str().unwrap()), "{own}");
    assert_eq!(fleet.good(["fork", "web-2", "--name", "child"]), "child-1\n");
    assert_eq!(fleet.attach("child-1", "c", &["6\n"]), "6\n");
    let sentence = fleet.run(["fork", "web", "--tap", "tap{}"]).sentence(codes::USER);
    assert!(sentence.contains("leave --tap out"), "{sentence}");
    assert_eq!(std::fs::read_dir(fleet.path().join("bases")).unwrap().count(), 2);
    fleet.good(["rm", "--force", "web-1", "web-2", "web-3", "child-1"]);
    assert_eq!(
        std::fs::read_dir(fleet.path().join("bases")).unwrap().count(),
        0,
        "nobody needs them"
    );
}

#[test]
fn each_clone_has_its_own_tap_address_sockets_and_cid() {
    let fleet = Fleet::new();
    let netns = Netns::with_tap("tap0", "10.77.0.1/24");
    let [port, vsock] = ["port", "vsock"].map(|name| fleet.path().join(name));
    let made = fleet
        .verb(["run", "--detach", "--name", "web", "--net", "tap=tap0"])
        .arg("--console")
        .arg(format!("name=agent,socket={}", port.display()))
        .arg("--vsock")
        .arg(format!("cid=100,path={}", vsock.display()))
        .inside(&netns)
        .command(["sh", "-c", "echo up; while read -r line; do eval \"$line\"; done"])
        .finish();
    made.expect_code(0);
    // A shell of its own would throw away what is typed before it looks.
    fleet.attach("web", "", &["up"]);
    fleet.attach("web", "echo i am $((1 + 1))\n", &["i am 2"]);
    let sentence = fleet.run(["fork", "web"]).sentence(codes::USER);
    assert!(sentence.contains("--tap tap{}"), "{sentence}");
    let sentence = fleet
        .run(["fork", "web", "--count", "2", "--tap", "tap1"])
        .sentence(codes::USER);
    assert!(sentence.contains("cannot share the tap tap1"), "{sentence}");

    let forked = fleet
        .verb(["fork", "web", "--count", "2", "--tap", "tap{}"])
        .inside(&netns)
        .finish();
    assert_eq!(forked.expect_code(0).out(), "web-1\nweb-2\n");
    let own = |name: &str| {
        let spec = fleet.inspect(name)["spec"].take();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        (
            text(&spec["nets"][0]["tap"]),
            text(&spec["nets"][0]["mac"]),
            text(&spec["consoles"][0]["socket"]),
            text(&spec["vsock"]["path"]),
            spec["vsock"]["cid"].as_u64().expect("a number"),
        )
    };
    let (_, first_mac, ..) = own("web-1");
    for (name, tap, cid) in [("web-1", "tap1", 101), ("web-2", "tap2", 102)] {
        let (its_tap, mac, port, vsock, its_cid) = own(name);
        assert_eq!((its_tap.as_str(), its_cid), (tap, cid));
        assert!(netns.ip(&format!("-o link show {tap}")).contains("UP"));
        for path in [&port, &vsock] {
            let own = fleet.folder(name);
            assert!(path.starts_with(own.to_str().expect("it is text")), "{path}");
            assert!(std::path::Path::new(path).exists(), "{path}");
        }
        assert!(
            mac.starts_with("02:") && (name == "web-1" || mac != first_mac),
            "{mac}"
        );
        // Linux reads an address when its driver begins.
        let script = "cd /sys/bus/virtio/drivers/virtio_net; d=$(echo virtio*); echo $d >unbind; echo $d >bind; \
            cat /sys/class/net/eth0/address\n";
        fleet.attach(name, script, &[&mac]);
    }
    fleet.good(["rm", "--force", "web-1", "web-2"]);
    let links = netns.ip("-o link show");
    assert!(!links.contains("tap1") && !links.contains("tap2"), "{links}");
    assert!(port.exists() && vsock.exists(), "the parent's are left alone");
    // The same names have the same addresses.
    let again = fleet
        .verb(["fork", "web", "--tap", "tap{}"])
        .inside(&netns)
        .finish();
    again.expect_code(0);
    assert_eq!(own("web-1").1, first_mac);
}
