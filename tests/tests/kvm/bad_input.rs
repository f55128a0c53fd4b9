//! Whatever is wrong with what the user asks for: one sentence that names it, exit code 2, nothing left behind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use berth_tests::invocation::{Invocation, berth, run};
use berth_tests::netns::Netns;
use berth_tests::{formats, guests, program, tools};
use tempfile::TempDir;

use crate::codes;

/// A folder for a test's files, and what must be in it afterwards.
struct Scratch {
    folder: TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn listing(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Runs it in the folder: it must be refused with a sentence that holds every one of `parts`, and leave no file.
    #[track_caller]
    fn refuses(&self, invocation: Invocation, parts: &[&str]) {
        let before = self.listing();
        let outcome = invocation
            .folder(self.folder.path())
            .within(Duration::from_secs(30))
            .finish();
        let sentence = outcome.sentence(codes::USER);
        for part in parts {
            assert!(
                sentence.to_lowercase().contains(&part.to_lowercase()),
                "the sentence lacks {part:?}: {outcome}"
            );
        }
        assert_eq!(outcome.out(), "", "{outcome}");
        assert_eq!(self.listing(), before, "{outcome}");
    }

    /// The same for `berth run` of the test guest with these arguments.
    #[track_caller]
    fn refuses_arguments<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>, parts: &[&str]) {
        self.refuses(run(["--kernel"]).arg(guests::tiny()).args(arguments), parts);
    }
}

#[test]
fn files_that_are_missing_unreadable_or_of_the_wrong_kind() {
    let scratch = Scratch::new();
    for missing in ["--kernel", "--initrd", "--config"] {
        scratch.refuses(
            run([missing, "/nonexistent/file"]),
            &["/nonexistent/file", "No such file"],
        );
        scratch.refuses(run([missing, "/"]), &["/"]);
    }
    // A pipe that nobody writes to must not be waited for: no signal would end that.
    tools::run("mkfifo", [scratch.folder.path().join("pipe")]);
    for flag in ["--kernel", "--initrd"] {
        scratch.refuses(run([flag, "pipe"]), &["pipe", "not a regular file"]);
    }
    scratch.refuses_arguments(
        ["--disk", "/nonexistent/disk"],
        &["disk", "/nonexistent/disk", "No such file"],
    );
    scratch.refuses_arguments(["--disk", "/"], &["disk", "/"]);
    scratch.refuses_arguments(
        ["--serial", "file=/nonexistent/log"],
        &["serial", "/nonexistent/log", "No such file"],
    );
    scratch.refuses_arguments(
        ["--log-file", "/nonexistent/log"],
        &["/nonexistent/log", "No such file"],
    );
    scratch.refuses_arguments(
        ["--serial", "socket=/nonexistent/socket"],
        &["serial", "/nonexistent/socket"],
    );
}

#[test]
fn no_right_to_dev_kvm() {
    tools::need_root("gives up root's rights");
    let scratch = Scratch::new();
    // Where nobody may reach it, unlike the folder it was built in.
    let program = scratch.folder.path().join("berth");
    fs::copy(program::berth(), &program).unwrap();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(scratch.folder.path(), open).unwrap();
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
    ];
    scratch.refuses(
        run::<&str>([]).program(&program).behind(nobody),
        &["no right to use /dev/kvm"],
    );
}

#[test]
fn no_right_to_a_file() {
    tools::need_root("gives up root's rights");
    let scratch = Scratch::new();
    let closed = scratch.file("closed.toml", [0; 512]);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&closed, Some(65534), Some(65534)).unwrap();
    let closed = closed.to_str().unwrap();
    for flag in ["--kernel", "--initrd", "--disk", "--config"] {
        // Root, for /dev/kvm, but without root's right to any file.
        let invocation =
            run([flag, closed]).behind(["setpriv", "--bounding-set=-dac_override,-dac_read_search"]);
        scratch.refuses(invocation, &[closed, "permission"]);
    }
    let log = format!("file={closed}");
    let invocation =
        run(["--serial", &log]).behind(["setpriv", "--bounding-set=-dac_override,-dac_read_search"]);
    scratch.refuses(invocation, &[closed, "permission"]);
}

