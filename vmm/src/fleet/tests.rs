use super::*;
use crate::fleet::process::Tenure;

fn fleet() -> (tempfile::TempDir, Fleet) {
    let folder = tempfile::tempdir().unwrap();
    let fleet = Fleet::open(Some(folder.path().join("state"))).unwrap();
    (folder, fleet)
}

fn named(name: &str) -> NewVm<'_> {
    NewVm {
        name: Some(name),
        ..NewVm::default()
    }
}

#[test]
fn vms_are_kept_where_the_environment_says() {
    let of = |xdg: Option<&str>, home: Option<&str>| {
        default_root(|name| match name {
            "XDG_STATE_HOME" => xdg.map(PathBuf::from),
            _ => home.map(PathBuf::from),
        })
    };
    assert_eq!(of(Some("/s"), Some("/h")), Some("/s/berth".into()));
    assert_eq!(
        of(Some("relative"), Some("/h")),
        Some("/h/.local/state/berth".into())
    );
    assert_eq!(of(None, None), None);
}

#[test]
fn a_vm_is_found_by_its_name_and_by_the_beginning_of_its_id() {
    let (_folder, fleet) = fleet();
    let one = fleet.create(&named("one")).unwrap();
    let other = fleet.create(&NewVm::default()).unwrap();
    assert_eq!(fleet.find("one").unwrap(), one);
    assert_eq!(fleet.find(other.name()).unwrap(), other);
    assert_eq!(fleet.find(&other.meta().id).unwrap(), other);
    assert_eq!(fleet.list().unwrap().len(), 2);
    assert_eq!(
        fleet.find("oen").unwrap_err().to_string(),
        "there is no VM \"oen\"; did you mean one?"
    );
    assert_eq!(
        fleet.find("../one").unwrap_err().exit_code(),
        crate::exit_code::USER
    );
    assert_eq!(one.spec().unwrap(), VmSpec::default());
}

#[test]
fn of_many_that_are_made_with_one_name_exactly_one_is() {
    let (_folder, fleet) = fleet();
    let made = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| fleet.create(&named("web"))))
            .collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        let (made, refused): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
        assert!(
            refused
                .iter()
                .all(|result| matches!(result, Err(FleetError::Taken { .. })))
        );
        made.len()
    });
    assert_eq!(made, 1);
    assert_eq!(fs::read_dir(fleet.vms()).unwrap().count(), 1);
}

#[test]
fn the_lock_says_whether_a_vm_has_a_process() {
    let (_folder, fleet) = fleet();
    let entry = fleet.create(&named("web")).unwrap();
    assert_eq!(entry.status().unwrap().state, State::Created);
    let tenure = Tenure::begin(fleet.root(), entry.clone(), true).unwrap();
    assert_eq!(entry.status().unwrap().state, State::Starting);
    let (_, live) = entry.process().unwrap().unwrap();
    assert_eq!(live.pid, rustix::process::getpid().as_raw_pid());
    assert!(matches!(
        Tenure::begin(fleet.root(), entry.clone(), true),
        Err(FleetError::Runs { .. })
    ));
    assert!(matches!(fleet.remove(&entry), Err(FleetError::Runs { .. })));
    // As if it had been killed: the lock is free, and nothing was tidied up.
    drop(tenure);
    assert_eq!(entry.status().unwrap().state, State::Dead);
    assert!(entry.process().unwrap().is_none());
    fleet.remove(&entry).unwrap();
    assert!(matches!(fleet.find("web"), Err(FleetError::Missing { .. })));
    assert_eq!(fs::read_dir(fleet.vms()).unwrap().count(), 0);
}

#[test]
fn what_happens_to_a_machine_is_written_down() {
    let (_folder, fleet) = fleet();
    let entry = fleet.create(&named("web")).unwrap();
    let mut events = journal::Follower::journal(fleet.root(), true).unwrap();
    let tenure = Tenure::begin(fleet.root(), entry.clone(), true).unwrap();
    let hub = crate::events::EventHub::new(entry.identity());
    tenure.attend(&hub, |_| ());
    let mut states = Vec::new();
    for kind in [EventKind::Started, EventKind::Paused, EventKind::Resumed] {
        hub.emit(kind);
        states.push(entry.status().unwrap().state);
    }
    assert_eq!(states, [State::Running, State::Paused, State::Running]);
    hub.emit(EventKind::Stopped {
        reason: "exit",
        exit_code: 7,
        message: None,
    });
    tenure.end();
    let status = entry.status().unwrap();
    assert_eq!(status.state, State::Stopped);
    assert_eq!(status.ended.unwrap().exit_code, 7);
    let told: Vec<_> = events
        .lines()
        .unwrap()
        .iter()
        .map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(event["name"], "web");
            event["event"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(told, ["created", "started", "paused", "resumed", "stopped"]);
}

#[test]
fn leftovers_are_cleared_away_once_they_are_old() {
    let (_folder, fleet) = fleet();
    fleet.create(&named("one")).unwrap();
    let (old, fresh) = (fleet.vms().join(".gone-1"), fleet.vms().join(".new-2"));
    for folder in [&old, &fresh] {
        fs::create_dir(folder).unwrap();
    }
    let past = SystemTime::now() - 2 * LEFTOVER;
    fs::File::open(&old).unwrap().set_modified(past).unwrap();
    fleet.create(&named("other")).unwrap();
    assert!(!old.exists() && fresh.exists());
}
