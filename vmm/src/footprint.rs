//! Keeps Berth small beside its guest. Argument parsing, file formats, the loader and the shipped guest are most of the program and
//! of what it allocates, and a running VM touches little of it.

use std::time::Duration;

/// How long after a machine's start what only the start needs is given back. A guest that ends sooner does not wait for that, and
/// the first pages that vCPUs need are not taken from under them.
pub(crate) const SETTLED: Duration = Duration::from_millis(100);

/// Has all threads share one heap: the next ones take what argument parsing has left, where glibc would give each a heap of its own
/// that grows by a page and a system call at a time. Call it before any thread is started.
pub(crate) fn share_heap() {
    // SAFETY: sets a parameter of the allocator; there is no thread yet that could allocate meanwhile.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 0 {
        tracing::debug!("each thread has a heap of its own");
    }
}

/// Gives back what only a start needs.
pub(crate) fn drop_start_up_pages() {
    drop_program_pages();
    // SAFETY: returns free memory of the heap to the system, which concerns nobody.
    unsafe { libc::malloc_trim(0) };
}

/// Unmaps the program's code and constants from this process. What is needed again comes back from the page cache, at the
/// price of a minor fault.
fn drop_program_pages() {
    unsafe extern "C" {
        /// The linker's: where the program's first segment begins.
        static __executable_start: u8;
        /// The linker's: where its code ends.
        static etext: u8;
    }
    let start = (&raw const __executable_start).addr();
    let end = (&raw const etext).addr() & !(PAGE - 1);
    if start.is_multiple_of(PAGE) && start < end {
        // SAFETY: the range is the program's headers, constants and code: private mappings of its file that are never
        // written (relocations lie behind them), so dropping the pages changes no byte that anyone reads.
        let result = unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        if result != 0 {
            tracing::debug!("start-up pages stay: {}", std::io::Error::last_os_error());
        }
    }
}

const PAGE: usize = 4096;
