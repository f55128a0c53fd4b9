//! Why there is no result.

use core::fmt;

use crate::options::Problem;

pub enum Failure<'a> {
    Word(Problem<'a>),
    NoDevice,
    Refused(&'static str),
    Depth {
        depth: u16,
        capacity: u16,
    },
    /// Bytes that were left when more was needed.
    Memory(u64),
    Request {
        status: u8,
        sector: u64,
    },
    Content {
        sector: u64,
        found: u64,
    },
    Fault {
        error: u64,
        instruction: u64,
        address: u64,
    },
}

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(problem) => problem.fmt(f),
            Self::NoDevice => f.write_str("there is no such device"),
            Self::Refused(why) => f.write_str(why),
            Self::Depth { depth, capacity } => {
                write!(f, "depth={depth}: the queue takes {capacity} requests")
            }
            Self::Memory(left) => write!(f, "the buffers do not fit in memory: {left} bytes are left"),
            Self::Request { status, sector } => write!(f, "sector {sector}: status {status}"),
            Self::Content { sector, found } => write!(f, "sector {sector} holds what is not its: {found:#x}"),
            Self::Fault {
                error,
                instruction,
                address,
            } => write!(f, "fault {error:#x} at {instruction:#x}, address {address:#x}"),
        }
    }
}
