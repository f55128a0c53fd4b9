//! What can be wrong with a kernel, an initrd or a command line, each as one sentence for the user.

use std::path::PathBuf;

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file could not be opened or read.
    #[error("{what} {name}: {cause}")]
    Read {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// The file.
        name: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Not a kernel.
    #[error(
        "kernel {name}: neither an ELF file, a bzImage nor a compressed kernel (it begins with {magic:02x?})"
    )]
    UnknownFormat {
        /// The file.
        name: String,
        /// Its first bytes.
        magic: Vec<u8>,
    },
    /// A header does not add up.
    #[error("kernel {name}: {what}")]
    Malformed {
        /// The file.
        name: String,
        /// The field, its value and what is wrong with it.
        what: String,
    },
    /// The compressed data is broken.
    #[error("kernel {name}: its {format} data cannot be unpacked: {cause}")]
    Unpack {
        /// The file.
        name: String,
        /// Name of the compression.
        format: &'static str,
        /// What the decoder said.
        cause: std::io::Error,
    },
    /// The compressed data does not fit.
    #[error(
        "kernel {name}: it unpacks to more than the guest's {mib} MiB of memory; give the guest more with --memory"
    )]
    Bomb {
        /// The file.
        name: String,
        /// The guest's memory in MiB.
        mib: u64,
    },
    /// A segment does not fit.
    #[error(
        "kernel {name}: segment {index} would lie at {start:#x} to {end:#x}, where the guest with {mib} MiB of memory has no RAM for it; give the guest more with --memory"
    )]
    DoesNotFit {
        /// The file.
        name: String,
        /// Number of the program header.
        index: usize,
        /// First guest physical address.
        start: u64,
        /// End, exclusive.
        end: u64,
        /// The guest's memory in MiB.
        mib: u64,
    },
    /// No memory for the initrd.
    #[error(
        "initrd {}: its {size_mib} MiB do not fit beside the kernel, which ends at {kernel_end_mib} MiB, in the guest's {ram_mib} MiB of memory; give the guest more with --memory",
        .path.display()
    )]
    InitrdDoesNotFit {
        /// The file.
        path: PathBuf,
        /// Its size, rounded up to MiB.
        size_mib: u64,
        /// Where the kernel ends, rounded up to MiB.
        kernel_end_mib: u64,
        /// The guest's memory in MiB.
        ram_mib: u64,
    },
    /// The command line is too long.
    #[error(
        "the kernel command line has {len} bytes and the kernel takes at most {max}; shorten cmdline or command"
    )]
    CommandLineTooLong {
        /// Its length.
        len: usize,
        /// The longest that fits.
        max: usize,
    },
    /// The command line has a character that cannot be in one.
    #[error(
        "the kernel command line holds {character:?}, which no kernel reads; only printable ASCII may stand there"
    )]
    CommandLineCharacter {
        /// The character.
        character: char,
    },
    /// Guest memory could not be written: it is too small even for the boot structures.
    #[error("the guest's {mib} MiB of memory are too little to boot anything; give it more with --memory")]
    Memory {
        /// The guest's memory in MiB.
        mib: u64,
    },
}
