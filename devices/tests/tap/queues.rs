//! Taps with several queues.

use super::*;

const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;

/// How many queues of `tap` frames are given by, and how many others are held.
fn queues(tap: &str) -> [u32; 2] {
    let said = ip(&format!("-d -o link show {tap}"));
    ["numqueues ", "numdisabled "].map(|word| {
        // The kernel's own queues have such numbers too, after the tap's.
        let rest = said.split("multi_queue").nth(1).expect("it has several queues");
        let number = rest.split(word).nth(1).and_then(|rest| rest.split(' ').next());
        number.and_then(|number| number.parse().ok()).expect("a number")
    })
}

#[test]
fn a_tap_of_several_queues_gives_frames_by_as_many_as_the_driver_uses() {
    in_namespace(|| {
        ip("tuntap add t0 mode tap multi_queue");
        for make in [false, true] {
            let name = if make { "made0" } else { "t0" };
            let (taps, steering) = Tap::open_pairs(name, 3, make).unwrap();
            assert_eq!(queues(name), [1, 2]);
            let backends = taps.into_iter().map(|tap| Box::new(tap) as Box<dyn NetBackend>);
            let net = Net::with_pairs(backends.collect(), Box::new(steering), MAC[0]);
            let machine = Machine::new(Box::new(net));
            let mut control = machine.bring_up(VERSION_1 | MRG_RXBUF | CTRL_VQ | MQ).remove(6);
            for pairs in [3, 1, 2, 2] {
                let memory = &machine.memory;
                memory
                    .write_slice(&[4, 0, pairs as u8, 0, 0xee], GuestAddress(BUFFERS))
                    .unwrap();
                control.add(&[Part::Read(BUFFERS, 4), Part::Write(BUFFERS + 4, 1)]);
                machine.notify(6);
                assert!(control.take_used().is_some());
                assert_eq!(memory.read_obj::<u8>(GuestAddress(BUFFERS + 4)).unwrap(), 0);
                assert_eq!(queues(name), [pairs, 3 - pairs]);
            }
            machine.reset();
            machine.bring_up(VERSION_1);
            assert_eq!(queues(name), [1, 2], "a driver that knows of one");
        }
        let gone = Command::new("ip")
            .args(["link", "show", "made0"])
            .output()
            .unwrap();
        assert!(!gone.status.success(), "what was made is gone with the card");
    });
}
