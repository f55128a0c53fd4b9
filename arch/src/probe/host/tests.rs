//! Facts of made-up hosts.

use tempfile::TempDir;

use super::*;
use crate::probe::Status;

/// A root directory with these files.
fn root(files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    root
}

fn status_and_detail(fact: &Fact) -> (Status, &str) {
    (fact.status, fact.detail.as_str())
}

#[test]
fn memory_and_huge_pages_come_from_meminfo() {
    let host = root(&[(
        "proc/meminfo",
        "MemTotal:        4096000 kB\nMemAvailable:    2048000 kB\nHugePages_Total:       8\nHugePages_Free:        3\n\
         Hugepagesize:       2048 kB\n",
    )]);
    assert_eq!(
        status_and_detail(&memory(host.path())),
        (Status::Ok, "2000 of 4000 MiB available")
    );
    assert_eq!(
        status_and_detail(&huge_pages(host.path())),
        (Status::Ok, "3 of 8 free, 2 MiB each")
    );
}

#[test]
fn little_memory_and_no_huge_pages_are_warnings() {
    let host = root(&[(
        "proc/meminfo",
        "MemTotal: 1024000 kB\nMemAvailable: 1024 kB\nHugePages_Total: 0\n",
    )]);
    assert_eq!(memory(host.path()).status, Status::Warning);
    assert_eq!(huge_pages(host.path()).status, Status::Warning);
}

#[test]
fn transparent_huge_pages_are_fine_unless_never() {
    for (modes, expected) in [
        ("always [madvise] never\n", (Status::Ok, "mode madvise")),
        ("[always] madvise never\n", (Status::Ok, "mode always")),
        ("always madvise [never]\n", (Status::Warning, "mode never")),
    ] {
        let host = root(&[("sys/kernel/mm/transparent_hugepage/enabled", modes)]);
        assert_eq!(status_and_detail(&transparent_huge_pages(host.path())), expected);
    }
}

#[test]
fn cgroup_versions_are_told_apart() {
    let v1 =
        "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t2\t1\t1\nmemory\t3\t1\t1\nhugetlb\t0\t1\t0\n";
    for (files, expected) in [
        (
            vec![("sys/fs/cgroup/cgroup.controllers", "cpu io memory\n")],
            (Status::Ok, "version 2: cpu io memory"),
        ),
        (
            vec![("proc/cgroups", v1)],
            (Status::Warning, "version 1: cpu memory"),
        ),
        (
            vec![
                ("proc/cgroups", v1),
                ("sys/fs/cgroup/unified/cgroup.controllers", ""),
            ],
            (
                Status::Warning,
                "version 1 (version 2 mounted beside it): cpu memory",
            ),
        ),
        (vec![], (Status::Warning, "none")),
    ] {
        assert_eq!(status_and_detail(&cgroups(root(&files).path())), expected);
    }
}

#[test]
fn refused_io_uring_names_the_sysctl_where_that_is_the_reason() {
    let refused = || Err(io::Error::from_raw_os_error(libc::EPERM));
    let advice = |files: &[(&str, &str)]| io_uring(root(files).path(), refused()).advice.unwrap();
    assert!(advice(&[("proc/sys/kernel/io_uring_disabled", "2\n")]).contains("io_uring_disabled=0"));
    assert!(advice(&[]).contains("seccomp"));
    assert_eq!(io_uring(Path::new("/"), Ok(())).status, Status::Ok);
}

#[test]
fn userfaultfd_for_user_space_only_is_a_warning() {
    let refused = || Err(io::Error::from_raw_os_error(libc::EPERM));
    assert_eq!(userfaultfd(Ok(()), refused).status, Status::Ok);
    assert_eq!(
        userfaultfd(refused(), || Ok(())).detail,
        "for faults of user space only"
    );
    assert!(userfaultfd(refused(), refused).detail.starts_with("refused"));
}

#[test]
fn what_berth_does_not_use_is_not_asked_for() {
    let host = root(&[]);
    for fact in [
        vhost(host.path(), "vhost-net"),
        huge_pages(host.path()),
        landlock(Err(io::ErrorKind::Unsupported.into())),
    ] {
        assert!(fact.advice.unwrap().starts_with("Nothing to do: Berth "));
    }
    assert!(
        cgroups(host.path())
            .advice
            .unwrap()
            .contains("Berth itself makes none")
    );
}

#[test]
fn missing_devices_name_the_module() {
    let host = root(&[]);
    let tun = tun(host.path());
    assert_eq!(tun.status, Status::Lacking);
    assert!(tun.advice.unwrap().contains("modprobe tun"));
}

#[test]
fn an_empty_host_still_gives_every_fact() {
    let names: Vec<_> = facts(root(&[]).path())
        .into_iter()
        .map(|fact| fact.name)
        .collect();
    assert_eq!(
        names,
        [
            "cpus",
            "memory",
            "huge-pages",
            "transparent-huge-pages",
            "tun",
            "passt",
            "io-uring",
            "userfaultfd",
            "landlock",
            "cgroups",
            "vhost-net",
            "vhost-vsock"
        ]
    );
}

#[test]
fn passt_is_looked_for_in_every_folder_of_path() {
    use std::os::unix::fs::PermissionsExt;
    let host = root(&[("one/passt", ""), ("two/passt", "")]);
    let folders = ["one", "two"].map(|folder| host.path().join(folder));
    let path = || std::env::join_paths(&folders).ok();
    assert_eq!(
        status_and_detail(&passt(path().as_deref())),
        (Status::Warning, "not in PATH: no user-mode networks")
    );
    let program = host.path().join("two/passt");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let detail = format!("{} is there", program.display());
    assert_eq!(
        status_and_detail(&passt(path().as_deref())),
        (Status::Ok, &*detail)
    );
    assert_eq!(passt(None).status, Status::Warning);
}
