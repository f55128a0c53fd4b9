//! The pages that a restored machine has touched by the time it is ready, in a file beside its memory, for the next machine of the
//! same snapshot to have them read at once instead of one fault after the other.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 16 | `berth-pages 1` and zeros |
//! | 16 | 16 | the snapshot's id |
//! | 32 | 8 | size of the RAM in bytes |
//! | 40 | 4 | how many runs follow |
//! | 44 | 4 | CRC-32 of the runs |
//! | 48 | 16 each | a run: its offset in the memory's file and its length in bytes, whole pages, ascending |
//!
//! All numbers are little endian. The file is a hint: without it, or with a wrong one, nothing is lost but time.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_devices::Memory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::image::Identity;
use super::pages::{PAGE, PageMap};
use crate::whole_file;

const MAGIC: &[u8; 16] = b"berth-pages 1\0\0\0";
const HEAD: usize = 48;
/// Bytes of a run in the file.
const RUN: usize = 16;
/// Runs at most: a record of more is longer than what it saves.
const RUNS_MAX: usize = 1 << 16;

/// Runs of bytes in a memory's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkingSet {
    runs: Vec<Range<u64>>,
}

/// Why a record of pages is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkingSetError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It is none, or was changed.
    #[error("it is damaged, or no record of pages")]
    Damaged,
    /// It is of another snapshot.
    #[error("it belongs to another snapshot")]
    Foreign,
}

/// Where the record for the memory at `memory` is.
pub(crate) fn path_beside(memory: &Path) -> PathBuf {
    let mut name = OsString::from(memory);
    name.push(".working-set");
    name.into()
}

impl WorkingSet {
    /// What this process has touched of `memory`.
    pub(crate) fn of(memory: &Memory) -> io::Result<Self> {
        let map = PageMap::open()?;
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut offset = 0;
        for region in memory.iter() {
            map.touched(region.as_ptr().addr(), region.len() as usize, |run| {
                runs.push(offset + run.start as u64..offset + run.end as u64);
                Ok(())
            })?;
            offset += region.len();
        }
        // The shortest are worth least.
        if runs.len() > RUNS_MAX {
            runs.sort_by_key(|run| std::cmp::Reverse(run.end - run.start));
            runs.truncate(RUNS_MAX);
            runs.sort_by_key(|run| run.start);
        }
        Ok(Self { runs })
    }

    /// Bytes of all runs.
    pub(crate) fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Writes it to `path`, all of it or nothing.
    pub(crate) fn write(&self, path: &Path, identity: Identity) -> io::Result<()> {
        let pairs = self.runs.iter().map(|run| [run.start, run.end - run.start]);
        whole_file::write(path, &encode(pairs, identity), false)
    }

    /// Reads the record at `path`; none if there is no file.
    pub(crate) fn read(path: &Path, identity: Identity) -> Result<Option<Self>, WorkingSetError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        file.take((HEAD + RUN * RUNS_MAX + 1) as u64)
            .read_to_end(&mut bytes)?;
        Self::parse(&bytes, identity).map(Some)
    }

    fn parse(bytes: &[u8], identity: Identity) -> Result<Self, WorkingSetError> {
        let (head, rest) = bytes.split_at_checked(HEAD).ok_or(WorkingSetError::Damaged)?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap_or_default());
        let long = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        let whole = head[..16] == *MAGIC
            && rest.len() == word(40) as usize * RUN
            && crc32fast::hash(rest) == word(44);
        if !whole {
            return Err(WorkingSetError::Damaged);
        }
        if head[16..32] != identity.id || long(&head[32..40]) != identity.size {
            return Err(WorkingSetError::Foreign);
        }
        let mut end = 0;
        let mut runs = Vec::with_capacity(rest.len() / RUN);
        for run in rest.chunks_exact(RUN) {
            let (start, len) = (long(&run[..8]), long(&run[8..]));
            let next = start.checked_add(len).filter(|next| *next <= identity.size);
            let pages = start.is_multiple_of(PAGE as u64) && len.is_multiple_of(PAGE as u64) && len > 0;
            let Some(next) = next.filter(|_| pages && start >= end) else {
                return Err(WorkingSetError::Damaged);
            };
            runs.push(start..next);
            end = next;
        }
        Ok(Self { runs })
    }

    /// Has the pages read and mapped by a thread of its own, while the guest runs. `memory` is mapped from the file.
    pub(crate) fn prefetch(self, memory: Arc<Memory>) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("prefetch".to_owned());
        thread.spawn(move || {
            // First what is to be read is said all at once, for the host to read it in the best order; then it is mapped.
            for advice in [libc::MADV_WILLNEED, libc::MADV_POPULATE_READ] {
                for run in &self.runs {
                    if let Err(error) = advise(&memory, run, advice) {
                        tracing::info!("the working set is not read ahead any further: {error}");
                        return;
                    }
                }
            }
            tracing::info!("{} KiB of working set are read ahead", self.bytes() >> 10);
        })?;
        Ok(())
    }
}

