//! Snapshots that cannot be restored: one sentence, exit code 2, nothing left behind.

use super::*;

fn refused(change: impl FnOnce(&Saved), arguments: &[&str], parts: &[&str]) {
    let saved = Saved::rounds();
    change(&saved);
    refuses(&saved, saved.restore().args(arguments), parts);
}

#[track_caller]
pub(super) fn refuses(saved: &Saved, invocation: Invocation, parts: &[&str]) {
    let before = names(saved.folder.path());
    let outcome = invocation.within(Duration::from_secs(30)).finish();
    let sentence = outcome.sentence(codes::USER);
    for part in parts {
        assert!(sentence.contains(part), "the sentence lacks {part:?}: {outcome}");
    }
    assert_eq!(outcome.out(), "", "{outcome}");
    assert_eq!(names(saved.folder.path()), before, "{outcome}");
}

/// Changes a file's bytes.
fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_description_that_is_no_good_is_refused() {
    let description = |saved: &Saved| saved.path.join(DESCRIPTION);
    let file = "snapshot/vm.json: ";
    refused(
        |saved| fs::remove_file(description(saved)).unwrap(),
        &[],
        &[file, "No such file"],
    );
    refused(
        |saved| change(&description(saved), |text| text.truncate(text.len() / 2)),
        &[],
        &[file, "no description of a snapshot"],
    );
    refused(
        |saved| fs::write(description(saved), "").unwrap(),
        &[],
        &[file, "no description"],
    );
    refused(
        |saved| fs::write(description(saved), r#"{"name": "somebody else's"}"#).unwrap(),
        &[],
        &[file, "no description of a snapshot"],
    );
    refused(
        |saved| {
            change(&description(saved), |text| {
                let at = text.len() / 2;
                text[at] ^= 1;
            });
        },
        &[],
        &[file],
    );
    refused(
        |saved| {
            let text = fs::read_to_string(description(saved)).unwrap();
            let text = text.replacen("\"version\":1", "\"version\":2", 1);
            fs::write(description(saved), text).unwrap();
        },
        &[],
        &[file, "version 2", "reads version 1"],
    );
}

#[test]
fn a_machine_that_this_berth_or_host_cannot_have_is_refused() {
    let file = "snapshot/vm.json: ";
    let edited = |change: fn(&mut Value), parts: &[&str]| refused(|saved| saved.edit(change), &[], parts);
    edited(|body| body["guest"] = json!("another"), &[file, "ships another"]);
    edited(
        |body| body["base"] = json!("00".repeat(16)),
        &[file, "difference", "berth snapshot merge"],
    );
    edited(
        |body| body["memory"] = json!(1 << 20),
        &[file, "memory and spec.memory differ"],
    );
    edited(
        |body| body["components"]["clock"]["version"] = json!(7),
        &["\"clock\"", "version 7", "reads version 1"],
    );
    edited(
        |body| body["components"]["tea"] = json!({"version": 1, "state": {}}),
        &["\"tea\"", "not known"],
    );
    edited(
        |body| drop(body["components"].as_object_mut().unwrap().remove("vcpu 0")),
        &["\"vcpu 0\"", "missing"],
    );
    edited(
        |body| body["components"]["com1"]["state"] = json!("wrong"),
        &["\"com1\"", "cannot be read"],
    );
    edited(|body| body["spec"]["cpus"] = json!(2), &["\"vcpu 1\"", "missing"]);
    edited(
        |body| {
            body["host"]["cpu"] = json!("another");
            body["host"]["kind"] = json!(other_kind(&body["host"]["kind"]));
        },
        &[file, "kernel"],
    );
}

fn other_kind(kind: &Value) -> &'static str {
    if kind == "native" { "interpreted" } else { "native" }
}

#[test]
fn a_memory_that_is_no_good_is_refused() {
    let memory = |saved: &Saved| saved.path.join(MEMORY);
    let file = "snapshot/memory: ";
    refused(
        |saved| fs::remove_file(memory(saved)).unwrap(),
        &[],
        &[file, "No such file"],
    );
    refused(
        |saved| change(&memory(saved), |bytes| bytes.truncate(bytes.len() - 1)),
        &[],
        &[file, "bytes"],
    );
    refused(
        |saved| fs::write(memory(saved), "").unwrap(),
        &[],
        &[file, "has 0 bytes"],
    );
    refused(
        |saved| {
            change(&memory(saved), |bytes| {
                let sums = bytes.len() - 8;
                bytes[sums] ^= 1;
            });
        },
        &[],
        &[file, "trailer is damaged"],
    );
    refused(
        |saved| change(&memory(saved), |bytes| bytes[(8 << 20) + 123] ^= 4),
        &["--verify"],
        &[file, "0x800000", "changed"],
    );
    refused(
        |saved| {
            let other = Saved::rounds();
            fs::copy(memory(&other), memory(saved)).unwrap();
        },
        &[],
        &[file, "another snapshot"],
    );
}

#[test]
fn overrides_that_do_not_fit_the_machine_are_refused() {
    let saved = Saved::rounds();
    refuses(
        &saved,
        saved.restore().args(["--disk", "x"]),
        &["0 disks", "1 files"],
    );
    refuses(
        &saved,
        saved.restore().args(["--net", "tap=x"]),
        &["0 network interfaces", "1 are given"],
    );
}
