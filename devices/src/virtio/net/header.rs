//! The header before each frame (virtio 1.3, section 5.1.6): what is left to do for checksums and segmentation.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP,
    VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// Bytes of the header, with `num_buffers`, as virtio 1 always has it.
pub const HEADER: usize = 12;
/// Where `num_buffers` lies in it.
pub(super) const NUM_BUFFERS: u32 = 10;

/// An Ethernet header.
const SHORTEST: u32 = 14;
/// The longest IP packet, an Ethernet header and two VLAN tags.
pub(super) const LONGEST: u32 = 65535 + 14 + 8;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;
const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
/// A datagram that becomes fragments of one.
const GSO_UDP: u8 = VIRTIO_NET_HDR_GSO_UDP as u8;
/// One that becomes many.
const GSO_UDP_L4: u8 = VIRTIO_NET_HDR_GSO_UDP_L4 as u8;

/// Why a frame of the guest's is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("it is {0} bytes long, and a frame has {SHORTEST} to {LONGEST}")]
    Length(u32),
    #[error("it asks for {0}, which was not negotiated")]
    NotNegotiated(&'static str),
    #[error("its segmentation type {0:#04x} does not exist")]
    Segmentation(u8),
    #[error("it is to be cut into segments of no bytes")]
    EmptySegments,
    #[error("it is to be cut into segments without a checksum")]
    NoChecksum,
    #[error("its checksum at {at} would lie past its end at {len}")]
    Checksum { at: u32, len: u32 },
}

/// A header that the host may act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header(pub(super) [u8; HEADER]);

