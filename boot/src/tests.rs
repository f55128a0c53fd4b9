//! Whole kernels through [`load`]: every container, and every lie a header can tell.

use std::io::{Read, Write};
use std::path::Path;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

const MIB: u64 = 1 << 20;

fn memory(mib: u64) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (mib * MIB) as usize)]).unwrap()
}

/// An ELF kernel: one segment with `code` at 1 MiB and, if asked, notes.
struct TestElf {
    code: Vec<u8>,
    pvh: Option<u32>,
    linux: bool,
}

impl TestElf {
    fn new() -> Self {
        Self {
            code: (0..64 << 10).map(|i| (i % 251) as u8).collect(),
            pvh: None,
            linux: false,
        }
    }

    fn build(&self) -> Vec<u8> {
        let mut notes = Vec::new();
        let mut note = |name: &[u8], kind: u32, desc: &[u8]| {
            for word in [name.len() as u32, desc.len() as u32, kind] {
                notes.extend(word.to_le_bytes());
            }
            notes.extend(name);
            notes.resize(notes.len().next_multiple_of(4), 0);
            notes.extend(desc);
        };
        if let Some(entry) = self.pvh {
            note(b"Xen\0", 18, &u64::from(entry).to_le_bytes());
        }
        if self.linux {
            note(b"Linux\0", 0x100, &[0; 4]);
        }
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        for half in [2u16, 62] {
            file.extend(half.to_le_bytes());
        }
        file.extend(1u32.to_le_bytes());
        for word in [MIB, 64, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, 2, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut header = |kind: u32, offset: u64, phys: u64, len: u64, memory: u64| {
            file.extend(kind.to_le_bytes());
            file.extend(7u32.to_le_bytes());
            for word in [offset, phys, phys, len, memory, 4096] {
                file.extend(word.to_le_bytes());
            }
        };
        let code = self.code.len() as u64;
        header(1, 0x1000, MIB, code, code + 4096);
        header(4, 0x1000 + code, 0, notes.len() as u64, notes.len() as u64);
        file.resize(0x1000, 0);
        file.extend(&self.code);
        file.extend(notes);
        file
    }
}

/// A bzImage around `payload`, which a size follows as some kernel builds append one.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 2 * 512];
    file[0x1f1] = 1;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
    file.extend([0xcc; 16]);
    file.extend(payload);
    file.extend(0x1234u32.to_le_bytes());
    file.extend([0; 100]);
    file
}

