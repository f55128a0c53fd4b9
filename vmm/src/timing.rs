//! `--boot-timing`: how long each step took from the program's start to the vCPU's first instruction.

use std::time::{Duration, Instant};

/// Steps and the time each ended, counted from when the process was started.
#[derive(Debug)]
pub(crate) struct Timing {
    marks: Option<Vec<(&'static str, Instant)>>,
    start: Instant,
    /// Time between the start of the process and `start`.
    before: Duration,
}

impl Timing {
    /// Starts counting; records nothing unless `enabled`.
    pub(crate) fn new(enabled: bool, start: Instant) -> Self {
        let before = if enabled {
            process_time().saturating_sub(start.elapsed())
        } else {
            Duration::ZERO
        };
        Self {
            marks: enabled.then(Vec::new),
            start,
            before,
        }
    }

    /// When counting started.
    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    /// The step called `name` has just ended.
    pub(crate) fn mark(&mut self, name: &'static str) {
        if self.marks.is_some() {
            self.mark_at(name, Instant::now());
        }
    }

    /// The step called `name` ended at `when`.
    pub(crate) fn mark_at(&mut self, name: &'static str, when: Instant) {
        if let Some(marks) = &mut self.marks {
            marks.push((name, when));
        }
    }

    /// A line per step with its own time and the time since the start, in microseconds; empty if not enabled.
    pub(crate) fn report(&self) -> String {
        use std::fmt::Write;

        let Some(marks) = &self.marks else {
            return String::new();
        };
        let mut report = format!("{:<24}{:>10}{:>10}\n", "step", "us", "total us");
        let mut line = |name: &str, own: Duration, total: Duration| {
            // Writing to a string cannot fail.
            let _ = writeln!(
                report,
                "{name:<24}{:>10}{:>10}",
                own.as_micros(),
                total.as_micros()
            );
        };
        line("exec to main", self.before, self.before);
        let mut last = self.start;
        for (name, at) in marks {
            line(name, *at - last, *at - self.start + self.before);
            last = *at;
        }
        report
    }
}

/// Processor time this process has used so far. Before `main` nothing waits, so it is the time from exec to the
/// microsecond, where the start time in /proc is counted in ticks of 10 ms.
fn process_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_add_up_and_nothing_is_recorded_unasked() {
        let mut timing = Timing::new(true, Instant::now());
        timing.mark("one");
        timing.mark("two");
        let report = timing.report();
        assert_eq!(report.lines().count(), 4);
        assert!(report.contains("exec to main") && report.contains("two"));

        let mut silent = Timing::new(false, Instant::now());
        silent.mark("one");
        assert_eq!(silent.report(), "");
    }
}