impl Header {
    /// Checks what the guest wrote before a frame of `len` bytes, under the negotiated `features`. What means nothing is cleared,
    /// so that the host sees only what was checked.
    pub(super) fn check(written: [u8; HEADER], len: u32, features: u64) -> Result<Self, FrameError> {
        if !(SHORTEST..=LONGEST).contains(&len) {
            return Err(FrameError::Length(len));
        }
        let negotiated = |feature: u32, what| {
            if features & 1 << feature == 0 {
                Err(FrameError::NotNegotiated(what))
            } else {
                Ok(())
            }
        };
        let word = |at: usize| u16::from_le_bytes([written[at], written[at + 1]]);
        let [mut header_len, mut segment] = [word(2), word(4)];
        let [mut start, mut offset] = [word(6), word(8)];
        let flags = written[0] & NEEDS_CSUM;
        if flags == 0 {
            [start, offset] = [0, 0];
        } else {
            negotiated(VIRTIO_NET_F_CSUM, "a checksum")?;
            let at = u32::from(start) + u32::from(offset);
            if at + 2 > len {
                return Err(FrameError::Checksum { at, len });
            }
        }
        let kind = written[1];
        if kind == GSO_NONE {
            [header_len, segment] = [0, 0];
        } else {
            // ECN is TCP's.
            let segments = if matches!(kind & !GSO_ECN, GSO_TCPV4 | GSO_TCPV6) {
                kind & !GSO_ECN
            } else {
                kind
            };
            match segments {
                GSO_TCPV4 => negotiated(VIRTIO_NET_F_HOST_TSO4, "segmentation for TCP over IPv4")?,
                GSO_TCPV6 => negotiated(VIRTIO_NET_F_HOST_TSO6, "segmentation for TCP over IPv6")?,
                GSO_UDP => negotiated(VIRTIO_NET_F_HOST_UFO, "fragmentation of UDP")?,
                GSO_UDP_L4 => negotiated(VIRTIO_NET_F_HOST_USO, "segmentation for UDP")?,
                _ => return Err(FrameError::Segmentation(kind)),
            }
            if kind & GSO_ECN != 0 {
                negotiated(VIRTIO_NET_F_HOST_ECN, "segmentation with ECN")?;
            }
            if segment == 0 {
                return Err(FrameError::EmptySegments);
            }
            if flags == 0 {
                return Err(FrameError::NoChecksum);
            }
            // A hint for the host; its driver may leave it out.
            header_len = u32::from(header_len).min(len) as u16;
        }
        let mut header = [0; HEADER];
        header[..2].copy_from_slice(&[flags, kind]);
        for (at, value) in [(2, header_len), (4, segment), (6, start), (8, offset)] {
            header[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        Ok(Self(header))
    }

    /// The header as it goes before the frame.
    pub fn bytes(&self) -> &[u8; HEADER] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::any;
    use proptest::proptest;

    use super::*;

    const ALL: u64 = 1 << VIRTIO_NET_F_CSUM
        | 1 << VIRTIO_NET_F_HOST_TSO4
        | 1 << VIRTIO_NET_F_HOST_TSO6
        | 1 << VIRTIO_NET_F_HOST_ECN
        | 1 << VIRTIO_NET_F_HOST_UFO
        | 1 << VIRTIO_NET_F_HOST_USO;

    fn header(flags: u8, kind: u8, words: [u16; 4]) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..2].copy_from_slice(&[flags, kind]);
        for (at, word) in words.iter().enumerate() {
            bytes[2 + at * 2..][..2].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn good_headers_pass_and_what_means_nothing_is_cleared() {
        let plain = Header::check(header(0xfe, 0, [1, 2, 3, 4]), 60, 0).unwrap();
        assert_eq!(plain.bytes(), &[0; HEADER]);
        let sum = header(1, 0, [0, 0, 34, 6]);
        assert_eq!(Header::check(sum, 60, ALL).unwrap().bytes(), &sum);
        let tso = header(1, 1, [54, 1448, 34, 16]);
        assert_eq!(Header::check(tso, 60000, ALL).unwrap().bytes(), &tso);
        let ecn = header(1, 0x84, [74, 1428, 54, 16]);
        assert_eq!(Header::check(ecn, LONGEST, ALL).unwrap().bytes(), &ecn);
        for kind in [3, 5] {
            let udp = header(1, kind, [42, 1000, 34, 6]);
            assert_eq!(Header::check(udp, 9000, ALL).unwrap().bytes(), &udp);
        }
        let hint = Header::check(header(1, 1, [0xffff, 1448, 34, 16]), 3000, ALL).unwrap();
        assert_eq!(hint.bytes(), &header(1, 1, [3000, 1448, 34, 16]));
    }

    #[test]
    fn bad_headers_are_refused_for_what_is_wrong() {
        let good = header(1, 1, [54, 1448, 34, 16]);
        let checksum = FrameError::Checksum {
            at: 0x1fffe,
            len: 100,
        };
        for (bytes, len, features, expected) in [
            (good, 13, ALL, FrameError::Length(13)),
            (good, LONGEST + 1, ALL, FrameError::Length(LONGEST + 1)),
            (good, 100, 0, FrameError::NotNegotiated("a checksum")),
            (
                good,
                100,
                1,
                FrameError::NotNegotiated("segmentation for TCP over IPv4"),
            ),
            (
                header(1, 4, [54, 1448, 34, 16]),
                100,
                1,
                FrameError::NotNegotiated("segmentation for TCP over IPv6"),
            ),
            (
                header(1, 0x81, [54, 1448, 34, 16]),
                100,
                ALL ^ 1 << VIRTIO_NET_F_HOST_ECN,
                FrameError::NotNegotiated("segmentation with ECN"),
            ),
            (
                header(1, 3, [42, 1448, 34, 6]),
                100,
                ALL ^ 1 << VIRTIO_NET_F_HOST_UFO,
                FrameError::NotNegotiated("fragmentation of UDP"),
            ),
            (
                header(1, 5, [42, 1448, 34, 6]),
                100,
                ALL ^ 1 << VIRTIO_NET_F_HOST_USO,
                FrameError::NotNegotiated("segmentation for UDP"),
            ),
            (
                header(1, 0x85, [42, 1448, 34, 6]),
                100,
                ALL,
                FrameError::Segmentation(0x85),
            ),
            (
                header(1, 2, [54, 1448, 34, 6]),
                100,
                ALL,
                FrameError::Segmentation(2),
            ),
            (
                header(1, 0x80, [54, 1448, 34, 6]),
                100,
                ALL,
                FrameError::Segmentation(0x80),
            ),
            (header(1, 1, [54, 0, 34, 16]), 100, ALL, FrameError::EmptySegments),
            (header(0, 1, [54, 1448, 34, 16]), 100, ALL, FrameError::NoChecksum),
            (header(1, 0, [0, 0, 0xffff, 0xffff]), 100, ALL, checksum),
            (
                header(1, 0, [0, 0, 90, 9]),
                100,
                ALL,
                FrameError::Checksum { at: 99, len: 100 },
            ),
        ] {
            assert_eq!(Header::check(bytes, len, features), Err(expected));
        }
    }

    proptest! {
        #[test]
        fn what_passes_passes_again_unchanged(bytes: [u8; HEADER], len in 0..70_000_u32, features: u64) {
            if let Ok(header) = Header::check(bytes, len, features) {
                assert_eq!(Header::check(*header.bytes(), len, features), Ok(header));
            }
        }

        #[test]
        fn nothing_is_sent_that_was_not_negotiated(bytes in any::<[u8; HEADER]>(), len in 0..2000_u32) {
            if let Ok(header) = Header::check(bytes, len, 0) {
                assert_eq!(header.bytes(), &[0; HEADER]);
            }
        }
    }
}
