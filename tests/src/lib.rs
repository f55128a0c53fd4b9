//! Berth end to end.
