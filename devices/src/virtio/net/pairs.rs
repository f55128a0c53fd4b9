//! What each queue of a card is for.

use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

use super::commands::Commands;
use super::receive::Receiver;
use super::transmit::Transmitter;

/// A started queue, by what it is for.
pub(super) enum Started {
    Receive(Box<Receiver>),
    Transmit(Box<Transmitter>),
    Control(Box<Commands>),
}

/// What a queue is for.
pub(super) enum Role {
    Receive,
    Transmit,
    Control,
}

pub(super) fn no_queues(pairs: u16) -> Vec<Option<Started>> {
    (0..queue_count(pairs)).map(|_| None).collect()
}

/// How many queues a card of so many pairs has.
pub(super) fn queue_count(pairs: u16) -> u16 {
    if pairs > 1 { 2 * pairs + 1 } else { 2 }
}

/// What queue `index` of a card with so many pairs is for. A driver that knows of the control queue but not of several pairs has it
/// behind the only pair (section 5.1.2).
pub(super) fn role(index: u16, features: u64, pairs: u16) -> Option<Role> {
    let has = |feature: u32| features & 1 << feature != 0;
    let behind_one = pairs > 1 && has(VIRTIO_NET_F_CTRL_VQ) && !has(VIRTIO_NET_F_MQ);
    if index >= queue_count(pairs) {
        None
    } else if index == 2 * pairs || behind_one && index == 2 {
        Some(Role::Control)
    } else if index.is_multiple_of(2) {
        Some(Role::Receive)
    } else {
        Some(Role::Transmit)
    }
}

/// Which part of a card that was split, one part for each pair, has queue `index`.
pub(super) fn part_of(index: u16, features: u64, pairs: u16) -> usize {
    match role(index, features, pairs) {
        Some(Role::Receive | Role::Transmit) => usize::from(index / 2),
        _ => 0,
    }
}
