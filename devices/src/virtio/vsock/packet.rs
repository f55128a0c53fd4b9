//! The header before every packet (virtio 1.3, section 5.10.6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout};

/// The host, seen from a guest.
pub(super) const HOST_CID: u64 = 2;
/// Bytes of a header.
pub(super) const HEADER: u32 = size_of::<Header>() as u32;

/// Type of a stream, the only one that this device has.
pub(super) const STREAM: u16 = 1;

/// What a packet is for.
pub(super) mod op {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RST: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const RW: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// SHUTDOWN: whoever says so takes no more data.
pub(super) const NO_RECEIVE: u32 = 1;
/// SHUTDOWN: whoever says so sends no more data.
pub(super) const NO_SEND: u32 = 2;
/// SHUTDOWN: both.
pub(super) const BOTH: u32 = NO_RECEIVE | NO_SEND;

/// A header as it lies in memory.
#[derive(Debug, Clone, Copy, zerocopy::FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub(super) src_cid: U64,
    pub(super) dst_cid: U64,
    pub(super) src_port: U32,
    pub(super) dst_port: U32,
    pub(super) len: U32,
    pub(super) kind: U16,
    pub(super) op: U16,
    pub(super) flags: U32,
    pub(super) buf_alloc: U32,
    pub(super) fwd_cnt: U32,
}

impl Header {
    /// All zeros.
    pub(super) fn empty() -> Self {
        Self::new_zeroed()
    }

    /// The ports as this device names connections.
    pub(super) fn ports(&self) -> Ports {
        Ports {
            local: self.dst_port.get(),
            peer: self.src_port.get(),
        }
    }

    /// The refusal of this packet: an RST back to wherever it claims to come from.
    pub(super) fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST.into(),
            ..Self::empty()
        }
    }
}

/// What tells the connections of one guest apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(super) struct Ports {
    /// The host's.
    pub(super) local: u32,
    /// The guest's.
    pub(super) peer: u32,
}
