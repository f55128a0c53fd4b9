//! What each leaf says for a guest, on made-up hosts.

use super::*;
use proptest::prelude::*;

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        flags: 0,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

fn vendor_leaf(name: &[u8; 12]) -> kvm_cpuid_entry2 {
    let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
    entry(0, 0, [0x20, word(0), word(8), word(4)])
}

fn intel() -> Vec<kvm_cpuid_entry2> {
    vec![
        vendor_leaf(b"GenuineIntel"),
        entry(1, 0, [0xa0671, 0x0102_0800, 0x8120_2000 | (1 << 23), 0x0f8b_fbff]),
        entry(4, 0, [0x0400_0121, 0, 0, 0]),
        entry(4, 3, [0x0400_4163, 0, 0, 0]),
        entry(4, 4, [0; 4]),
        entry(7, 0, [2, 1 << 20 | 1 << 5, 1 << 22, 0]),
        entry(0xb, 0, [0; 4]),
        entry(0x1f, 0, [0; 4]),
        entry(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        entry(0x8000_0008, 0, [0x3930, 0, 0, 0]),
    ]
}

fn amd() -> Vec<kvm_cpuid_entry2> {
    vec![
        vendor_leaf(b"AuthenticAMD"),
        entry(1, 0, [0, 0, 0, 0]),
        entry(0x8000_0001, 0, [0; 4]),
        entry(0x8000_0008, 0, [0x3030, 0, 0x7fff, 0]),
        entry(0x8000_001d, 3, [0x163, 0, 0, 0]),
        entry(0x8000_001e, 0, [9, 0x1ff, 7, 0]),
        entry(0x8000_0026, 0, [1, 2, 3, 4]),
    ]
}

fn cpu(index: u32, count: u32) -> GuestCpu {
    GuestCpu {
        index,
        count,
        tsc_deadline: true,
        tsc_khz: None,
        interpreted: false,
    }
}

fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
    let mut found = entries
        .iter()
        .filter(|entry| entry.function == function && entry.index == index);
    let entry = *found
        .next()
        .unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"));
    assert!(found.next().is_none(), "leaf {function:#x}.{index} twice");
    entry
}

#[test]
fn apic_id_is_the_vcpu_index_in_every_leaf_that_has_it() {
    for (host, leaves) in [
        (intel(), vec![(0xb, 0), (0xb, 1), (0xb, 2), (0x1f, 0), (0x1f, 1)]),
        (amd(), vec![(0xb, 0), (0xb, 1)]),
    ] {
        let entries = guest_cpuid(&host, cpu(3, 5));
        assert_eq!(leaf(&entries, 1, 0).ebx >> 24, 3);
        for (function, index) in leaves {
            assert_eq!(leaf(&entries, function, index).edx, 3, "{function:#x}.{index}");
        }
    }
    assert_eq!(leaf(&guest_cpuid(&amd(), cpu(3, 5)), 0x8000_001e, 0).eax, 3);
}

#[test]
fn topology_is_one_socket_of_single_threaded_cores() {
    let entries = guest_cpuid(&intel(), cpu(0, 5));
    for function in [0xb, 0x1f] {
        let (threads, cores) = (leaf(&entries, function, 0), leaf(&entries, function, 1));
        assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 5, 0x201));
        assert_eq!(
            (leaf(&entries, function, 2).ebx, leaf(&entries, function, 2).ecx),
            (0, 2)
        );
    }
    let amd = guest_cpuid(&amd(), cpu(0, 5));
    assert_eq!(leaf(&amd, 0x8000_0008, 0).ecx, 0x3f00 & !0xf000 | 0x3000 | 4);
    assert_eq!(leaf(&amd, 0x8000_001e, 0).ebx, 0);
    assert!(!amd.iter().any(|entry| entry.function == 0x8000_0026));
}

#[test]
fn first_level_caches_are_private_and_the_last_is_shared() {
    let entries = guest_cpuid(&intel(), cpu(0, 4));
    assert_eq!(leaf(&entries, 4, 0).eax, 3 << 26 | 0x121);
    assert_eq!(leaf(&entries, 4, 3).eax, 3 << 26 | 3 << 14 | 0x163);
    assert_eq!(leaf(&entries, 4, 4).eax, 0, "the terminator stays empty");
    assert_eq!(
        leaf(&guest_cpuid(&amd(), cpu(0, 4)), 0x8000_001d, 3).eax,
        3 << 14 | 0x163
    );
}

