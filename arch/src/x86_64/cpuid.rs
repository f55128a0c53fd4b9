//! What CPUID tells a guest: the host's answer, made to fit one vCPU of a guest with one socket and `n` single-threaded cores.
//!
//! Pure functions on the entries of `KVM_GET_SUPPORTED_CPUID`. Truth: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E;
//! `Documentation/virt/kvm/x86/cpuid.rst` for the leaves from 0x40000000 on.
#![forbid(unsafe_code)]

mod compare;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Kvm, VcpuFd};

pub use compare::{host_cpu, missing};

/// Frequency of KVM's local APIC timer before its divider, in kHz (KVM's default bus cycle of 1 ns).
const APIC_BUS_KHZ: u32 = 1_000_000;
/// Hypervisor leaf with the TSC's and the APIC bus's frequency; VMware defined it, BSDs and Linux read it.
const FREQUENCY_LEAF: u32 = 0x4000_0010;

/// Why CPUID could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// The host's answer could not be had.
    #[error("KVM_GET_SUPPORTED_CPUID failed: {0}")]
    Supported(kvm_ioctls::Error),
    /// More entries than KVM takes.
    #[error("{0} CPUID entries are more than the {KVM_MAX_CPUID_ENTRIES} KVM takes")]
    TooMany(usize),
    /// KVM refused the guest's CPUID.
    #[error("KVM_SET_CPUID2 failed: {0}")]
    Set(kvm_ioctls::Error),
}

/// What of a guest shows in CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestCpu {
    /// Which vCPU; also its APIC id.
    pub index: u32,
    /// How many vCPUs the guest has, from 1 to [`MAX_CPUS`](super::layout::MAX_CPUS).
    pub count: u32,
    /// Whether KVM offers the APIC timer's TSC deadline mode (`KVM_CAP_TSC_DEADLINE_TIMER`); the supported CPUID leaves it out.
    pub tsc_deadline: bool,
    /// The guest's TSC frequency if known (`KVM_GET_TSC_KHZ`).
    pub tsc_khz: Option<u32>,
    /// Whether ring 0 is interpreted, as far as [`looks_interpreted`] can tell: then features whose instructions the interpreter
    /// lacks are cleared.
    pub interpreted: bool,
}

/// Asks KVM what it supports. One call serves all vCPUs.
pub fn supported(kvm: &Kvm) -> Result<CpuId, CpuidError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(CpuidError::Supported)
}

/// Whether this KVM leaves out POPCNT, which every CPU with hardware virtualization since 2008 has.
///
/// A hint for the guest's CPUID alone, which must be set before a vCPU can be asked what it really is
/// ([`kind_of_vcpu`](super::kind::kind_of_vcpu)); a wrong guess costs the guest some features.
pub fn looks_interpreted(supported: &[kvm_cpuid_entry2]) -> bool {
    const POPCNT: u32 = 1 << 23;
    supported
        .iter()
        .any(|entry| entry.function == 1 && entry.ecx & POPCNT == 0)
}

/// Gives a vCPU its CPUID.
pub fn set(vcpu: &VcpuFd, entries: &[kvm_cpuid_entry2]) -> Result<(), CpuidError> {
    let cpuid = CpuId::from_entries(entries).map_err(|_| CpuidError::TooMany(entries.len()))?;
    vcpu.set_cpuid2(&cpuid).map_err(CpuidError::Set)
}

