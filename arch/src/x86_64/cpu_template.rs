//! Custom CPU templates, after Firecracker's: what of CPUID and of the MSRs a guest is to see otherwise than KVM has it.
//!
//! CPUID is changed before it is made to fit a vCPU, so topology and what depends on the VM stay right whatever a template says, and
//! so do features that an interpreted kernel must not use. MSRs are changed after all else is set.

use std::fmt;
use std::str::FromStr;

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{Kvm, VcpuFd};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::msr;

/// Changes to a word of `WIDTH` bits: for each, whether it is set, cleared or left. Written as `0b`, the highest bit first, `1`, `0` or
/// `x` each; bits that are not written are left, and underscores mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bits<const WIDTH: u32> {
    /// Those that change.
    mask: u64,
    /// What they become; no others are set.
    value: u64,
}

/// Why a text says nothing about bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BitsError {
    /// It does not begin as it should.
    #[error("{0:?} is no bitmap; write 0b and then 0, 1 or x for each bit, the highest first")]
    Prefix(String),
    /// Something else in the place of a bit.
    #[error(
        "{text:?} is no bitmap: {found:?} says nothing about a bit; write 0 to clear it, 1 to set it, x to leave it"
    )]
    Digit {
        /// What was written.
        text: String,
        /// What is wrong in it.
        found: char,
    },
    /// More than there are.
    #[error("{text:?} has {found} bits, and the register has {width}")]
    Long {
        /// What was written.
        text: String,
        /// How many bits are in it.
        found: usize,
        /// How many there are.
        width: u32,
    },
}

impl<const WIDTH: u32> Bits<WIDTH> {
    /// `word` with the changes.
    pub fn apply(self, word: u64) -> u64 {
        word & !self.mask | self.value
    }
}

impl<const WIDTH: u32> FromStr for Bits<WIDTH> {
    type Err = BitsError;

    fn from_str(text: &str) -> Result<Self, BitsError> {
        let digits = text
            .strip_prefix("0b")
            .ok_or_else(|| BitsError::Prefix(text.to_owned()))?;
        let mut bits = Self::default();
        let mut found = 0;
        for digit in digits.chars().filter(|&digit| digit != '_') {
            let (changes, value) = match digit {
                '0' => (1, 0),
                '1' => (1, 1),
                'x' => (0, 0),
                found => {
                    let text = text.to_owned();
                    return Err(BitsError::Digit { text, found });
                }
            };
            bits.mask = bits.mask << 1 | changes;
            bits.value = bits.value << 1 | value;
            found += 1;
        }
        match found {
            0 => Err(BitsError::Prefix(text.to_owned())),
            found if found > WIDTH as usize => Err(BitsError::Long {
                text: text.to_owned(),
                found,
                width: WIDTH,
            }),
            _ => Ok(bits),
        }
    }
}

impl<const WIDTH: u32> fmt::Display for Bits<WIDTH> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0b")?;
        for bit in (0..WIDTH).rev() {
            f.write_str(match (self.mask >> bit & 1, self.value >> bit & 1) {
                (0, _) => "x",
                (_, 0) => "0",
                _ => "1",
            })?;
        }
        Ok(())
    }
}

impl<const WIDTH: u32> Serialize for Bits<WIDTH> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const WIDTH: u32> Deserialize<'de> for Bits<WIDTH> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// A CPU template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuTemplate {
    /// Capabilities that KVM must have (`KVM_CHECK_EXTENSION`).
    pub capabilities: Vec<u32>,
    /// Changes to CPUID.
    pub cpuid: Vec<CpuidChange>,
    /// Changes to MSRs.
    pub msrs: Vec<MsrChange>,
}

/// Changes to one entry of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuidChange {
    /// EAX that selects it.
    pub leaf: u32,
    /// ECX that selects it.
    pub subleaf: u32,
    /// What KVM's flags become.
    pub flags: u32,
    /// EAX, EBX, ECX, EDX.
    pub registers: [Bits<32>; 4],
}

/// Changes to an MSR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrChange {
    /// Which.
    pub index: u32,
    /// What.
    pub bits: Bits<64>,
}

/// Why a vCPU cannot be as a template says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuTemplateError {
    /// A capability is missing.
    #[error("kvm_capabilities: this host's KVM does not have {0}; leave it out or use another host")]
    Capability(u32),
    /// No such entry.
    #[error(
        "cpuid_modifiers: this host's CPUID has no leaf {leaf:#x} with subleaf {subleaf:#x}; leave it out or use another host"
    )]
    Leaf {
        /// EAX that selects it.
        leaf: u32,
        /// ECX that selects it.
        subleaf: u32,
    },
    /// No such MSR.
    #[error(
        "msr_modifiers: this host's KVM does not let MSR {0:#x} be read; leave it out or use another host"
    )]
    Msr(u32),
    /// Not this value.
    #[error(
        "msr_modifiers: this host's KVM does not take {value:#x} in MSR {index:#x}; leave it out or give another value"
    )]
    Value {
        /// Which.
        index: u32,
        /// What it was to hold.
        value: u64,
    },
}

impl CpuTemplate {
    /// Whether `kvm` has what the template asks for.
    pub fn check(&self, kvm: &Kvm) -> Result<(), CpuTemplateError> {
        let missing = |&&capability: &&u32| kvm.check_extension_raw(capability.into()) <= 0;
        match self.capabilities.iter().find(missing) {
            Some(&capability) => Err(CpuTemplateError::Capability(capability)),
            None => Ok(()),
        }
    }

