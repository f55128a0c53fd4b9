//! Frames: which are for the service, and ARP, by which a guest finds it.

use std::net::Ipv4Addr;

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    Ipv4Packet,
};

use crate::virtio::net::header::HEADER;

/// The service's hardware address: Firecracker's.
const MAC: EthernetAddress = EthernetAddress([0x06, 0x01, 0x23, 0x45, 0x67, 0x01]);

/// As many bytes of a frame say whether it is for the service: an Ethernet header and ARP's addresses.
pub(super) const DECIDES: usize = ETHERNET + 28;

const ETHERNET: usize = 14;
/// Where the address that a packet is for lies in the frame: ARP's target, IPv4's destination.
const ARP_TARGET: usize = ETHERNET + 24;
const IP_DESTINATION: usize = ETHERNET + 16;

/// Whether this begins like a frame at all.
pub(super) fn is_frame(begin: &[u8]) -> bool {
    begin.len() >= ETHERNET
}

/// Whether the frame that begins with `begin` is for the service at `address`.
pub(super) fn is_for(address: Ipv4Addr, begin: &[u8]) -> bool {
    let Ok(frame) = EthernetFrame::new_checked(begin) else {
        return false;
    };
    let at = match frame.ethertype() {
        EthernetProtocol::Arp => ARP_TARGET,
        EthernetProtocol::Ipv4 => IP_DESTINATION,
        _ => return false,
    };
    begin.get(at..at + 4) == Some(&address.octets())
}

/// What a frame for the service is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken<'a> {
    /// Somebody asks where the service is: the answer, as the guest's driver receives it.
    Arp(Vec<u8>),
    /// A TCP segment in an IPv4 packet, and who sent it.
    Tcp(EthernetAddress, &'a [u8]),
    /// Nothing that the service answers.
    Other,
}

/// Looks at a frame for the service at `address`.
pub(super) fn look(address: Ipv4Addr, frame: &[u8]) -> Taken<'_> {
    let Ok(frame) = EthernetFrame::new_checked(frame) else {
        return Taken::Other;
    };
    let from = frame.src_addr();
    if !from.is_unicast() {
        return Taken::Other;
    }
    match frame.ethertype() {
        EthernetProtocol::Arp => arp(address, frame.payload()).map_or(Taken::Other, Taken::Arp),
        EthernetProtocol::Ipv4 if is_segment(address, frame.payload()) => Taken::Tcp(from, frame.payload()),
        _ => Taken::Other,
    }
}

/// Whether this is a whole TCP segment that can be answered.
fn is_segment(address: Ipv4Addr, packet: &[u8]) -> bool {
    let Ok(packet) = Ipv4Packet::new_checked(packet) else {
        return false;
    };
    let from = packet.src_addr();
    let answerable =
        !from.is_unspecified() && !from.is_broadcast() && !from.is_multicast() && from != address;
    let whole = !packet.more_frags() && packet.frag_offset() == 0;
    packet.version() == 4 && packet.next_header() == IpProtocol::Tcp && whole && answerable
}

fn arp(address: Ipv4Addr, packet: &[u8]) -> Option<Vec<u8>> {
    let packet = ArpPacket::new_checked(packet).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: guest,
        source_protocol_addr: guest_address,
        ..
    } = ArpRepr::parse(&packet).ok()?
    else {
        return None;
    };
    if !guest.is_unicast() {
        return None;
    }
    let answer = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: MAC,
        source_protocol_addr: address,
        target_hardware_addr: guest,
        target_protocol_addr: guest_address,
    };
    let (frame, ()) = frame(guest, EthernetProtocol::Arp, answer.buffer_len(), |bytes| {
        answer.emit(&mut ArpPacket::new_unchecked(bytes));
    });
    Some(frame)
}

/// A frame of the service's for the guest as its driver receives it, virtio's header before it, and what `fill` returned, which
/// writes its `len` bytes.
pub(super) fn frame<R>(
    to: EthernetAddress,
    ethertype: EthernetProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]) -> R,
) -> (Vec<u8>, R) {
    let mut bytes = vec![0; HEADER + ETHERNET + len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[HEADER..]);
    frame.set_dst_addr(to);
    frame.set_src_addr(MAC);
    frame.set_ethertype(ethertype);
    let result = fill(frame.payload_mut());
    (bytes, result)
}