fn compress(program: &[&str], data: &[u8]) -> Vec<u8> {
    use std::process::{Command, Stdio};
    let mut child = Command::new(program[0])
        .args(&program[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; tests/run installs it", program[0]));
    let mut stdin = child.stdin.take().unwrap();
    let data = data.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&data).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn boot(file: &[u8], mib: u64, entry: EntryPolicy) -> (GuestMemoryMmap, Result<Boot, BootError>) {
    let memory = memory(mib);
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(file).unwrap();
    let mut cmdline = CommandLine::new();
    cmdline.push("console=ttyS0");
    let source = KernelSource::File(kernel.path().to_owned());
    let request = BootRequest {
        kernel: &source,
        initrd: None,
        cmdline: &cmdline,
        entry,
        rsdp: None,
    };
    let result = load(&memory, &request);
    (memory, result)
}

fn refusal(file: &[u8], mib: u64) -> String {
    let sentence = boot(file, mib, EntryPolicy::Auto).1.unwrap_err().to_string();
    // The name of the temporary file differs each time.
    sentence.split_once(": ").unwrap().1.to_owned()
}

#[test]
fn an_elf_kernel_lies_where_it_asks_with_its_parameters() {
    let elf = TestElf {
        linux: true,
        pvh: Some(0x10_0010),
        ..TestElf::new()
    };
    let (memory, boot) = boot(&elf.build(), 16, EntryPolicy::Auto);
    assert_eq!(boot.unwrap().entry, BootEntry::Linux64 { rip: MIB });
    let mut code = vec![0; elf.code.len()];
    memory.read_slice(&mut code, GuestAddress(MIB)).unwrap();
    assert_eq!(code, elf.code);
    let mut line = [0; 14];
    memory
        .read_slice(&mut line, GuestAddress(layout::COMMAND_LINE))
        .unwrap();
    assert_eq!(&line, b"console=ttyS0\0");
    let magic: u32 = memory.read_obj(GuestAddress(layout::ZERO_PAGE + 0x202)).unwrap();
    assert_eq!(magic.to_le_bytes(), *b"HdrS");
    let entries: u8 = memory.read_obj(GuestAddress(layout::ZERO_PAGE + 0x1e8)).unwrap();
    assert_eq!(usize::from(entries), layout::memory_map(16 * MIB).len());
}

#[test]
fn each_linux_guest_gets_a_seed_of_its_own() {
    let seed = || {
        let (memory, boot) = boot(&TestElf::new().build(), 16, EntryPolicy::Auto);
        boot.unwrap();
        let setup_data: u64 = memory.read_obj(GuestAddress(layout::ZERO_PAGE + 0x250)).unwrap();
        let header: [u32; 4] = memory.read_obj(GuestAddress(setup_data)).unwrap();
        assert_eq!(header, [0, 0, 9, 32], "next, next, SETUP_RNG_SEED, length");
        memory
            .read_obj::<[u8; 32]>(GuestAddress(setup_data + 16))
            .unwrap()
    };
    assert_ne!(seed(), seed());
}

#[test]
fn the_entry_follows_policy_and_notes() {
    let (pvh, linux64) = (BootEntry::Pvh { rip: 0x10_0010 }, BootEntry::Linux64 { rip: MIB });
    for (note, linux, policy, expected) in [
        (true, true, EntryPolicy::Auto, Some(linux64)),
        (true, false, EntryPolicy::Auto, Some(pvh)),
        (false, false, EntryPolicy::Auto, Some(linux64)),
        (true, true, EntryPolicy::Pvh, Some(pvh)),
        (true, false, EntryPolicy::Linux64, Some(linux64)),
        (false, true, EntryPolicy::Pvh, None),
    ] {
        let elf = TestElf {
            linux,
            pvh: note.then_some(0x10_0010),
            ..TestElf::new()
        };
        let entry = boot(&elf.build(), 16, policy).1.ok().map(|boot| boot.entry);
        assert_eq!(entry, expected, "{note} {linux} {policy:?}");
    }
}

#[test]
fn pvh_gets_its_start_info() {
    let elf = TestElf {
        pvh: Some(0x10_0000),
        ..TestElf::new()
    };
    let (memory, _) = boot(&elf.build(), 16, EntryPolicy::Pvh);
    let magic: u32 = memory.read_obj(GuestAddress(layout::PVH_START_INFO)).unwrap();
    assert_eq!(magic, 0x336e_c578);
    let memmap: u64 = memory
        .read_obj(GuestAddress(layout::PVH_START_INFO + 40))
        .unwrap();
    assert_eq!(memmap, layout::PVH_MEMORY_MAP);
}

#[test]
fn every_compression_plain_and_in_a_bzimage_gives_the_same_kernel() {
    let elf = TestElf::new();
    let plain = elf.build();
    for (compression, program) in [
        (Compression::Gzip, &["gzip", "-c"][..]),
        (
            Compression::Xz,
            &["xz", "-c", "--check=crc32", "--x86", "--lzma2=dict=1MiB"],
        ),
        (Compression::Zstd, &["zstd", "-q", "-c"]),
        (Compression::Lz4, &["lz4", "-q", "-l", "-c"]),
        (Compression::Lz4, &["lz4", "-q", "-c"]),
        (Compression::Bzip2, &["bzip2", "-c"]),
        (Compression::Lzma, &["xz", "--format=lzma", "-c"]),
    ] {
        let packed = compress(program, &plain);
        for (format, file) in [(Format::Elf, packed.clone()), (Format::BzImage, bzimage(&packed))] {
            let (memory, boot) = boot(&file, 16, EntryPolicy::Auto);
            let boot = boot.unwrap_or_else(|error| panic!("{program:?} {format:?}: {error}"));
            assert_eq!(
                boot.kernel,
                KernelInfo {
                    format,
                    compression: Some(compression)
                }
            );
            let mut code = vec![0; elf.code.len()];
            memory.read_slice(&mut code, GuestAddress(MIB)).unwrap();
            assert!(code == elf.code, "{program:?} {format:?}");
        }
        let cut = refusal(&packed[..packed.len() / 2], 16);
        assert!(
            cut.contains("cannot be unpacked") || cut.contains("cut short"),
            "{program:?}: {cut}"
        );
    }
}

#[test]
fn data_that_unpacks_past_the_guests_memory_is_refused_without_unpacking_it_all() {
    let bomb = compress(&["gzip", "-c"], &vec![0; 40 << 20]);
    assert_eq!(
        refusal(&bomb, 16),
        "it unpacks to more than the guest's 16 MiB of memory; give the guest more with --memory"
    );
}

#[test]
fn each_lie_in_a_header_has_its_sentence() {
    let elf = TestElf::new().build();
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = elf.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let mut packed = bzimage(b"not a kernel");
    let lying_bzimage = {
        let mut file = packed.clone();
        file[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        file
    };
    packed[0x206..0x208].copy_from_slice(&0x207u16.to_le_bytes());
    for (file, expected) in [
        (
            b"hello".to_vec(),
            "neither an ELF file, a bzImage nor a compressed kernel (it begins with [68, 65, 6c, 6c])",
        ),
        (vec![], "it is empty; see how it was made"),
        (
            elf[..40].to_vec(),
            "the ELF file has 40 bytes, fewer than its header",
        ),
        (
            elf[..100].to_vec(),
            "its program headers would end at 0xb0 of a file of 0x64 bytes; the file is cut short or e_phoff lies",
        ),
        (
            elf[..0x2000].to_vec(),
            "segment 0 would end at 0x11000 of a file of 0x2000 bytes; the file is cut short or its header lies",
        ),
        (patched(4, &[1]), "the ELF file is not for 64-bit x86"),
        (
            patched(56, &[0xff, 0xff]),
            "65535 program headers of 56 bytes (e_phnum, e_phentsize); Berth takes 1 to 128 of 56",
        ),
        (patched(24, &[0; 8]), "its entry 0x0 (e_entry) lies in no segment"),
        (
            patched(64 + 24, &0x1000u64.to_le_bytes()),
            "segment 0 wants to lie at 0x1000 (p_paddr), below 1 MiB where Berth keeps the boot structures",
        ),
        (
            patched(64 + 40, &1u64.to_le_bytes()),
            "segment 0 has 0x10000 bytes in the file but only 0x1 in memory (p_filesz, p_memsz)",
        ),
        (
            patched(64 + 40, &[0xff; 8]),
            "segment 0 would lie at 0x100000 to 0xffffffffffffffff, where the guest with 16 MiB of memory has no RAM for it; give the guest more with --memory",
        ),
        (
            lying_bzimage,
            "the bzImage's payload would lie at 0x410 to 0x10000040f of a file of 0x484 bytes; the file is cut short or its setup header lies",
        ),
        (
            bzimage(b"not a kernel"),
            "the payload of the bzImage is not an ELF file",
        ),
        (
            packed,
            "boot protocol 2.07 is too old; Berth needs 2.08 (Linux 2.6.26) or later",
        ),
    ] {
        assert_eq!(refusal(&file, 16), expected);
    }
}

#[test]
fn an_initrd_lies_high_and_page_aligned_or_is_refused_with_the_figures() {
    let elf = TestElf::new().build();
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(&elf).unwrap();
    let mut initrd = tempfile::NamedTempFile::new().unwrap();
    initrd.write_all(&[0x5a; 5000]).unwrap();
    let source = KernelSource::File(kernel.path().to_owned());
    let cmdline = CommandLine::new();
    let request = BootRequest {
        kernel: &source,
        initrd: Some(initrd.path()),
        cmdline: &cmdline,
        entry: EntryPolicy::Auto,
        rsdp: Some(layout::ACPI_RSDP),
    };
    let memory = memory(16);
    load(&memory, &request).unwrap();
    let base: u32 = memory.read_obj(GuestAddress(layout::ZERO_PAGE + 0x218)).unwrap();
    assert_eq!(u64::from(base), 16 * MIB - 8192);
    let last: u8 = memory.read_obj(GuestAddress(u64::from(base) + 4999)).unwrap();
    assert_eq!(last, 0x5a);

    initrd.as_file().set_len(20 * MIB).unwrap();
    let sentence = load(&memory, &request).unwrap_err().to_string();
    assert!(sentence.ends_with(
        "its 20 MiB do not fit beside the kernel, which ends at 2 MiB, in the guest's 16 MiB of memory; give the guest more with --memory"
    ));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(&TestElf::new().build()).unwrap();
    let cmdline = CommandLine::new();
    for (path, end) in [
        (
            Path::new("/nonexistent/file"),
            "there is no such file; check its path",
        ),
        (Path::new("/"), "it is not a regular file; name one that is"),
        (
            Path::new("/dev/null"),
            "it is not a regular file; name one that is",
        ),
        (empty.path(), "it is empty; see how it was made"),
    ] {
        let said = |kernel: &Path, initrd| {
            let request = BootRequest {
                kernel: &KernelSource::File(kernel.to_owned()),
                initrd,
                cmdline: &cmdline,
                entry: EntryPolicy::Auto,
                rsdp: None,
            };
            load(&memory(16), &request).unwrap_err().to_string()
        };
        assert_eq!(said(path, None), format!("kernel {}: {end}", path.display()));
        let initrd = said(kernel.path(), Some(path));
        assert_eq!(initrd, format!("initrd {}: {end}", path.display()));
    }
}

proptest! {
    #[test]
    fn no_change_of_bytes_makes_loading_panic(
        changes in proptest::collection::vec((0usize..0x1100, any::<u8>()), 1..12),
        cut in 0usize..0x12000,
        packed: bool,
    ) {
        let elf = TestElf { pvh: Some(0x10_0000), linux: false, code: vec![0x90; 4096] }.build();
        let mut file = if packed { bzimage(&elf) } else { elf };
        for (at, byte) in changes {
            if let Some(place) = file.get_mut(at) {
                *place = byte;
            }
        }
        file.truncate(cut);
        let memory = memory(4);
        let source = KernelSource::Embedded { name: "test", bytes: file.leak() };
        let cmdline = CommandLine::new();
        let request = BootRequest { kernel: &source, initrd: None, cmdline: &cmdline, entry: EntryPolicy::Auto, rsdp: None };
        let _ = load(&memory, &request);
    }
}

#[test]
fn a_kernel_is_told_without_a_guest() {
    let mut elf = TestElf {
        linux: true,
        ..TestElf::new()
    }
    .build();
    elf.extend_from_slice(b"\0Linux version %s\0Linux version 6.1.2-test (me@here) #1\n\0");
    let mut config = Vec::new();
    let text = "# a comment\nCONFIG_VIRTIO_MMIO=y\n# CONFIG_EROFS_FS is not set\nCONFIG_SQUASHFS=m\n";
    flate2::read::GzEncoder::new(text.as_bytes(), flate2::Compression::best())
        .read_to_end(&mut config)
        .unwrap();
    let bare = elf.clone();
    elf.extend_from_slice(&[b"IKCFG_ST", &config[..], b"IKCFG_ED"].concat());
    let of = |bytes: &[u8]| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        inspect(&KernelSource::File(file.path().to_owned()), 64 << 20).unwrap()
    };
    let report = of(&elf);
    assert_eq!(report.version.as_deref(), Some("6.1.2-test (me@here) #1"));
    let config = report.config.unwrap();
    assert_eq!(config.len(), 2);
    assert_eq!((&config["VIRTIO_MMIO"][..], &config["SQUASHFS"][..]), ("y", "m"));
    assert!(report.linux64.is_some() && report.protocol.is_none());
    assert_eq!(of(&bare).config, None);
}