#[test]
fn features_follow_the_vm() {
    let one = leaf(
        &guest_cpuid(
            &intel(),
            GuestCpu {
                tsc_deadline: false,
                ..cpu(0, 1)
            },
        ),
        1,
        0,
    );
    assert_eq!(
        (
            one.ecx >> 31,
            (one.ecx >> 24) & 1,
            (one.edx >> 28) & 1,
            (one.ebx >> 16) & 0xff
        ),
        (1, 0, 0, 1)
    );
    let two = leaf(&guest_cpuid(&intel(), cpu(0, 2)), 1, 0);
    assert_eq!(
        (
            two.ecx >> 31,
            (two.ecx >> 24) & 1,
            (two.edx >> 28) & 1,
            (two.ebx >> 16) & 0xff
        ),
        (1, 1, 1, 2)
    );
    assert_eq!(two.ebx & 0xffff, 0x0800, "the cache line size stays the host's");
}

#[test]
fn kvm_signature_stays_and_frequencies_appear_only_when_known() {
    let unknown = guest_cpuid(&intel(), cpu(0, 1));
    assert_eq!(leaf(&unknown, 0x4000_0000, 0).eax, 0x4000_0001);
    assert!(!unknown.iter().any(|entry| entry.function == FREQUENCY_LEAF));
    let known = guest_cpuid(
        &intel(),
        GuestCpu {
            tsc_khz: Some(2_593_907),
            ..cpu(0, 1)
        },
    );
    let signature = leaf(&known, 0x4000_0000, 0);
    assert_eq!((signature.eax, signature.ebx), (FREQUENCY_LEAF, 0x4b4d_564b));
    assert_eq!(leaf(&known, FREQUENCY_LEAF, 0).eax, 2_593_907);
}

#[test]
fn interpreted_guests_lose_what_the_interpreter_lacks_and_nothing_else() {
    let before = guest_cpuid(&intel(), cpu(0, 1));
    let after = guest_cpuid(
        &intel(),
        GuestCpu {
            interpreted: true,
            ..cpu(0, 1)
        },
    );
    assert_eq!(
        leaf(&before, 1, 0).ecx & !leaf(&after, 1, 0).ecx,
        1 << 23 | 1 << 13
    );
    assert_eq!((leaf(&after, 7, 0).ebx, leaf(&after, 7, 0).ecx), (1 << 5, 0));
}

#[test]
fn a_kvm_without_popcnt_looks_interpreted() {
    assert!(!looks_interpreted(&intel()));
    assert!(looks_interpreted(&amd()));
    assert!(!looks_interpreted(&[]), "no leaf 1 says nothing");
}

#[test]
fn command_line_keeps_vector_state_known_to_the_kernel() {
    let line = interpreted_command_line();
    let (_, list) = line.split_once("clearcpuid=").unwrap();
    assert!(list.len() < 128, "Linux cuts the option there");
    let numbers: Vec<u32> = list.split(',').map(|number| number.parse().unwrap()).collect();
    // popcnt, cx16, smap, rdtscp, fsgsbase, ssse3, fsrm, fsrs
    for needed in [151, 141, 308, 59, 288, 137, 580, 395] {
        assert!(numbers.contains(&needed), "{needed}");
    }
    // xsave, avx, avx2, avx512f, fxsr
    for harmful in [4 * 32 + 26, 4 * 32 + 28, 9 * 32 + 5, 9 * 32 + 16, 24] {
        assert!(!numbers.contains(&harmful), "{harmful}");
    }
}

proptest! {
    #[test]
    fn any_host_entries_give_unique_topology(
        raw in proptest::collection::vec((0u32..0x30, 0u32..3, any::<[u32; 4]>()), 0..40),
        index in 0u32..254,
    ) {
        let host: Vec<_> = raw.into_iter().map(|(function, at, regs)| entry(function, at, regs)).collect();
        let guest = guest_cpuid(&host, GuestCpu { tsc_khz: Some(3_000_000), ..cpu(index, 254) });
        prop_assert_eq!(leaf(&guest, 0xb, 1).edx, index);
    }
}

#[test]
fn interpreted_guests_are_not_offered_hypercalls() {
    let mut host = intel();
    host.push(entry(0x4000_0001, 0, [u32::MAX, 0, 0, 0]));
    let kvm_features = |interpreted| {
        let entries = guest_cpuid(
            &host,
            GuestCpu {
                interpreted,
                ..cpu(0, 2)
            },
        );
        entries
            .iter()
            .find(|entry| entry.function == 0x4000_0001)
            .map(|entry| entry.eax)
    };
    assert_eq!(kvm_features(false), Some(u32::MAX));
    assert_eq!(kvm_features(true), Some(!0x2880));
}
