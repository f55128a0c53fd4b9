//! The tree of an image in memory: names, nodes, and what layers do to them.
//!
//! Paths lead through symlinks as they would in the running system, never out of the tree. A name remembers the layer that gave it,
//! because a whiteout hides only what lower layers brought, in whatever order a layer lists its own.

use std::collections::{BTreeMap, HashSet};

use super::contents::Contents;
use super::error::shown;

/// How many names a tree may have: an archive of a few megabytes can list far more than any system has.
const MAX_NODES: usize = 10_000_000;
/// The longest name of a file, NAME_MAX.
const MAX_NAME: usize = 255;
/// The longest path, PATH_MAX without its end.
const MAX_PATH: usize = 4095;
/// How many symlinks may lead to a file, as in Linux.
const MAX_LINKS: usize = 40;
/// How deep directories may lie.
const MAX_DEPTH: usize = 2048;

/// A time: seconds since 1970 and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Time {
    pub(super) seconds: i64,
    pub(super) nanos: u32,
}

/// What a node has beside its kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Meta {
    /// Permissions, with the set-id and sticky bits.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Nothing for directories that no source describes.
    pub(super) mtime: Option<Time>,
    /// Extended attributes by their full names.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The number of a node.
pub(super) type NodeId = usize;

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub(super) node: NodeId,
    layer: usize,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Directory(BTreeMap<Vec<u8>, Name>),
    File(Contents),
    Symlink(Vec<u8>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

impl Kind {
    /// The file type's bits of `st_mode`.
    pub(super) fn type_bits(&self) -> u16 {
        (match self {
            Self::Directory(_) => libc::S_IFDIR,
            Self::File(_) => libc::S_IFREG,
            Self::Symlink(_) => libc::S_IFLNK,
            Self::CharDevice { .. } => libc::S_IFCHR,
            Self::BlockDevice { .. } => libc::S_IFBLK,
            Self::Fifo => libc::S_IFIFO,
        }) as u16
    }

    /// The file type as directory entries of ext4, erofs and the kernel's getdents have it.
    pub(super) fn entry_type(&self) -> u8 {
        match self {
            Self::File(_) => 1,
            Self::Directory(_) => 2,
            Self::CharDevice { .. } => 3,
            Self::BlockDevice { .. } => 4,
            Self::Fifo => 5,
            Self::Symlink(_) => 7,
        }
    }

    /// The device's numbers, 0 for what is no device.
    pub(super) fn device(&self) -> (u32, u32) {
        match self {
            Self::CharDevice { major, minor } | Self::BlockDevice { major, minor } => (*major, *minor),
            _ => (0, 0),
        }
    }
}

/// A file, directory or other node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) meta: Meta,
    pub(super) kind: Kind,
}

/// A tree that layers are laid on.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    layer: usize,
}

/// The root directory.
pub(super) const ROOT: NodeId = 0;

/// A path and its node; the root's path is empty.
#[derive(Debug)]
pub(super) struct Walked {
    pub(super) path: Vec<u8>,
    pub(super) node: NodeId,
    /// The directory that the name is in; the root is in itself.
    pub(super) parent: NodeId,
    /// Whether a path before this one has led to the node.
    pub(super) again: bool,
}

