//! What to do where Berth cannot make a file, a socket or a folder that the user has named.
#![forbid(unsafe_code)]

use std::io::{Error, ErrorKind};
use std::path::Path;

/// What the system said of `path` and, where its words do not say that, what to do: the end of a sentence that names the path.
pub(crate) fn why(path: &Path, cause: &Error) -> String {
    match (cause.kind(), path.parent()) {
        (ErrorKind::NotFound, Some(folder)) if !folder.as_os_str().is_empty() => {
            format!("{cause}; make the folder {} first", folder.display())
        }
        (ErrorKind::IsADirectory, _) => format!("{cause}; name a file"),
        (ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::StorageFull, _) => {
            format!("{cause}; choose another place")
        }
        _ => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_can_mend_says_how() {
        for (path, kind, expected) in [
            ("a/b", ErrorKind::NotFound, "; make the folder a first"),
            ("/etc/b", ErrorKind::PermissionDenied, "; choose another place"),
            ("/tmp", ErrorKind::IsADirectory, "; name a file"),
            ("b", ErrorKind::NotFound, ""),
            ("b", ErrorKind::TimedOut, ""),
        ] {
            let cause = Error::from(kind);
            assert_eq!(why(Path::new(path), &cause), format!("{cause}{expected}"));
        }
    }
}
