//! Files in the guest's memory: what the guest writes is what the host reads, flushed or not, and what it may not write stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_tests::fleet::Fleet;
use berth_tests::invocation::{run, script};
use berth_tests::served::Served;
use berth_tests::{guests, tools};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::codes;

const MIB: usize = 1 << 20;

/// A file of `len` bytes, each `filled`.
fn file(len: usize, filled: u8) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory.img");
    fs::write(&path, vec![filled; len]).unwrap();
    (folder, path)
}

fn pmem(path: &Path, options: &str) -> String {
    format!("--pmem={}{options}", path.display())
}

#[test]
fn a_guest_reads_and_writes_files_in_its_memory_and_cannot_write_read_only_ones() {
    let (_first, writable) = file(4 * MIB, 1);
    let (_second, read_only) = file(MIB + 512, 2);
    let outcome = script(
        "set -e
         cat /sys/block/pmem0/size /sys/block/pmem1/size
         dd if=/dev/pmem1 of=/dev/pmem0 bs=4k seek=16 count=8 conv=notrunc,fsync 2>/dev/null
         dd if=/dev/pmem0 bs=4k skip=16 count=8 iflag=direct 2>/dev/null | md5sum
         dd if=/dev/pmem1 bs=512 skip=2049 count=1 2>/dev/null | tr -d '\\000' | wc -c
         dd if=/dev/zero of=/dev/pmem1 bs=4k count=1 conv=fsync 2>/dev/null || true
         dd if=/dev/pmem1 bs=512 count=1 iflag=direct 2>/dev/null | md5sum",
    )
    .arg(pmem(&writable, ""))
    .arg(pmem(&read_only, ",ro"))
    .finish();
    outcome.expect_code(0);
    let sum = |len| {
        let out = tools::feed("md5sum", Vec::<&str>::new(), &vec![2; len]).stdout;
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        outcome.out(),
        format!("8192\n4096\n{}0\n{}", sum(32 << 10), sum(512)),
        "{outcome}"
    );
    let mut expected = vec![1; 4 * MIB];
    expected[64 << 10..96 << 10].fill(2);
    assert!(
        fs::read(&writable).unwrap() == expected,
        "it differs from what the guest wrote"
    );
    assert!(
        fs::read(&read_only).unwrap() == vec![2; MIB + 512],
        "a read-only file was written"
    );
}

#[test]
fn a_file_system_on_it_is_used_without_the_guests_page_cache() {
    let (folder, image) = file(16 * MIB, 0);
    tools::run("mkfs.ext4", ["-q", "-b", "4096", image.to_str().unwrap()]);
    let outcome = script(
        "set -e
         mkdir -p /tmp/m
         mount -t ext4 -o dax /dev/pmem0 /tmp/m
         grep -c ' /tmp/m ext4 .*dax' /proc/mounts
         echo by the guest >/tmp/m/file
         sync /tmp/m/file
         umount /tmp/m",
    )
    .arg(pmem(&image, ""))
    .finish();
    outcome.expect_code(0);
    assert_eq!(outcome.out(), "1\n", "{outcome}");
    tools::run("e2fsck", ["-f", "-n", image.to_str().unwrap()]);
    let copy = folder.path().join("copy");
    tools::run(
        "debugfs",
        [
            "-R",
            &format!("dump /file {}", copy.display()),
            image.to_str().unwrap(),
        ],
    );
    assert_eq!(fs::read_to_string(&copy).unwrap(), "by the guest\n");
}

