//! A layer over those before it, with OCI's whiteouts (image-spec, layer.md): `.wh.NAME` hides NAME, `.wh..wh..opq` hides all that
//! lower layers have in its directory.

use super::super::error::shown;
use super::super::tree::{Kind, Meta, NodeId, Tree};

const WHITEOUT: &[u8] = b".wh.";
/// What other whiteouts of AUFS begin with; they mean nothing to an image.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What is being laid on a tree.
pub(super) struct Layer<'a> {
    tree: &'a mut Tree,
    entries: u64,
}

impl<'a> Layer<'a> {
    pub(super) fn new(tree: &'a mut Tree) -> Self {
        Self { tree, entries: 0 }
    }

    /// How many entries there were.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Adds a node, or does what a whiteout says. Returns the node, if it became one.
    pub(super) fn add(&mut self, path: &[u8], meta: Meta, kind: Kind) -> Result<Option<NodeId>, String> {
        self.entries += 1;
        if self.whiteout(path)? {
            return Ok(None);
        }
        self.tree.insert(path, meta, kind).map(Some)
    }

    /// Adds another name of what `target` names.
    pub(super) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), String> {
        self.entries += 1;
        if self.whiteout(path)? {
            return Ok(());
        }
        self.tree.link(path, target)
    }

    /// Adds another name of a node.
    pub(super) fn link_to(&mut self, path: &[u8], id: NodeId) -> Result<(), String> {
        self.tree.link_to(path, id)
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<bool, String> {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&path[..0], path),
        };
        if name == OPAQUE {
            self.tree.opaque(parent)?;
            return Ok(true);
        }
        if name.starts_with(AUFS) {
            return Ok(true);
        }
        let Some(hidden) = name.strip_prefix(WHITEOUT) else {
            return Ok(false);
        };
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(format!("the whiteout {} hides no name", shown(name)));
        }
        self.tree.whiteout(&[parent, b"/", hidden].concat())?;
        Ok(true)
    }
}
