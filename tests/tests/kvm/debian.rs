//! Debian's own programs run unchanged in the shipped kernel.

use std::time::Duration;

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
         chroot /mnt /opt/vectors
         chroot /mnt python3 -c 'import hashlib, json, math
print(json.dumps([hashlib.sha256(b\"berth\" * 9999).hexdigest()[:16], math.sqrt(2), sum(i * i for i in range(9999))]))'
         chroot /mnt apt-cache -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= policy apt | head -2
         chroot /mnt apt-get --version | head -1
         chroot /mnt /usr/bin/dpkg --verify libc6 && echo verified",
    )
    .args(["--memory", "512M", "--disk", &format!("{},ro", debian::image().display())])
    .within(Duration::from_secs(400))
    .finish();
    outcome.expect_code(0);
    let out = outcome.out();
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("same "), "{outcome}");
    assert_eq!(
        lines[1], "[\"37dfcf267fd14fcf\", 1.4142135623730951, 333183354999]",
        "{outcome}"
    );
    assert!(out.contains("Installed: 2.6"), "{outcome}");
    assert!(out.contains("apt 2.6"), "{outcome}");
    assert!(out.ends_with("verified\n"), "{outcome}");
}
