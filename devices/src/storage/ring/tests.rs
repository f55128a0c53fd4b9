use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::Memory;
use crate::virtio::queue::{Buffer, HeldIo, Segments};

const LEN: u32 = 1024;

fn memory() -> Arc<Memory> {
    Arc::new(Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
}

/// `LEN` bytes of guest memory from `addr` on, in pieces.
fn held(memory: &Arc<Memory>, addr: u64, pieces: u32) -> HeldIo {
    let len = LEN / pieces;
    let buffers: Vec<_> = (0..pieces)
        .map(|number| Buffer {
            addr: GuestAddress(addr + u64::from(number * len)),
            len,
        })
        .collect();
    let mut segments = Segments::new();
    let mut io = segments.start(memory);
    assert_eq!(io.add(&buffers, 0, LEN.into()), u64::from(LEN));
    let mut held = HeldIo::default();
    held.hold(&io);
    held
}

fn read(memory: &Arc<Memory>, offset: u64) -> Job {
    Job::Read {
        offset,
        to: held(memory, 0x1000, 1),
    }
}

fn write(memory: &Arc<Memory>, offset: u64) -> Job {
    Job::Write {
        offset,
        from: held(memory, 0x1000, 1),
    }
}

fn done(job: &mut Job, result: i32) -> Result<(), io::ErrorKind> {
    match next(job, result) {
        Next::Done(result) => result.map_err(|cause| cause.kind()),
        other => panic!("{result}: {other:?}"),
    }
}

#[test]
fn what_moved_in_part_or_was_interrupted_goes_on_where_it_stood() {
    let memory = memory();
    for mut job in [read(&memory, 512), write(&memory, 512)] {
        for again in [-libc::EINTR, -libc::EAGAIN, 100, -libc::EINTR, 412] {
            assert!(matches!(next(&mut job, again), Next::Again), "{again}");
        }
        let (Job::Read { offset, to: io } | Job::Write { offset, from: io }) = &job else {
            panic!("another job");
        };
        assert_eq!((*offset, io.len()), (1024, 512));
        assert_eq!(done(&mut job, 512), Ok(()));
    }
}

#[test]
fn what_the_medium_refuses_is_an_error_and_not_done_again() {
    let memory = memory();
    for (errno, kind) in [
        (libc::ENOSPC, io::ErrorKind::StorageFull),
        (libc::EDQUOT, io::ErrorKind::QuotaExceeded),
        (libc::EROFS, io::ErrorKind::ReadOnlyFilesystem),
    ] {
        assert_eq!(done(&mut write(&memory, 0), -errno), Err(kind));
    }
    for errno in [libc::EIO, libc::ECANCELED, libc::EINVAL] {
        assert!(done(&mut read(&memory, 0), -errno).is_err());
        assert!(done(&mut Job::Flush, -errno).is_err());
    }
    assert_eq!(done(&mut read(&memory, 0), 0), Err(io::ErrorKind::UnexpectedEof));
    assert_eq!(done(&mut write(&memory, 0), 0), Err(io::ErrorKind::WriteZero));
    // Only zeros have another way.
    let (offset, len, unmap) = (0, 512, true);
    assert_eq!(
        done(&mut Job::Discard { offset, len }, -libc::EOPNOTSUPP),
        Err(io::ErrorKind::Unsupported)
    );
    let mut zeroes = Job::WriteZeroes { offset, len, unmap };
    assert!(matches!(next(&mut zeroes, -libc::EOPNOTSUPP), Next::StoreZeroes));
    assert!(done(&mut zeroes, -libc::EIO).is_err());
}

fn ring(bytes: &[u8]) -> (Ring, Arc<EventFd>, std::fs::File) {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    let event = Arc::new(EventFd::new(0).unwrap());
    let store = Arc::new(Store::new(file.try_clone().unwrap()));
    (Ring::new(store, &event).unwrap(), event, file)
}

#[test]
fn far_more_jobs_than_the_ring_has_entries_are_all_done_once() {
    const JOBS: u16 = 5000;
    let (mut ring, _event, file) = ring(&[7; LEN as usize]);
    let memory = memory();
    for token in 0..JOBS {
        let to = held(
            &memory,
            0x1000 + u64::from(token % 64) * u64::from(LEN),
            1 + u32::from(token % 3 == 0),
        );
        ring.begin(token, Job::Read { offset: 0, to });
    }
    let mut tokens: Vec<_> = std::iter::from_fn(|| ring.completed(true))
        .map(|(token, result)| {
            result.unwrap();
            token
        })
        .collect();
    tokens.sort_unstable();
    assert!(tokens.into_iter().eq(0..JOBS));
    assert_eq!(
        memory
            .read_obj::<u8>(GuestAddress(0x1000 + 64 * u64::from(LEN) - 1))
            .unwrap(),
        7
    );
    drop(file);
}

#[test]
fn a_ring_that_goes_waits_for_what_is_under_way() {
    let (mut ring, _event, file) = ring(&[]);
    let memory = memory();
    memory
        .write_slice(&[9; LEN as usize], GuestAddress(0x1000))
        .unwrap();
    for token in 0..100 {
        ring.begin(token, write(&memory, u64::from(token) * u64::from(LEN)));
    }
    drop(ring);
    let mut last = [0];
    file.read_exact_at(&mut last, 100 * u64::from(LEN) - 1).unwrap();
    assert_eq!(last, [9]);
    assert_eq!(Arc::strong_count(&memory), 1, "guest memory is let go");
}

#[test]
fn a_job_that_needs_the_medium_signals_its_end() {
    let (mut ring, event, _file) = ring(&[7; LEN as usize]);
    ring.begin(3, Job::Flush);
    ring.commit();
    let done = ring.completed(false);
    if done.is_none() {
        event.read().unwrap();
    }
    let (token, result) = done.or_else(|| ring.completed(false)).unwrap();
    assert_eq!((token, result.is_ok()), (3, true));
}
