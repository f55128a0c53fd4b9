//! Arithmetic with its flags.

use crate::x86_64::assist::machine::rflags::{AF, CF, OF, PF, SF, ZF};
use crate::x86_64::assist::operand::mask;

/// A result and the status flags with it.
pub(super) type Flagged = (u64, u64);

fn sign(value: u64, size: usize) -> bool {
    value >> (8 * size - 1) & 1 == 1
}

/// ZF, SF and PF of a result.
pub(super) fn result_flags(value: u64, size: usize) -> u64 {
    let mut flags = 0;
    if value == 0 {
        flags |= ZF;
    }
    if sign(value, size) {
        flags |= SF;
    }
    if (value as u8).count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    flags
}

pub(super) fn add(a: u64, b: u64, carry: bool, size: usize) -> Flagged {
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let value = wide as u64 & mask(size);
    let mut flags = result_flags(value, size);
    if wide >> (8 * size) != 0 {
        flags |= CF;
    }
    if (a ^ b ^ value) & 0x10 != 0 {
        flags |= AF;
    }
    if sign((a ^ value) & (b ^ value), size) {
        flags |= OF;
    }
    (value, flags)
}

pub(super) fn subtract(a: u64, b: u64, borrow: bool, size: usize) -> Flagged {
    let value = a.wrapping_sub(b).wrapping_sub(u64::from(borrow)) & mask(size);
    let mut flags = result_flags(value, size);
    if u128::from(a) < u128::from(b) + u128::from(borrow) {
        flags |= CF;
    }
    if (a ^ b ^ value) & 0x10 != 0 {
        flags |= AF;
    }
    if sign((a ^ b) & (a ^ value), size) {
        flags |= OF;
    }
    (value, flags)
}

/// Whatever ends in AND, OR or XOR.
pub(super) fn logic(value: u64, size: usize) -> Flagged {
    (value, result_flags(value, size))
}

/// A kind of shift or rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shift {
    Left,
    Right,
    ArithmeticRight,
    RotateLeft,
    RotateRight,
}

/// The result of a shift by `count`, which is not zero, with the flags that it changes and their values.
pub(super) fn shift(kind: Shift, a: u64, count: u32, size: usize) -> (u64, u64, u64) {
    let bits = 8 * size as u32;
    let all = CF | PF | ZF | SF | OF;
    let set = |condition: bool, flag: u64| if condition { flag } else { 0 };
    match kind {
        Shift::Left => {
            let value = a.checked_shl(count).unwrap_or(0) & mask(size);
            let carry = count <= bits && a >> (bits - count) & 1 == 1;
            let flags = result_flags(value, size) | set(carry, CF) | set(carry != sign(value, size), OF);
            (value, all, flags)
        }
        Shift::Right => {
            let value = a.checked_shr(count).unwrap_or(0);
            let carry = count <= bits && a >> (count - 1) & 1 == 1;
            (
                value,
                all,
                result_flags(value, size) | set(carry, CF) | set(sign(a, size), OF),
            )
        }
        Shift::ArithmeticRight => {
            let extended = (a << (64 - bits)) as i64 >> (64 - bits);
            let value = (extended >> count.min(63)) as u64 & mask(size);
            let carry = extended >> (count - 1).min(63) & 1 == 1;
            (value, all, result_flags(value, size) | set(carry, CF))
        }
        Shift::RotateLeft => {
            let by = count % bits;
            let value = if by == 0 {
                a
            } else {
                (a << by | a >> (bits - by)) & mask(size)
            };
            let carry = value & 1 == 1;
            (
                value,
                CF | OF,
                set(carry, CF) | set(carry != sign(value, size), OF),
            )
        }
        Shift::RotateRight => {
            let by = count % bits;
            let value = if by == 0 {
                a
            } else {
                (a >> by | a << (bits - by)) & mask(size)
            };
            let top = sign(value, size);
            let next = value >> (bits - 2) & 1 == 1;
            (value, CF | OF, set(top, CF) | set(top != next, OF))
        }
    }
}
