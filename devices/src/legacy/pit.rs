//! The i8254 timer (Intel data sheet 231164) as far as a kernel measures time with it, and port 0x61.
//!
//! Three counters that run by the host's clock, and no interrupt: Linux with a known TSC frequency and a TSC deadline timer
//! asks for none (`apic_needs_pit`), and KVM's own timer costs grace periods at every start and stop. What is needed
//! without kvm-clock is the calibration of the TSC against the third counter: Linux opens its gate at port 0x61, loads it in
//! mode 0 and spins until port 0x61 shows its output high (`pit_calibrate_tsc`), or watches its high byte go down
//! (`quick_pit_calibrate`). Ports that answered with ones would make that wrong, and ports that answered with zeros endless.
//! Linux believes the result only if a port access takes less than some 10 µs: where ring 0 is interpreted it does not, and a
//! kernel there needs kvm-clock.
//!
//! | offset | port | register |
//! |---|---|---|
//! | 0, 1, 2 | 0x40 to 0x42 | counters |
//! | 3 | 0x43 | control word; latch and read-back commands |
//! | 0x21 | 0x61 | gate and output of counter 2, speaker; NMI sources read as none |
//!
//! Binary counting only: BCD is taken for binary, as QEMU and KVM do.

use std::sync::Mutex;
use std::time::Instant;

use super::{lock, read_bytes, write_bytes};
use crate::bus::BusDevice;

/// Counts per second.
const FREQUENCY: u128 = 1_193_182;
const NANOS: u128 = 1_000_000_000;

const CONTROL: u64 = 3;

const GATE: u8 = 1 << 0;
const SPEAKER: u8 = 1 << 1;
/// Toggles with each refresh of the memory: some kernels count it to wait.
const REFRESH: u8 = 1 << 4;
const OUTPUT: u8 = 1 << 5;
/// Half of the refresh signal's period.
const REFRESH_NANOS: u64 = 15_085;

/// One counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CounterState {
    /// Control word without the counter's number: access in bits 4 and 5, mode in bits 1 to 3.
    pub control: u8,
    /// What was loaded, 1 to 0x10000; nothing before the first load.
    pub reload: Option<u32>,
    /// When it was loaded, or when its gate opened, in nanoseconds of the timer's life.
    pub since: u64,
    /// The gate is open.
    pub gate: bool,
    /// The low byte of a value of two bytes was written.
    pub written_low: Option<u8>,
    /// The next read gives the high byte.
    pub read_high: bool,
    /// A latched count.
    pub latched: Option<u16>,
    /// A latched status.
    pub status: Option<u8>,
}

impl CounterState {
    const fn new(gate: bool) -> Self {
        Self {
            control: 0x30,
            reload: None,
            since: 0,
            gate,
            written_low: None,
            read_high: false,
            latched: None,
            status: None,
        }
    }

    fn mode(&self) -> u8 {
        // Modes 6 and 7 are 2 and 3 again.
        match self.control >> 1 & 7 {
            mode @ 0..=5 => mode,
            mode => mode - 4,
        }
    }

    /// Counts since it was loaded.
    fn elapsed(&self, now: u64) -> u64 {
        if !self.gate {
            return 0;
        }
        let nanos = u128::from(now.saturating_sub(self.since));
        (nanos * FREQUENCY / NANOS) as u64
    }

    fn count(&self, now: u64) -> u16 {
        let Some(reload) = self.reload else { return 0 };
        let (reload, elapsed) = (u64::from(reload), self.elapsed(now));
        let count = match self.mode() {
            2 => reload - elapsed % reload,
            // A square wave counts down by two.
            3 => reload - elapsed * 2 % reload,
            // At zero they go on from 0xffff.
            _ => reload.wrapping_sub(elapsed),
        };
        count as u16
    }

    fn output(&self, now: u64) -> bool {
        let Some(reload) = self.reload else {
            return self.mode() != 0;
        };
        let (reload, elapsed) = (u64::from(reload), self.elapsed(now));
        match self.mode() {
            0 | 1 => elapsed >= reload,
            3 => elapsed % reload < reload.div_ceil(2),
            2 => elapsed % reload != reload - 1,
            _ => elapsed != reload,
        }
    }

    fn program(&mut self, control: u8) {
        *self = Self {
            control: control & 0x3f,
            since: self.since,
            gate: self.gate,
            ..Self::new(self.gate)
        };
    }

