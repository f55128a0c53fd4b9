//! Images that Berth builds: what the shipped kernel finds in them, and what is refused.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use berth_tests::invocation::{Invocation, berth, run};
use berth_tests::{guests, program, tools};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::codes;

/// A folder that holds `root`, a tree with one of everything, whose init says what is in it.
fn tree() -> TempDir {
    tools::need_root("makes device nodes and files of other users");
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    let at = |path: &str| root.join(path);
    for path in ["dev", "usr/bin", "empty", "many", "root"] {
        fs::create_dir_all(at(path)).unwrap();
    }
    // The kernel's own initramfs has it.
    fs::set_permissions(at("root"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::copy(guests::facts(), at("init")).unwrap();
    let node = |path: &str, words: &[&str]| {
        let path = at(path).into_os_string().into_string().unwrap();
        tools::run("mknod", [&[&path[..]], words].concat());
    };
    node("dev/console", &["c", "5", "1"]);
    node("dev/null", &["c", "1", "3"]);
    node("dev/port", &["c", "1", "4"]);
    node("dev/large", &["b", "259", "70000"]);
    node("dev/fifo", &["p"]);
    fs::write(at("usr/bin/tool"), b"a tool\n".repeat(2000)).unwrap();
    fs::set_permissions(at("usr/bin/tool"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(at("usr/bin/tool"), at("usr/bin/again")).unwrap();
    fs::hard_link(at("usr/bin/tool"), at("again")).unwrap();
    fs::write(at("usr/bin/capable"), "x").unwrap();
    fs::write(at("usr/owned"), "y").unwrap();
    chown(at("usr/owned"), Some(70_000), Some(100_000)).unwrap();
    fs::set_permissions(at("usr/owned"), fs::Permissions::from_mode(0o2640)).unwrap();
    symlink("usr/bin", at("bin")).unwrap();
    symlink("../x/".repeat(50), at("long")).unwrap();
    fs::set_permissions(at("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    for number in 0..60 {
        let name = format!("many/a file with quite a long name, which fills blocks: number {number}\n");
        fs::write(at(&name), vec![number; usize::from(number) * 100]).unwrap();
    }
    let text = |path: &str| at(path).into_os_string().into_string().unwrap();
    tools::run("setcap", ["cap_net_raw+ep", &text("usr/bin/capable")]);
    for (name, value, path) in [
        ("user.short", "0x0a0a00ff".to_owned(), "empty"),
        ("user.large", "x".repeat(1500), "usr/owned"),
        ("trusted.other", "y".to_owned(), "usr/owned"),
    ] {
        tools::run("setfattr", ["-n", name, "-v", &value, &text(path)]);
    }
    for (path, time) in [
        ("usr/owned", "@12.000000345"),
        ("usr", "@4000000000.5"),
        ("dev/fifo", "@1000000000"),
        ("", "@1700000000.123456789"),
    ] {
        tools::run("touch", ["-h", "-d", time, &text(path)]);
    }
    folder
}

/// What the tree is on the host.
fn expected(root: &Path, plain: bool) -> Vec<String> {
    let words = plain.then_some("--plain".as_ref()).into_iter();
    let output = tools::run(guests::facts().to_str().unwrap(), words.chain([root.as_os_str()]));
    facts(&String::from_utf8_lossy(&output.stdout))
}

fn facts(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.starts_with("fact "))
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// A tar file of the tree, with everything in it.
fn tar(folder: &Path) -> PathBuf {
    let path = folder.join("root.tar");
    let words = ["--xattrs", "--xattrs-include=*", "--format=posix", "-C"];
    let words = words.map(Into::into).into_iter();
    let rest = [
        folder.join("root").into(),
        "-cf".into(),
        path.clone().into(),
        ".".into(),
    ];
    tools::run::<std::ffi::OsString>("tar", words.chain(rest));
    path
}

fn build(source: &Path, output: &Path) {
    berth(["image", "build"])
        .arg(source)
        .arg("--output")
        .arg(output)
        .finish()
        .expect_code(0);
}

/// Boots the shipped kernel with an image, and gives what its init says.
fn told(arguments: &[&str], image: &Path, cmdline: &str) -> Vec<String> {
    let outcome = run(["--memory", "128M", "--kernel"])
        .arg(guests::linux())
        .args(arguments)
        .arg(image)
        .args(["--cmdline", &format!("quiet {cmdline}")])
        .finish();
    outcome.expect_code(0);
    assert!(outcome.out().contains("facts end"), "{outcome}");
    facts(&outcome.out())
}

#[test]
fn a_guest_finds_in_ext4_what_the_folder_and_the_tar_file_have() {
    let folder = tree();
    let (root, image) = (folder.path().join("root"), folder.path().join("root.ext4"));
    build(&root, &image);
    tools::run("e2fsck", ["-fn", image.to_str().unwrap()]);
    let of_tar = folder.path().join("tar.ext4");
    build(&tar(folder.path()), &of_tar);
    assert!(
        fs::read(&image).unwrap() == fs::read(&of_tar).unwrap(),
        "the image of a tar file differs from that of its folder"
    );
    let told = told(&["--disk"], &image, "root=/dev/vda rw init=/init");
    assert_eq!(told, expected(&root, false));
    // The guest has mounted it, and nothing in it went wrong.
    tools::run("e2fsck", ["-fp", image.to_str().unwrap()]);
}

#[test]
fn a_guest_finds_in_erofs_what_the_folder_and_the_tar_file_have() {
    let folder = tree();
    let (root, image) = (folder.path().join("root"), folder.path().join("root.erofs"));
    build(&tar(folder.path()), &image);
    tools::run("fsck.erofs", [&image]);
    let of_folder = folder.path().join("folder.erofs");
    build(&root, &of_folder);
    assert!(
        fs::read(&image).unwrap() == fs::read(&of_folder).unwrap(),
        "the image of a tar file differs from that of its folder"
    );
    let told = told(
        &["--disk"],
        &image,
        "root=/dev/vda rootfstype=erofs ro init=/init",
    );
    assert_eq!(told, expected(&root, false));
}

#[test]
fn a_guest_finds_in_an_initramfs_what_the_folder_has() {
    let folder = tree();
    let root = folder.path().join("root");
    let expected = expected(&root, true);
    for end in ["cpio", "cpio.gz"] {
        let image = folder.path().join(format!("initrd.{end}"));
        build(&root, &image);
        assert_eq!(told(&["--initrd"], &image, "-- --plain"), expected, "{end}");
    }
}

#[test]
fn squashfs_has_what_the_folder_has() {
    let folder = tree();
    let (root, image) = (folder.path().join("root"), folder.path().join("root.squashfs"));
    build(&tar(folder.path()), &image);
    let out = folder.path().join("out");
    let words = [
        "-quiet".as_ref(),
        "-no-progress".as_ref(),
        "-dest".as_ref(),
        out.as_os_str(),
        image.as_os_str(),
    ];
    tools::run("unsquashfs", words);
    // It keeps whole seconds.
    let whole = |facts: Vec<String>| -> Vec<String> {
        let words = |line: String| {
            let words = line.split(' ').map(|word| match word.split_once('.') {
                Some((seconds, nanos)) if nanos.len() == 9 && !word.contains('=') => seconds.to_owned(),
                _ => word.to_owned(),
            });
            words.collect::<Vec<_>>().join(" ")
        };
        facts.into_iter().map(words).collect()
    };
    assert_eq!(whole(expected(&out, false)), whole(expected(&root, false)));
}

#[test]
fn an_ordinary_user_builds_the_same_image_of_a_tar_file() {
    let folder = tree();
    let tar = tar(folder.path());
    let own = folder.path().join("own");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The program may lie where only root looks.
    let copy = folder.path().join("berth");
    fs::copy(program::berth(), &copy).unwrap();
    // Not squashfs: sqfstar lists whoever runs it among the owners, too.
    for end in ["ext4", "erofs", "cpio.zst"] {
        let (by_root, by_user) = (
            folder.path().join(format!("root.{end}")),
            own.join(format!("user.{end}")),
        );
        build(&tar, &by_root);
        berth(["image", "build"])
            .program(&copy)
            .behind(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&tar)
            .arg("-o")
            .arg(&by_user)
            .finish()
            .expect_code(0);
        assert!(fs::read(by_root).unwrap() == fs::read(by_user).unwrap(), "{end}");
    }
}

/// A tar file with one entry, as its header and data are given.
fn archive(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = vec![0; 2048];
    bytes[..5].copy_from_slice(b"a/b/c");
    bytes[100..108].copy_from_slice(b"0000644\0");
    bytes[108..116].copy_from_slice(b"0000000\0");
    bytes[116..124].copy_from_slice(b"0000000\0");
    bytes[124..136].copy_from_slice(b"00000000004\0");
    bytes[136..148].copy_from_slice(b"00000000000\0");
    bytes[156] = b'0';
    bytes[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut bytes);
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes[512..516].copy_from_slice(b"data");
    bytes
}

fn image_build(folder: &Path) -> Invocation {
    berth(["image", "build", "-", "-o", "x.ext4"]).folder(folder)
}

#[test]
fn a_bad_source_is_refused_with_one_sentence_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    for (bytes, words) in [
        (
            archive(|bytes| bytes[..5].copy_from_slice(b"../../"[..5].as_ref())),
            "leads upwards by ..",
        ),
        (
            archive(|bytes| bytes[124..136].copy_from_slice(b"\x80\0\0\0\0\0\x01\0\0\0\0\0")),
            "ends in the middle",
        ),
        (
            archive(|bytes| {
                bytes[156] = b'1';
                bytes[157..167].copy_from_slice(b"etc/passwd");
            }),
            "hard link to etc/passwd, which is not in the image",
        ),
        (archive(|_| {})[..700].to_vec(), "ends in the middle"),
        (
            b"no archive at all".repeat(100),
            "neither a directory nor a tar file",
        ),
        (Vec::new(), "it is empty"),
    ] {
        let outcome = image_build(folder.path()).input(bytes).finish();
        let sentence = outcome.sentence(codes::USER);
        assert!(
            sentence.starts_with("standard input: ") && sentence.contains(words),
            "{outcome}"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{outcome}");
    }
}

#[test]
fn a_bad_option_is_refused_with_one_sentence_and_what_was_there_stays() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x.ext4"), "before").unwrap();
    for (arguments, words) in [
        (
            &["--size", "64K"][..],
            "size: 64K is too little for what is to be in the image; it needs at least",
        ),
        (&["--uuid", "1"], "uuid: \"1\" is no UUID"),
        (
            &["--label", "longer than 16 bytes"],
            "label: \"longer than 16 bytes\" is longer than 16 bytes",
        ),
        (&["--owner", "root"], "owner: \"root\" is no owner"),
        (&["--format", "xfs"], "format: \"xfs\" is no kind of image"),
        (
            &["--format", "cpio", "--size", "1G"],
            "size: cpio images have none",
        ),
        (
            &["--timestamp", "now"],
            "timestamp: \"now\" is no number of seconds",
        ),
        (&["nowhere"], "nowhere: No such file or directory"),
    ] {
        let outcome = image_build(folder.path())
            .args(arguments)
            .input(archive(|_| {}))
            .finish();
        let sentence = outcome.sentence(codes::USER);
        assert!(sentence.contains(words), "{outcome}");
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(
            (left, &fs::read(folder.path().join("x.ext4")).unwrap()[..]),
            (1, &b"before"[..])
        );
    }
    let outcome = berth(["image", "build", ".", "-o", "x.img"])
        .folder(folder.path())
        .finish();
    assert!(
        outcome
            .sentence(codes::USER)
            .contains("does not say what kind of image to make")
    );
}

#[test]
fn a_signal_in_the_middle_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = image_build(folder.path()).open_input().start();
    let mut bytes = archive(|bytes| bytes[124..136].copy_from_slice(b"77777777777\0"));
    bytes.resize(4 << 20, 1);
    running.send(bytes);
    running.wait_until_read();
    running.signal(Signal::INT);
    let outcome = running.finish();
    outcome.expect_code(130);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{outcome}");
}

#[test]
fn the_order_of_files_in_a_folder_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut images = Vec::new();
    for (number, order) in [["a", "b", "c"], ["c", "a", "b"]].into_iter().enumerate() {
        let source = folder.path().join(number.to_string());
        fs::create_dir(&source).unwrap();
        for name in order {
            fs::write(source.join(name), name).unwrap();
        }
        for end in ["ext4", "erofs", "squashfs", "cpio.xz"] {
            let image = folder.path().join(format!("{number}.{end}"));
            berth([
                "image",
                "build",
                "--timestamp",
                "1000000000",
                "--owner",
                "0:0",
                "-o",
            ])
            .args([&image, &source])
            .finish()
            .expect_code(0);
            images.push(fs::read(image).unwrap());
        }
    }
    let (first, second) = images.split_at(images.len() / 2);
    assert!(first == second, "images of the same files differ");
}

#[test]
fn images_and_kernels_are_told_as_text_and_json() {
    let folder = tempfile::tempdir().unwrap();
    image_build(folder.path())
        .input(archive(|_| {}))
        .finish()
        .expect_code(0);
    let outcome = berth(["image", "info", "x.ext4"]).folder(folder.path()).finish();
    outcome.expect_code(0);
    assert!(
        outcome.out().contains("root of the shipped kernel yes"),
        "{outcome}"
    );
    let outcome = berth(["image", "info", "--json"]).arg(guests::root()).finish();
    let info: serde_json::Value = serde_json::from_str(&outcome.out()).unwrap();
    assert_eq!(
        (&info["kind"], &info["root"]["possible"]),
        (&"erofs".into(), &true.into()),
        "{outcome}"
    );
    let outcome = berth(["kernel", "info"]).arg(guests::linux()).finish();
    for words in [
        "format       ELF (vmlinux)",
        "-berth",
        "64-bit entry 0x10",
        "PVH entry",
        "not carried (CONFIG_IKCONFIG)",
    ] {
        assert!(
            outcome.expect_code(0).stdout.len() > 100 && outcome.out().contains(words),
            "{words}: {outcome}"
        );
    }
    let sentence = berth(["kernel", "info", "x.ext4"])
        .folder(folder.path())
        .finish()
        .sentence(codes::USER);
    assert!(
        sentence.contains("neither an ELF file, a bzImage nor a compressed kernel"),
        "{sentence}"
    );
    let sentence = berth(["image", "info", "nowhere"]).finish().sentence(codes::USER);
    assert!(sentence.starts_with("nowhere: "), "{sentence}");
}
