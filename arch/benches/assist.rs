//! What the assist costs: microseconds for a system call, a page fault and an instruction, of a guest that does nothing else.
//!
//! `cargo bench --profile dev -p berth-arch --bench assist`: nearly all of the time is KVM's, so the profile hardly matters. On a host that runs ring 0 natively the same figures show what it costs to have no
//! assist.
#![cfg(target_arch = "x86_64")]

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/assist/guest.rs"]
mod guest;

use std::time::{Duration, Instant};

use guest::{DATA, Guest, KERNEL, Label, USER_PAGES};

/// Each figure is the best of so many runs: other work on the host only ever adds.
const RUNS: u32 = 20;

fn main() {
    let call = |rounds| {
        let mut guest = Guest::new(1);
        guest.cpus[0].in_ring3(Label::Calls, 0, rounds);
        timed(&mut guest)
    };
    measure("system call, with 15 kernel instructions", 200, call);
    let touch = |pages| {
        let mut guest = Guest::new(1);
        guest.cpus[0].in_ring3(Label::Touch, USER_PAGES, pages);
        timed(&mut guest)
    };
    measure("page fault, with 20 kernel instructions", 200, touch);
    for (label, name) in [
        (Label::Loop, "empty loop of 2 kernel instructions"),
        (Label::LoopOut, "port write in it: an exit that completes nothing"),
        (Label::LoopPopcnt, "popcnt in it"),
        (Label::LoopXsave, "xsavec and xrstor in it"),
        (Label::LoopStos, "rep stosq of a page in it"),
        (Label::LoopMovs, "rep movsq of a page in it"),
    ] {
        let run = |rounds| {
            let mut guest = Guest::new(1);
            guest.cpus[0].in_ring0(label, KERNEL + DATA + 0x4000, rounds);
            timed(&mut guest)
        };
        measure(name, 50, run);
    }
}

fn timed(guest: &mut Guest) -> Duration {
    let start = Instant::now();
    while guest.cpus[0].run() != 0 {}
    start.elapsed()
}

/// Reports the time of one round of what `run` does so many rounds of.
fn measure(name: &str, rounds: u32, run: impl Fn(u64) -> Duration) {
    let best = |rounds: u32| {
        (0..RUNS)
            .map(|_| run(u64::from(rounds)))
            .min()
            .unwrap_or_default()
    };
    let time = best(rounds + 1).saturating_sub(best(1));
    println!("{name}: {:.2} µs", time.as_secs_f64() * 1e6 / f64::from(rounds));
}
