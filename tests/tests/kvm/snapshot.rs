//! Snapshots: a guest goes on where it was saved, as often as one likes, and what is no good snapshot is refused.

mod refusals;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth::snapshot::{Body, DESCRIPTION, Found, MEMORY, decode, encode};
use berth_tests::invocation::{Invocation, Running, berth, script, tiny};
use berth_tests::{api, program, soak};
use serde_json::{Value, json};
use tempfile::TempDir;

use self::refusals::refuses;
use crate::codes;

/// A snapshot in a folder of its own.
struct Saved {
    folder: TempDir,
    path: PathBuf,
}

impl Saved {
    /// Runs it until its guest says that it is ready, and saves it.
    fn by(invocation: Invocation) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let outcome = invocation.arg("--snapshot-when-ready").arg(&path).finish();
        outcome.expect_code(0);
        assert_eq!(outcome.err(), "", "{outcome}");
        Self { folder, path }
    }

    /// The test guest that stamps its memory and waits for bytes.
    fn rounds() -> Self {
        Self::by(tiny("rounds"))
    }

    fn restore(&self) -> Invocation {
        restore(&self.path)
    }

    fn files(&self) -> [Vec<u8>; 2] {
        [DESCRIPTION, MEMORY].map(|name| fs::read(self.path.join(name)).unwrap())
    }

    /// Changes what the description says, checksum included.
    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path.join(DESCRIPTION);
        let body = decode(&fs::read(&path).unwrap()).unwrap();
        let mut value = serde_json::to_value(body).unwrap();
        change(&mut value);
        let body: Body = serde_json::from_value(value).unwrap();
        fs::write(&path, encode(&body).unwrap()).unwrap();
    }
}

fn restore(path: &Path) -> Invocation {
    berth(["run", "--restore"]).arg(path)
}

/// The right to run two programs at once: tests that each have one and wait for another would wait for ever.
fn two_at_once() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every name under `folder`.
fn names(folder: &Path) -> Vec<PathBuf> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names.extend(self::names(&path));
        }
        names.push(path);
    }
    names.sort();
    names
}

/// Sends a byte and waits until the guest has echoed it.
fn round(running: &mut Running, byte: &str) {
    running.send(byte);
    running.wait_for(byte);
}

#[test]
fn a_restored_guest_goes_on_and_ends_with_its_own_status() {
    let saved = Saved::rounds();
    let outcome = saved.restore().input("ab\x04").finish();
    outcome.expect_code(3);
    assert_eq!(
        (outcome.out().as_str(), outcome.err().as_str()),
        ("ab", ""),
        "{outcome}"
    );
}

#[test]
fn a_record_of_what_a_machine_needed_is_made_used_and_if_damaged_made_anew() {
    let saved = Saved::rounds();
    let record = saved.path.join("memory.working-set");
    let go_on = |said: &str| {
        let restored = saved.restore().args(["--prefetch", "--log-level", "info"]);
        let outcome = restored.input("ab\x04").finish();
        outcome.expect_code(3);
        assert_eq!(outcome.out(), "ab", "{outcome}");
        assert!(outcome.err().contains(said), "{said}: {outcome}");
    };
    go_on("there is no record of pages yet");
    let made = fs::read(&record).unwrap();
    // The guest stamps all of its pages.
    assert!(made.len() > 48, "{}", made.len());
    let mut running = saved
        .restore()
        .args(["--prefetch", "--log-level", "info"])
        .open_input()
        .start();
    running.wait_for_error("of working set are read ahead");
    running.send("ab\x04");
    running.finish().expect_code(3);
    assert!(fs::read(&record).unwrap() == made, "it was used, and stays");
    fs::write(&record, &made[..made.len() - 1]).unwrap();
    go_on("it is damaged, or no record of pages; it is made anew");
    assert_eq!(fs::read(&record).unwrap()[..48], made[..48]);
}

#[test]
fn restores_of_one_snapshot_at_once_do_not_disturb_each_other_or_it() {
    let saved = Saved::rounds();
    let _turn = two_at_once();
    let before = saved.files();
    let mut first = saved.restore().open_input().start();
    let mut second = saved.restore().open_input().start();
    for (one, other) in [("a", "b"), ("c", "d"), ("e", "f")] {
        round(&mut first, one);
        round(&mut second, other);
    }
    for (mut running, more) in [(first, "gh\x04"), (second, "\x04")] {
        running.send(more);
        running.finish().expect_code(3 + more.len() as i32);
    }
    assert!(saved.files() == before, "a restored guest changed its snapshot");
}

