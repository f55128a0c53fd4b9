//! The assist: completes in user space what KVM cannot run in ring 0 on interpreted hosts.
//!
//! Where KVM has no hardware virtualization to use, it runs 64-bit ring 3 on the CPU and interprets ring 0, with an instruction
//! emulator that knows less than the CPU and a SYSCALL that is only half done. [`VcpuAssist`] does the rest: one per vCPU, called
//! around KVM_RUN. Which hosts need it is for [`kind`](super::kind) to say; on others nothing here runs.
//!
//! ```text
//!      ┌──────────────────────────────────────────────────────────────────────────┐
//!      ▼                                                                          │
//!  before_run ──────▶ KVM_RUN ──┬─ KVM_EXIT_INTERNAL_ERROR ─▶ on_unemulated ──────┤  fetch, decode, execute
//!  ring 0: interpret            ├─ KVM_EXIT_DEBUG ──────────▶ on_debug ───────────┤  system call or page fault
//!  here, then one step of KVM   └─ all others, as on any host ────────────────────┘
//!  ring 3: breakpoints
//! ```
//! - [`machine`], [`paging`] and [`operand`] are the vCPU as an instruction sees it; [`execute`] picks the instruction, which
//!   `integer`, `system`, `x87` and [`xsave`] carry out. All of that runs under test without KVM.
//! - `interpret` runs the rest of ring 0 as well, since KVM's emulator takes about a microsecond for an instruction and 13 for one
//!   that ends in user space. What it does not know, KVM does in a single step. Without it ([`VcpuAssist::interpret_here`]) KVM runs
//!   ring 0 until something is to be completed.
//! - `vcpu`, `watch` and `kvm` connect it to a real vCPU.
//!
//! **System calls** appear as page faults: KVM sets RIP to LSTAR, RCX, R11 and RFLAGS, but stays in ring 3, and the fetch of the
//! kernel's page faults. A breakpoint on the guest's page fault handler catches that, and every real page fault with it. The
//! breakpoints take the place of the guest's own hardware breakpoints, which do not fire while they are set.
//!
//! **Registers** travel with KVM_RUN itself ([`SyncReg`](kvm_ioctls::SyncReg)), since every other call on a vCPU costs 4 µs here. What
//! was changed is in the vCPU only once KVM_RUN was entered again, be it with an immediate exit. Read a vCPU's state after such an
//! entry, never between an `on_…` or `before_run` and KVM_RUN; and set it before the first `before_run` only.
//!
//! **What is beyond reach.** KVM raises #UD by itself, without asking, for instructions that its emulator knows but that it does not
//! offer in CPUID (MOVBE, RDPID): kernels must be told not to use them. Ring 3 sees the CPU as it is: CPUID, XCR0 and the time stamp
//! counter without the guest's offset. 32-bit code in ring 3 is interpreted by KVM alone.

mod counts;
pub mod execute;
mod integer;
mod interpret;
mod kvm;
pub mod machine;
#[cfg(test)]
mod mock;
pub mod operand;
pub mod paging;
mod system;
#[cfg(test)]
mod tests;
mod vcpu;
mod watch;
mod x87;
pub mod xsave;

use iced_x86::{Formatter, GasFormatter, Instruction};

pub use counts::AssistCounts;
pub use vcpu::{AssistState, VcpuAssist};

/// Why the guest cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AssistError {
    /// An instruction that neither KVM nor the assist can do.
    #[error(
        "the guest's kernel cannot go on at {rip:#x}: neither KVM nor the assist can execute `{instruction}` ({bytes}){why}"
    )]
    Instruction {
        /// Where it is.
        rip: u64,
        /// Its bytes in hexadecimal.
        bytes: String,
        /// It, in words.
        instruction: String,
        /// What stands in the way, if that is known.
        why: String,
    },
    /// KVM failed in another way.
    #[error(
        "the guest stopped at {rip:#x} with KVM's internal error {suberror}, which the assist cannot complete"
    )]
    Internal {
        /// KVM's number for it.
        suberror: u32,
        /// Where the guest was.
        rip: u64,
    },
    /// A call to KVM failed.
    #[error("{ioctl} failed while completing an instruction: {cause}")]
    Ioctl {
        /// Name of the call.
        ioctl: &'static str,
        /// What KVM said.
        cause: kvm_ioctls::Error,
    },
    /// KVM does not have a register that is needed.
    #[error("KVM does not know MSR {index:#x}, which completing an instruction needs")]
    Msr {
        /// The register.
        index: u32,
    },
    /// KVM's extended state has an impossible size.
    #[error("KVM wants a buffer of {size} bytes for the vCPU's extended state, which is too much to be true")]
    XsaveSize {
        /// The size.
        size: usize,
    },
}

impl AssistError {
    /// Describes an instruction that cannot be completed. `bytes` may hold more than it.
    fn instruction(rip: u64, bytes: &[u8], instruction: &Instruction, why: String) -> Self {
        let length = if instruction.is_invalid() {
            bytes.len()
        } else {
            instruction.len()
        };
        let bytes = bytes
            .iter()
            .take(length)
            .map(|byte| format!("{byte:02x}"))
            .collect::<Vec<_>>();
        let mut text = String::new();
        GasFormatter::new().format(instruction, &mut text);
        Self::Instruction {
            rip,
            bytes: bytes.join(" "),
            instruction: text,
            why: if why.is_empty() { why } else { format!(" {why}") },
        }
    }
}
