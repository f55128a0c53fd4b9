//! Extended attributes as ext4 and EROFS store their names: a number for the namespace and the rest.

/// Namespaces with the numbers they have in both (`EXT4_XATTR_INDEX_*`, `EROFS_XATTR_INDEX_*`). What is whole has no rest.
const NAMESPACES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// The first whose value is an access control list.
pub(super) const ACL: std::ops::RangeInclusive<u8> = 2..=3;

/// The number of a name's namespace, and what is left of it.
pub(super) fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    NAMESPACES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        let whole = ACL.contains(index);
        (whole == rest.is_empty()).then_some((*index, rest))
    })
}
