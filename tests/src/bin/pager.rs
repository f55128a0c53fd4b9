//! A page-fault handler as Firecracker's users write them: `pager SOCKET MEMORY [FAULTS]` brings the pages of one VM from a memory
//! file, says "listening" and at the end how many it brought, and ends after FAULTS of them if that is given.

// The macros that number requests make functions without a word about them.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

#[derive(serde::Deserialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}
ioctl_iowr_nr!(UFFDIO_COPY, 0xaa, 0x03, Copy);

const PAGE_FAULT: u8 = 0x12;
const REMOVE: u8 = 0x15;

fn main() {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [socket, memory, more @ ..] = &words[..] else {
        panic!("usage: pager SOCKET MEMORY [FAULTS]")
    };
    let most = more
        .first()
        .map_or(usize::MAX, |text| text.parse().expect("a number of faults"));
    let memory = File::open(memory).unwrap_or_else(|error| panic!("{memory}: {error}"));
    let listener = UnixListener::bind(socket).unwrap_or_else(|error| panic!("{socket}: {error}"));
    println!("listening");
    let (stream, _) = listener.accept().expect("a VM connects");
    let mut text = vec![0; 65536];
    let (len, faults) = stream.recv_with_fd(&mut text).expect("the VM sends its memory");
    let mut faults = faults.expect("the VM sends its userfaultfd");
    let mappings: Vec<Mapping> = serde_json::from_slice(&text[..len]).expect("mappings as JSON");
    let mut removed = BTreeSet::new();
    let mut brought = 0;
    while brought < most {
        let mut fds = [
            PollFd::new(&faults, PollFlags::IN),
            PollFd::new(&stream, PollFlags::RDHUP),
        ];
        poll(&mut fds, None).expect("poll");
        if fds[0].revents().is_empty() {
            break;
        }
        let mut message = [0; 32];
        match faults.read(&mut message) {
            Ok(32) => {}
            Ok(_) => break,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => panic!("userfaultfd: {error}"),
        }
        let word = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().expect("8 bytes"));
        match message[0] {
            PAGE_FAULT => brought += usize::from(bring(&faults, &mappings, &memory, &removed, word(16))),
            REMOVE => removed.extend((word(8)..word(16)).step_by(4096)),
            other => panic!("userfaultfd: event {other:#x}"),
        }
    }
    let _ = writeln!(std::io::stdout(), "brought {brought}");
}

/// Puts the page with `address` there; says if it was not there yet.
fn bring(faults: &File, mappings: &[Mapping], memory: &File, removed: &BTreeSet<u64>, address: u64) -> bool {
    let mapping = mappings
        .iter()
        .find(|mapping| {
            (mapping.base_host_virt_addr..mapping.base_host_virt_addr + mapping.size).contains(&address)
        })
        .unwrap_or_else(|| panic!("{address:#x} is in no mapping"));
    let to = address & !(mapping.page_size - 1);
    let mut page = vec![0; mapping.page_size as usize];
    if !removed.contains(&to) {
        let at = mapping.offset + (to - mapping.base_host_virt_addr);
        memory
            .read_exact_at(&mut page, at)
            .expect("the memory file is whole");
    }
    let mut copy = Copy {
        to,
        from: page.as_ptr().addr() as u64,
        len: mapping.page_size,
        mode: 0,
        copied: 0,
    };
    // SAFETY: the structure is what this request reads and writes, and the page that it names lives and has this length. What it
    // writes is the VM's memory, not this process's.
    let result = unsafe { ioctl_with_mut_ref(&faults.as_raw_fd(), UFFDIO_COPY(), &mut copy) };
    // Two threads may have waited for one page.
    let there = std::io::Error::last_os_error().raw_os_error() == Some(libc::EEXIST);
    assert!(
        result == 0 || there,
        "UFFDIO_COPY: {}",
        std::io::Error::last_os_error()
    );
    result == 0
}
