//! Clones: VMs that go on from where another one is, each with its own of everything.

use berth_tests::fleet::Fleet;

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
    assert_eq!(std::fs::read_dir(fleet.path().join("bases")).unwrap().count(), 2);
    fleet.good(["rm", "--force", "web-1", "web-2", "web-3", "child-1"]);
    assert_eq!(
        std::fs::read_dir(fleet.path().join("bases")).unwrap().count(),
        0,
        "nobody needs them"
    );
}
