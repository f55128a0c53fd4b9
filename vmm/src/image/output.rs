//! The file of an image while it is made: without a name until it is complete, so that nothing half-made can be left behind,
//! whatever ends the program.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::ImageError;

/// What would be left behind by who ends the program: a file with a temporary name, where the file system knows no files without
/// one, and a program that helps. For whoever catches the signals.
#[derive(Debug, Clone, Default)]
pub struct Partial(Arc<Mutex<Slot>>);

#[derive(Debug, Default)]
struct Slot {
    name: Option<PathBuf>,
    helper: Option<OwnedFd>,
    discarded: bool,
}

impl Slot {
    fn remove(&mut self) {
        if let Some(path) = self.name.take() {
            // Its name says what it is.
            let _ = fs::remove_file(path);
        }
    }
}

impl Partial {
    /// Removes the file and ends the program, if there are any, and sees to it that no file gets a name any more.
    pub fn discard(&self) {
        let mut slot = self.slot();
        slot.discarded = true;
        slot.remove();
        if let Some(helper) = &slot.helper {
            // It may have ended.
            let _ = pidfd_send_signal(helper, Signal::KILL);
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to give a file a name, while it is held.
    fn naming(&self) -> io::Result<MutexGuard<'_, Slot>> {
        let slot = self.slot();
        if slot.discarded {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "it was interrupted"));
        }
        Ok(slot)
    }
}

/// An image's file before it has its name.
pub(super) struct Output {
    file: File,
    /// Where it goes.
    path: PathBuf,
    partial: Partial,
}

impl Output {
    pub(super) fn create(path: &Path, partial: &Partial) -> Result<Self, ImageError> {
        let refused = |what: String| ImageError::Option {
            field: "output",
            what,
        };
        if path.as_os_str().is_empty() {
            return Err(refused("it is missing; name the file to make".to_owned()));
        }
        // A link stays one: what it leads to is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if fs::metadata(&path).is_ok_and(|data| !data.is_file()) {
            return Err(refused(format!(
                "{} is there and no regular file; name a file",
                path.display()
            )));
        }
        let file = match nameless(&path) {
            Ok(file) => file,
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => named(&path, partial)?,
            Err(error) => return Err(ImageError::io(&path)(error.into())),
        };
        Ok(Self {
            file,
            path,
            partial: partial.clone(),
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The folder that it goes to.
    pub(super) fn folder(&self) -> PathBuf {
        folder(&self.path)
    }

    /// A path by which other programs reach the file.
    pub(super) fn reach(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Has a program that helps ended with the image, for as long as the output lives.
    pub(super) fn helped_by(&self, child: &Child) -> io::Result<()> {
        let helper = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        self.partial.naming()?.helper = Some(helper);
        Ok(())
    }

    /// Gives the file its name, in place of what had it.
    pub(super) fn commit(self) -> Result<(), ImageError> {
        self.place().map_err(ImageError::io(&self.path))
    }

    fn place(&self) -> io::Result<()> {
        let mut slot = self.partial.naming()?;
        if slot.name.is_none() {
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            match linkat(CWD, &own, CWD, &self.path, AtFlags::SYMLINK_FOLLOW) {
                Err(Errno::EXIST) => {}
                result => return Ok(result?),
            }
            // A link replaces nothing, a new name does.
            let name = temporary(&self.path);
            linkat(CWD, &own, CWD, &name, AtFlags::SYMLINK_FOLLOW)?;
            slot.name = Some(name);
        }
        if let Some(name) = &slot.name {
            fs::rename(name, &self.path)?;
        }
        slot.name = None;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let mut slot = self.partial.slot();
        slot.remove();
        slot.helper = None;
    }
}

fn nameless(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    openat(CWD, folder(path), flags, Mode::from_raw_mode(0o666)).map(File::from)
}

fn named(path: &Path, partial: &Partial) -> Result<File, ImageError> {
    let name = temporary(path);
    let mut slot = partial.naming().map_err(ImageError::io(path))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&name)
        .map_err(ImageError::io(path))?;
    slot.name = Some(name);
    Ok(file)
}

/// A name beside `path` that nobody else uses while this process runs.
fn temporary(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.partial", std::process::id()));
    folder(path).join(name)
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect()
    }

    #[test]
    fn a_file_has_no_name_before_it_is_complete_and_then_replaces_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        for text in ["one", "two"] {
            let output = Output::create(&path, &Partial::default()).unwrap();
            output.file().write_all(text.as_bytes()).unwrap();
            let before = usize::from(text != "one");
            assert_eq!(names(folder.path()).len(), before);
            output.commit().unwrap();
            assert_eq!(names(folder.path()), ["image"]);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        drop(Output::create(&path, &Partial::default()).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
    }

    #[test]
    fn a_file_with_a_temporary_name_goes_unless_it_is_completed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let make = || {
            let partial = Partial::default();
            Output {
                file: named(&path, &partial).unwrap(),
                path: path.clone(),
                partial,
            }
        };
        drop(make());
        assert!(names(folder.path()).is_empty());
        make().commit().unwrap();
        assert_eq!(names(folder.path()), ["image"]);
    }

    #[test]
    fn once_discarded_no_file_gets_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let partial = Partial::default();
        let output = Output::create(&path, &partial).unwrap();
        let of_name = Output {
            file: named(&path, &partial).unwrap(),
            path: path.clone(),
            partial: partial.clone(),
        };
        partial.discard();
        assert!(names(folder.path()).is_empty());
        for output in [output, of_name] {
            assert!(output.commit().unwrap_err().to_string().contains("interrupted"));
        }
        assert!(named(&path, &partial).is_err());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_program_that_helps_ends_with_the_image() {
        use std::os::unix::process::ExitStatusExt;
        let folder = tempfile::tempdir().unwrap();
        let partial = Partial::default();
        let output = Output::create(&folder.path().join("image"), &partial).unwrap();
        let start = || std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let mut child = start();
        output.helped_by(&child).unwrap();
        partial.discard();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        let mut late = start();
        assert!(output.helped_by(&late).is_err());
        late.kill().unwrap();
        late.wait().unwrap();
    }

    #[test]
    fn a_folder_or_a_device_is_no_place_for_an_image() {
        for path in ["/dev/null", "/tmp"] {
            let error = Output::create(Path::new(path), &Partial::default())
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains("no regular file"), "{error}");
        }
    }
}