#[test]
fn kernels_that_are_none_cut_short_or_lying() {
    let scratch = Scratch::new();
    let elf = fs::read(guests::tiny()).unwrap();
    let image = formats::bzimage(&formats::compress("gzip", &elf), elf.len());
    let patched = |bytes: &[u8], at: usize, value: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    for (name, bytes, part) in [
        ("empty", vec![], "it is empty"),
        (
            "text",
            b"#!/bin/sh\necho no kernel\n".to_vec(),
            "neither an ELF file",
        ),
        ("elf-header-cut", elf[..40].to_vec(), "fewer than its header"),
        ("elf-table-cut", elf[..80].to_vec(), "cut short"),
        ("elf-cut", elf[..elf.len() / 8].to_vec(), "cut short"),
        ("elf-offset", patched(&elf, 64 + 8, &[0xff; 8]), "segment 0"),
        ("elf-file-size", patched(&elf, 64 + 32, &[0xff; 8]), "segment 0"),
        ("elf-memory-size", patched(&elf, 64 + 40, &[0xff; 8]), "segment 0"),
        (
            "elf-address",
            patched(&elf, 64 + 24, &(1_u64 << 40).to_le_bytes()),
            "no RAM",
        ),
        (
            "elf-low",
            patched(&elf, 64 + 24, &0x7000_u64.to_le_bytes()),
            "below 1 MiB",
        ),
        ("elf-table-place", patched(&elf, 32, &[0xf0; 8]), "e_phoff"),
        ("elf-count", patched(&elf, 56, &[0xff; 2]), "program headers"),
        ("elf-32", patched(&elf, 4, &[1]), "64-bit"),
        ("image-cut", image[..image.len() / 2].to_vec(), "cut short"),
        ("image-header-cut", image[..0x220].to_vec(), "setup header"),
        ("image-offset", patched(&image, 0x248, &[0xff; 4]), "payload"),
        ("image-length", patched(&image, 0x24c, &[0xff; 4]), "payload"),
        ("image-old", patched(&image, 0x206, &[7, 2]), "too old"),
        (
            "image-payload",
            formats::bzimage(b"not a kernel at all", 19),
            "payload",
        ),
        (
            "packed-cut",
            formats::compress("xz", &elf)[..2000].to_vec(),
            "cannot be unpacked",
        ),
        ("packed-text", formats::compress("zstd", b"hello"), "ELF"),
        (
            "bomb",
            formats::compress("gzip", &vec![0; 64 << 20]),
            "more than the guest's",
        ),
    ] {
        let file = scratch.file(name, bytes);
        let name = file.to_str().unwrap().to_owned();
        scratch.refuses(run(["--memory", "32M", "--kernel", &name]), &[&name, part]);
    }
}

#[test]
fn too_little_memory_for_kernel_and_initrd() {
    let scratch = Scratch::new();
    let initrd = scratch.file("initrd", vec![0; 12 << 20]);
    let initrd = initrd.to_str().unwrap();
    scratch.refuses_arguments(["--memory", "8M", "--initrd", initrd], &["initrd", "memory"]);
    scratch.refuses(
        run(["--memory", "16M", "--kernel"]).arg(guests::linux()),
        &["memory"],
    );
    scratch.refuses(run(["--memory", "16M"]), &["memory"]);
}

#[test]
fn memory_and_processors_out_of_bounds() {
    let scratch = Scratch::new();
    for memory in ["0", "100000T", "lots", "-1", "64X", ""] {
        scratch.refuses_arguments([format!("--memory={memory}")], &["memory"]);
    }
    // More than any host has, yet not absurd.
    scratch.refuses_arguments(["--memory", "900T"], &["memory"]);
    for cpus in ["0", "255", "4294967296", "-1", "two"] {
        scratch.refuses_arguments([format!("--cpus={cpus}")], &["cpus"]);
    }
}

#[test]
fn disks_that_cannot_be_disks() {
    let scratch = Scratch::new();
    let odd = scratch.file("odd.img", vec![0; 1000]);
    let odd = odd.to_str().unwrap();
    scratch.refuses_arguments(["--disk", odd], &["disk", odd, "1000", "512"]);
    let good = scratch.file("good.img", vec![0; 1024]);
    let good = good.to_str().unwrap();
    scratch.refuses_arguments(
        ["--disk", &format!("{good},serial=more-than-twenty-bytes-long")],
        &["serial"],
    );
    scratch.refuses_arguments(["--disk", &format!("{good},rw")], &["disk", "rw"]);
    scratch.refuses_arguments(["--disk", ""], &["disk"]);
}

#[test]
fn an_overlay_that_cannot_be_made_is_not_left_behind() {
    tools::need_root("mounts a file system that is full");
    let scratch = Scratch::new();
    scratch.file("base.img", vec![0; 1024]);
    scratch.refuses_arguments(
        ["--disk", "base.img,overlay=nowhere/overlay"],
        &["disk 1", "nowhere/overlay", "folder", "make it first"],
    );
    // Nothing but its listing is the program's output.
    let full = "mount -t tmpfs -o size=4k none small && head -c 4096 /dev/zero >small/all && \"$@\"; code=$?; ls small; exit $code";
    fs::create_dir(scratch.folder.path().join("small")).unwrap();
    let outcome = run(["--kernel"])
        .arg(guests::tiny())
        .args(["--disk", "base.img,overlay=small/overlay"])
        .behind(["unshare", "--mount", "sh", "-c", full, "-"])
        .folder(scratch.folder.path())
        .finish();
    let sentence = outcome.sentence(codes::USER);
    assert!(
        sentence.contains("small/overlay: there is no room for it"),
        "{outcome}"
    );
    assert_eq!(outcome.out(), "all\n", "{outcome}");
}

