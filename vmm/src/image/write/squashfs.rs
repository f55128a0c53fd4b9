//! SquashFS, by sqfstar of squashfs-tools, which takes a tar file and needs no rights. No crate writes attributes and hard links.

use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};

use super::super::ImageError;
use super::super::output::Output;
use super::super::tree::ROOT;
use super::{Job, put, tar};

const PROGRAM: &str = "sqfstar";

pub(super) fn write(job: &Job<'_>, output: &Output) -> Result<(), ImageError> {
    if !job.tree.node(ROOT).meta.xattrs.is_empty() {
        let what = "extended attributes of the root directory".to_owned();
        return Err(job.unfit(b"", what, "sqfstar does not take them; remove them, or use erofs"));
    }
    let mut child = command(job, output).spawn().map_err(|error| tool(&error))?;
    if let Err(error) = output.helped_by(&child) {
        // It has read nothing, and what it writes has no name.
        let _ = child.kill();
        let _ = child.wait();
        return Err(tool(&error));
    }
    let fed = feed(job, &mut child);
    let (status, said) = end(child).map_err(|error| tool(&error))?;
    if !status.success() {
        let said = said
            .trim()
            .lines()
            .next_back()
            .unwrap_or("it said nothing")
            .to_owned();
        return Err(ImageError::Tool {
            program: PROGRAM,
            what: format!("it failed ({status}): {said}"),
        });
    }
    fed?;
    set_root_time(job, output.file())
}

/// Sets the root's time in its inode, which `-noI` has left uncompressed: sqfstar 4.5 has no ear for `-root-time`.
fn set_root_time(job: &Job<'_>, file: &File) -> Result<(), ImageError> {
    const ROOT_INODE: u64 = 32;
    const INODE_TABLE: u64 = 64;
    const UNCOMPRESSED: u16 = 0x8000;
    const MTIME: u64 = 8;
    let failed = job.failed();
    let number = |offset: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).map_err(&failed)?;
        Ok::<_, ImageError>(u64::from_le_bytes(bytes))
    };
    let (root, table) = (number(ROOT_INODE)?, number(INODE_TABLE)?);
    let block = table.saturating_add(root >> 16);
    if number(block)? as u16 & UNCOMPRESSED == 0 {
        return Err(ImageError::Tool {
            program: PROGRAM,
            what: "it has compressed the inodes although it was told not to".to_owned(),
        });
    }
    let mtime = job.tree.node(ROOT).meta.mtime.unwrap_or_default().unsigned();
    put(
        job,
        file,
        &mtime.to_le_bytes(),
        block + 2 + (root & 0xffff) + MTIME,
    )
}

/// Ends the program's input, and waits for it.
fn end(mut child: Child) -> io::Result<(std::process::ExitStatus, String)> {
    let mut said = Vec::new();
    if let Some(errors) = child.stderr.take() {
        // More than this nobody reads.
        errors.take(64 << 10).read_to_end(&mut said)?;
    }
    Ok((child.wait()?, String::from_utf8_lossy(&said).into_owned()))
}

fn feed(job: &Job<'_>, child: &mut Child) -> Result<(), ImageError> {
    let Some(stdin) = child.stdin.take() else {
        return Ok(());
    };
    let failed = |cause: io::Error| ImageError::Tool {
        program: PROGRAM,
        what: format!("it takes no more input: {cause}"),
    };
    let sink = BufWriter::with_capacity(256 << 10, stdin);
    let fed = tar::write(job, sink, &failed);
    if fed.is_err() {
        // What has been written is no image, and nobody is to wait for its end.
        let _ = child.kill();
    }
    fed
}

fn command(job: &Job<'_>, output: &Output) -> Command {
    let root = &job.tree.node(ROOT).meta;
    let mut command = Command::new(PROGRAM);
    command
        .args([
            "-comp",
            "zstd",
            "-force",
            "-quiet",
            "-no-progress",
            "-exit-on-error",
        ])
        .args(["-noI", "-mkfs-time", &job.made.unsigned().to_string()])
        .args(["-root-mode", &format!("{:o}", root.mode)])
        .args(["-root-uid", &root.uid.to_string()])
        .args(["-root-gid", &root.gid.to_string()])
        .arg(output.reach())
        // Otherwise it says that it and -mkfs-time exclude each other.
        .env_remove("SOURCE_DATE_EPOCH")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn tool(error: &io::Error) -> ImageError {
    let what = if error.kind() == io::ErrorKind::NotFound {
        "it is not installed, and squashfs images are made by it; apt install squashfs-tools (4.5 or later)"
            .to_owned()
    } else {
        format!("it cannot be run: {error}")
    };
    ImageError::Tool {
        program: PROGRAM,
        what,
    }
}
