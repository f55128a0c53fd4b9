//! The exit codes that the README documents.

/// The guest shut down.
pub(crate) const SHUTDOWN: i32 = 0;
/// What the user asked for is wrong.
pub(crate) const USER: i32 = 2;
/// The guest asked for a reset.
pub(crate) const RESET: i32 = 120;
/// The guest's kernel panicked.
pub(crate) const PANIC: i32 = 121;
/// The guest's CPU shut down.
pub(crate) const TRIPLE_FAULT: i32 = 122;
/// The guest ran past `--timeout`.
pub(crate) const TIMEOUT: i32 = 124;
/// KVM or Berth cannot go on.
pub(crate) const FAULT: i32 = 125;
/// Ended by a signal: this and its number.
pub(crate) const SIGNAL: i32 = 128;
