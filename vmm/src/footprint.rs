//! Gives back the pages of Berth's own program that only a start needs: argument parsing, file formats, the loader and the
//! shipped guest are most of the program, and a running VM touches little of it.

/// Unmaps the program's code and constants from this process. What is needed again comes back from the page cache, at the
/// price of a minor fault.
pub(crate) fn drop_start_up_pages() {
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
