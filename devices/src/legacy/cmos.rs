//! The CMOS clock (Motorola's MC146818): the host's time in UTC, and some bytes of memory.
//!
//! Index port at offset 0, data port at offset 1. The time is read-only: what a guest writes to it is dropped, and its system
//! clock is its own affair. There are no alarms and no interrupts.

#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::bus::BusDevice;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// A 32 kHz time base, 1024 Hz rate, no update in progress.
const A_RUNNING: u8 = 0x26;
/// Hours from 0 to 23, numbers in BCD.
const B_24_HOURS: u8 = 0x02;
const B_BINARY: u8 = 0x04;
/// The battery is well.
const D_VALID: u8 = 0x80;

/// Seconds since 1970.
type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

/// The CMOS clock.
pub struct Cmos {
    registers: Mutex<Registers>,
    clock: Clock,
}

struct Registers {
    index: u8,
    /// What was written to registers that are memory; time and status are computed.
    memory: [u8; 128],
}

impl Default for Cmos {
    fn default() -> Self {
        Self::new()
    }
}

impl Cmos {
    /// A clock with the host's time.
    pub fn new() -> Self {
        // A host from before 1970 shows 1970.
        Self::with_clock(Box::new(|| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs())
        }))
    }

    fn with_clock(clock: Clock) -> Self {
        let mut memory = [0; 128];
        memory[usize::from(STATUS_B)] = B_24_HOURS;
        Self {
            registers: Mutex::new(Registers { index: 0, memory }),
            clock,
        }
    }

    fn read_register(&self, registers: &Registers) -> u8 {
        let date = || Date::from_unix((self.clock)());
        let status_b = registers.memory[usize::from(STATUS_B)];
        let number = |value: u64| {
            if status_b & B_BINARY != 0 {
                value as u8
            } else {
                bcd(value)
            }
        };
        let hours = |hours: u64| match (status_b & B_24_HOURS != 0, hours) {
            (false, 0) => number(12),
            (true, hours) | (false, hours @ 1..=11) => number(hours),
            (false, 12) => number(12) | 0x80,
            (false, hours) => number(hours - 12) | 0x80,
        };
        match registers.index {
            SECONDS => number(date().second),
            MINUTES => number(date().minute),
            HOURS => hours(date().hour),
            WEEKDAY => number(date().weekday),
            DAY => number(date().day),
            MONTH => number(date().month),
            YEAR => number(date().year % 100),
            CENTURY => bcd(date().year / 100),
            STATUS_A => A_RUNNING,
            STATUS_C => 0,
            STATUS_D => D_VALID,
            index => registers.memory[usize::from(index)],
        }
    }
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        if let (1, Some(first)) = (offset, data.first_mut()) {
            *first = self.read_register(&registers);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        match (offset, data.first()) {
            // The top bit masks NMIs; there are none.
            (0, Some(index)) => registers.index = index & 0x7f,
            (1, Some(value)) => {
                let index = usize::from(registers.index);
                registers.memory[index] = *value;
            }
            _ => {}
        }
    }
}

fn bcd(value: u64) -> u8 {
    (((value / 10 % 10) << 4) | (value % 10)) as u8
}

/// A moment in UTC.
#[derive(Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u64,
    day: u64,
    /// Sunday is 1.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Date {
    fn from_unix(seconds: u64) -> Self {
        const DAY: u64 = 24 * 60 * 60;
        let (days, rest) = (seconds / DAY, seconds % DAY);
        let (mut year, mut left) = (1970, days);
        while left >= days_in_year(year) {
            left -= days_in_year(year);
            year += 1;
        }
        let mut month = 1;
        while left >= days_in_month(year, month) {
            left -= days_in_month(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: left + 1,
            // 1 January 1970 was a Thursday.
            weekday: (days + 4) % 7 + 1,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn days_in_year(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cmos: &Cmos, index: u8) -> u8 {
        cmos.write(0, &[index]);
        let mut data = [0xff];
        cmos.read(1, &mut data);
        data[0]
    }

    #[test]
    fn the_hosts_time_shows_in_bcd() {
        // 2024-02-29 23:58:07 UTC, a Thursday.
        let cmos = Cmos::with_clock(Box::new(|| 1_709_251_087));
        let shown =
            [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|index| read(&cmos, index));
        assert_eq!(shown, [0x20, 0x24, 0x02, 0x29, 0x05, 0x23, 0x58, 0x07]);
        assert_eq!(read(&cmos, STATUS_A) & 0x80, 0, "never in an update");
        assert_eq!(read(&cmos, STATUS_D), D_VALID);
    }

    #[test]
    fn binary_and_twelve_hours_are_obeyed() {
        let cmos = Cmos::with_clock(Box::new(|| 1_709_251_087));
        cmos.write(0, &[STATUS_B]);
        cmos.write(1, &[B_BINARY]);
        assert_eq!((read(&cmos, HOURS), read(&cmos, MINUTES)), (0x80 | 0x0b, 58));
    }

    #[test]
    fn dates_are_right_around_leap_days_and_centuries() {
        for (seconds, year, month, day) in [
            (0, 1970, 1, 1),
            (951_782_400, 2000, 2, 29),
            (951_868_800, 2000, 3, 1),
            (4_107_542_400, 2100, 3, 1),
            (1_798_761_599, 2026, 12, 31),
        ] {
            let date = Date::from_unix(seconds);
            assert_eq!((date.year, date.month, date.day), (year, month, day), "{seconds}");
        }
    }

    #[test]
    fn memory_keeps_what_is_written_and_the_time_does_not() {
        let cmos = Cmos::with_clock(Box::new(|| 0));
        for index in [0x40u8, YEAR] {
            cmos.write(0, &[index | 0x80]);
            cmos.write(1, &[0x77]);
        }
        assert_eq!((read(&cmos, 0x40), read(&cmos, YEAR)), (0x77, 0x70));
    }
}
