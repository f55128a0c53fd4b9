//! Each instruction against the CPU's manual, on the [mock](super::mock) machine.

mod any;
mod integer;
mod system;
mod xsave;
