//! Where in a TOML text a field stands, for faults that are found after it was read.
#![forbid(unsafe_code)]

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A text and its fields.
pub(super) struct Places<'a> {
    text: &'a str,
    /// Nothing where the text is no TOML.
    table: Option<Spanned<DeTable<'a>>>,
}

impl<'a> Places<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self {
            text,
            table: DeTable::parse(text).ok(),
        }
    }

    /// The line, from 1, of the field at `path`, as in `step[1].within` or `vm.disks[0].path`; where it is not there, of the
    /// nearest that it would be in.
    pub(super) fn line(&self, path: &str) -> Option<usize> {
        let table = self.table.as_ref()?;
        let mut at = None;
        let mut value: Option<&DeValue<'_>> = None;
        for segment in segments(path) {
            let next = match segment {
                Segment::Name(name) => {
                    let table = match value {
                        Some(value) => value.as_table(),
                        None => Some(table.get_ref()),
                    };
                    table.and_then(|table| {
                        let (key, value) = table.iter().find(|(key, _)| key.get_ref() == name)?;
                        Some((key.span().start, value))
                    })
                }
                Segment::Index(index) => value.and_then(|value| {
                    let value: &Spanned<DeValue<'_>> = value.as_array()?.get(index)?;
                    Some((value.span().start, value))
                }),
            };
            let Some((start, found)) = next else { break };
            at = Some(start);
            value = Some(found.get_ref());
        }
        let before = self.text.get(..at?)?;
        Some(before.matches('\n').count() + 1)
    }
}

enum Segment<'a> {
    Name(&'a str),
    Index(usize),
}

fn segments(path: &str) -> impl Iterator<Item = Segment<'_>> {
    path.split('.').flat_map(|part| {
        let (name, indexes) = match part.find('[') {
            Some(at) => part.split_at(at),
            None => (part, ""),
        };
        let indexes = indexes.split(['[', ']']).filter_map(|index| index.parse().ok());
        std::iter::once(Segment::Name(name)).chain(indexes.map(Segment::Index))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fields_line_is_found_and_that_of_what_it_would_be_in() {
        let text = "name = \"x\"\n\n[vm]\nkernel = \"k\"\n[[vm.disks]]\npath = \"d\"\n[[step]]\nsend = \"a\"\n[[step]]\nexpect = \"b\"\nwithin = \"1\"\n";
        let places = Places::of(text);
        for (path, expected) in [
            ("name", Some(1)),
            ("vm.kernel", Some(4)),
            ("vm.disks[0].path", Some(6)),
            ("step[1].within", Some(11)),
            ("step[0].expect", Some(7)),
            ("vm.initrd", Some(3)),
            ("nothing", None),
        ] {
            assert_eq!(places.line(path), expected, "{path}");
        }
    }
}
