use super::*;

fn fact(name: &str, status: Status, detail: &str, advice: Option<&str>) -> Fact {
    Fact {
        name: name.to_owned(),
        status,
        detail: detail.to_owned(),
        advice: advice.map(str::to_owned),
    }
}

fn native() -> Report {
    Report {
        kind: Some(HostKind::Native),
        ring0_speed: Some(3_000_000_000),
        facts: vec![
            fact("kvm", Status::Ok, "/dev/kvm, API version 12", None),
            fact(
                "kvm-xsave2",
                Status::Warning,
                "not there: guests cannot use AMX",
                Some("Use a newer Linux kernel."),
            ),
            fact("cpus", Status::Ok, "2 usable", None),
            fact(
                "tun",
                Status::Lacking,
                "no right to it",
                Some("Give your user rights."),
            ),
            fact("vhost-net", Status::Ok, "there", None),
            fact("new-thing", Status::Ok, "there", None),
        ],
    }
}

#[test]
fn each_fact_has_a_line_and_its_remedy_below_it() {
    let expected = "\
KVM
  ✓ kvm         /dev/kvm, API version 12
  ! kvm-xsave2  not there: guests cannot use AMX
                → Use a newer Linux kernel.
Processors and memory
  ✓ cpus        2 usable
Devices
  ✗ tun         no right to it
                → Give your user rights.
  ✓ vhost-net   there
Other
  ✓ new-thing   there

Guests can run here, at the processor's own speed. What needs tun will not work.
";
    assert_eq!(text(&native(), true), expected);
}

#[test]
fn ascii_terminals_get_ascii() {
    let shown = text(&native(), false);
    assert!(shown.is_ascii(), "{shown}");
    for line in [
        "  ok kvm ",
        "  !  kvm-xsave2 ",
        "  x  tun ",
        " -> Give your user rights.\n",
    ] {
        assert!(shown.contains(line), "{line:?} in {shown}");
    }
}

#[test]
fn an_interpreting_host_says_what_that_costs() {
    let report = Report {
        kind: Some(HostKind::Interpreted),
        ring0_speed: Some(1_560_000),
        facts: Vec::new(),
    };
    let expected = "Guests can run here. This KVM interprets guest kernels (1.5 million instructions a second), so booting and \
        system calls are slow; programs in the guest run at full speed in between.";
    assert_eq!(summary(&report), expected);
    assert_eq!(exit_code(&report), 0);
}

#[test]
fn a_host_without_kvm_says_what_to_do_and_has_a_code_of_its_own() {
    let report = Report {
        kind: None,
        ring0_speed: None,
        facts: vec![fact(
            "kvm",
            Status::Lacking,
            "/dev/kvm does not exist",
            Some("Load the module."),
        )],
    };
    assert_eq!(
        summary(&report),
        "Guests cannot run here: /dev/kvm does not exist. Load the module."
    );
    assert_eq!(exit_code(&report), 125);
    assert!(text(&report, true).starts_with("KVM\n  ✗ kvm  /dev/kvm does not exist\n"));
}

#[test]
fn the_json_is_the_report_and_whether_guests_can_run() {
    let report = native();
    let value: serde_json::Value = serde_json::from_str(&json(&report)).unwrap();
    assert_eq!(value["can_run"], true);
    assert_eq!(value["kind"], "native");
    assert_eq!(value["facts"][3]["status"], "lacking");
    assert_eq!(serde_json::from_value::<Report>(value).unwrap(), report);
}

#[test]
fn the_first_locale_variable_that_is_set_decides() {
    let unicode_with = |variables: &[(&str, &str)]| {
        let find = |name: &str| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        unicode(find)
    };
    assert!(unicode_with(&[("LANG", "en_GB.UTF-8")]));
    assert!(unicode_with(&[
        ("LC_ALL", ""),
        ("LC_CTYPE", "C.utf8"),
        ("LANG", "C")
    ]));
    assert!(!unicode_with(&[("LC_ALL", "POSIX"), ("LANG", "en_GB.UTF-8")]));
    assert!(!unicode_with(&[]));
}

/// The probe's own names, so that a new one is put under a heading.
#[test]
fn every_fact_of_the_probe_has_a_heading() {
    let facts = berth_arch::probe::host::facts(std::path::Path::new("/"));
    let strays: Vec<_> = facts
        .iter()
        .filter(|fact| group(fact) == REST)
        .map(|fact| &fact.name)
        .collect();
    assert!(strays.is_empty(), "{strays:?}");
}
