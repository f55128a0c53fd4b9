//! `berth test`: boot tests, described in files, run in VMs of their own, and told about in the ways that CI reads.
pub mod case;
pub mod console;
pub mod driven;
pub(crate) mod escapes;
pub mod expand;
pub mod faults;
pub mod file;
mod image;
pub mod images;
pub mod pattern;
mod place;
pub mod plan;
mod process;
mod progress;
pub mod report;
pub mod schedule;
mod shell;
mod steps;
mod template;
#[cfg(test)]
mod testing;
pub mod verdict;
