//! What the contents of an image determine: a UUID, and the seed of its directories' hashes.

use sha2::{Digest as _, Sha256};

use super::super::tree::{Kind, Node};
use super::Job;

/// A sum over all that an image is made of.
pub(super) struct Digest(Sha256);

impl Digest {
    /// A sum over what is known before the files are read.
    pub(super) fn new(job: &Job<'_>) -> Self {
        let mut digest = Self(Sha256::new());
        digest.number(job.made.seconds as u64);
        digest.number(job.size.unwrap_or_default());
        digest.field(&job.label);
        for entry in &job.walked {
            digest.field(&entry.path);
            digest.number(entry.again.into());
            digest.node(job.tree.node(entry.node));
        }
        digest
    }

    fn node(&mut self, node: &Node) {
        let meta = &node.meta;
        let mtime = meta.mtime.unwrap_or_default();
        let (major, minor) = node.kind.device();
        for number in [
            u64::from(meta.mode | node.kind.type_bits()),
            meta.uid.into(),
            meta.gid.into(),
            mtime.seconds as u64,
            mtime.nanos.into(),
            major.into(),
            minor.into(),
            meta.xattrs.len() as u64,
        ] {
            self.number(number);
        }
        for (name, value) in &meta.xattrs {
            self.field(name);
            self.field(value);
        }
        match &node.kind {
            Kind::Symlink(target) => self.field(target),
            Kind::File(contents) => self.number(contents.size),
            _ => {}
        }
    }

    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn field(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    /// Adds what a file holds at `offset`.
    pub(super) fn data(&mut self, offset: u64, bytes: &[u8]) {
        self.number(offset);
        self.field(bytes);
    }

    /// A UUID of version 8 (RFC 9562, section 5.8).
    pub(super) fn uuid(self) -> [u8; 16] {
        let sum = self.0.finalize();
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&sum[..16]);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }
}
