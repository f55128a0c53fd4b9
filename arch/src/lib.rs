//! What the CPU dictates.