/// The CPUID entries of one vCPU, from what the host supports.
pub fn guest_cpuid(supported: &[kvm_cpuid_entry2], cpu: GuestCpu) -> Vec<kvm_cpuid_entry2> {
    let mut entries = supported.to_vec();
    let amd = is_amd(&entries);
    if cpu.interpreted {
        clear_uninterpretable(&mut entries);
    }
    for entry in &mut entries {
        match entry.function {
            0 => entry.eax = entry.eax.max(0xb),
            1 => features(entry, cpu),
            4 if !amd => intel_cache(entry, cpu),
            0x4000_0001 if cpu.interpreted => entry.eax &= !HYPERCALLS,
            0x8000_0001 if amd => {
                const CMP_LEGACY: u32 = 1 << 1;
                entry.ecx = with_bit(entry.ecx, CMP_LEGACY, cpu.count > 1);
            }
            0x8000_0008 if amd => {
                entry.ecx = (entry.ecx & !0xf0ff) | (core_bits(cpu.count) << 12) | ((cpu.count - 1) & 0xff);
            }
            0x8000_001d if amd => share_cache(entry, cpu),
            0x8000_001e if amd => {
                entry.eax = cpu.index;
                entry.ebx = cpu.index & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    topology(&mut entries, 0xb, cpu);
    if entries.iter().any(|entry| entry.function == 0x1f) {
        topology(&mut entries, 0x1f, cpu);
    }
    // AMD's extended topology describes the host's; without it guests use leaf 0xb.
    entries.retain(|entry| entry.function != 0x8000_0026);
    if let Some(khz) = cpu.tsc_khz.filter(|&khz| khz > 0) {
        frequencies(&mut entries, khz);
    }
    entries
}

fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    let Some(leaf) = entries.iter().find(|entry| entry.function == 0) else {
        return false;
    };
    let name: Vec<u8> = [leaf.ebx, leaf.edx, leaf.ecx]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    matches!(name.as_slice(), b"AuthenticAMD" | b"HygonGenuine")
}

/// Bits of an APIC id that number the cores.
fn core_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn with_bit(word: u32, bit: u32, on: bool) -> u32 {
    if on { word | bit } else { word & !bit }
}

/// Leaf 1: APIC id, processors in the package, and the features that depend on the VM and not on the host.
fn features(entry: &mut kvm_cpuid_entry2, cpu: GuestCpu) {
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    const HTT: u32 = 1 << 28;
    let processors = cpu.count.next_power_of_two().min(255);
    entry.ebx = (entry.ebx & 0xffff) | (processors << 16) | (cpu.index << 24);
    entry.ecx = with_bit(entry.ecx, TSC_DEADLINE, cpu.tsc_deadline) | HYPERVISOR;
    entry.edx = with_bit(entry.edx, HTT, cpu.count > 1);
}

/// Leaf 4, Intel's caches: cores in the package, and who shares this cache.
fn intel_cache(entry: &mut kvm_cpuid_entry2, cpu: GuestCpu) {
    if entry.eax & 0x1f != 0 {
        let cores = (cpu.count.next_power_of_two() - 1).min(0x3f);
        entry.eax = (entry.eax & !(0x3f << 26)) | (cores << 26);
        share_cache(entry, cpu);
    }
}

/// Leaf 4 and AMD's 0x8000001d: levels 1 and 2 belong to one core, the others to all.
fn share_cache(entry: &mut kvm_cpuid_entry2, cpu: GuestCpu) {
    let kind = entry.eax & 0x1f;
    if kind != 0 {
        let level = (entry.eax >> 5) & 7;
        let sharers = if level >= 3 {
            cpu.count.next_power_of_two() - 1
        } else {
            0
        };
        entry.eax = (entry.eax & !(0xfff << 14)) | (sharers << 14);
    }
}

/// Leaves 0xb and 0x1f: one thread per core, `count` cores, and the end of the list.
fn topology(entries: &mut Vec<kvm_cpuid_entry2>, function: u32, cpu: GuestCpu) {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    let level = |index, eax, ebx, kind| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: index | kind,
        edx: cpu.index,
        ..Default::default()
    };
    entries.retain(|entry| entry.function != function);
    entries.extend([
        level(0, 0, 1, THREADS),
        level(1, core_bits(cpu.count), cpu.count, CORES),
        level(2, 0, 0, 0),
    ]);
}

/// The TSC's and the APIC timer's frequencies, for guests that would otherwise measure them.
///
/// Not Intel's leaf 0x15: it gives the TSC as a fraction of the crystal, the crystal must then be the APIC timer's 1 GHz, and Linux
/// multiplies both in 32 bits. What fits is off by up to 200 ppm, and Linux would trust it.
fn frequencies(entries: &mut Vec<kvm_cpuid_entry2>, tsc_khz: u32) {
    if let Some(signature) = entries.iter_mut().find(|entry| entry.function == 0x4000_0000) {
        // Old kernels say 0 where they mean 0x40000001.
        signature.eax = signature.eax.max(FREQUENCY_LEAF);
        entries.retain(|entry| entry.function != FREQUENCY_LEAF);
        entries.push(kvm_cpuid_entry2 {
            function: FREQUENCY_LEAF,
            eax: tsc_khz,
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        });
    }
}

/// The first physical address that a guest on this host cannot have: CPUID says how many bits its addresses have.
pub fn physical_end() -> u64 {
    let bits = std::arch::x86_64::__cpuid(0x8000_0008).eax & 0xff;
    // Every CPU with 64-bit mode has the leaf, with 36 bits or more and 52 at most.
    1 << bits.clamp(36, 52)
}

/// KVM's features that a guest uses by hypercalls: waking a halted CPU, interrupts to several, giving way to another. An
/// interpreting KVM may never come back from VMCALL.
const HYPERCALLS: u32 = (1 << 7) | (1 << 11) | (1 << 13);

/// A feature that is kept from guests whose kernels are interpreted: where CPUID has it.
struct Kept {
    function: u32,
    index: u32,
    register: fn(&mut kvm_cpuid_entry2) -> &mut u32,
    bit: u32,
    /// Which of Linux's capability words mirrors that register (`arch/x86/include/asm/cpufeatures.h`).
    linux_word: u32,
}

/// Features whose instructions the interpreter lacks, that make a kernel use SSE in ring 0, or that make it move memory byte by
/// byte where the interpreter takes as long for eight.
///
/// Not here: xsave, avx, avx2 and avx512. Ring 3 runs on the real CPU and uses the vector registers whatever the kernel was
/// told; a kernel that does not know them would not keep them apart between processes.
const KEPT: [Kept; 26] = [
    kept(1, |e| &mut e.ecx, 1, 4),            // pclmulqdq
    kept(1, |e| &mut e.ecx, 9, 4),            // ssse3
    kept(1, |e| &mut e.ecx, 13, 4),           // cx16
    kept(1, |e| &mut e.ecx, 17, 4),           // pcid
    kept(1, |e| &mut e.ecx, 19, 4),           // sse4_1
    kept(1, |e| &mut e.ecx, 20, 4),           // sse4_2
    kept(1, |e| &mut e.ecx, 22, 4),           // movbe
    kept(1, |e| &mut e.ecx, 23, 4),           // popcnt
    kept(1, |e| &mut e.ecx, 25, 4),           // aes
    kept(1, |e| &mut e.ecx, 30, 4),           // rdrand
    kept(7, |e| &mut e.ebx, 0, 9),            // fsgsbase
    kept(7, |e| &mut e.ebx, 3, 9),            // bmi1
    kept(7, |e| &mut e.ebx, 7, 9),            // smep
    kept(7, |e| &mut e.ebx, 8, 9),            // bmi2
    kept(7, |e| &mut e.ebx, 9, 9),            // erms
    kept(7, |e| &mut e.ebx, 10, 9),           // invpcid
    kept(7, |e| &mut e.ebx, 18, 9),           // rdseed
    kept(7, |e| &mut e.ebx, 20, 9),           // smap
    kept(7, |e| &mut e.ebx, 29, 9),           // sha_ni
    kept(7, |e| &mut e.ecx, 8, 16),           // gfni
    kept(7, |e| &mut e.ecx, 9, 16),           // vaes
    kept(7, |e| &mut e.ecx, 10, 16),          // vpclmulqdq
    kept(7, |e| &mut e.ecx, 22, 16),          // rdpid
    kept(7, |e| &mut e.edx, 4, 18),           // fsrm
    kept(0x8000_0001, |e| &mut e.edx, 27, 1), // rdtscp
    // fsrs, which Linux derives from fsrm on AMD CPUs.
    Kept {
        index: 1,
        ..kept(7, |e| &mut e.eax, 11, 12)
    },
];

const fn kept(
    function: u32,
    register: fn(&mut kvm_cpuid_entry2) -> &mut u32,
    bit: u32,
    linux_word: u32,
) -> Kept {
    Kept {
        function,
        index: 0,
        register,
        bit,
        linux_word,
    }
}

fn clear_uninterpretable(entries: &mut [kvm_cpuid_entry2]) {
    for entry in entries {
        let leaf = (entry.function, entry.index);
        for feature in KEPT
            .iter()
            .filter(|feature| (feature.function, feature.index) == leaf)
        {
            *(feature.register)(entry) &= !(1 << feature.bit);
        }
    }
}

/// What to add to a Linux guest's command line where its kernel is interpreted.
///
/// An interpreting KVM shows most of the host's user-level features to ring 0 whatever `KVM_SET_CPUID2` said, so Linux is told
/// again, by number: Linux reads 127 characters of this option, and names do not fit. The other words spare the interpreter work:
/// patching thousands of lock prefixes away, and splitting pages to protect the kernel's own memory.
pub fn interpreted_command_line() -> String {
    let numbers: Vec<_> = KEPT
        .iter()
        .map(|feature| (feature.linux_word * 32 + feature.bit).to_string())
        .collect();
    format!("noreplace-smp rodata=off clearcpuid={}", numbers.join(","))
}

#[cfg(test)]
mod tests;
