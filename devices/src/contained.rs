//! Panics of a library that end the one thing that it was to do, and not the program.
//!
//! Any other panic is a fault of Berth's own, and the program's panic hook ends it: [`is_here`] tells the hook which is which.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread would be caught now.
pub fn is_here() -> bool {
    CONTAINED.get()
}

/// Does `work`, whose panic becomes an error. What it worked on must not be used any more then: nobody knows how it was left.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(outer);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Panicked(text.unwrap_or("no message").to_owned())
    })
}

/// A panic that was caught.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fault in the library that does it: {0}")]
pub(crate) struct Panicked(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_is_known_to_be_caught_where_it_is() {
        assert!(!is_here());
        let error = contain::<()>(|| {
            assert!(is_here());
            panic!("table {}", 7)
        });
        let error = error.unwrap_err();
        assert!(!is_here());
        assert_eq!(error.to_string(), "a fault in the library that does it: table 7");
        assert_eq!(contain(|| 3), Ok(3));
    }
}