#[test]
fn files_that_cannot_be_in_memory() {
    let scratch = Scratch::new();
    let odd = scratch.file("odd.img", vec![0; 1 << 20]);
    let odd = odd.to_str().unwrap();
    scratch.refuses_arguments(
        ["--pmem", odd],
        &["pmem 1", odd, "1048576", "2 MiB", "truncate -s 2097152"],
    );
    scratch.refuses_arguments(["--pmem", "none.img"], &["pmem 1", "none.img", "no such file"]);
    scratch.refuses_arguments(["--pmem", &format!("{odd},rw")], &["pmem", "rw"]);
    scratch.refuses_arguments(["--pmem", "/"], &["pmem 1", "directory"]);
    scratch.refuses_arguments(["--pmem", odd, "--disk", odd], &["pmem 1", "is disk 1 already"]);
    // Sparse, and more than any CPU addresses.
    let vast = scratch.file("vast.img", "");
    let made = fs::File::options()
        .write(true)
        .open(&vast)
        .and_then(|file| file.set_len(8 << 50));
    if made.is_ok() {
        scratch.refuses_arguments(
            ["--pmem", vast.to_str().unwrap()],
            &["pmem 1", "8192T", "address"],
        );
    }
}

#[test]
fn taps_that_do_not_exist_or_are_taken() {
    let scratch = Scratch::new();
    let netns = Netns::with_tap("busy0", "10.78.0.1/24");
    let tiny = || run(["--kernel"]).arg(guests::tiny()).inside(&netns);
    scratch.refuses(tiny().args(["--net", "tap=none0"]), &["none0", "exist"]);
    scratch.refuses(
        tiny().args(["--net", "tap=a-name-that-is-too-long"]),
        &["a-name-that-is-too-long"],
    );
    scratch.refuses(tiny().args(["--net", "tap=busy0,mac=no:mac"]), &["mac", "no:mac"]);
    scratch.refuses(tiny().args(["--net", "tap=lo"]), &["lo"]);
    // No tap was made on the way.
    assert!(!netns.ip("link").contains("none0"));
    let mut holder = tiny()
        .args(["--net", "tap=busy0", "--cmdline", "do=halt"])
        .start();
    holder.wait_for("halted");
    scratch.refuses(tiny().args(["--net", "tap=busy0"]), &["busy0", "busy"]);
}

#[test]
fn a_command_line_that_does_not_fit_or_is_no_text() {
    let scratch = Scratch::new();
    scratch.refuses_arguments(["--cmdline", &"x".repeat(3000)], &["command line", "2047"]);
    scratch.refuses_arguments(["--cmdline", "ümlaut"], &["command line", "ü"]);
    let long = vec!["word"; 900];
    scratch.refuses(run(["--cold"]).command(long), &["command line", "2047"]);
    let longer = vec!["word"; 20_000];
    scratch.refuses(run::<&str>([]).command(longer), &["command", "64000"]);
}

#[test]
fn files_that_describe_no_vm() {
    let scratch = Scratch::new();
    for (name, text, parts) in [
        ("unknown.toml", "memroy = \"64M\"", &["memroy", "memory"][..]),
        ("unknown.json", "{\"cpu\": 2}", &["cpu", "cpus"]),
        (
            "nested.toml",
            "[[disks]]\npath = \"x\"\nreadonly = true",
            &["readonly", "read_only"],
        ),
        ("type.toml", "cpus = \"many\"", &["cpus"]),
        ("broken.toml", "cpus = = 1", &["broken.toml"]),
        ("broken.json", "{\"cpus\": ", &["broken.json"]),
        ("range.toml", "cpus = 0", &["cpus"]),
        ("vm.yaml", "cpus: 1", &["vm.yaml"]),
    ] {
        scratch.file(name, text);
        scratch.refuses(run(["--config", name]), parts);
        scratch.refuses(run(["--dry-run", "--config", name]), parts);
    }
}

#[test]
fn arguments_that_do_not_exist() {
    let scratch = Scratch::new();
    for arguments in [&["run", "--memroy", "1G"][..], &["rnu"], &["run", "stray"]] {
        let outcome = berth(arguments).folder(scratch.folder.path()).finish();
        outcome.expect_code(codes::USER);
        assert!(
            !outcome.stderr.is_empty() && outcome.out().is_empty(),
            "{outcome}"
        );
    }
}
