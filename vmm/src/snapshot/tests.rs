//! Descriptions: what comes back is what was written, and what does not fit is refused by name.

use std::os::unix::fs::PermissionsExt;

use berth_arch::x86_64::kind::HostKind;

use super::store::Staging;
use super::*;
use crate::guest::Streams;

fn body() -> Body {
    let mut components = Components::default();
    components.put("clock", 1, &7).unwrap();
    Body {
        id: SnapshotId(*b"0123456789abcdef"),
        created: 1,
        berth: "0.1.0".to_owned(),
        host: HostFacts {
            kind: HostKind::Native,
            cpu: "x".to_owned(),
            kernel: "y".to_owned(),
        },
        guest: None,
        streams: Streams::Piped,
        memory: VmSpec::default().memory.0,
        base: None,
        spec: VmSpec::default(),
        components,
    }
}

#[test]
fn a_description_reads_back_as_it_was() {
    let body = body();
    assert_eq!(decode(&document::encode(&body).unwrap()), Ok(body));
}

#[test]
fn what_is_no_description_or_has_changed_is_refused() {
    let text = String::from_utf8(document::encode(&body()).unwrap()).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        decode(text.replacen(from, to, 1).as_bytes()).unwrap_err()
    };
    assert!(matches!(
        refused("berth-snapshot", "other"),
        DocumentError::Foreign(_)
    ));
    assert_eq!(
        refused("\"version\":1,\"crc", "\"version\":9,\"crc"),
        DocumentError::Version { found: 9 }
    );
    assert_eq!(refused("\"created\":1", "\"created\":2"), DocumentError::Damaged);
    for at in 0..text.len() - 1 {
        assert!(decode(&text.as_bytes()[..at]).is_err(), "cut at {at}");
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        assert!(decode(&bytes).is_err(), "bit at {at}");
    }
}

#[test]
fn a_body_with_more_or_less_than_it_should_have_is_refused() {
    let mut value = serde_json::to_value(body()).unwrap();
    value["more"] = 1.into();
    assert!(serde_json::from_value::<Body>(value.clone()).is_err());
    let fields = value.as_object_mut().unwrap();
    fields.remove("more");
    fields.remove("memory");
    assert!(serde_json::from_value::<Body>(value).is_err());
}

fn write(target: &SnapshotTarget, id: &str, text: &[u8]) -> io::Result<()> {
    let mut staging = Staging::new(target, id)?;
    staging.create_memory()?;
    staging.write_state(text, true)?;
    staging.commit(true)
}

#[test]
fn a_directory_is_replaced_whole_and_nothing_else_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let target = SnapshotTarget::Directory(path.clone());
    for text in [b"one", b"two"] {
        write(&target, "aaaaaaaaaaaa", text).unwrap();
        assert_eq!(fs::read(path.join(DESCRIPTION)).unwrap(), text);
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1);
    let mode = fs::metadata(path.join(MEMORY)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "memory holds the guest's secrets");
}

#[test]
fn what_was_not_finished_leaves_the_old_one_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    for target in [
        SnapshotTarget::Directory(folder.path().join("s")),
        SnapshotTarget::Files {
            state: folder.path().join("state"),
            memory: folder.path().join("mem"),
        },
    ] {
        write(&target, "aaaaaaaaaaaa", b"old").unwrap();
        let before = names(folder.path());
        let mut staging = Staging::new(&target, "bbbbbbbbbbbb").unwrap();
        staging.create_memory().unwrap();
        drop(staging);
        assert_eq!(names(folder.path()), before);
    }
}

fn names(path: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    names
}

#[test]
fn a_directory_of_something_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("letter"), b"dear").unwrap();
    let target = SnapshotTarget::Directory(folder.path().to_owned());
    assert!(Staging::new(&target, "aaaaaaaaaaaa").is_err());
    assert_eq!(fs::read(folder.path().join("letter")).unwrap(), b"dear");
}

#[test]
fn what_somebody_left_who_was_killed_goes_with_the_next_and_what_somebody_writes_stays() {
    let folder = tempfile::tempdir().unwrap();
    let target = SnapshotTarget::Directory(folder.path().join("s"));
    let left = folder.path().join(".s.aaaaaaaaaaaa.partial");
    fs::create_dir(&left).unwrap();
    fs::write(left.join(MEMORY), b"x").unwrap();
    let others = [
        ".s.aaaaaaaaaaa.partial",
        ".t.aaaaaaaaaaaa.partial",
        "s.aaaaaaaaaaaa.partial",
    ];
    for name in others {
        fs::write(folder.path().join(name), b"mine").unwrap();
    }
    let mut writing = Staging::new(&target, "cccccccccccc").unwrap();
    writing.create_memory().unwrap();
    write(&target, "dddddddddddd", b"new").unwrap();
    assert!(!left.exists());
    assert!(others.iter().all(|name| folder.path().join(name).exists()));
    writing.write_state(b"newer", true).unwrap();
    writing.commit(true).unwrap();
    assert_eq!(
        fs::read(folder.path().join("s").join(DESCRIPTION)).unwrap(),
        b"newer"
    );
}

/// A snapshot whose memory is as small as can be, in two files, as somebody killed in the middle of replacing it leaves it.
#[test]
fn two_files_are_the_old_snapshot_or_the_new_one_between_their_renames() {
    let folder = tempfile::tempdir().unwrap();
    let (state, memory) = (folder.path().join("state"), folder.path().join("mem"));
    let put = |id: [u8; 16], state: &Path, memory: &Path| {
        let mut body = body();
        body.id = SnapshotId(id);
        let file = File::create_new(memory).unwrap();
        let ram = crate::memory::map(body.memory).unwrap();
        let identity = Identity {
            id,
            size: body.memory,
            difference: false,
        };
        image::write(&ram, &Origin::Nothing, &file, identity, false).unwrap();
        fs::write(state, document::encode(&body).unwrap()).unwrap();
    };
    put([1; 16], &state, &memory);
    let new = SnapshotId([2; 16]);
    let (new_state, new_memory) = (
        folder.path().join("new"),
        store::temporary(&memory, &new.to_string()),
    );
    put(new.0, &new_state, &new_memory);
    assert_eq!(
        Found::open_files(&state, &memory)
            .unwrap()
            .image()
            .unwrap()
            .identity
            .id,
        [1; 16]
    );
    fs::rename(&new_state, &state).unwrap();
    let found = Found::open_files(&state, &memory).unwrap();
    assert_eq!(found.image().unwrap().identity.id, [2; 16]);
    fs::rename(&new_memory, &memory).unwrap();
    assert_eq!(found.image().unwrap().identity.id, [2; 16]);
}
