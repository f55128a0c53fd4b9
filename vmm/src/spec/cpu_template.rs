//! A custom CPU template in a description, in Firecracker's form.

use std::fmt;
use std::str::FromStr;

use berth_arch::x86_64::cpu_template::{Bits, CpuTemplate, CpuidChange, MsrChange};
use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::table;

/// What of the CPU the guest is to see otherwise than this host's KVM has it. A custom CPU template of Firecracker's fits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CpuTemplateSpec {
    /// Capabilities that KVM must have, by their numbers; one with an exclamation mark before it need not be there.
    pub kvm_capabilities: Vec<Capability>,
    /// Changes to CPUID.
    #[serde(deserialize_with = "table::list")]
    pub cpuid_modifiers: Vec<CpuidModifier>,
    /// Changes to model-specific registers.
    #[serde(deserialize_with = "table::list")]
    pub msr_modifiers: Vec<MsrModifier>,
}

/// Changes to one leaf of CPUID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuidModifier {
    /// Which leaf: a number as text, as in 0x1.
    pub leaf: Number,
    /// Which of its subleaves.
    pub subleaf: Number,
    /// KVM's flags for it: 1 if the subleaf matters, otherwise 0.
    pub flags: u32,
    /// Changes to its registers.
    #[serde(deserialize_with = "table::list")]
    pub modifiers: Vec<RegisterModifier>,
}

/// Changes to a register of CPUID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterModifier {
    /// Which.
    pub register: Register,
    /// For each bit, the highest first: 0 clears it, 1 sets it, x leaves it.
    #[schemars(with = "String", regex(pattern = r"^0b[01x_]+$"))]
    pub bitmap: Bits<32>,
}

/// Registers of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// Changes to a model-specific register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MsrModifier {
    /// Which: a number as text, as in 0x10a.
    pub addr: Number,
    /// For each bit, the highest first: 0 clears it, 1 sets it, x leaves it.
    #[schemars(with = "String", regex(pattern = r"^0b[01x_]+$"))]
    pub bitmap: Bits<64>,
}

impl CpuTemplateSpec {
    /// As the CPU's side takes it. Of several changes to one register the last one stands where they differ.
    pub(crate) fn template(&self) -> CpuTemplate {
        let change = |modifier: &CpuidModifier, register: &RegisterModifier| {
            let mut change = CpuidChange {
                leaf: modifier.leaf.0,
                subleaf: modifier.subleaf.0,
                flags: modifier.flags,
                ..CpuidChange::default()
            };
            change.registers[register.register as usize] = register.bitmap;
            change
        };
        let cpuid = self.cpuid_modifiers.iter().flat_map(|modifier| {
            modifier
                .modifiers
                .iter()
                .map(move |register| change(modifier, register))
        });
        let msrs = self.msr_modifiers.iter().map(|modifier| MsrChange {
            index: modifier.addr.0,
            bits: modifier.bitmap,
        });
        CpuTemplate {
            capabilities: self
                .kvm_capabilities
                .iter()
                .filter(|capability| capability.needed)
                .map(|capability| capability.number)
                .collect(),
            cpuid: cpuid.collect(),
            msrs: msrs.collect(),
        }
    }
}

/// A number that is written as text, so that it can be hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct Number(pub u32);

/// A capability of KVM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct Capability {
    /// Its number (`linux/kvm.h`).
    pub number: u32,
    /// Whether KVM must have it.
    pub needed: bool,
}

/// Why a text is no number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no number of 32 bits; write it as text in one of the forms 0x1f, 0b11111 and 31")]
pub struct NumberError(String);

impl FromStr for Number {
    type Err = NumberError;

    fn from_str(text: &str) -> Result<Self, NumberError> {
        let (digits, radix) = match text.split_at_checked(2) {
            Some(("0x", digits)) => (digits, 16),
            Some(("0b", digits)) => (digits, 2),
            _ => (text, 10),
        };
        // A sign is not a digit here.
        let digits = Some(digits).filter(|digits| digits.chars().all(|c| c.is_digit(radix)));
        let number = digits.and_then(|digits| u32::from_str_radix(digits, radix).ok());
        number.map(Self).ok_or_else(|| NumberError(text.to_owned()))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl FromStr for Capability {
    type Err = NumberError;

    fn from_str(text: &str) -> Result<Self, NumberError> {
        let number = text.strip_prefix('!');
        Ok(Self {
            number: number.unwrap_or(text).parse::<Number>()?.0,
            needed: number.is_none(),
        })
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.needed { "" } else { "!" };
        write!(f, "{mark}{}", self.number)
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl Serialize for Capability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Format, parse};

    /// After an example of Firecracker's.
    const TEMPLATE: &str = r#"{
        "kvm_capabilities": ["121", "!56"],
        "cpuid_modifiers": [
            {
                "leaf": "0x7", "subleaf": "0b1", "flags": 1,
                "modifiers": [
                    {"register": "eax", "bitmap": "0bx00100xxx1xxxxxxxxxxxxxxxxxxxxx1"},
                    {"register": "edx", "bitmap": "0b1"}
                ]
            }
        ],
        "msr_modifiers": [{"addr": "266", "bitmap": "0b0000_xxxx"}]
    }"#;

    #[test]
    fn firecrackers_templates_are_read_and_written_back_as_the_same() {
        let spec: CpuTemplateSpec = serde_json::from_str(TEMPLATE).unwrap();
        let written = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<CpuTemplateSpec>(&written).unwrap(), spec);
        let template = spec.template();
        assert_eq!(template.capabilities, [121]);
        let first = CpuidChange {
            leaf: 7,
            subleaf: 1,
            flags: 1,
            registers: [
                "0bx00100xxx1xxxxxxxxxxxxxxxxxxxxx1".parse().unwrap(),
                Bits::default(),
                Bits::default(),
                Bits::default(),
            ],
        };
        assert_eq!(template.cpuid[0], first);
        assert_eq!(template.cpuid[1].registers[3], "0b1".parse().unwrap());
        let msr = MsrChange {
            index: 0x10a,
            bits: "0b0000xxxx".parse().unwrap(),
        };
        assert_eq!(template.msrs, [msr]);
    }

    #[test]
    fn each_mistake_names_its_field_and_what_to_write() {
        let numbers = "is no number of 32 bits; write it as text in one of the forms 0x1f, 0b11111 and 31";
        for (template, expected) in [
            (
                "{ msr_modifiers = [{ addr = \"0xzz\", bitmap = \"0b1\" }] }",
                format!("line 1: cpu_template.msr_modifiers[0].addr: \"0xzz\" {numbers}"),
            ),
            (
                "{ msr_modifiers = [{ addr = \"0x100000000\", bitmap = \"0b1\" }] }",
                format!("line 1: cpu_template.msr_modifiers[0].addr: \"0x100000000\" {numbers}"),
            ),
            (
                "{ kvm_capabilities = [\"!+1\"] }",
                format!("line 1: cpu_template.kvm_capabilities[0]: \"+1\" {numbers}"),
            ),
            (
                "{ msr_modifiers = [{ addr = \"1\", bitmap = \"0b2\" }] }",
                "line 1: cpu_template.msr_modifiers[0].bitmap: \"0b2\" is no bitmap: '2' says nothing about a bit; write 0 to clear it, 1 to set it, x to leave it".to_owned(),
            ),
        ] {
            let error = parse(&format!("cpu_template = {template}"), Format::Toml).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }
}