    fn latch(&mut self, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.count(now));
        }
    }

    fn latch_status(&mut self, now: u64) {
        const NO_COUNT: u8 = 1 << 6;
        const OUTPUT_HIGH: u8 = 1 << 7;
        let mut status = self.control;
        if self.reload.is_none() {
            status |= NO_COUNT;
        }
        if self.output(now) {
            status |= OUTPUT_HIGH;
        }
        self.status.get_or_insert(status);
    }

    fn write(&mut self, value: u8, now: u64) {
        let loaded = match (self.control >> 4 & 3, self.written_low) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, None) => {
                self.written_low = Some(value);
                return;
            }
            (_, Some(low)) => u16::from_le_bytes([low, value]),
        };
        self.written_low = None;
        self.reload = Some(if loaded == 0 { 0x1_0000 } else { loaded.into() });
        self.since = now;
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.count(now)).to_le_bytes();
        match self.control >> 4 & 3 {
            1 => self.latched = None,
            2 => {
                self.latched = None;
                return high;
            }
            _ => {
                self.read_high = !self.read_high;
                if !self.read_high {
                    self.latched = None;
                    return high;
                }
            }
        }
        low
    }

    fn set_gate(&mut self, open: bool, now: u64) {
        // A rising gate starts the count anew; in mode 0 it goes on, which nobody who opens it first can tell apart.
        if open && !self.gate {
            self.since = now;
        }
        self.gate = open;
    }
}

/// All that the timer remembers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PitState {
    /// Nanoseconds of its life so far.
    pub now: u64,
    /// The counters.
    pub counters: [CounterState; 3],
    /// The speaker is on.
    pub speaker: bool,
}

struct Inner {
    state: PitState,
    /// When its life began.
    start: Instant,
}

impl Inner {
    fn now(&self) -> u64 {
        (self.start.elapsed().as_nanos() as u64).saturating_add(self.state.now)
    }
}

/// The timer.
pub struct Pit {
    inner: Mutex<Inner>,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// Ports it takes at its own place.
    pub const PORTS: u64 = 4;
    /// The offset at which port 0x61 belongs to it; place it there with [`At`](super::At).
    pub const PORT_61: u64 = 0x21;

    /// A timer as after power-on: no counter loaded, the third one's gate closed.
    pub fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                state: PitState {
                    now: 0,
                    counters: [
                        CounterState::new(true),
                        CounterState::new(true),
                        CounterState::new(false),
                    ],
                    speaker: false,
                },
                start: Instant::now(),
            }),
        }
    }

    /// All that it remembers.
    pub fn save(&self) -> PitState {
        let inner = lock(&self.inner);
        PitState {
            now: inner.now(),
            ..inner.state.clone()
        }
    }

    /// Becomes what was saved; its time goes on from there.
    pub fn restore(&self, mut state: PitState) {
        for counter in &mut state.counters {
            // No load gives 0, and a count of 0 would divide by it.
            counter.reload = counter.reload.map(|reload| reload.clamp(1, 0x1_0000));
        }
        *lock(&self.inner) = Inner {
            state,
            start: Instant::now(),
        };
    }
}

impl PitState {
    fn read(&mut self, offset: u64, now: u64) -> Option<u8> {
        match offset {
            0..=2 => Some(self.counters[offset as usize].read(now)),
            CONTROL => Some(0),
            Pit::PORT_61 => Some(self.port_61(now)),
            _ => None,
        }
    }

    fn port_61(&self, now: u64) -> u8 {
        let bits = [
            (GATE, self.counters[2].gate),
            (SPEAKER, self.speaker),
            (REFRESH, now / REFRESH_NANOS % 2 == 1),
            (OUTPUT, self.counters[2].output(now)),
        ];
        bits.iter().filter(|(_, on)| *on).map(|(bit, _)| bit).sum()
    }

    fn write(&mut self, offset: u64, value: u8, now: u64) {
        match offset {
            0..=2 => self.counters[offset as usize].write(value, now),
            CONTROL => self.control(value, now),
            Pit::PORT_61 => {
                self.counters[2].set_gate(value & GATE != 0, now);
                self.speaker = value & SPEAKER != 0;
            }
            _ => {}
        }
    }

    fn control(&mut self, value: u8, now: u64) {
        let counter = usize::from(value >> 6);
        if let Some(counter) = self.counters.get_mut(counter) {
            if value & 0x30 == 0 {
                counter.latch(now);
            } else {
                counter.program(value);
            }
            return;
        }
        // Read-back: counters by bits 1 to 3; bits 4 and 5 leave status and count out.
        for (index, counter) in self.counters.iter_mut().enumerate() {
            if value & 2 << index != 0 {
                if value & 0x20 == 0 {
                    counter.latch(now);
                }
                if value & 0x10 == 0 {
                    counter.latch_status(now);
                }
            }
        }
    }
}

