//! The time stamp counter, and where times are collected.

use core::arch::x86_64::{__cpuid, _rdtsc};

/// Cycles of the time stamp counter.
pub fn now() -> u64 {
    // SAFETY: every CPU with a 64-bit mode has it, and no monitor takes it from ring 3.
    unsafe { _rdtsc() }
}

/// The counter's frequency in kHz as the CPU or the monitor tells it, or 0.
#[allow(unused_unsafe)] // CPUID became a safe function.
pub fn tsc_khz() -> u64 {
    // SAFETY: every CPU with a 64-bit mode has CPUID.
    let cpuid = |leaf| unsafe { __cpuid(leaf) };
    if cpuid(0x4000_0000).eax >= 0x4000_0010 {
        return cpuid(0x4000_0010).eax as u64;
    }
    let last = cpuid(0).eax;
    if last >= 0x15 {
        let ratio = cpuid(0x15);
        if ratio.eax != 0 && ratio.ebx != 0 && ratio.ecx != 0 {
            return ratio.ecx as u64 * ratio.ebx as u64 / ratio.eax as u64 / 1000;
        }
    }
    if last >= 0x16 {
        return (cpuid(0x16).eax & 0xffff) as u64 * 1000;
    }
    0
}

/// Times in buckets, each within 1/64 of what it holds.
pub struct Histogram {
    buckets: [u32; Self::BUCKETS],
    count: u64,
    min: u64,
    max: u64,
}

impl Histogram {
    const FINE: u32 = 6;
    const BUCKETS: usize = (65 - Self::FINE as usize) << Self::FINE;

    pub const fn new() -> Self {
        Self {
            buckets: [0; Self::BUCKETS],
            count: 0,
            min: u64::MAX,
            max: 0,
        }
    }

    pub fn clear(&mut self) {
        self.buckets.fill(0);
        (self.count, self.min, self.max) = (0, u64::MAX, 0);
    }

    pub fn add(&mut self, value: u64) {
        let shift = (64 - Self::FINE - 1).saturating_sub(value.leading_zeros());
        let bucket = ((shift as usize) << Self::FINE) + (value >> shift) as usize;
        self.buckets[bucket] += 1;
        self.count += 1;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    pub fn min(&self) -> u64 {
        if self.count == 0 { 0 } else { self.min }
    }

    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value below which so many of a hundred lie, at its bucket's middle.
    pub fn percentile(&self, percent: u64) -> u64 {
        let mut left = self.count * percent / 100;
        for (bucket, count) in self.buckets.iter().enumerate() {
            if *count as u64 > left {
                let shift = (bucket >> Self::FINE).saturating_sub(1);
                let base = (bucket - (shift << Self::FINE)) as u64;
                return ((base << shift) + (1 << shift >> 1)).clamp(self.min(), self.max);
            }
            left -= *count as u64;
        }
        self.max
    }
}