/// A record of runs, each an offset and a length.
fn encode(runs: impl ExactSizeIterator<Item = [u64; 2]>, identity: Identity) -> Vec<u8> {
    let count = runs.len() as u32;
    let runs: Vec<u8> = runs.flatten().flat_map(u64::to_le_bytes).collect();
    let mut bytes = Vec::with_capacity(HEAD + runs.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&identity.id);
    bytes.extend_from_slice(&identity.size.to_le_bytes());
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&runs).to_le_bytes());
    bytes.extend_from_slice(&runs);
    bytes
}

/// Advises the host about the parts of `memory` that lie in `run`, bytes counted through all regions.
fn advise(memory: &Memory, run: &Range<u64>, advice: i32) -> io::Result<()> {
    let mut offset = 0;
    for region in memory.iter() {
        let (start, end) = (run.start.max(offset), run.end.min(offset + region.len()));
        if start < end {
            let from = region.as_ptr().wrapping_add((start - offset) as usize);
            // SAFETY: the range lies within the mapping of `region`, which `memory` keeps. Both kinds of advice only bring pages in;
            // no byte that is read changes.
            let result = unsafe { libc::madvise(from.cast(), (end - start) as usize, advice) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        offset += region.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory;

    const SIZE: u64 = 64 << 20;
    const ID: Identity = Identity {
        id: [7; 16],
        size: SIZE,
        difference: false,
    };

    fn touched() -> (Arc<Memory>, WorkingSet) {
        let memory = memory::map(SIZE).unwrap();
        for at in [0, 5 * PAGE, 6 * PAGE, SIZE as usize - PAGE] {
            memory.write_obj(1_u8, GuestAddress(at as u64)).unwrap();
        }
        let set = WorkingSet::of(&memory).unwrap();
        (memory, set)
    }

    #[test]
    fn what_was_touched_is_recorded_and_read_again() {
        let (memory, set) = touched();
        let page = PAGE as u64;
        assert_eq!(set.runs, [0..page, 5 * page..7 * page, SIZE - page..SIZE]);
        let folder = tempfile::tempdir().unwrap();
        let path = path_beside(&folder.path().join("memory"));
        assert!(WorkingSet::read(&path, ID).unwrap().is_none());
        set.write(&path, ID).unwrap();
        assert_eq!(WorkingSet::read(&path, ID).unwrap(), Some(set.clone()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        for run in &set.runs {
            for advice in [libc::MADV_WILLNEED, libc::MADV_POPULATE_READ] {
                advise(&memory, run, advice).unwrap();
            }
        }
    }

    #[test]
    fn a_record_of_another_snapshot_or_a_changed_one_is_not_used() {
        let (_, set) = touched();
        let file = tempfile::NamedTempFile::new().unwrap();
        set.write(file.path(), ID).unwrap();
        let other = Identity { id: [8; 16], ..ID };
        assert!(matches!(
            WorkingSet::read(file.path(), other),
            Err(WorkingSetError::Foreign)
        ));
        let bytes = fs::read(file.path()).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(WorkingSet::parse(&changed, ID).is_err(), "{at}");
        }
        for len in 0..bytes.len() {
            assert!(WorkingSet::parse(&bytes[..len], ID).is_err(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn a_record_of_any_runs_names_whole_pages_of_the_ram_in_order(
            runs in proptest::collection::vec((0..=SIZE / 4096 + 1, 0..9_u64, 0..20_u64), 0..5)
        ) {
            // Mostly whole pages.
            let runs = runs.into_iter().map(|(page, pages, odd)| [page * 4096 + odd / 19, pages * 4096 + odd / 18 % 2]);
            if let Ok(set) = WorkingSet::parse(&encode(runs.collect::<Vec<_>>().into_iter(), ID), ID) {
                let mut end = 0;
                for run in set.runs {
                    prop_assert!(run.start >= end && run.start < run.end && run.end <= SIZE);
                    prop_assert!(run.start.is_multiple_of(PAGE as u64) && run.end.is_multiple_of(PAGE as u64));
                    end = run.end;
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = WorkingSet::parse(&[&MAGIC[..], &bytes].concat(), ID);
        }
    }
}