    /// Changes what KVM supports of CPUID into what the guest is to see of it.
    pub fn change_cpuid(&self, entries: &mut [kvm_cpuid_entry2]) -> Result<(), CpuTemplateError> {
        for change in &self.cpuid {
            let CpuidChange { leaf, subleaf, .. } = *change;
            let entry = entries
                .iter_mut()
                .find(|entry| entry.function == leaf && entry.index == subleaf)
                .ok_or(CpuTemplateError::Leaf { leaf, subleaf })?;
            entry.flags = change.flags;
            let registers = [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx];
            for (register, bits) in registers.into_iter().zip(change.registers) {
                *register = bits.apply((*register).into()) as u32;
            }
        }
        Ok(())
    }

    /// Changes a vCPU's MSRs.
    pub fn change_msrs(&self, vcpu: &VcpuFd) -> Result<(), CpuTemplateError> {
        for &MsrChange { index, bits } in &self.msrs {
            let old = msr::read(vcpu, index).ok_or(CpuTemplateError::Msr(index))?;
            let value = bits.apply(old);
            if value != old {
                msr::write(vcpu, index, value).ok_or(CpuTemplateError::Value { index, value })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_bitmap_is_refused_with_what_to_write() {
        for (text, expected) in [
            (
                "101",
                "\"101\" is no bitmap; write 0b and then 0, 1 or x for each bit, the highest first",
            ),
            (
                "0b",
                "\"0b\" is no bitmap; write 0b and then 0, 1 or x for each bit, the highest first",
            ),
            (
                "0b__",
                "\"0b__\" is no bitmap; write 0b and then 0, 1 or x for each bit, the highest first",
            ),
            (
                "0b1X",
                "\"0b1X\" is no bitmap: 'X' says nothing about a bit; write 0 to clear it, 1 to set it, x to leave it",
            ),
            (
                "0b1_0_1_0_1",
                "\"0b1_0_1_0_1\" has 5 bits, and the register has 4",
            ),
        ] {
            assert_eq!(text.parse::<Bits<4>>().unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn only_the_entry_that_is_meant_changes_and_one_that_is_not_there_is_said() {
        let entry = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: 0xf0,
            edx: 0xffff_ffff,
            ..Default::default()
        };
        let mut entries = [entry(1, 0), entry(7, 0), entry(7, 1)];
        let change = CpuidChange {
            leaf: 7,
            subleaf: 1,
            flags: 1,
            registers: [
                "0b1xxx1".parse().unwrap(),
                Bits::default(),
                Bits::default(),
                "0b0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx".parse().unwrap(),
            ],
        };
        let mut template = CpuTemplate {
            cpuid: vec![change],
            ..CpuTemplate::default()
        };
        template.change_cpuid(&mut entries).unwrap();
        assert_eq!((entries[0], entries[1]), (entry(1, 0), entry(7, 0)));
        let changed = entries[2];
        assert_eq!((changed.eax, changed.edx, changed.flags), (0xf1, 0x7fff_ffff, 1));
        template.cpuid[0].subleaf = 2;
        let missing = CpuTemplateError::Leaf { leaf: 7, subleaf: 2 };
        assert_eq!(template.change_cpuid(&mut entries), Err(missing));
    }

    proptest! {
        #[test]
        fn each_digit_says_what_becomes_of_its_bit(digits in "[01x]{1,64}", word: u64) {
            let bits: Bits<64> = format!("0b{digits}").parse().unwrap();
            let changed = bits.apply(word);
            for (at, digit) in digits.chars().rev().enumerate() {
                let wanted = digit.to_digit(2).map_or(word >> at & 1, u64::from);
                prop_assert_eq!(changed >> at & 1, wanted);
            }
            prop_assert_eq!(changed.checked_shr(digits.len() as u32), word.checked_shr(digits.len() as u32));
            prop_assert_eq!(bits.apply(changed), changed);
        }

        #[test]
        fn what_is_written_reads_back_as_the_same(digits in "[01x_]{1,32}") {
            if let Ok(bits) = format!("0b{digits}").parse::<Bits<32>>() {
                prop_assert_eq!(bits.to_string().len(), 34);
                prop_assert_eq!(bits.to_string().parse(), Ok(bits));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = (text.parse::<Bits<32>>(), format!("0b{text}").parse::<Bits<64>>());
        }
    }

    /// On a real vCPU: a bit of CPUID and an MSR that every KVM lets through.
    #[test]
    fn kvm_takes_what_a_template_changes() {
        const TSC_AUX: u32 = 0xc000_0103;
        let kvm = crate::probe::kvm::open().unwrap();
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let template = CpuTemplate {
            capabilities: vec![kvm_bindings::KVM_CAP_IRQCHIP],
            cpuid: Vec::new(),
            msrs: vec![MsrChange {
                index: TSC_AUX,
                bits: "0b101".parse().unwrap(),
            }],
        };
        assert_eq!(template.check(&kvm), Ok(()));
        if msr::read(&vcpu, TSC_AUX).is_some() {
            template.change_msrs(&vcpu).unwrap();
            assert_eq!(msr::read(&vcpu, TSC_AUX), Some(5));
        }
        let missing = CpuTemplate {
            capabilities: vec![0x7fff_0000],
            ..CpuTemplate::default()
        };
        assert_eq!(
            missing.check(&kvm),
            Err(CpuTemplateError::Capability(0x7fff_0000))
        );
        let unknown = CpuTemplate {
            msrs: vec![MsrChange {
                index: 0xdead_0000,
                bits: Bits::default(),
            }],
            ..CpuTemplate::default()
        };
        assert_eq!(
            unknown.change_msrs(&vcpu),
            Err(CpuTemplateError::Msr(0xdead_0000))
        );
    }
}
