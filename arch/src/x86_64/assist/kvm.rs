//! The assist's [`Machine`] on a real vCPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_sregs};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory};

use super::AssistError;
use super::machine::{Machine, control};
use super::xsave::Layout;
use crate::x86_64::xsave_buffer::{TooLarge, XsaveBuffer};

/// What all completions of a vCPU share.
pub(super) struct Host {
    pub(super) memory: Arc<GuestMemoryMmap>,
    /// What of the guest's memory it may only read.
    pub(super) read_only: Arc<GuestMemoryMmap>,
    layout: Layout,
    xsave: XsaveBuffer,
}

impl Host {
    pub(super) fn new(memory: Arc<GuestMemoryMmap>, vm: &VmFd) -> Result<Self, AssistError> {
        Ok(Self {
            memory,
            read_only: Arc::default(),
            layout: Layout::of_host(),
            xsave: XsaveBuffer::new(vm).map_err(|TooLarge(size)| AssistError::XsaveSize { size })?,
        })
    }
}

/// A vCPU that does not run.
pub(super) struct KvmMachine<'a> {
    pub(super) vcpu: &'a VcpuFd,
    pub(super) host: &'a mut Host,
}

fn failed(ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> AssistError {
    move |cause| AssistError::Ioctl { ioctl, cause }
}

/// Reads MSRs; an error if KVM does not have one of them.
pub(super) fn read_msrs<const N: usize>(vcpu: &VcpuFd, indices: [u32; N]) -> Result<[u64; N], AssistError> {
    let entries = indices.map(|index| kvm_msr_entry {
        index,
        ..Default::default()
    });
    let refused = |index| AssistError::Msr { index };
    let mut msrs = Msrs::from_entries(&entries).map_err(|_| refused(indices[0]))?;
    let read = vcpu.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
    if let Some(index) = indices.get(read) {
        return Err(refused(*index));
    }
    let mut values = [0; N];
    for (value, entry) in values.iter_mut().zip(msrs.as_slice()) {
        *value = entry.data;
    }
    Ok(values)
}

/// A locked CMPXCHG16B. The standard library's function for it does not compile into the instruction reliably.
///
/// # Safety
/// The CPU has the instruction, and `word` is an aligned pointer to 16 bytes that may be read and written.
unsafe fn locked_compare_exchange(word: *mut u128, current: u128, new: u128) -> u128 {
    let (mut low, mut high) = (current as u64, (current >> 64) as u64);
    // SAFETY: the caller promised what the instruction needs; RBX, which the compiler keeps to itself, is restored.
    unsafe {
        std::arch::asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") word,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

impl Machine for KvmMachine<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let from = |memory: &GuestMemoryMmap, into: &mut [u8]| {
            memory.read_slice(into, GuestAddress(address)).is_ok()
        };
        from(&self.host.memory, into) || from(&self.host.read_only, into)
    }

    fn write(&self, address: u64, from: &[u8]) -> bool {
        self.host.memory.write_slice(from, GuestAddress(address)).is_ok()
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Option<bool> {
        let slice = self.host.memory.get_slice(GuestAddress(address), 8).ok()?;
        let word = slice.get_atomic_ref::<AtomicU64>(0).ok()?;
        Some(
            word.compare_exchange(current, new, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok(),
        )
    }

    fn compare_exchange16(&self, address: u64, current: u128, new: u128) -> Option<u128> {
        if !address.is_multiple_of(16) || !std::arch::is_x86_feature_detected!("cmpxchg16b") {
            return None;
        }
        let slice = self.host.memory.get_slice(GuestAddress(address), 16).ok()?;
        let guard = slice.ptr_guard_mut();
        #[expect(clippy::cast_ptr_alignment, reason = "asked for below")]
        let word = guard.as_ptr().cast::<u128>();
        if !word.is_aligned() {
            return None;
        }
        // SAFETY: `word` is 16 bytes of guest RAM that `guard` keeps mapped, and it is aligned. The guest's vCPUs and other threads
        // access it at the same time; all of them do so by atomic or volatile accesses outside Rust's memory model, and this one
        // is a locked instruction. The CPU has CMPXCHG16B, as just asked.
        let found = unsafe { locked_compare_exchange(word, current, new) };
        Some(found)
    }

    fn extended_state(&mut self) -> Result<Vec<u8>, AssistError> {
        self.host.xsave.read(self.vcpu).map_err(failed("KVM_GET_XSAVE2"))
    }

    fn set_extended_state(&mut self, image: &[u8]) -> Result<(), AssistError> {
        self.host
            .xsave
            .write(self.vcpu, image)
            .map_err(failed("KVM_SET_XSAVE"))
    }

    fn layout(&self) -> &Layout {
        &self.host.layout
    }

    fn xcr0(&mut self) -> Result<u64, AssistError> {
        let xcrs = self.vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
        let count = xcrs.nr_xcrs as usize;
        let xcr0 = xcrs.xcrs.iter().take(count).find(|register| register.xcr == 0);
        // The value after reset: x87 only.
        Ok(xcr0.map_or(1, |register| register.value))
    }

    fn set_xcr0(&mut self, value: u64) -> Result<bool, AssistError> {
        let mut xcrs = self.vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
        xcrs.nr_xcrs = 1;
        xcrs.xcrs[0].xcr = 0;
        xcrs.xcrs[0].value = value;
        match self.vcpu.set_xcrs(&xcrs) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == libc::EINVAL => Ok(false),
            Err(error) => Err(failed("KVM_SET_XCRS")(error)),
        }
    }

    fn msr(&mut self, index: u32) -> Result<u64, AssistError> {
        read_msrs(self.vcpu, [index]).map(|[value]| value)
    }

    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), AssistError> {
        let entry = kvm_msr_entry {
            index,
            data: value,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[entry]).map_err(|_| AssistError::Msr { index })?;
        match self.vcpu.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))? {
            1 => Ok(()),
            _ => Err(AssistError::Msr { index }),
        }
    }

    fn flush_translations(&mut self, sregs: &kvm_sregs) -> Result<(), AssistError> {
        // A change of CR4.PGE drops all translations, global ones too, as on the CPU.
        let mut changed = *sregs;
        changed.cr4 ^= control::CR4_PGE;
        for sregs in [&changed, sregs] {
            self.vcpu.set_sregs(sregs).map_err(failed("KVM_SET_SREGS"))?;
        }
        Ok(())
    }

    fn random(&mut self) -> Option<u64> {
        let mut raw = [0u8; 8];
        // SAFETY: the pointer and the length are those of `raw`, which lives across the call.
        let got = unsafe { libc::getrandom(raw.as_mut_ptr().cast(), raw.len(), 0) };
        (got == 8).then(|| u64::from_ne_bytes(raw))
    }
}
