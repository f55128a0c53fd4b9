//! A program run to its end, and what it cost.

use std::io::Read;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// What a program said and cost.
pub(crate) struct Finished {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// Processor time of all its threads, microseconds, the guest's included.
    pub(crate) cpu_us: u64,
    /// Times that its threads left a processor, to wait or because others had a turn.
    pub(crate) switches: u64,
    /// From start to end.
    pub(crate) elapsed: Duration,
}

/// Runs a program with nothing on standard input; it is killed at the deadline.
#[allow(clippy::zombie_processes)] // `wait` waits for it.
pub(crate) fn run(mut command: Command, deadline: Duration) -> Finished {
    command
        // What it starts, or what it was started by, ends with it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", command.get_program().to_string_lossy()));
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("the child has not been waited for");
    let mut pipes = (
        child.stdout.take().expect("piped"),
        child.stderr.take().expect("piped"),
    );
    std::thread::scope(|scope| {
        let stdout = scope.spawn(move || text(&mut pipes.0));
        let stderr = scope.spawn(move || text(&mut pipes.1));
        let timeout = Timespec::try_from(deadline).expect("minutes at most");
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)).expect("one descriptor");
        if ended == 0 {
            kill_process_group(pid, Signal::KILL).expect("it runs");
        }
        let usage = wait(pid);
        let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
        Finished {
            elapsed: started.elapsed(),
            stdout: stdout.join().expect("it only reads"),
            stderr: stderr.join().expect("it only reads"),
            cpu_us: micros(usage.ru_utime) + micros(usage.ru_stime),
            switches: (usage.ru_nvcsw + usage.ru_nivcsw) as u64,
        }
    })
}

fn text(pipe: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    // What came before an error is what there is.
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for the end of a child and gives what it took.
fn wait(pid: Pid) -> libc::rusage {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to live values of the types that wait4 writes.
    let waited = unsafe { libc::wait4(pid.as_raw_nonzero().get(), &raw mut status, 0, usage.as_mut_ptr()) };
    assert!(waited > 0, "wait4: {}", std::io::Error::last_os_error());
    // SAFETY: zeros are a value of this plain structure, and wait4 has filled it.
    unsafe { usage.assume_init() }
}
