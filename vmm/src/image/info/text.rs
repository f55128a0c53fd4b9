//! What an image is, for people to read.

use std::fmt::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

use super::ImageInfo;
use crate::events;
use crate::spec::ByteSize;

/// Lines of a name and a value each.
pub fn text(info: &ImageInfo) -> String {
    let mut lines = Lines(String::new());
    let kind = match info.compression {
        Some(compression) => format!("{}, compressed by {compression}", info.kind),
        None => info.kind.to_owned(),
    };
    lines.add("kind", &kind);
    lines.add(
        "size",
        &format_args!("{} bytes ({})", info.size, short(info.size)),
    );
    lines.given("label", info.label.as_ref());
    lines.given("uuid", info.uuid.as_ref());
    lines.given("made", info.made.map(time).as_ref());
    if let Some(size) = info.disk_size {
        lines.add("disk", &format_args!("{size} bytes ({})", short(size)));
    }
    lines.given("backing", info.backing_file.as_ref());
    match (info.blocks, info.block_size) {
        (Some(blocks), Some(size)) => {
            let free = info.free_blocks.unwrap_or(0);
            let used = short(blocks.saturating_sub(free).saturating_mul(size));
            let free = format!("{free} free ({})", short(free.saturating_mul(size)));
            lines.add(
                "blocks",
                &format_args!("{blocks} of {size} bytes, {used} used, {free}"),
            );
        }
        (None, Some(size)) => lines.add("block size", &format_args!("{size} bytes")),
        _ => {}
    }
    if let Some(inodes) = info.inodes {
        match info.free_inodes {
            Some(free) => lines.add("inodes", &format_args!("{inodes}, {free} free")),
            None => lines.add("inodes", &inodes),
        }
    }
    lines.given("entries", info.entries.as_ref());
    if let Some(init) = info.init {
        lines.add("/init", &if init { "there" } else { "not there" });
    }
    if !info.features.is_empty() {
        lines.add("features", &info.features.join(", "));
    }
    for part in &info.partitions {
        let name = part
            .name
            .as_ref()
            .map(|name| format!(" {name:?}"))
            .unwrap_or_default();
        lines.add(
            &format!("partition {}", part.number),
            &format_args!(
                "{}{name}, from {}, {}, holds {}",
                part.kind,
                part.start,
                short(part.size),
                part.holds
            ),
        );
    }
    for trouble in &info.troubles {
        lines.add("trouble", trouble);
    }
    let root = &info.root;
    let can = if root.possible { "yes" } else { "no" };
    lines.add("root of the shipped kernel", &format_args!("{can}: {}", root.how));
    lines.0
}

fn time(seconds: u64) -> String {
    UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .filter(|_| seconds < YEAR_10000)
        .map_or_else(|| seconds.to_string(), events::timestamp)
}

/// What dates of four digits end before.
const YEAR_10000: u64 = 253_402_300_800;

/// A size in the largest unit of which there are ten, rounded down.
fn short(bytes: u64) -> String {
    let shift = [30, 20, 10].into_iter().find(|shift| bytes >> shift >= 10);
    ByteSize(shift.map_or(bytes, |shift| bytes >> shift << shift)).to_string()
}

struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: &dyn fmt::Display) {
        // What stands in an image is not for a terminal to obey.
        let value: String = value
            .to_string()
            .chars()
            .map(|letter| if letter.is_control() { '\u{fffd}' } else { letter })
            .collect();
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{name:<12} {value}");
    }

    fn given(&mut self, name: &str, value: Option<&impl fmt::Display>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }
}
