//! Kills a program at a chosen step: `killer N CALL PROGRAM ARGUMENTS…` runs it and ends it by SIGKILL before the Nth system call
//! of its main thread, counted from 0 from the first call of the name CALL (`mkdir` or `create`) on.
//!
//! Ends with 0 if the program was killed so, and with 3 if it ended by itself before.

use std::os::unix::process::CommandExt;
use std::process::{Command, exit};

/// Status of a program that was not killed.
const ENDED: i32 = 3;

/// Where a system call's number and its third argument are in `struct user`, by which PTRACE_PEEKUSER reads them.
const NUMBER: usize = std::mem::offset_of!(libc::user_regs_struct, orig_rax);
const SECOND: usize = std::mem::offset_of!(libc::user_regs_struct, rsi);
const THIRD: usize = std::mem::offset_of!(libc::user_regs_struct, rdx);

fn ptrace(request: libc::c_uint, pid: i32, data: usize) {
    // SAFETY: the requests that this program makes take numbers; none reads or writes this process's memory.
    let result = unsafe { libc::ptrace(request, pid, 0, data) };
    assert!(result >= 0, "killer: ptrace: {}", std::io::Error::last_os_error());
}

/// A word of the stopped child's registers.
fn register(pid: i32, at: usize) -> i64 {
    // SAFETY: the request takes numbers and returns the word.
    unsafe { libc::ptrace(libc::PTRACE_PEEKUSER, pid, at, 0) }
}

/// Waits for the child's next stop; gives its signal. Ends this program when the child has ended.
fn wait(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: `status` is live and writable.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert!(
        waited == pid,
        "killer: waitpid: {}",
        std::io::Error::last_os_error()
    );
    if libc::WIFSTOPPED(status) {
        return libc::WSTOPSIG(status);
    }
    exit(ENDED)
}

/// Whether the call at whose entry the child stands is the one that counting begins with.
fn begins(pid: i32, call: &str) -> bool {
    match (call, register(pid, NUMBER)) {
        ("mkdir", number) => number == libc::SYS_mkdir || number == libc::SYS_mkdirat,
        ("create", libc::SYS_open) => register(pid, SECOND) & i64::from(libc::O_CREAT) != 0,
        ("create", libc::SYS_openat) => register(pid, THIRD) & i64::from(libc::O_CREAT) != 0,
        _ => false,
    }
}

fn main() {
    let mut words = std::env::args_os().skip(1);
    let mut next = || {
        words
            .next()
            .expect("usage: killer N mkdir|create PROGRAM ARGUMENTS")
    };
    let number: u64 = next()
        .to_str()
        .and_then(|text| text.parse().ok())
        .expect("N is a number");
    let call = next().into_string().expect("mkdir or create");
    let mut command = Command::new(next());
    command.args(words);
    // SAFETY: between fork and exec only a system call is made, which takes no memory of anybody.
    unsafe {
        command.pre_exec(|| {
            ptrace(libc::PTRACE_TRACEME, 0, 0);
            Ok(())
        });
    }
    #[expect(clippy::zombie_processes, reason = "waitpid waits for it, stop by stop")]
    let child = command.spawn().expect("the program can be started");
    let pid = child.id() as i32;
    // At the exec.
    wait(pid);
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
    ptrace(libc::PTRACE_SETOPTIONS, pid, options as usize);
    let (mut signal, mut entry, mut count) = (0, true, None);
    loop {
        ptrace(libc::PTRACE_SYSCALL, pid, signal as usize);
        let stop = wait(pid);
        signal = 0;
        if stop != libc::SIGTRAP | 0x80 {
            signal = stop;
            continue;
        }
        if entry {
            count = match count {
                None if begins(pid, &call) => Some(0),
                count => count.map(|count| count + 1),
            };
            if count == Some(number) {
                // SAFETY: a signal to the child, which was not waited for to its end.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                wait_for_end(pid);
                exit(0);
            }
        }
        entry = !entry;
    }
}

fn wait_for_end(pid: i32) {
    let mut status = 0;
    loop {
        // SAFETY: `status` is live and writable.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if waited != pid || libc::WIFSIGNALED(status) || libc::WIFEXITED(status) {
            return;
        }
    }
}
