//! Memory, ports and instructions: all that needs `unsafe` beyond the entry.
//!
//! Memory is mapped one to one, so a guest-physical address is a pointer. This program is alone on its machine and shares memory only
//! with devices, at addresses that it gave them; there is no Rust object at any address that comes through here, but for what
//! [`Arena`] handed out.

use core::arch::asm;
use core::sync::atomic::{AtomicU16, Ordering, fence};

macro_rules! accessors {
    ($($read:ident $write:ident $type:ty),*) => {$(
        /// One load of just this width.
        pub fn $read(at: u64) -> $type {
            // SAFETY: see the top of this file; the callers' addresses are aligned for their width.
            unsafe { (at as *const $type).read_volatile() }
        }

        /// One store of just this width.
        pub fn $write(at: u64, value: $type) {
            // SAFETY: see the top of this file; the callers' addresses are aligned for their width.
            unsafe { (at as *mut $type).write_volatile(value) }
        }
    )*};
}
accessors!(read8 write8 u8, read16 write16 u16, read32 write32 u32, read64 write64 u64);

/// A load after which everything is at least as new.
pub fn acquire16(at: u64) -> u16 {
    // SAFETY: see the top of this file; ring indices are aligned.
    unsafe { AtomicU16::from_ptr(at as *mut u16) }.load(Ordering::Acquire)
}

/// A store before which everything has been stored.
pub fn release16(at: u64, value: u16) {
    // SAFETY: see the top of this file; ring indices are aligned.
    unsafe { AtomicU16::from_ptr(at as *mut u16) }.store(value, Ordering::Release);
}

/// Nothing after it is loaded before all before it is stored.
pub fn full_barrier() {
    fence(Ordering::SeqCst);
}

/// `len` bytes as words, for as long as no device owns them.
pub fn words(at: u64, len: usize) -> &'static mut [u64] {
    // SAFETY: see the top of this file; callers pass buffers of their own that are not in flight, multiples of 8 at multiples of 8.
    unsafe { core::slice::from_raw_parts_mut(at as *mut u64, len / 8) }
}

/// The same as bytes.
pub fn bytes(at: u64, len: usize) -> &'static mut [u8] {
    // SAFETY: see the top of this file; callers pass buffers of their own that are not in flight.
    unsafe { core::slice::from_raw_parts_mut(at as *mut u8, len) }
}

/// The text that ends with NUL.
pub fn text(at: u64) -> &'static str {
    let len = (0..4096).take_while(|offset| read8(at + offset) != 0).count();
    // SAFETY: see the top of this file; nobody writes the command line.
    let bytes = unsafe { core::slice::from_raw_parts(at as *const u8, len) };
    core::str::from_utf8(bytes).unwrap_or("")
}

pub fn out8(port: u16, value: u8) {
    // SAFETY: port output touches no memory of this program.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: port output touches no memory of this program.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) }
}

pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: port input touches no memory of this program.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Hands out memory from the end of this program to the end of the RAM around it. Nothing is given back.
pub struct Arena {
    next: u64,
    end: u64,
}

impl Arena {
    pub fn new(next: u64, end: u64) -> Self {
        Self { next, end }
    }

    /// `len` zeroed bytes at a multiple of `align`; fails with how much was left.
    pub fn take(&mut self, len: u64, align: u64) -> Result<u64, u64> {
        let at = self.next.next_multiple_of(align);
        if at > self.end || self.end - at < len {
            return Err(self.end.saturating_sub(self.next));
        }
        self.next = at + len;
        words(at, len.next_multiple_of(8) as usize).fill(0);
        Ok(at)
    }
}

/// What compiled code calls; the C library that has them elsewhere is not here.
mod compiler {
    use core::arch::asm;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        // SAFETY: the caller's promise is that of memcpy.
        unsafe { asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _) }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
        // SAFETY: the caller's promise is that of memset.
        unsafe { asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") value as u8) }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        if (to as usize).wrapping_sub(from as usize) >= len {
            // SAFETY: the caller's promise, and no byte is written before it was read.
            return unsafe { memcpy(to, from, len) };
        }
        for at in (0..len).rev() {
            // SAFETY: the caller's promise is that both are `len` bytes long.
            unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        for at in 0..len {
            // SAFETY: the caller's promise is that both are `len` bytes long.
            let (x, y) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
            if x != y {
                return x as i32 - y as i32;
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        // SAFETY: as the caller's.
        unsafe { memcmp(a, b, len) }
    }

    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}
}
