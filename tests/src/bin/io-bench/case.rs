//! What is measured.

/// One thing that the guest is asked to do.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) words: String,
}

impl Case {
    /// A case that is called by its words.
    pub(crate) fn of(words: &str) -> Self {
        Self {
            name: words.to_owned(),
            words: words.to_owned(),
        }
    }
}

/// What is measured unless something else is asked for.
pub(crate) fn built_in() -> Vec<Case> {
    [
        ("4k random read, depth 1", "bench=blk op=randread bs=4K depth=1"),
        ("4k random read, depth 32", "bench=blk op=randread bs=4K depth=32"),
        (
            "4k random read, depth 32, by interrupt",
            "bench=blk op=randread bs=4K depth=32 wait=irq",
        ),
        (
            "4k random write, depth 32",
            "bench=blk op=randwrite bs=4K depth=32",
        ),
        (
            "128k sequential read, depth 4",
            "bench=blk op=seqread bs=128K depth=4",
        ),
        (
            "128k sequential write, depth 4",
            "bench=blk op=seqwrite bs=128K depth=4",
        ),
        ("notify to completion", "bench=blk op=id depth=1"),
        ("notify to interrupt", "bench=blk op=id depth=1 wait=irq"),
        (
            "1514 byte frames sent, depth 64",
            "bench=net op=tx bs=1514 depth=64",
        ),
        ("60 byte frames sent, depth 64", "bench=net op=tx bs=60 depth=64"),
        (
            "1514 byte frames received, depth 128",
            "bench=net op=rx bs=1514 depth=128",
        ),
        (
            "1514 byte frames received, depth 128, by interrupt",
            "bench=net op=rx bs=1514 depth=128 wait=irq",
        ),
        ("frame and its answer", "bench=net op=pingpong bs=60"),
        (
            "frame and its answer, by interrupt",
            "bench=net op=pingpong bs=60 wait=irq",
        ),
    ]
    .into_iter()
    .map(|(name, words)| Case {
        name: name.to_owned(),
        words: words.to_owned(),
    })
    .collect()
}