#[test]
fn a_restored_guest_can_be_saved_and_restored_again_and_again() {
    let saved = Saved::rounds();
    let other = saved.folder.path().join("other");
    // To a new place, over what is there, and over what it came from.
    for (from, to) in [
        (&saved.path, &other),
        (&saved.path, &other),
        (&other, &saved.path),
        (&saved.path, &saved.path),
    ] {
        let outcome = restore(from)
            .arg("--snapshot-when-ready")
            .arg(to)
            .input("as")
            .finish();
        outcome.expect_code(0);
        restore(to).arg("--verify").input("\x04").finish();
    }
    // Two rounds each time, of which the second time began where the first did.
    let outcome = saved.restore().arg("--verify").input("\x04").finish();
    outcome.expect_code(2 * 3 + 1);
    assert_eq!(
        names(saved.folder.path()).len(),
        2 * 3,
        "{:?}",
        names(saved.folder.path())
    );
}

#[test]
fn a_guest_goes_on_from_a_snapshot_that_is_replaced_meanwhile() {
    let saved = Saved::rounds();
    let _turn = two_at_once();
    let mut running = saved.restore().open_input().start();
    round(&mut running, "a");
    let outcome = saved
        .restore()
        .arg("--snapshot-when-ready")
        .arg(&saved.path)
        .input("xyzs")
        .finish();
    outcome.expect_code(0);
    round(&mut running, "b");
    running.send("\x04");
    running.finish().expect_code(3);
    saved.restore().input("\x04").finish().expect_code(5);
}

/// Has the shipped guest say that it is ready.
const READY: &str = r"printf '\001' | dd of=/dev/port bs=1 seek=245 2>/dev/null";

