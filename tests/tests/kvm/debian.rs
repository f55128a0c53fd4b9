//! Debian's own programs run unchanged in the shipped kernel.

use berth_tests::debian;
use berth_tests::invocation::script;

#[test]
fn python_apt_and_programs_that_fill_vector_registers_run_in_a_debian_root() {
    let outcome = script(
        "set -e
         mount -t ext4 -o ro,noload /dev/vdb /mnt
         mount -t tmpfs tmpfs /mnt/tmp
         mount --bind /proc /mnt/proc
         mount --bind /dev /mnt/dev
         in_debian() { chroot /mnt /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \"$@\"; }
         in_debian /opt/vectors
         in_debian python3 -c 'import hashlib, json, math
print(json.dumps([hashlib.sha256(b\"berth\" * 9999).hexdigest()[:16], math.sqrt(2), sum(i * i for i in range(9999))]))'
         in_debian apt-get --version | head -n 1
         in_debian apt-cache -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= policy python3
         in_debian dpkg --verify libc6 && echo verified",
    )
    .args(["--disk", &format!("{},ro", debian::image().display())])
    .finish();
    outcome.expect_code(0);
    let out = outcome.out();
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("same "), "{outcome}");
    assert_eq!(
        lines[1], "[\"37dfcf267fd14fcf\", 1.4142135623730951, 333183354999]",
        "{outcome}"
    );
    assert!(lines[2].starts_with("apt 2."), "{outcome}");
    assert!(out.contains("python3:\n  Installed: 3."), "{outcome}");
    assert!(out.ends_with("verified\n"), "{outcome}");
}
