//! Lists of tables, and nothing but tables: Serde's derived types would take a list of their fields' values as well, which
//! no reader could tell apart.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{
    BalloonSpec, BandwidthSpec, ConsoleSpec, CpuTemplateSpec, CpuidModifier, DiskSpec, MmdsSpec, MsrModifier,
    NetSpec, OpsSpec, PmemSpec, RateLimitSpec, RegisterModifier, VsockSpec,
};

/// What a table describes, for the one who wrote something else.
pub(crate) trait Described {
    /// Completes "… is not".
    const WHAT: &str;
}

impl Described for DiskSpec {
    const WHAT: &str = "a disk; give a table with its path";
}

impl Described for PmemSpec {
    const WHAT: &str = "a file in memory; give a table with at least its path";
}

impl Described for NetSpec {
    const WHAT: &str = "a network interface; give a table with its tap, or with user";
}

impl Described for MmdsSpec {
    const WHAT: &str = "a metadata service; give a table, which may be empty";
}

impl Described for CpuTemplateSpec {
    const WHAT: &str = "a CPU template; give a table, which may be empty";
}

impl Described for CpuidModifier {
    const WHAT: &str = "a change to CPUID; give a table with leaf, subleaf, flags and modifiers";
}

impl Described for RegisterModifier {
    const WHAT: &str = "a change to a register; give a table with register and bitmap";
}

impl Described for MsrModifier {
    const WHAT: &str = "a change to an MSR; give a table with addr and bitmap";
}

impl Described for VsockSpec {
    const WHAT: &str = "a vsock; give a table with its path";
}

impl Described for BalloonSpec {
    const WHAT: &str = "a balloon; give a table, which may be empty";
}

impl Described for ConsoleSpec {
    const WHAT: &str = "a console's port; give a table with a socket or a file";
}

impl Described for RateLimitSpec {
    const WHAT: &str = "a limit; give a table with bandwidth or ops";
}

impl Described for BandwidthSpec {
    const WHAT: &str = "a limit in bytes; give a table with its size";
}

impl Described for OpsSpec {
    const WHAT: &str = "a limit in operations; give a table with its size";
}

/// Reads a table, or nothing.
pub(crate) fn optional<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Described,
{
    let table = Option::<Table<T>>::deserialize(deserializer)?;
    Ok(table.map(|Table(value)| value))
}

/// Reads a list of tables.
pub(crate) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Described,
{
    let tables = Vec::<Table<T>>::deserialize(deserializer)?;
    Ok(tables.into_iter().map(|Table(value)| value).collect())
}

struct Table<T>(T);

impl<'de, T: Deserialize<'de> + Described> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TableVisitor(PhantomData)).map(Table)
    }
}

struct TableVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + Described> Visitor<'de> for TableVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::WHAT)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}
