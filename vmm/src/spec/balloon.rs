//! The balloon in a description: memory that the guest gives back to the host.

use std::ffi::OsStr;

use berth_arch::x86_64::layout;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::options::{OptionError, key_value, lossy, split};
use super::{ByteSize, VmSpec};

const FORM: &str = "size=SIZE, deflate-on-oom, stats=SECONDS, reporting and hinting";
/// The longest time between two reports, in seconds.
const INTERVAL_MAX: u64 = u32::MAX as u64;

/// A balloon (virtio-balloon), through which a guest gives memory back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BalloonSpec {
    /// How much memory the guest is to give back from the start, a multiple of 4K.
    pub target: ByteSize,
    /// Whether the guest may take memory back when it would have to end programs otherwise.
    pub deflate_on_oom: bool,
    /// Seconds between two reports of the guest on its memory; 0 for no reports.
    pub stats_interval: u64,
    /// Whether the guest tells all the time which memory it does not use, for the host to have.
    pub free_page_reporting: bool,
    /// Whether the guest can be asked which memory it does not use, for the host to have.
    pub free_page_hinting: bool,
}

impl BalloonSpec {
    /// Reads `size=SIZE,deflate-on-oom,stats=SECONDS,reporting,hinting`, each of which may be left out.
    pub fn from_option(text: &OsStr) -> Result<Self, OptionError> {
        let (mut target, mut interval) = (None, None);
        let mut balloon = Self::default();
        for part in split(text) {
            let (key, value) = key_value(&part);
            let text = value.map(String::from_utf8_lossy);
            let (name, twice) = match (key, &text) {
                (b"size", Some(text)) => {
                    let size: ByteSize = text.parse().map_err(OptionError::Size)?;
                    ("size", target.replace(size).is_some())
                }
                (b"stats", Some(text)) => {
                    let seconds = text.parse::<u64>();
                    let seconds = seconds.map_err(|_| OptionError::Seconds(text.clone().into_owned()))?;
                    ("stats", interval.replace(seconds).is_some())
                }
                (b"deflate-on-oom", None) => (
                    "deflate-on-oom",
                    std::mem::replace(&mut balloon.deflate_on_oom, true),
                ),
                (b"reporting", None) => (
                    "reporting",
                    std::mem::replace(&mut balloon.free_page_reporting, true),
                ),
                (b"hinting", None) => ("hinting", std::mem::replace(&mut balloon.free_page_hinting, true)),
                (b"", None) => continue,
                _ => {
                    return Err(OptionError::Unknown {
                        option: lossy(&part),
                        form: FORM,
                    });
                }
            };
            if twice {
                return Err(OptionError::Twice(name));
            }
        }
        Ok(Self {
            target: target.unwrap_or_default(),
            stats_interval: interval.unwrap_or_default(),
            ..balloon
        })
    }

    /// What is wrong with it in the VM `spec`.
    pub(super) fn fault(&self, spec: &VmSpec) -> Option<String> {
        let Self {
            target,
            stats_interval,
            ..
        } = self;
        if *target >= spec.memory {
            return Some(format!(
                "a guest with {} of memory cannot give back {target}; give a smaller target",
                spec.memory
            ));
        }
        if !target.0.is_multiple_of(layout::PAGE_SIZE) {
            let below = ByteSize(target.0 / layout::PAGE_SIZE * layout::PAGE_SIZE);
            return Some(format!(
                "the target {target} is no whole number of pages; give a multiple of 4K, such as {below}"
            ));
        }
        (*stats_interval > INTERVAL_MAX).then(|| {
            format!("{stats_interval} seconds between two reports are too long; give at most {INTERVAL_MAX}, or 0 for no reports")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_takes_its_options_in_any_order() {
        let read = |text: &str| BalloonSpec::from_option(text.as_ref());
        let full = BalloonSpec {
            target: ByteSize(64 << 20),
            deflate_on_oom: true,
            stats_interval: 5,
            free_page_reporting: true,
            free_page_hinting: true,
        };
        assert_eq!(
            read("stats=5,reporting,size=64M,hinting,deflate-on-oom"),
            Ok(full)
        );
        assert_eq!(read(""), Ok(BalloonSpec::default()));
    }

    #[test]
    fn each_mistake_in_the_flag_has_its_sentence() {
        for (text, expected) in [
            (
                "size=lots",
                "\"lots\" is not a size; write a whole number, alone or with K, M, G or T behind it, as in 512M",
            ),
            (
                "stats=often",
                "\"often\" is not a number of seconds; give a whole number",
            ),
            (
                "reporting,reporting",
                "the option reporting is given twice; give it once",
            ),
            ("size=1M,size=1M", "the option size is given twice; give it once"),
            (
                "64M",
                "unknown option \"64M\"; it takes size=SIZE, deflate-on-oom, stats=SECONDS, reporting and hinting, and a comma \
                 that is part of a name is written twice",
            ),
        ] {
            let error = BalloonSpec::from_option(text.as_ref()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }
}
