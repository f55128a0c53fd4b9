//! The CMOS clock (Motorola MC146818A data sheet): index port, data port, 128 bytes.
//!
//! The time is the host's UTC time plus what the guest has set it off by. A guest sets it as the data sheet says: SET bit in
//! register B, time registers, SET bit off; then the difference to the host's clock is kept, and the clock runs on. A date
//! that does not exist is ignored. Alarms are kept but never ring: there is no interrupt. The update is instant, so the
//! UIP bit never shows. Bytes that are no register are plain memory (firmware's shutdown status is at 0x0f).

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{lock, read_bytes, write_bytes};
use crate::bus::BusDevice;

/// Tells the seconds since 1970-01-01 00:00 UTC.
pub type Clock = Box<dyn Fn() -> i64 + Send + Sync>;

/// Bit 7 of the index port masks the NMI, of which there is none.
const INDEX_MASK: u8 = 0x7f;
const SIZE: usize = 128;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// Where PCs keep the century.
const CENTURY: u8 = 0x32;

/// 32.768 kHz crystal, 1024 Hz; bit 7 would be "update in progress".
const A_DEFAULT: u8 = 0x26;
const A_UPDATING: u8 = 0x80;
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const D_VALID: u8 = 0x80;
const PM: u8 = 0x80;

const DAY_SECONDS: i64 = 86400;

/// A date and time of day in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DateTime {
    /// Years since year 0.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

impl DateTime {
    /// From seconds since 1970; held within the years 0 to 9999, which is what the registers show.
    fn from_seconds(seconds: i64) -> Self {
        // Howard Hinnant's `civil_from_days`: eras of 400 years that begin on 1 March.
        let seconds = seconds.clamp(-62_167_219_200, 253_402_300_799);
        let (days, time) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
        let days = days + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Self {
            year: (year_of_era + era * 400 + i64::from(month <= 2)) as u16,
            month: month as u8,
            day: day as u8,
            hour: (time / 3600) as u8,
            minute: (time / 60 % 60) as u8,
            second: (time % 60) as u8,
        }
    }

    /// Seconds since 1970, or `None` if there is no such date or time.
    fn to_seconds(self) -> Option<i64> {
        let (year, month, day) = (i64::from(self.year), i64::from(self.month), i64::from(self.day));
        if !(1..=12).contains(&month) || self.hour > 23 || self.minute > 59 || self.second > 59 {
            return None;
        }
        let year = if month <= 2 { year - 1 } else { year };
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let month = if month > 2 { month - 3 } else { month + 9 };
        let day_of_year = (153 * month + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        let time = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        let seconds = days * DAY_SECONDS + time;
        // The 31st of February comes out as a day of March.
        (Self::from_seconds(seconds) == self).then_some(seconds)
    }

    /// 1 (Sunday) to 7.
    fn weekday(self) -> u8 {
        let days = self.to_seconds().unwrap_or(0).div_euclid(DAY_SECONDS);
        ((days + 4).rem_euclid(7) + 1) as u8
    }
}

fn to_bcd(value: u8) -> u8 {
    (value / 10 % 10) << 4 | (value % 10)
}

fn from_bcd(value: u8) -> u8 {
    (value >> 4) * 10 + (value & 0xf)
}

/// All that the clock remembers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CmosState {
    /// The byte that the data port shows.
    pub index: u8,
    /// The bytes that are not computed from the time.
    pub memory: Vec<u8>,
    /// Seconds by which the guest's clock is ahead of the host's.
    pub ahead: i64,
    /// While the guest sets the time: what stands in the registers.
    pub setting: Option<DateTime>,
}

impl CmosState {
    fn new() -> Self {
        let mut memory = vec![0; SIZE];
        memory[usize::from(REGISTER_A)] = A_DEFAULT;
        memory[usize::from(REGISTER_B)] = B_24_HOURS;
        Self {
            index: 0,
            memory,
            ahead: 0,
            setting: None,
        }
    }

    fn byte(&mut self, at: u8) -> &mut u8 {
        // `restore` saw to it that all bytes are there, and the index has 7 bits.
        &mut self.memory[usize::from(at & INDEX_MASK)]
    }

    fn flag(&self, bit: u8) -> bool {
        self.memory[usize::from(REGISTER_B)] & bit != 0
    }

    fn time(&self, host: i64) -> DateTime {
        self.setting
            .unwrap_or_else(|| DateTime::from_seconds(host.saturating_add(self.ahead)))
    }