fn bare_directory() -> Node {
    Node {
        meta: Meta {
            mode: 0o755,
            ..Meta::default()
        },
        kind: Kind::Directory(BTreeMap::new()),
    }
}

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            nodes: vec![bare_directory()],
            layer: 0,
        }
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// What comes from now on is laid over what is there.
    pub(super) fn next_layer(&mut self) {
        self.layer += 1;
    }

    fn names(&self, id: NodeId) -> Option<&BTreeMap<Vec<u8>, Name>> {
        match &self.nodes[id].kind {
            Kind::Directory(names) => Some(names),
            _ => None,
        }
    }

    fn names_mut(&mut self, id: NodeId) -> Option<&mut BTreeMap<Vec<u8>, Name>> {
        match &mut self.nodes[id].kind {
            Kind::Directory(names) => Some(names),
            _ => None,
        }
    }

    fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        self.names(directory)?.get(name).map(|name| name.node)
    }

    fn add_node(&mut self, node: Node) -> Result<NodeId, String> {
        if self.nodes.len() >= MAX_NODES {
            return Err(format!("it lists more than {MAX_NODES} files"));
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    /// Puts a node at `path`. A directory over a directory keeps what is in it.
    pub(super) fn insert(&mut self, path: &[u8], meta: Meta, kind: Kind) -> Result<NodeId, String> {
        let parts = parts(path)?;
        let Some((name, parents)) = parts.split_last() else {
            if !matches!(kind, Kind::Directory(_)) {
                return Err("it stands for the root directory and is none".to_owned());
            }
            self.nodes[ROOT].meta = meta;
            return Ok(ROOT);
        };
        let parent = self.directory(parents)?;
        let there = self.lookup(parent, name);
        let id = match (there, &kind) {
            (Some(id), Kind::Directory(_)) if self.names(id).is_some() => {
                self.nodes[id].meta = meta;
                id
            }
            _ => self.add_node(Node { meta, kind })?,
        };
        self.set(parent, name, id);
        Ok(id)
    }

    /// Gives the node at `target` another name.
    pub(super) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), String> {
        let missing = || {
            format!(
                "it is a hard link to {}, which is not in the image; the target must come before it",
                shown(target)
            )
        };
        let from = parts(target)?;
        let Some((name, parents)) = from.split_last() else {
            return Err("it is a hard link to the root directory".to_owned());
        };
        let parent = self.walk_to(parents, false)?.ok_or_else(missing)?;
        let id = self.lookup(parent, name).ok_or_else(missing)?;
        self.link_to(path, id)
    }

    /// Gives a node another name.
    pub(super) fn link_to(&mut self, path: &[u8], id: NodeId) -> Result<(), String> {
        if self.names(id).is_some() {
            return Err("it is a hard link to a directory".to_owned());
        }
        let parts = parts(path)?;
        let Some((name, parents)) = parts.split_last() else {
            return Err("it stands for the root directory and is none".to_owned());
        };
        let parent = self.directory(parents)?;
        self.set(parent, name, id);
        Ok(())
    }

    fn set(&mut self, parent: NodeId, name: &[u8], node: NodeId) {
        let layer = self.layer;
        if let Some(names) = self.names_mut(parent) {
            names.insert(name.to_vec(), Name { node, layer });
        }
    }

    /// Hides what lower layers have at `path`.
    pub(super) fn whiteout(&mut self, path: &[u8]) -> Result<(), String> {
        let parts = parts(path)?;
        let Some((name, parents)) = parts.split_last() else {
            return Err("it removes the root directory".to_owned());
        };
        if let Some(parent) = self.walk_to(parents, false)?
            && let Some(there) = self.names(parent).and_then(|names| names.get(*name)).copied()
            && !self.purge(there)
            && let Some(names) = self.names_mut(parent)
        {
            names.remove(*name);
        }
        Ok(())
    }

    /// Hides everything that lower layers have in the directory `path`.
    pub(super) fn opaque(&mut self, path: &[u8]) -> Result<(), String> {
        let parts = parts(path)?;
        if let Some(directory) = self.walk_to(&parts, false)? {
            self.purge_names(directory);
        }
        Ok(())
    }

    /// Removes what lower layers brought below a name. Returns whether the name itself must stay.
    fn purge(&mut self, name: Name) -> bool {
        let kept = self.purge_names(name.node);
        kept || name.layer == self.layer
    }

    fn purge_names(&mut self, directory: NodeId) -> bool {
        let Some(names) = self.names_mut(directory).map(std::mem::take) else {
            return false;
        };
        let kept: BTreeMap<_, _> = names.into_iter().filter(|(_, name)| self.purge(*name)).collect();
        let any = !kept.is_empty();
        if let Some(names) = self.names_mut(directory) {
            *names = kept;
        }
        any
    }

    /// The directory that `parts` lead to, made where it is missing.
    fn directory(&mut self, parts: &[&[u8]]) -> Result<NodeId, String> {
        match self.walk_to(parts, true)? {
            Some(id) => Ok(id),
            None => Err("its directory cannot be made".to_owned()),
        }
    }

    /// The directory that `parts` lead to through symlinks; nothing if it is not there and not to be made.
    fn walk_to(&mut self, parts: &[&[u8]], make: bool) -> Result<Option<NodeId>, String> {
        let mut way = vec![ROOT];
        let mut rest: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            let here = way[way.len() - 1];
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let next = match self.lookup(here, &part) {
                Some(next) => next,
                None if make => {
                    check_name(&part)?;
                    let id = self.add_node(bare_directory())?;
                    self.set(here, &part, id);
                    id
                }
                None => return Ok(None),
            };
            match &self.nodes[next].kind {
                Kind::Directory(_) => way.push(next),
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(format!("more than {MAX_LINKS} symlinks lead to its directory"));
                    }
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    rest.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                _ => {
                    return Err(format!(
                        "{} on its way is no directory in the image",
                        shown(&part)
                    ));
                }
            }
            if way.len() > MAX_DEPTH {
                return Err(format!("it lies more than {MAX_DEPTH} directories deep"));
            }
        }
        Ok(way.last().copied())
    }

    /// Every path, directories before what is in them, names in the order of their bytes.
    pub(super) fn walk(&self) -> Vec<Walked> {
        let mut seen = HashSet::new();
        let mut walked = Vec::new();
        let mut waiting = vec![(Vec::new(), ROOT, ROOT)];
        while let Some((path, node, parent)) = waiting.pop() {
            if let Some(names) = self.names(node) {
                let children = names.iter().rev().map(|(name, child)| {
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(name);
                    (below, child.node, node)
                });
                waiting.extend(children);
            }
            walked.push(Walked {
                path,
                node,
                parent,
                again: !seen.insert(node),
            });
        }
        walked
    }

    /// How many names each node has, and for directories what `st_nlink` says: two and one for each directory in it.
    pub(super) fn links(&self, walked: &[Walked]) -> Vec<u32> {
        let mut links = vec![0; self.nodes.len()];
        for entry in walked {
            if self.names(entry.node).is_some() {
                links[entry.node] += 2;
                if entry.node != ROOT {
                    links[entry.parent] += 1;
                }
            } else {
                links[entry.node] += 1;
            }
        }
        links
    }

    /// Makes no time later than `latest`, and gives those that have none the newest there is. Returns that.
    pub(super) fn settle_times(&mut self, walked: &[Walked], latest: Option<i64>) -> Time {
        let latest = latest.map(|seconds| Time { seconds, nanos: 0 });
        for node in &mut self.nodes {
            if let (Some(time), Some(latest)) = (&mut node.meta.mtime, latest) {
                *time = latest.min(*time);
            }
        }
        let in_tree = walked.iter().map(|entry| &self.nodes[entry.node]);
        let newest = in_tree.filter_map(|node| node.meta.mtime).max();
        let made = latest.or(newest).unwrap_or_default();
        for node in &mut self.nodes {
            node.meta.mtime.get_or_insert(made);
        }
        made
    }
}

