//! The balloon: what the guest gives up, the host has back.

use berth_tests::invocation::script;
use berth_tests::memory;

/// Memory of the guest and of its balloon, in MiB.
const MEMORY: u64 = 64;
const BALLOON: u64 = 24;

#[test]
fn an_inflated_balloon_takes_memory_from_the_guest_and_gives_it_to_the_host() {
    // The guest lets go of its balloon, touches most of its memory, frees that, and takes up the balloon again.
    let mut running = script(
        "set -e
         total() { while read name kib rest; do if [ $name = MemTotal: ]; then echo $kib; fi; done </proc/meminfo; }
         until_below() { while [ $(total) -gt $1 ]; do usleep 20000; done; }
         cd /sys/bus/virtio/drivers/virtio_balloon
         device=$(ls -d virtio*)
         echo $device >unbind
         all=$(total)
         mkdir /tmp/memory
         mount -t tmpfs -o size=90% none /tmp/memory
         dd if=/dev/zero of=/tmp/memory/file bs=1M count=36 2>/dev/null
         rm /tmp/memory/file
         echo touched
         read line
         echo $device >bind
         until_below $((all - 24 * 1024 + 100))
         echo inflated
         read line
         echo $device >unbind
         echo deflated $((all - $(total)))",
    )
    .args(["--cold", "--memory", &format!("{MEMORY}M")])
    .args(["--balloon", &format!("size={BALLOON}M,stats=1,hinting")])
    .open_input()
    .start();
    running.wait_for("touched");
    let touched = memory::resident(running.id(), MEMORY).guest;
    running.send("go on\n");
    running.wait_for("inflated");
    let inflated = memory::resident(running.id(), MEMORY).guest;
    assert!(
        inflated + BALLOON * 1024 / 2 <= touched,
        "{touched} KiB were resident, and {inflated} KiB with a balloon of {BALLOON} MiB"
    );
    running.send("go on\n");
    let outcome = running.finish();
    outcome.expect_code(0);
    assert!(outcome.out().ends_with("deflated 0\n"), "{outcome}");
}
