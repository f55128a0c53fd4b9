//! What tests of images share: tar files made entry by entry, and trees as plain values.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use tar::{EntryType, Header};

use super::contents::Contents;
use super::output::Output;
use super::tree::{Kind, Meta, Node, Time, Tree, Walked};
use super::write::{Job, Records, write};
use super::{ImageError, ImageFormat, Partial};

/// A tar file that grows.
#[derive(Default)]
pub(super) struct Archive(pub(super) Vec<u8>);

impl Archive {
    /// An entry with a changed header.
    pub(super) fn entry(
        mut self,
        kind: u8,
        path: &str,
        data: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(3);
        header.set_size(data.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(self, path: &str, data: &str) -> Self {
        self.entry(b'0', path, data.as_bytes(), |_| {})
    }

    pub(super) fn directory(self, path: &str) -> Self {
        self.entry(b'5', path, b"", |header| header.set_mode(0o755))
    }

    pub(super) fn link(self, kind: u8, path: &str, target: &str) -> Self {
        self.entry(kind, path, b"", |header| {
            header.set_link_name_literal(target).unwrap();
        })
    }

    /// An extended header for the entry behind it.
    pub(super) fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut header = Records::default();
        for (key, value) in records {
            header.add(key.as_bytes(), value.as_bytes());
        }
        self.entry(b'x', "ext", &header.0, |_| {})
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A node without its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plain {
    pub(super) meta: Meta,
    pub(super) bits: u16,
    pub(super) device: (u32, u32),
    /// What a file or a symlink holds.
    pub(super) bytes: Vec<u8>,
    /// The first path that leads to it.
    pub(super) first: String,
}

/// All of a tree by its paths, lossy ones; the root's is empty.
pub(super) fn plain(tree: &Tree) -> BTreeMap<String, Plain> {
    let mut first = BTreeMap::new();
    let walked = tree.walk();
    let text = |entry: &Walked| String::from_utf8_lossy(&entry.path).into_owned();
    walked
        .iter()
        .map(|entry| {
            let node = tree.node(entry.node);
            let first = first.entry(entry.node).or_insert_with(|| text(entry)).clone();
            (text(entry), of_node(node, first))
        })
        .collect()
}

fn of_node(node: &Node, first: String) -> Plain {
    Plain {
        meta: node.meta.clone(),
        bits: node.kind.type_bits(),
        device: node.kind.device(),
        bytes: match &node.kind {
            Kind::File(contents) => contents.to_vec().unwrap(),
            Kind::Symlink(target) => target.clone(),
            _ => Vec::new(),
        },
        first,
    }
}

/// Paths of a tree, but for the root.
pub(super) fn paths(tree: &Tree) -> Vec<String> {
    plain(tree).into_keys().skip(1).collect()
}

/// A tree with one of everything.
pub(super) fn sampler() -> Tree {
    let mut tree = Tree::new();
    let meta = |mode, seconds, nanos| Meta {
        mode,
        uid: 70_000,
        gid: 5,
        mtime: Some(Time { seconds, nanos }),
        xattrs: BTreeMap::new(),
    };
    let with = |mut meta: Meta, name: &str, value: &[u8]| {
        meta.xattrs.insert(name.into(), value.to_vec());
        meta
    };
    let mut add = |path: &[u8], meta: Meta, kind| {
        tree.insert(path, meta, kind).unwrap();
    };
    let directory = || Kind::Directory(BTreeMap::new());
    let file = |bytes: Vec<u8>| Kind::File(Contents::of_bytes(bytes));
    add(b"", meta(0o755, 9, 0), directory());
    add(b"bin", meta(0o2750, 10, 1), directory());
    let capable = with(meta(0o755, 11, 2), "security.capability", b"\x01\n\n\x02");
    add(b"bin/run", capable, file(b"#!\n".repeat(3000)));
    add(b"bin/empty", meta(0o4711, 12, 0), file(Vec::new()));
    add(
        b"bin/name \xff\n",
        meta(0o600, 1 << 33, 999_999_999),
        file(vec![7; 4096]),
    );
    let large = with(meta(0o644, 13, 0), "user.large", &[b'x'; 2000]);
    add(b"large", with(large, "user.small", b"y"), file(vec![1; 100_000]));
    add(b"short", meta(0o777, 14, 0), Kind::Symlink(b"bin/run".to_vec()));
    add(b"long", meta(0o777, 15, 0), Kind::Symlink(b"../x".repeat(100)));
    add(
        b"null",
        meta(0o666, 16, 0),
        Kind::CharDevice { major: 1, minor: 3 },
    );
    let disk = Kind::BlockDevice {
        major: 259,
        minor: 70_000,
    };
    add(b"disk", meta(0o660, 17, 0), disk);
    add(b"fifo", meta(0o600, -5, 500), Kind::Fifo);
    for number in 0..300 {
        let path = format!("many/file with quite a long name, number {number}");
        add(
            path.as_bytes(),
            meta(0o644, 18, 0),
            file(path.clone().into_bytes()),
        );
    }
    tree.link(b"bin/again", b"bin/run").unwrap();
    tree.link(b"again", b"bin/run").unwrap();
    tree
}

/// Writes an image to the file at `path`.
pub(super) fn write_image(job: &Job<'_>, path: &Path) -> Result<(), ImageError> {
    let output = Output::create(path, &Partial::default())?;
    write(job, &output)?;
    output.commit()
}

/// Runs a program of the system, which must succeed. Returns what it says.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("this test needs {program}; tests/packages installs it: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}

/// What a tree is written by.
pub(super) fn job(tree: &mut Tree, format: ImageFormat) -> Job<'_> {
    Job::new(tree, None, format, "test".to_owned())
}