    /// A number as the guest wants to see it.
    fn encode(&self, value: u8) -> u8 {
        if self.flag(B_BINARY) { value } else { to_bcd(value) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.flag(B_BINARY) {
            value
        } else {
            from_bcd(value)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.flag(B_24_HOURS) {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { PM } else { 0 };
        self.encode((hour % 24 + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.flag(B_24_HOURS) {
            return self.decode(value);
        }
        let afternoon = if value & PM == 0 { 0 } else { 12 };
        match self.decode(value & !PM) {
            hour @ 1..=12 => hour % 12 + afternoon,
            // No such hour; `to_seconds` refuses it.
            _ => u8::MAX,
        }
    }

    fn read(&mut self, host: i64) -> u8 {
        let time = self.time(host);
        match self.index {
            SECONDS => self.encode(time.second),
            MINUTES => self.encode(time.minute),
            HOURS => self.encode_hour(time.hour),
            WEEKDAY => self.encode(time.weekday()),
            DAY => self.encode(time.day),
            MONTH => self.encode(time.month),
            YEAR => self.encode((time.year % 100) as u8),
            // Firmware's byte, not the chip's: always BCD, as Linux reads it.
            CENTURY => to_bcd((time.year / 100) as u8),
            // No interrupt is pending, ever.
            REGISTER_C => 0,
            REGISTER_D => D_VALID,
            index => *self.byte(index),
        }
    }

    fn write(&mut self, value: u8, host: i64) {
        match self.index {
            SECONDS | MINUTES | HOURS | DAY | MONTH | YEAR | CENTURY => self.set(value, host),
            // The weekday follows from the date.
            WEEKDAY | REGISTER_C | REGISTER_D => {}
            REGISTER_A => *self.byte(REGISTER_A) = value & !A_UPDATING,
            REGISTER_B => {
                *self.byte(REGISTER_B) = value;
                if value & B_SET != 0 {
                    self.setting = Some(self.time(host));
                } else {
                    self.take_setting(host);
                }
            }
            index => *self.byte(index) = value,
        }
    }

    /// Sets one field of the time.
    fn set(&mut self, value: u8, host: i64) {
        let mut time = self.time(host);
        match self.index {
            SECONDS => time.second = self.decode(value),
            MINUTES => time.minute = self.decode(value),
            HOURS => time.hour = self.decode_hour(value),
            DAY => time.day = self.decode(value),
            MONTH => time.month = self.decode(value),
            YEAR => time.year = time.year / 100 * 100 + u16::from(self.decode(value).min(99)),
            _ => {
                time.year = u16::from(from_bcd(value).min(99)) * 100 + time.year % 100;
            }
        }
        self.setting = Some(time);
        // Without the SET bit it counts at once.
        if !self.flag(B_SET) {
            self.take_setting(host);
        }
    }

    fn take_setting(&mut self, host: i64) {
        if let Some(seconds) = self.setting.take().and_then(DateTime::to_seconds) {
            self.ahead = seconds.saturating_sub(host);
        }
    }
}

/// The clock: index at offset 0 (port 0x70), data at offset 1.
pub struct Cmos {
    state: Mutex<CmosState>,
    clock: Clock,
}

impl Default for Cmos {
    fn default() -> Self {
        Self::new()
    }
}

impl Cmos {
    /// Ports it takes.
    pub const PORTS: u64 = 2;

    /// A clock that shows the host's time.
    pub fn new() -> Self {
        Self::with_clock(Box::new(|| match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_secs() as i64,
            Err(before) => -(before.duration().as_secs() as i64),
        }))
    }

    /// A clock that runs by `clock`.
    pub fn with_clock(clock: Clock) -> Self {
        Self {
            state: Mutex::new(CmosState::new()),
            clock,
        }
    }

    /// All that it remembers.
    pub fn save(&self) -> CmosState {
        lock(&self.state).clone()
    }

    /// Becomes what was saved. The time is the host's again, plus the saved difference.
    pub fn restore(&self, mut state: CmosState) {
        state.memory.resize(SIZE, 0);
        state.index &= INDEX_MASK;
        // Four digits, as the registers show.
        state.setting = state.setting.filter(|time| time.year <= 9999);
        *lock(&self.state) = state;
    }
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let host = (self.clock)();
        let mut state = lock(&self.state);
        read_bytes(offset, data, |at| match at {
            0 => Some(state.index),
            1 => Some(state.read(host)),
            _ => None,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let host = (self.clock)();
        let mut state = lock(&self.state);
        write_bytes(offset, data, |at, value| match at {
            0 => state.index = value & INDEX_MASK,
            1 => state.write(value, host),
            _ => {}
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use proptest::proptest;

    use super::super::tests::byte;
    use super::*;

    /// 2000-02-29 23:59:58 UTC, a Tuesday.
    const LEAP_DAY: i64 = 951_868_798;

    fn clock(seconds: i64) -> (Cmos, Arc<AtomicI64>) {
        let time = Arc::new(AtomicI64::new(seconds));
        let shown = time.clone();
        (
            Cmos::with_clock(Box::new(move || shown.load(Ordering::Relaxed))),
            time,
        )
    }

    fn get(cmos: &Cmos, index: u8) -> u8 {
        cmos.write(0, &[index]);
        byte(cmos, 1)
    }

    fn put(cmos: &Cmos, index: u8, value: u8) {
        cmos.write(0, &[index]);
        cmos.write(1, &[value]);
    }

    /// Seconds, minutes, hours, weekday, day, month, year, century.
    fn shown(cmos: &Cmos) -> [u8; 8] {
        [0, 2, 4, 6, 7, 8, 9, 0x32].map(|index| get(cmos, index))
    }

    #[test]
    fn the_time_is_the_hosts_in_bcd_and_24_hours() {
        let (cmos, time) = clock(LEAP_DAY);
        assert_eq!(shown(&cmos), [0x58, 0x59, 0x23, 3, 0x29, 0x02, 0x00, 0x20]);
        time.store(LEAP_DAY + 2, Ordering::Relaxed);
        assert_eq!(shown(&cmos), [0x00, 0x00, 0x00, 4, 0x01, 0x03, 0x00, 0x20]);
        time.store(-1, Ordering::Relaxed);
        assert_eq!(shown(&cmos), [0x59, 0x59, 0x23, 4, 0x31, 0x12, 0x69, 0x19]);
        assert_eq!(
            [10, 11, 12, 13].map(|at| get(&cmos, at)),
            [0x26, 0x02, 0x00, 0x80]
        );
    }

    #[test]
    fn binary_and_twelve_hours_are_shown_when_asked_for() {
        let (cmos, time) = clock(LEAP_DAY);
        put(&cmos, 0x0b, 0x04);
        assert_eq!(shown(&cmos), [58, 59, PM + 11, 3, 29, 2, 0, 0x20]);
        for (hour, expected) in [(0, 12), (1, 1), (11, 11), (12, PM + 12), (13, PM + 1)] {
            time.store(hour * 3600, Ordering::Relaxed);
            assert_eq!(get(&cmos, 4), expected);
        }
    }

    #[test]
    fn the_time_that_a_guest_sets_runs_on_and_survives_a_save() {
        let (cmos, time) = clock(LEAP_DAY);
        put(&cmos, 0x0b, 0x82);
        for (index, value) in [(0, 0x30), (2, 0x15), (4, 0x08), (7, 0x31), (8, 0x12), (9, 0x37)] {
            put(&cmos, index, value);
        }
        time.store(LEAP_DAY + 100, Ordering::Relaxed);
        assert_eq!(
            shown(&cmos),
            [0x30, 0x15, 0x08, 5, 0x31, 0x12, 0x37, 0x20],
            "it stands still"
        );
        put(&cmos, 0x0b, 0x02);
        time.store(LEAP_DAY + 140, Ordering::Relaxed);
        let expected = [0x10, 0x16, 0x08, 5, 0x31, 0x12, 0x37, 0x20];
        assert_eq!(shown(&cmos), expected);
        let (other, _) = clock(LEAP_DAY + 140);
        other.restore(cmos.save());
        assert_eq!(shown(&other), expected);
    }

    #[test]
    fn a_date_that_does_not_exist_changes_nothing() {
        let (cmos, _) = clock(LEAP_DAY);
        let before = shown(&cmos);
        for (index, value) in [(0, 0x60), (2, 0xff), (4, 0x24), (7, 0x32), (8, 0x13), (7, 0x30)] {
            put(&cmos, 0x0b, 0x82);
            put(&cmos, index, value);
            put(&cmos, 0x0b, 0x02);
            assert_eq!(shown(&cmos), before, "{index:#x} = {value:#x}");
        }
    }

    #[test]
    fn other_bytes_are_memory_and_the_nmi_mask_is_no_part_of_the_index() {
        let (cmos, _) = clock(0);
        put(&cmos, 0x8f, 0x0a);
        assert_eq!(get(&cmos, 0x0f), 0x0a);
        put(&cmos, 0x0a, 0xff);
        assert_eq!(get(&cmos, 0x0a), 0x7f, "no update is ever in progress");
        put(&cmos, 0x7f, 3);
        assert_eq!(get(&cmos, 0xff), 3);
    }

    proptest! {
        #[test]
        fn dates_and_seconds_are_each_others_inverse(seconds in -62_167_219_200_i64..253_402_300_800) {
            assert_eq!(DateTime::from_seconds(seconds).to_seconds(), Some(seconds));
        }

        #[test]
        fn any_time_of_the_host_and_any_writes_are_survived(
            seconds: i64,
            writes in proptest::collection::vec(proptest::prelude::any::<(u8, u8)>(), 0..50),
        ) {
            let (cmos, _) = clock(seconds);
            for (index, value) in writes {
                put(&cmos, index, value);
                shown(&cmos);
            }
        }
    }
}
