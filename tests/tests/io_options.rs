//! The I/O bench guest's command line (`guests/io/options.rs`), compiled for the host.
#![forbid(unsafe_code)]

#[path = "../guests/io/options.rs"]
#[allow(dead_code, unreachable_pub)]
mod options;

use options::{Bench, Op, Options, Wait, Window, parse, windows};

fn good(line: &str) -> Options {
    parse(line).unwrap_or_else(|problem| panic!("{line}: {problem}"))
}

#[test]
fn words_of_the_monitor_and_of_linux_are_left_alone() {
    let options =
        good("console=ttyS0 reboot=k panic=-1 quiet virtio_mmio.device=4K@0xd0000000:5 bench=blk op=flush");
    assert_eq!(options.op, Op::Flush);
    assert_eq!(good(""), good("root=/dev/vda"));
}

#[test]
fn all_that_can_be_asked_for_is_understood() {
    let options = good(
        "bench=blk op=randrw bs=64K depth=128 ms=1500 count=7 warmup_ms=20 wait=irq queues=4 dev=2 event_idx=0 indirect=0 \
         packed=1 verify=1 span=1G seed=0x10 tsc_khz=2596140",
    );
    let expected = Options {
        bench: Bench::Blk,
        op: Op::RandRw,
        bs: 65536,
        depth: 128,
        ms: 1500,
        count: 7,
        warmup_ms: 20,
        wait: Wait::Irq,
        queues: 4,
        dev: 2,
        event_idx: false,
        indirect: false,
        packed: true,
        verify: true,
        span: 1 << 30,
        seed: 16,
        tsc_khz: 2_596_140,
    };
    assert_eq!(options, expected);
}

#[test]
fn every_operation_has_one_name() {
    for name in [
        "randread",
        "randwrite",
        "randrw",
        "seqread",
        "seqwrite",
        "flush",
        "id",
    ] {
        assert_eq!(good(&format!("op={name}")).op.name(), name);
    }
    for name in ["tx", "rx", "pingpong"] {
        assert_eq!(good(&format!("op={name} bench=net")).op.name(), name);
    }
}

#[test]
fn without_an_end_it_is_a_thousand_operations() {
    assert_eq!(good("bench=blk").count, 1000);
    assert_eq!(good("bench=blk ms=10").count, 0);
}

#[test]
fn what_a_word_may_be_is_said_where_it_is_something_else() {
    for (line, expected) in [
        ("bench=scsi", "bench=scsi: it must be blk or net"),
        ("bs=2M", "bs=2M: it must be a size up to 1M"),
        ("bs=", "bs=: it must be a size up to 1M"),
        ("depth=0", "depth=0: it must be a number from 1 to 256"),
        ("depth=1e3", "depth=1e3: it must be a number from 1 to 256"),
        ("packed=yes", "packed=yes: it must be 0 or 1"),
        (
            "count=99999999999999999999",
            "count=99999999999999999999: it must be a number of operations",
        ),
        (
            "span=0xffffffffffffffffK",
            "span=0xffffffffffffffffK: it must be a size",
        ),
        ("op=rx", "op=rx: it must be an operation of what bench= says"),
        (
            "op=flush bench=net",
            "op=flush: it must be an operation of what bench= says",
        ),
    ] {
        assert_eq!(parse(line).unwrap_err().to_string(), expected);
    }
}

#[test]
fn devices_are_found_in_the_order_of_the_line_whatever_the_monitor_writes() {
    let line = "virtio_mmio.device=4K@0xd0000000:5 x virtio_mmio.device=512@0xfeb02e00:12:3 virtio_mmio.device=4K@:9 \
                virtio_mmio.device=0x1000@3489665024:6";
    let found: Vec<_> = windows(line).collect();
    let expected = [(0xd000_0000, 5), (0xfeb0_2e00, 12), (0xd000_1000, 6)];
    assert_eq!(found, expected.map(|(base, irq)| Window { base, irq }));
}
