//! bzImage: where its payload lies (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").

use std::io;
use std::ops::Range;

use crate::BootError;
use crate::image::Image;

const SETUP_SECTS: u64 = 0x1f1;
const BOOT_FLAG: u64 = 0x1fe;
const HEADER: u64 = 0x202;
const VERSION: u64 = 0x206;
const PAYLOAD_OFFSET: u64 = 0x248;
const PAYLOAD_LENGTH: u64 = 0x24c;
/// The protocol that introduced the payload fields: Linux 2.6.26.
const OLDEST: u16 = 0x208;

fn field<const N: usize>(image: &Image, offset: u64) -> io::Result<Option<[u8; N]>> {
    Ok(image.read_at(offset, N)?.try_into().ok())
}

/// Whether the boot sector's and the setup header's magic numbers are there.
pub(crate) fn is_bzimage(image: &Image) -> io::Result<bool> {
    Ok(field(image, BOOT_FLAG)? == Some([0x55, 0xaa]) && field(image, HEADER)? == Some(*b"HdrS"))
}

/// What the setup header says about the kernel.
pub(crate) struct Header {
    pub(crate) protocol: (u8, u8),
    pub(crate) version: Option<String>,
    pub(crate) cmdline: Option<u32>,
}

/// The setup header, of a bzImage.
pub(crate) fn header(image: &Image) -> io::Result<Option<Header>> {
    const KERNEL_VERSION: u64 = 0x20e;
    const CMDLINE_SIZE: u64 = 0x238;
    /// The protocol that introduced the command line's size.
    const WITH_SIZE: u16 = 0x206;
    const MAX_VERSION: usize = 128;
    if !is_bzimage(image)? {
        return Ok(None);
    }
    let Some(protocol) = field(image, VERSION)?.map(u16::from_le_bytes) else {
        return Ok(None);
    };
    let at = field(image, KERNEL_VERSION)?.map_or(0, u16::from_le_bytes);
    let text = image.read_at(u64::from(at) + 0x200, MAX_VERSION)?;
    let end = text.iter().position(|byte| !(b' '..0x7f).contains(byte));
    let version = end.map(|end| String::from_utf8_lossy(&text[..end]).into_owned());
    Ok(Some(Header {
        protocol: ((protocol >> 8) as u8, protocol as u8),
        version: version.filter(|version| at != 0 && !version.is_empty()),
        cmdline: field(image, CMDLINE_SIZE)?
            .map(u32::from_le_bytes)
            .filter(|size| protocol >= WITH_SIZE && *size != 0),
    }))
}

/// Where the compressed kernel lies in the file.
pub(crate) fn payload(name: &str, image: &Image) -> Result<Range<u64>, BootError> {
    let malformed = |what: String| BootError::Malformed {
        name: name.to_owned(),
        what,
    };
    let read = |cause| BootError::Read {
        what: "kernel",
        name: name.to_owned(),
        cause,
    };
    let cut = || malformed("the bzImage ends within its setup header".to_owned());

    let version = u16::from_le_bytes(field(image, VERSION).map_err(read)?.ok_or_else(cut)?);
    if version < OLDEST {
        return Err(malformed(format!(
            "boot protocol {}.{:02} is too old; Berth needs 2.08 (Linux 2.6.26) or later",
            version >> 8,
            version & 0xff
        )));
    }
    let [sectors] = field(image, SETUP_SECTS).map_err(read)?.ok_or_else(cut)?;
    let sectors = if sectors == 0 { 4 } else { u64::from(sectors) };
    let offset = u32::from_le_bytes(field(image, PAYLOAD_OFFSET).map_err(read)?.ok_or_else(cut)?);
    let length = u32::from_le_bytes(field(image, PAYLOAD_LENGTH).map_err(read)?.ok_or_else(cut)?);
    let start = (sectors + 1) * 512 + u64::from(offset);
    let end = start + u64::from(length);
    if length == 0 || end > image.len() {
        return Err(malformed(format!(
            "the bzImage's payload would lie at {start:#x} to {end:#x} of a file of {:#x} bytes; the file is cut short or its setup header lies",
            image.len()
        )));
    }
    Ok(start..end)
}