#[test]
fn clones_have_copies_of_the_file_and_a_vm_that_goes_on_must_find_its_size() {
    let fleet = Fleet::new();
    let image = fleet.path().join("memory.img");
    fs::write(&image, vec![7; 2 * MIB]).unwrap();
    let made = fleet
        .verb(["run", "--detach", "--name", "web"])
        .arg(pmem(&image, ""))
        .command(["sh", "-c", "echo up; while read -r line; do eval \"$line\"; done"])
        .finish();
    made.expect_code(0);
    // It boots, since it saw a file that may have changed: on a busy host that takes longer than a verb may.
    fleet
        .verb(["logs", "--follow", "web"])
        .within(Duration::from_secs(150))
        .start()
        .wait_for("up");
    let write = |name: &str, text: &str| {
        // The sum, since the guest's terminal shows what is typed.
        let words = format!("printf {text} | dd of=/dev/pmem0 conv=notrunc,fsync 2>/dev/null");
        let line = format!("{words}; echo {text} $((40 + 2))\n");
        fleet.attach(name, &line, &[&format!("{text} 42")]);
    };
    write("web", "parent");
    assert_eq!(fleet.good(["fork", "web"]), "web-1\n");
    let spec = fleet.inspect("web-1")["spec"].take();
    let copy = PathBuf::from(spec["pmem"][0]["path"].as_str().unwrap());
    assert!(copy.starts_with(fleet.folder("web-1")), "{}", copy.display());
    assert!(fs::read(&copy).unwrap().starts_with(b"parent"));
    write("web-1", "clone1");
    write("web", "father");
    assert!(fs::read(&copy).unwrap().starts_with(b"clone1"));
    assert!(fs::read(&image).unwrap().starts_with(b"father"));

    let saved = fleet.path().join("saved");
    fleet.good(["snapshot", "web", saved.to_str().unwrap()]);
    // Nobody else can write it meanwhile.
    let sentence = fleet
        .run([
            "restore".as_ref(),
            saved.as_os_str(),
            "--name".as_ref(),
            "other".as_ref(),
        ])
        .sentence(codes::USER);
    assert!(sentence.contains("is in use by another program"), "{sentence}");
    fleet.good(["kill", "web"]);
    let longer = fleet.path().join("longer.img");
    fs::write(&longer, vec![7; 4 * MIB]).unwrap();
    let sentence = fleet
        .verb(["restore", "--name", "other"])
        .arg(&saved)
        .arg(pmem(&longer, ""))
        .finish()
        .sentence(codes::USER);
    assert!(sentence.contains("the guest knows 2097152 bytes"), "{sentence}");
    fleet.good([
        "restore".as_ref(),
        saved.as_os_str(),
        "--name".as_ref(),
        "other".as_ref(),
    ]);
    write("other", "heir12");
    assert!(fs::read(&image).unwrap().starts_with(b"heir12"));
}

#[test]
fn over_the_api_it_is_made_as_firecrackers_are_and_its_limits_change_while_the_guest_runs() {
    let (folder, image) = file(2 * MIB, 0);
    let odd = folder.path().join("odd.img");
    fs::write(&odd, vec![0; MIB]).unwrap();
    let mut served = Served::start(run(["--api-only"]));
    let boot = json!({"kernel_image_path": guests::tiny(), "boot_args": "do=spin"});
    served.tell("PUT", "/boot-source", &boot);
    let pmem = |id: &str, path: &Path| json!({"id": id, "path_on_host": path, "root_device": true});
    served.refuses("PUT", "/pmem/other", &pmem("data", &image), "does not match");
    served.refuses(
        "PUT",
        "/pmem/data",
        &pmem("data", &odd),
        "not a multiple of 2 MiB",
    );
    served.tell("PUT", "/pmem/data", &pmem("data", &image));
    // Once more, as who has changed his mind.
    served.tell("PUT", "/pmem/data", &pmem("data", &image));
    served.refuses(
        "PUT",
        "/pmem/two",
        &pmem("two", &image),
        "A root device already exists",
    );
    let drive = json!({"drive_id": "root", "path_on_host": odd, "is_root_device": true});
    served.refuses("PUT", "/drives/root", &drive, "root block device already exists");
    let limit = json!({"id": "data", "rate_limiter": {"ops": {"size": 7, "refill_time": 100}}});
    served.refuses("PATCH", "/pmem/data", &limit, "before starting");
    served.tell("PUT", "/actions", &json!({"action_type": "InstanceStart"}));
    served.running.wait_for("spinning");
    let spec = served.get("/berth/v1/vm")["spec"].take();
    assert_eq!(spec["cmdline"], "root=/dev/pmem0 rw");
    served.tell("PATCH", "/pmem/data", &limit);
    let known = served.get("/vm/config")["pmem"].take();
    let mut expected = pmem("data", &image);
    expected["read_only"] = false.into();
    expected["rate_limiter"] = limit["rate_limiter"].clone();
    assert_eq!(known, json!([expected]));
    let none = json!({"id": "none"});
    served.refuses("PATCH", "/pmem/none", &none, "there is no pmem device \"none\"");
    served.refuses("DELETE", "/pmem/data", &Value::Null, "does not unplug");
    let devices = served.get("/berth/v1/metrics.json")["devices"].take();
    let named = |device: &Value| device["kind"] == "pmem" && device["id"] == "data";
    assert!(devices.as_array().unwrap().iter().any(named), "{devices}");
    served.tell("POST", "/berth/v1/kill", &Value::Null);
    served.running.finish().expect_code(0);
}
