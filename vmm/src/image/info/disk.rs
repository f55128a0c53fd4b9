//! Disks: partition tables, CDs, and formats that stand for a disk.

use std::io::{self, Read};

use uuid::Uuid;

use super::look::{Look, Numbers};
use super::{ImageInfo, Partition, Root, field_text, file_systems};

const SECTOR: u64 = 512;
/// More partitions than any table has, and fewer than its header may claim.
const MAX_PARTITIONS: u32 = 1024;
/// How many partitions chained in extended ones are listed.
const MAX_LOGICAL: usize = 128;

/// The disk, if it is a known one.
pub(super) fn look_at(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    for probe in [qcow2, other_formats, iso, gpt, mbr] {
        if let Some(found) = probe(look)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn qcow2(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    const INCOMPATIBLE: [&str; 5] = [
        "dirty",
        "corrupt",
        "external data file",
        "compression type",
        "extended L2",
    ];
    let Some(header) = look.read::<72>(0)? else {
        return Ok(None);
    };
    if header.be32(0) != 0x5146_49fb {
        return Ok(None);
    }
    let version = header.be32(4);
    let mut features = vec![format!("version {version}")];
    if version >= 3
        && let Some(more) = look.read::<8>(72)?
    {
        let bits = more.be64(0);
        let known = INCOMPATIBLE
            .iter()
            .enumerate()
            .filter(|(bit, _)| bits & 1 << bit != 0);
        features.extend(known.map(|(_, name)| (*name).to_owned()));
    }
    if header.be32(32) != 0 {
        features.push("encrypted".to_owned());
    }
    let (at, len) = (header.be64(8), header.be32(16).min(1023));
    let mut name = Vec::new();
    if let Some(part) = look.part(at, len.into()) {
        part.stream()?.read_to_end(&mut name)?;
    }
    let cluster_bits = header.be32(20);
    Ok(Some(ImageInfo {
        kind: "qcow2",
        disk_size: Some(header.be64(24)),
        block_size: 1_u64.checked_shl(cluster_bits).filter(|_| cluster_bits <= 21),
        backing_file: Some(String::from_utf8_lossy(&name).into_owned())
            .filter(|name| at != 0 && !name.is_empty()),
        features,
        root: Root::no(
            "a root image is a raw one; give it as a disk with format=qcow2, or make a raw one with qemu-img convert -O raw",
        ),
        ..ImageInfo::default()
    }))
}

fn other_formats(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    let Some(header) = look.read::<8>(0)? else {
        return Ok(None);
    };
    let kind = match &header {
        b"vhdxfile" => "vhdx",
        b"conectix" => "vhd",
        _ if header.starts_with(b"KDMV") => "vmdk",
        _ => return Ok(None),
    };
    Ok(Some(ImageInfo {
        kind,
        root: Root::no("disks are raw or qcow2 images; qemu-img convert -O raw makes one of it"),
        ..ImageInfo::default()
    }))
}

fn iso(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    let Some(block) = look.read::<2048>(32 << 10)? else {
        return Ok(None);
    };
    if block[0] != 1 || &block[1..6] != b"CD001" {
        return Ok(None);
    }
    // With a partition table in front of it, it boots from USB sticks as well.
    let hybrid = gpt(look)?.or(mbr(look)?);
    Ok(Some(ImageInfo {
        kind: "iso9660",
        label: field_text(&block[40..72]),
        block_size: Some(block.le16(128).into()),
        blocks: Some(block.le32(80).into()),
        free_blocks: Some(0),
        partitions: hybrid.map(|disk| disk.partitions).unwrap_or_default(),
        root: Root::no("its kernel has no ISO 9660; boot one that has with --kernel"),
        ..ImageInfo::default()
    }))
}

/// A disk with partitions, and which of them can be a root.
fn partitioned(kind: &'static str, partitions: Vec<Partition>) -> ImageInfo {
    let fit = partitions
        .iter()
        .find(|part| ["ext2", "ext3", "ext4", "erofs"].contains(&part.holds));
    let root = match fit {
        Some(part) => Root::yes(&format!("--disk FILE with root=/dev/vda{}", part.number)),
        None => Root::no("none of its partitions has a file system that its kernel knows"),
    };
    ImageInfo {
        kind,
        partitions,
        root,
        ..ImageInfo::default()
    }
}

/// What lies in a part of an image.
fn holds(look: &Look<'_>, start: u64, size: u64) -> io::Result<&'static str> {
    let Some(part) = look.part(start, size) else {
        return Ok("nothing: it lies past the end of the file");
    };
    Ok(file_systems::look_at(&part)?.map_or("unknown", |found| found.kind))
}

fn gpt(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    for sector in [SECTOR, 4096] {
        let Some(header) = look.read::<92>(sector)? else {
            continue;
        };
        if &header[..8] != b"EFI PART" {
            continue;
        }
        let (count, entry_size) = (header.le32(80).min(MAX_PARTITIONS), u64::from(header.le32(84)));
        let table = header.le64(72).saturating_mul(sector);
        let mut partitions = Vec::new();
        for number in 1..=count {
            let at = table.saturating_add(u64::from(number - 1) * entry_size);
            let Some(entry) = look.read::<128>(at)? else { break };
            if entry[..16] == [0; 16] {
                continue;
            }
            let (first, last) = (entry.le64(32), entry.le64(40));
            let start = first.saturating_mul(sector);
            let size = (last.saturating_add(1))
                .saturating_sub(first)
                .saturating_mul(sector);
            let letters = entry[56..128].chunks_exact(2).map(|pair| pair.le16(0));
            let name: Vec<_> = letters.take_while(|letter| *letter != 0).collect();
            partitions.push(Partition {
                number,
                start,
                size,
                kind: gpt_type(&entry[..16]),
                name: Some(String::from_utf16_lossy(&name)).filter(|name| !name.is_empty()),
                uuid: guid(&entry[16..32]),
                holds: holds(look, start, size)?,
            });
        }
        let mut found = partitioned("gpt", partitions);
        found.uuid = guid(&header[56..72]);
        found.block_size = Some(sector);
        return Ok(Some(found));
    }
    Ok(None)
}

/// A UUID whose first fields have their low bytes first.
fn guid(bytes: &[u8]) -> Option<String> {
    Some(Uuid::from_bytes_le(bytes.try_into().ok()?).to_string())
}

fn gpt_type(bytes: &[u8]) -> String {
    const KNOWN: [(&str, &str); 9] = [
        ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI system"),
        ("21686148-6449-6e6f-744e-656564454649", "BIOS boot"),
        ("0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux"),
        ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "Linux root (x86-64)"),
        ("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap"),
        ("bc13c2ff-59e6-4262-a352-b275fd6f7172", "Linux extended boot"),
        ("e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM"),
        ("a19d880f-05fc-4d3b-a006-743f0f84911e", "Linux RAID"),
        ("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "Microsoft data"),
    ];
    let id = guid(bytes).unwrap_or_default();
    let known = KNOWN.iter().find(|(known, _)| *known == id);
    known.map_or(id, |(_, name)| (*name).to_owned())
}

fn mbr(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    let Some(sector) = look.read::<512>(0)? else {
        return Ok(None);
    };
    let entries = || sector[446..510].chunks_exact(16);
    // Boot code may end in the same two bytes: only entries that can be are taken for a table.
    let plausible = entries().all(|entry| matches!(entry[0], 0 | 0x80));
    if sector[510..] != [0x55, 0xaa] || !plausible || entries().all(|entry| entry[4] == 0) {
        return Ok(None);
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(entries()) {
        let (start, size) = (
            u64::from(entry.le32(8)) * SECTOR,
            u64::from(entry.le32(12)) * SECTOR,
        );
        match entry[4] {
            0 => {}
            kind @ (0x05 | 0x0f | 0x85) => {
                partitions.push(mbr_partition(look, number, kind, start, size)?);
                logical(look, start, &mut partitions)?;
            }
            kind => partitions.push(mbr_partition(look, number, kind, start, size)?),
        }
    }
    let mut found = partitioned("mbr", partitions);
    found.block_size = Some(SECTOR);
    found.uuid = Some(sector.le32(440))
        .filter(|id| *id != 0)
        .map(|id| format!("{id:08x}"));
    Ok(Some(found))
}

/// Partitions in an extended one: each sector names one and where the next sector is.
fn logical(look: &Look<'_>, extended: u64, partitions: &mut Vec<Partition>) -> io::Result<()> {
    let mut at = extended;
    for number in (5..).take(MAX_LOGICAL) {
        let Some(sector) = look.read::<512>(at)? else {
            break;
        };
        if sector[510..] != [0x55, 0xaa] {
            break;
        }
        let (entry, next) = (&sector[446..462], &sector[462..478]);
        if entry[4] != 0 {
            let start = at.saturating_add(u64::from(entry.le32(8)) * SECTOR);
            let size = u64::from(entry.le32(12)) * SECTOR;
            partitions.push(mbr_partition(look, number, entry[4], start, size)?);
        }
        if next[4] == 0 || next.le32(8) == 0 {
            break;
        }
        at = extended.saturating_add(u64::from(next.le32(8)) * SECTOR);
    }
    Ok(())
}

fn mbr_partition(look: &Look<'_>, number: u32, kind: u8, start: u64, size: u64) -> io::Result<Partition> {
    let name = match kind {
        0x05 | 0x0f | 0x85 => "extended",
        0x07 => "NTFS or exFAT",
        0x0b | 0x0c => "FAT32",
        0x82 => "Linux swap",
        0x83 => "Linux",
        0x8e => "Linux LVM",
        0xee => "protects a GPT",
        0xef => "EFI system",
        _ => "",
    };
    Ok(Partition {
        number,
        start,
        size,
        kind: if name.is_empty() {
            format!("{kind:#04x}")
        } else {
            name.to_owned()
        },
        name: None,
        uuid: None,
        holds: if name == "extended" {
            "partitions"
        } else {
            holds(look, start, size)?
        },
    })
}
