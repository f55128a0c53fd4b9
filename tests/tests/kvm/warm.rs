//! Warm starts of the shipped guest: booted once, restored from then on, and every run as new as the first.

use std::fs;
use std::path::Path;

use berth_tests::guests;
use berth_tests::invocation::{Invocation, berth, run, tiny};

use crate::codes;

fn with_cache(invocation: Invocation, cache: &Path) -> Invocation {
    invocation.behind(["env", &format!("BERTH_CACHE_DIR={}", cache.display())])
}

/// What the guest of one run says: whether it found the file that it leaves behind, its machine id, random bytes.
fn said(cache: &Path, arguments: &[&str]) -> Vec<String> {
    let script = "test -e /root/left && echo found || echo new; touch /root/left
        cat /etc/machine-id; head -c 16 /dev/urandom | md5sum; date +%s";
    let invocation = run(arguments.iter().copied()).command(["sh", "-c", script]);
    let outcome = with_cache(invocation, cache).finish();
    outcome.expect_code(0);
    outcome.out().lines().map(str::to_owned).collect()
}

fn listed(cache: &Path) -> usize {
    let outcome = with_cache(berth(["cache", "--json"]), cache).finish();
    outcome.expect_code(0);
    let list: serde_json::Value = serde_json::from_str(&outcome.out()).unwrap();
    list.as_array().unwrap().len()
}

#[test]
fn a_guest_boots_once_and_every_run_is_new() {
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path();
    assert_eq!(listed(cache), 0);
    let runs: Vec<_> = (0..3).map(|_| said(cache, &[])).collect();
    assert_eq!(listed(cache), 1, "one guest is kept, and it served all runs");
    for (number, run) in runs.iter().enumerate() {
        assert_eq!(run[0], "new", "nothing of one run is there in the next");
        for other in &runs[..number] {
            assert_ne!(run[1], other[1], "each has a machine id of its own");
            assert_ne!(run[2], other[2], "each has random numbers of its own");
        }
        let guest: u64 = run[3].parse().unwrap();
        let host = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(host.abs_diff(guest) < 120, "each has the time of day");
    }
    // Another machine is another guest.
    said(cache, &["--memory", "128M"]);
    assert_eq!(listed(cache), 2);
    let outcome = with_cache(berth(["cache", "clear"]), cache).finish();
    outcome.expect_code(0);
    assert_eq!(listed(cache), 0);
}

#[test]
fn a_damaged_cache_costs_a_boot_and_no_more() {
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path();
    said(cache, &[]);
    let entry = fs::read_dir(cache.join("warm"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::write(entry.join("vm.json"), "{}").unwrap();
    let run = with_cache(run::<&str>([]).command(["true"]), cache).finish();
    run.expect_code(0);
    assert!(run.err().contains("so it boots"), "{run}");
    assert_eq!(said(cache, &[])[0], "new");
}

#[test]
fn a_cold_start_keeps_and_uses_nothing() {
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(said(cache.path(), &["--cold"])[0], "new");
    assert_eq!(listed(cache.path()), 0);
}

#[test]
fn any_kernel_that_says_when_it_is_ready_starts_warm_when_asked() {
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path();
    for (restored, input) in [(false, "ab\x04"), (true, "xy\x04")] {
        let run = tiny("rounds").args(["--warm", "--boot-timing"]).input(input);
        let outcome = with_cache(run, cache).finish();
        assert_eq!(outcome.expect_code(3).out(), input[..2]);
        let said = outcome.err();
        assert_eq!(said.contains("read the snapshot"), restored, "{said}");
        assert_eq!(listed(cache), 1);
    }
    let outcome = with_cache(tiny("rounds").arg("--boot-timing").input("\x04"), cache).finish();
    assert!(
        !outcome.err().contains("read the snapshot"),
        "nobody asked: {outcome}"
    );
    let disk = cache.join("disk.img");
    fs::write(&disk, [0; 512]).unwrap();
    let writable = tiny("rounds")
        .arg("--warm")
        .arg(format!("--disk={}", disk.display()));
    let sentence = with_cache(writable, cache).finish().sentence(codes::USER);
    assert!(sentence.contains("add ,ro or leave out --warm"), "{sentence}");
}

#[test]
fn a_line_on_the_console_says_that_a_guest_is_ready() {
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path();
    for (restored, input) in [(false, "ab\x04"), (true, "xy\x04")] {
        let run = tiny("echo").args(["--warm", "--ready", "line=^ready$", "--boot-timing"]);
        let outcome = with_cache(run.input(input), cache).finish();
        let said = outcome.expect_code(0).out();
        // The line was said once, by the guest that booted.
        assert_eq!(said.contains("ready"), !restored, "{said:?}");
        assert!(said.ends_with(&input[..2]), "{said:?}");
        assert_eq!(outcome.err().contains("read the snapshot"), restored, "{outcome}");
        assert_eq!(listed(cache), 1);
    }
    // Another sign is another moment, and so another guest.
    let other = tiny("echo")
        .args(["--warm", "--ready", "line=read"])
        .input("\x04");
    with_cache(other, cache).finish().expect_code(0);
    assert_eq!(listed(cache), 2);
}

#[test]
fn a_file_says_that_its_guest_starts_warm_and_by_which_sign() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("vm.toml");
    let text = format!(
        "kernel = {:?}\ncmdline = \"do=echo\"\nwarm = true\nready = {{ line = \"^ready$\" }}\n",
        guests::tiny()
    );
    fs::write(&file, text).unwrap();
    let run = |more: &[&str]| {
        let run = berth(["run", "--boot-timing", "--config"]).arg(&file).args(more);
        let outcome = with_cache(run.input("a\x04"), place.path()).finish();
        outcome.expect_code(0).err().contains("read the snapshot")
    };
    assert_eq!([run(&[]), run(&[]), run(&["--cold"])], [false, true, false]);
    fs::write(&file, "ready = { line = \"(\" }\n").unwrap();
    let outcome = berth(["run", "--config"]).arg(&file).finish();
    let sentence = outcome.sentence(codes::USER);
    assert!(
        sentence.contains("ready: \"(\" is no regular expression"),
        "{sentence}"
    );
}
