//! Whether a guest that has seen one CPU can go on with another.

use kvm_bindings::kvm_cpuid_entry2;

use crate::x86_64::vcpu_state::CpuidLeaf;

/// Leaves whose registers are feature bits: function, index, and which of EAX, EBX, ECX, EDX.
const FEATURES: [(u32, u32, usize); 12] = [
    (1, 0, 2),
    (1, 0, 3),
    (7, 0, 1),
    (7, 0, 2),
    (7, 0, 3),
    (7, 1, 0),
    (0xd, 0, 0),
    (0xd, 1, 0),
    (0x4000_0001, 0, 0),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
    (0x8000_0008, 0, 1),
];
/// Bits of leaf 1 that are the VM's or the kernel's and not the host's: TSC deadline, OSXSAVE, hypervisor; HTT.
const NOT_THE_HOSTS: [(u32, usize, u32); 3] = [
    (1, 2, (1 << 24) | (1 << 27) | (1 << 31)),
    (1, 3, 1 << 28),
    (7, 2, 1 << 4),
];

/// What the guest has of `guest` that a host with `supported` cannot give: words like `leaf 0x7 EBX bits 0x20`. Empty if nothing.
pub fn missing(guest: &[CpuidLeaf], supported: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut missing = Vec::new();
    for (function, index, register) in FEATURES {
        let has = guest
            .iter()
            .find(|leaf| (leaf.function, leaf.index) == (function, index))
            .map_or(0, |leaf| leaf.registers[register]);
        let can = supported
            .iter()
            .find(|entry| (entry.function, entry.index) == (function, index))
            .map_or(0, |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx][register]);
        let ours: u32 = NOT_THE_HOSTS
            .iter()
            .filter(|(leaf, which, _)| (*leaf, *which) == (function, register))
            .map(|(_, _, bits)| bits)
            .sum();
        let lacking = has & !can & !ours;
        if lacking != 0 {
            let name = ["EAX", "EBX", "ECX", "EDX"][register];
            missing.push(format!("CPUID leaf {function:#x} {name} bits {lacking:#x}"));
        }
    }
    missing
}

/// The maker, family, model and stepping of this host's CPU, in words that change when the CPU does.
pub fn host_cpu() -> String {
    let leaf0 = std::arch::x86_64::__cpuid(0);
    let leaf1 = std::arch::x86_64::__cpuid(1);
    let name: Vec<u8> = [leaf0.ebx, leaf0.edx, leaf0.ecx]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    format!("{} {:x}", String::from_utf8_lossy(&name), leaf1.eax)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_host_lacks_is_missing() {
        let guest = |ecx| {
            vec![CpuidLeaf {
                function: 1,
                index: 0,
                flags: 0,
                registers: [0, 0, ecx, 0],
            }]
        };
        let host = [kvm_cpuid_entry2 {
            function: 1,
            ecx: 0b111,
            ..Default::default()
        }];
        assert!(missing(&guest(0b101 | 1 << 31), &host).is_empty());
        assert_eq!(missing(&guest(0b1101), &host), ["CPUID leaf 0x1 ECX bits 0x8"]);
        assert_eq!(missing(&guest(1), &[]), ["CPUID leaf 0x1 ECX bits 0x1"]);
    }
}
