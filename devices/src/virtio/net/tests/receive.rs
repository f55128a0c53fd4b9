//! Frames to the guest: into which buffers, and what becomes of those that fit none.

use super::*;

#[test]
fn a_frame_goes_into_one_buffer_and_says_so() {
    for features in [VERSION_1, MERGEABLE, LONG] {
        let (machine, mut receive, _, end) = machine(features);
        post(&machine, &mut receive, 0..4, 0x1000);
        let frames = [end.give(1, 60), end.give(2, 1514)];
        machine.device.pump();
        for (number, frame) in frames.into_iter().enumerate() {
            assert_eq!(received(&machine, &mut receive, number), Some((1, frame)));
        }
        assert_eq!(machine.interrupts(), 1, "one for both");
    }
}

#[test]
fn frames_wait_for_buffers_and_none_is_lost() {
    let (machine, mut receive, _, end) = machine(MERGEABLE);
    let frames: Vec<_> = (0..20).map(|number| end.give(number, 600)).collect();
    machine.device.pump();
    assert_eq!(receive.take_used(), None);
    for (number, frame) in frames.into_iter().enumerate() {
        post(&machine, &mut receive, number..number + 1, 1600);
        assert_eq!(received(&machine, &mut receive, number), Some((1, frame)));
        assert_eq!(receive.take_used(), None);
    }
}

#[test]
fn a_long_frame_goes_on_in_as_many_buffers_as_it_needs() {
    let (machine, mut receive, _, end) = machine(LONG);
    // The first is read short and spills; the second goes into place.
    for len in [60_000, 65_549, 1600, 3072] {
        let count = usize::div_ceil(len, 0x600);
        let used = receive.used_index();
        post(&machine, &mut receive, 0..50, 0x600);
        let frame = end.give(9, len);
        machine.device.pump();
        assert_eq!(received(&machine, &mut receive, 0), Some((count as u16, frame)));
        assert_eq!(receive.used_index(), used + count as u16);
        // Use up the rest, so that the next one begins at buffer 0 again.
        for number in count..50 {
            let frame = end.give(0, 100);
            machine.device.pump();
            assert_eq!(received(&machine, &mut receive, number), Some((1, frame)));
        }
    }
}

#[test]
fn buffers_of_odd_sizes_are_filled_to_the_last_byte() {
    let (machine, mut receive, _, end) = machine(LONG);
    let sizes = [12, 13, 100, 1, 4000];
    // The header is in one buffer of its own, then pieces of the frame.
    receive.add(&[Part::Write(at(0), sizes[0])]);
    receive.add(&[Part::Write(at(1), sizes[1]), Part::Write(at(2), sizes[2])]);
    receive.add(&[Part::Write(at(3), sizes[3]), Part::Write(at(4), sizes[4])]);
    machine.notify(RECEIVE);
    let frame = end.give(3, 12 + 113 + 1 + 3000);
    machine.device.pump();
    let used: Vec<_> = std::iter::from_fn(|| receive.take_used()).collect();
    assert_eq!(used, [(0, 12), (1, 113), (3, 3001)]);
    assert_eq!(bytes(&machine, at(0) + 10, 2), [3, 0]);
    let mut seen = Vec::new();
    for (number, size) in [(1, 13), (2, 100), (3, 1), (4, 3000)] {
        seen.extend(bytes(&machine, at(number), size));
    }
    assert_eq!(seen, frame[HEADER..]);
}

#[test]
fn a_frame_too_long_for_what_is_there_waits_while_the_driver_has_more_and_is_dropped_if_not() {
    let (machine, mut receive, _, end) = machine(LONG);
    post(&machine, &mut receive, 0..8, 0x600);
    // More than the driver ever posts: dropped, and the next one comes.
    end.give(1, 40_000);
    let small = end.give(2, 100);
    machine.device.pump();
    assert_eq!(received(&machine, &mut receive, 0), Some((1, small)));
    // Fits when the driver has posted again what it was just given.
    let frame = end.give(3, 12_000);
    machine.device.pump();
    assert_eq!(receive.take_used(), None);
    post(&machine, &mut receive, 8..9, 0x600);
    assert_eq!(received(&machine, &mut receive, 1), Some((8, frame)));
}

#[test]
fn without_mergeable_buffers_a_frame_that_does_not_fit_is_dropped_whole() {
    let (machine, mut receive, _, end) = machine(VERSION_1);
    post(&machine, &mut receive, 0..3, 1526);
    end.give(1, 1527);
    let fits = end.give(2, 1526);
    machine.device.pump();
    assert_eq!(received(&machine, &mut receive, 0), Some((1, fits)));
    assert_eq!(receive.take_used(), None);
}

#[test]
fn a_receive_buffer_without_room_for_a_header_breaks_the_protocol() {
    for parts in [vec![Part::Write(at(0), 11)], vec![Part::Read(at(0), 2000)]] {
        let (machine, mut receive, _, end) = machine(MERGEABLE);
        receive.add(&parts);
        machine.notify(RECEIVE);
        end.give(1, 60);
        machine.device.pump();
        assert_ne!(machine.status() & NEEDS_RESET, 0);
        assert_eq!(receive.take_used(), None);
        machine.reset();
    }
}

#[test]
fn buffers_taken_ahead_are_given_back_when_the_queue_stops() {
    let (machine, mut receive, _, end) = machine(LONG);
    post(&machine, &mut receive, 0..8, 0x600);
    let frame = end.give(1, 100);
    machine.device.pump();
    assert_eq!(received(&machine, &mut receive, 0), Some((1, frame)));
    machine.transport.pause();
    let state = machine.transport.save().unwrap();
    let at = state.queues[usize::from(RECEIVE)].1.unwrap();
    assert_eq!((at.next_avail, at.next_used), (1, 1));
    let frame = end.give(2, 2000);
    machine.transport.resume();
    machine.device.pump();
    assert_eq!(received(&machine, &mut receive, 1), Some((2, frame)));
}