impl BusDevice for Pit {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut inner = lock(&self.inner);
        let now = inner.now();
        read_bytes(offset, data, |at| inner.state.read(at, now));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut inner = lock(&self.inner);
        let now = inner.now();
        write_bytes(offset, data, |at, value| inner.state.write(at, value, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> PitState {
        Pit::new().save()
    }

    fn nanos(counts: u64) -> u64 {
        // The first instant at which so many counts have passed.
        (u128::from(counts) * NANOS).div_ceil(FREQUENCY) as u64
    }

    #[test]
    fn tsc_calibration_sees_the_output_rise_when_its_time_is_over() {
        let mut pit = state();
        let start = 5_000_000;
        // pit_calibrate_tsc: gate open, speaker off; counter 2, two bytes, mode 0; 10 ms.
        let latch = 11932_u16;
        pit.write(Pit::PORT_61, pit.port_61(start) & !SPEAKER | GATE, start);
        pit.write(CONTROL, 0xb0, start);
        pit.write(2, latch as u8, start);
        pit.write(2, (latch >> 8) as u8, start);
        assert_eq!(pit.port_61(start) & OUTPUT, 0);
        assert_eq!(pit.port_61(start + nanos(u64::from(latch)) - 1) & OUTPUT, 0);
        assert_ne!(pit.port_61(start + nanos(u64::from(latch))) & OUTPUT, 0);
        assert_ne!(pit.port_61(u64::MAX) & OUTPUT, 0, "and it stays");
    }

    #[test]
    fn quick_tsc_calibration_sees_the_high_byte_go_down_one_by_one() {
        let mut pit = state();
        pit.write(Pit::PORT_61, GATE, 0);
        pit.write(CONTROL, 0xb0, 0);
        pit.write(2, 0xff, 0);
        pit.write(2, 0xff, 0);
        for step in 0..=255_u64 {
            let now = nanos(step * 256);
            let (low, high) = (pit.read(2, now).unwrap(), pit.read(2, now).unwrap());
            assert_eq!((low, u64::from(high)), (0xff, 255 - step));
        }
    }

    #[test]
    fn a_latched_count_stands_still_until_both_its_bytes_are_read() {
        let mut pit = state();
        pit.write(CONTROL, 0x34, 0);
        pit.write(0, 0x00, 0);
        pit.write(0, 0x10, 0);
        pit.write(CONTROL, 0, nanos(1));
        pit.write(CONTROL, 0, nanos(2));
        let late = nanos(0x400);
        assert_eq!((pit.read(0, late), pit.read(0, late)), (Some(0xff), Some(0x0f)));
        assert_eq!((pit.read(0, late), pit.read(0, late)), (Some(0x00), Some(0x0c)));
    }

    #[test]
    fn periodic_counters_start_over_and_read_back_says_how_they_are_set() {
        let mut pit = state();
        pit.write(CONTROL, 0x34, 0);
        pit.write(CONTROL, 0xe2, 0);
        assert_eq!(pit.read(0, 0), Some(0x34 | 0xc0), "no count yet, output high");
        pit.write(0, 100, 0);
        pit.write(0, 0, 0);
        assert_eq!(pit.counters[0].count(nanos(99)), 1);
        assert_eq!(pit.counters[0].count(nanos(100)), 100);
    }

    #[test]
    fn a_closed_gate_holds_the_count() {
        let mut pit = state();
        pit.write(CONTROL, 0xb0, 0);
        pit.write(2, 10, 0);
        pit.write(2, 0, 0);
        assert_eq!(pit.port_61(nanos(1000)) & OUTPUT, 0);
        pit.write(Pit::PORT_61, GATE, nanos(1000));
        assert_eq!(pit.port_61(nanos(1009)) & OUTPUT, 0);
        assert_ne!(pit.port_61(nanos(1011)) & OUTPUT, 0);
    }

    #[test]
    fn time_goes_on_where_it_was_saved() {
        let pit = Pit::new();
        pit.write(3, &[0xb0]);
        let mut state = pit.save();
        state.now = u64::MAX / 2;
        let other = Pit::new();
        other.restore(state.clone());
        let later = other.save();
        assert!(later.now >= state.now);
        assert_eq!(later.counters, state.counters);
    }
}