/// The parts of a path in an archive, without what leads nowhere; a leading `/` is the tree's root.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    if path.len() > MAX_PATH {
        return Err(format!(
            "its path has {} bytes; Linux takes {MAX_PATH}",
            path.len()
        ));
    }
    if path.contains(&0) {
        return Err("its path has a byte 0 in it".to_owned());
    }
    let parts: Vec<_> = path
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    for part in &parts {
        if *part == b".." {
            return Err(format!(
                "the path {} leads upwards by ..; nothing may leave the image",
                shown(path)
            ));
        }
        check_name(part)?;
    }
    Ok(parts)
}

fn check_name(name: &[u8]) -> Result<(), String> {
    if name.len() > MAX_NAME {
        return Err(format!(
            "a name on its path has {} bytes; Linux takes {MAX_NAME}",
            name.len()
        ));
    }
    Ok(())
}

/// A device's numbers as Linux puts them into 32 bits.
pub(super) fn device_number(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

impl Time {
    /// Whole seconds where there are 32 bits for them, none of them for a sign.
    pub(super) fn unsigned(self) -> u32 {
        self.seconds.clamp(0, u32::MAX.into()) as u32
    }

    /// As a decimal number.
    pub(super) fn decimal(self) -> String {
        match (self.seconds < 0, self.nanos) {
            (_, 0) => self.seconds.to_string(),
            (false, nanos) => format!("{}.{nanos:09}", self.seconds),
            (true, nanos) => format!("-{}.{:09}", -(self.seconds + 1), 1_000_000_000 - nanos),
        }
    }
}
