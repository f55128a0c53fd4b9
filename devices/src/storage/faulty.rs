//! A file under a qcow2 image that fails as its test says. In tests it stands where else the library's own file does.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use imago::file::File;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, StorageOpenOptions};

/// What happens to one access to the file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It fails with this error.
    Errno(i32),
    /// The library panics.
    Panic,
}

/// What happens to the next accesses, to all alike after the last.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    reads: Mutex<VecDeque<Fault>>,
    writes: Mutex<VecDeque<Fault>>,
    syncs: Mutex<VecDeque<Fault>>,
}

thread_local! {
    static NEXT: RefCell<Option<Arc<Faults>>> = const { RefCell::new(None) };
}

impl Faults {
    /// For the image that this thread opens next; what it stands on has none.
    pub(crate) fn for_next() -> Arc<Self> {
        let faults = Arc::<Self>::default();
        NEXT.replace(Some(faults.clone()));
        faults
    }

    /// After `good` more accesses that succeed, these happen.
    pub(crate) fn read(&self, good: usize, faults: &[Fault]) {
        queue(&self.reads, good, faults);
    }

    pub(crate) fn write(&self, good: usize, faults: &[Fault]) {
        queue(&self.writes, good, faults);
    }

    pub(crate) fn sync(&self, good: usize, faults: &[Fault]) {
        queue(&self.syncs, good, faults);
    }

    /// Nothing fails any more.
    pub(crate) fn none(&self) {
        for queue in [&self.reads, &self.writes, &self.syncs] {
            queue.lock().unwrap().clear();
        }
    }
}

fn queue(to: &Mutex<VecDeque<Fault>>, good: usize, faults: &[Fault]) {
    let mut queue = to.lock().unwrap();
    queue.clear();
    queue.extend(std::iter::repeat_n(Fault::None, good).chain(faults.iter().copied()));
}

fn happens(queue: &Mutex<VecDeque<Fault>>) -> io::Result<()> {
    let fault = queue.lock().unwrap().pop_front();
    match fault {
        None | Some(Fault::None) => Ok(()),
        Some(Fault::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
        Some(Fault::Panic) => panic!("a fault that the test wants"),
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct FaultyFile {
    file: File,
    faults: Arc<Faults>,
}

impl FaultyFile {
    pub(super) fn from_open_file(file: std::fs::File, options: StorageOpenOptions) -> io::Result<Self> {
        Ok(Self {
            file: File::from_open_file(file, options)?,
            faults: NEXT.take().unwrap_or_default(),
        })
    }
}

impl fmt::Display for FaultyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl Storage for FaultyFile {
    fn mem_align(&self) -> usize {
        self.file.mem_align()
    }

    fn req_align(&self) -> usize {
        self.file.req_align()
    }

    fn zero_align(&self) -> usize {
        self.file.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.file.discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        happens(&self.faults.reads)?;
        // SAFETY: the caller keeps this function's contract, which is the same.
        unsafe { self.file.pure_readv(bufv, offset) }
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        happens(&self.faults.writes)?;
        // SAFETY: as above.
        unsafe { self.file.pure_writev(bufv, offset) }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        happens(&self.faults.writes)?;
        // SAFETY: as above.
        unsafe { self.file.pure_write_zeroes(offset, length) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        happens(&self.faults.writes)?;
        // SAFETY: as above.
        unsafe { self.file.pure_write_allocated_zeroes(offset, length) }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        happens(&self.faults.writes)?;
        // SAFETY: as above.
        unsafe { self.file.pure_discard(offset, length) }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }

    fn sync(&self) -> io::Result<()> {
        happens(&self.faults.syncs)?;
        self.file.sync()
    }

    fn settle_writes(&self) -> io::Result<()> {
        self.file.settle_writes()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.file.invalidate_cache() }
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.file.get_storage_helper()
    }

    fn resize(&self, new_size: u64, prealloc_mode: PreallocateMode) -> io::Result<()> {
        self.file.resize(new_size, prealloc_mode)
    }
}