/// Saves the shipped guest with `cpus` vCPUs and two restores of it, each with a disk of its own, at once.
fn linux_forks(cpus: u32) {
    let folder = tempfile::tempdir().unwrap();
    let disk = |name: &str| {
        let path = folder.path().join(name);
        fs::write(&path, vec![b'.'; 1 << 20]).unwrap();
        path
    };
    let original = disk("original");
    let saved = Saved::by(
        script(&format!(
            "set -e
             cp /bin/busybox /tmp/program
             sum=$(sha256sum </tmp/program)
             printf original | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null
             {READY}
             read word
             same() {{ [ \"$(taskset $1 sha256sum </tmp/program)\" = \"$sum\" ] && echo same >&2; }}
             cpu=0
             while [ $cpu -lt {cpus} ]; do same $((1 << cpu)) & cpu=$((cpu + 1)); done
             wait
             printf $word | dd of=/dev/vdb seek=8 conv=notrunc,fsync 2>/dev/null
             echo $word $(nproc) $(dd if=/dev/vdb bs=8 count=1 2>/dev/null)
             exit 5"
        ))
        .args(["--cpus", &cpus.to_string(), "--disk"])
        .arg(&original)
        .open_input(),
    );
    let before = saved.files();
    let disks = ["first", "second"].map(disk);
    let _turn = two_at_once();
    let runs = disks.each_ref().map(|disk| {
        fs::copy(&original, disk).unwrap();
        saved.restore().arg("--disk").arg(disk).open_input().start()
    });
    for (mut running, word) in runs.into_iter().zip(["first", "second"]) {
        running.send(format!("{word}\n"));
        running.end_input();
        let outcome = running.finish();
        outcome.expect_code(5);
        assert_eq!(outcome.out(), format!("{word} {cpus} original\n"), "{outcome}");
        assert_eq!(outcome.err(), "same\n".repeat(cpus as usize), "{outcome}");
    }
    for (disk, word) in disks.iter().zip(["first", "second"]) {
        let bytes = fs::read(disk).unwrap();
        assert!(
            bytes.starts_with(b"original...."),
            "the disk is not what was saved"
        );
        assert!(bytes[8 * 512..].starts_with(format!("{word}...").as_bytes()));
    }
    assert!(
        fs::read(&original).unwrap()[8 * 512..].starts_with(b"..."),
        "somebody wrote to the original"
    );
    assert!(saved.files() == before, "a restored guest changed its snapshot");
}

#[test]
fn linux_on_two_processors_is_restored_twice_at_once() {
    linux_forks(2);
}

#[test]
fn linux_on_four_processors_is_restored_twice_at_once() {
    linux_forks(4);
}

/// Restores after `change`: it must be refused with a sentence that holds every one of `parts`, and leave no file.
#[track_caller]
#[test]
fn a_snapshot_that_cannot_be_written_is_a_sentence_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let letter = folder.path().join("letter");
    fs::write(&letter, "dear").unwrap();
    for (path, part) in [
        (folder.path().to_owned(), "no snapshot"),
        (letter.clone(), "letter"),
        (folder.path().join("none/there"), "No such file"),
        (PathBuf::from("/proc/snapshot"), "/proc/snapshot"),
    ] {
        let outcome = tiny("rounds").arg("--snapshot-when-ready").arg(&path).finish();
        let sentence = outcome.sentence(codes::USER);
        assert!(sentence.contains(part), "{outcome}");
        assert_eq!(names(folder.path()), std::slice::from_ref(&letter), "{outcome}");
    }
    assert_eq!(fs::read(&letter).unwrap(), b"dear");
}

#[test]
fn a_save_that_is_killed_at_any_step_leaves_the_old_snapshot_or_the_new_one() {
    let saved = Saved::rounds();
    let old = saved.folder.path().join("old");
    copy_snapshot(&saved.path, &old);
    let (mut kept, mut replaced) = (0, 0);
    for step in 0.. {
        for name in [DESCRIPTION, MEMORY] {
            fs::copy(old.join(name), saved.path.join(name)).unwrap();
        }
        // The guest says again that it is ready after one more byte.
        let outcome = saved
            .restore()
            .arg("--snapshot-when-ready")
            .arg(&saved.path)
            .input("s")
            .behind([program::killer()])
            .behind([&step.to_string(), "mkdir"])
            .finish();
        let ended = outcome.code() == Some(3);
        assert!(ended || outcome.code() == Some(0), "step {step}: {outcome}");
        let found = Found::open(&saved.path).unwrap_or_else(|error| panic!("step {step}: {error}"));
        found
            .verify()
            .unwrap_or_else(|error| panic!("step {step}: {error}"));
        let code = saved.restore().input("\x04").finish().code();
        match code {
            Some(1) => kept += 1,
            Some(2) => replaced += 1,
            _ => panic!("step {step}: the guest ended with {code:?}"),
        }
        if ended {
            break;
        }
    }
    assert!(
        kept > 5 && replaced > 1,
        "{kept} steps before the new one, {replaced} after"
    );
}

#[test]
fn a_guest_that_ends_before_it_is_ready_is_not_taken_for_one_that_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = tiny("entry")
        .arg("--snapshot-when-ready")
        .arg(folder.path().join("saved"))
        .finish();
    let sentence = outcome.sentence(125);
    assert!(sentence.contains("nothing was saved"), "{outcome}");
    assert_eq!(names(folder.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_full_file_system_is_a_sentence_and_the_guest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (small, socket) = (folder.path().join("small"), folder.path().join("api"));
    fs::create_dir(&small).unwrap();
    let mut running = tiny("rounds")
        .arg("--api-sock")
        .arg(&socket)
        .behind(["unshare", "--mount", "sh", "-c"])
        .behind(["mount -t tmpfs -o size=2m none \"$0\" && exec \"$@\""])
        .behind([&small])
        .open_input()
        .start();
    round(&mut running, "a");
    let body = json!({"path": small.join("snapshot")});
    let answer = api::request(&socket, "POST", "/berth/v1/snapshot", &body);
    assert!((400..600).contains(&answer.status), "{answer:?}");
    for part in ["small/snapshot", "cannot be written", "No space left"] {
        assert!(answer.body.contains(part), "{answer:?}");
    }
    let seen = Path::new("/proc")
        .join(running.id().to_string())
        .join("root")
        .join(small.strip_prefix("/").unwrap());
    assert_eq!(names(&seen), Vec::<PathBuf>::new());
    round(&mut running, "b");
    running.send("\x04");
    running.finish().expect_code(3);
}

#[test]
fn a_guest_under_load_is_saved_and_restored_with_no_byte_wrong() {
    let report = soak::run(8, 2, 7);
    assert!(report.blocks >= 3 * 64, "{report:?}");
}

#[test]
fn a_difference_joined_with_its_base_goes_on_where_it_was_saved() {
    let saved = Saved::rounds();
    let [difference, joined] = ["difference", "joined"].map(|name| saved.folder.path().join(name));
    let socket = saved.folder.path().join("api");
    let mut running = saved
        .restore()
        .arg("--api-sock")
        .arg(&socket)
        .open_input()
        .start();
    round(&mut running, "a");
    let body = json!({"path": difference, "kind": "diff", "resume": false});
    let answer = api::request(&socket, "POST", "/berth/v1/snapshot", &body);
    assert!(answer.status < 300, "{answer:?}");
    drop(running);
    fs::remove_file(&socket).unwrap();

    refuses(
        &saved,
        restore(&difference),
        &["difference", "berth snapshot merge"],
    );
    let merge = |base: &Path, other: &Path| berth(["snapshot", "merge"]).arg(base).arg(other).arg(&joined);
    refuses(&saved, merge(&saved.path, &saved.path), &["needs no base"]);
    refuses(&saved, merge(&difference, &difference), &["difference itself"]);
    let other = Saved::rounds();
    refuses(
        &saved,
        merge(&other.path, &difference),
        &["builds on the snapshot"],
    );

    merge(&saved.path, &difference).finish().expect_code(0);
    restore(&joined)
        .arg("--verify")
        .input("b\x04")
        .finish()
        .expect_code(3);
    let info = berth(["snapshot", "info", "--verify", "--json"])
        .arg(&joined)
        .finish();
    let info: Value = serde_json::from_str(&info.expect_code(0).out()).unwrap();
    assert_eq!(
        (&info["kind"], &info["restorable"]),
        (&json!("full"), &json!(true))
    );
    let info = berth(["snapshot", "info"]).arg(&difference).finish();
    let text = info.expect_code(0).out();
    assert!(
        text.contains("a difference from") && text.contains("cannot be restored"),
        "{text}"
    );
}

/// A page-fault handler for this snapshot, which gives up after `faults`; and its socket.
fn pager(saved: &Saved, faults: Option<usize>) -> (Running, PathBuf) {
    let socket = saved.folder.path().join("pager");
    let mut pager = Invocation::of(program::pager())
        .arg(&socket)
        .arg(saved.path.join(MEMORY));
    if let Some(faults) = faults {
        pager = pager.arg(faults.to_string());
    }
    let mut pager = pager.start();
    pager.wait_for("listening");
    (pager, socket)
}

#[test]
fn a_page_fault_handler_brings_the_memory_and_it_can_be_saved_again() {
    let saved = Saved::rounds();
    let _turn = two_at_once();
    let other = saved.folder.path().join("other");
    let (pager, socket) = pager(&saved, None);
    let restored = saved
        .restore()
        .arg("--uffd")
        .arg(&socket)
        .arg("--snapshot-when-ready")
        .arg(&other);
    restored.input("as").finish().expect_code(0);
    let outcome = pager.finish();
    outcome.expect_code(0);
    let brought = outcome
        .out()
        .trim_end()
        .rsplit(' ')
        .next()
        .unwrap()
        .parse::<usize>()
        .unwrap();
    assert!(brought >= 2048, "{outcome}");
    restore(&other)
        .arg("--verify")
        .input("b\x04")
        .finish()
        .expect_code(4);
}

#[test]
fn a_page_fault_handler_that_dies_is_a_fault_and_no_hang() {
    let saved = Saved::rounds();
    let _turn = two_at_once();
    let (pager, socket) = pager(&saved, Some(500));
    let outcome = saved
        .restore()
        .arg("--uffd")
        .arg(&socket)
        .input("abc\x04")
        .finish();
    let sentence = outcome.sentence(codes::FAULT);
    pager.finish().expect_code(0);
    assert!(sentence.contains("page-fault handler has ended"), "{sentence}");
    // The socket is still there, but nobody listens.
    refuses(
        &saved,
        saved.restore().arg("--uffd").arg(&socket),
        &["pager: no page-fault handler"],
    );
}

fn copy_snapshot(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for name in [DESCRIPTION, MEMORY] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}
