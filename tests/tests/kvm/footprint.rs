//! What Berth itself keeps in memory while a guest runs.

use std::thread;
use std::time::{Duration, Instant};

use berth_tests::invocation::tiny;
use berth_tests::memory;

#[test]
fn what_only_the_start_needed_is_given_back_and_the_guest_goes_on() {
    /// The program's own pages in KiB. A start maps 16 MiB of a development build; what is mapped afterwards is 1 to 5, by how large the
    /// pieces are in which the host has the file in memory.
    const ENOUGH: u64 = 10 << 10;
    let mut running = tiny("echo").open_input().start();
    running.wait_for("ready\n");
    // Nothing announces it.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let resident = memory::resident(running.id(), 64);
        let program = resident.rss - resident.private;
        if program < ENOUGH {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{program} KiB of the program are resident"
        );
        thread::yield_now();
    }
    running.send("on");
    running.wait_for("on");
    running.send("\x04");
    running.finish().expect_code(0);
}
