//! A guest's console as a test sees it: text without terminal commands, watched for faults and for what must never be said, and
//! searched for what is expected next.
//!
//! Everything happens byte by byte in the order the guest wrote them, and stops where the current search is complete. So a
//! test's result does not depend on how the output was cut, and what comes behind an expected text concerns the next step.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::escapes::Escapes;
use super::faults::{FaultFinder, KernelFault};
use super::pattern::{Pattern, Search};

/// How much of a line is kept; what goes on begins another.
const LINE_MAX: usize = 2048;
/// How many lines are kept to be told of.
const LINES_MAX: usize = 20;

/// What must not be said was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// The kernel tells of a fault, in this line.
    Kernel(KernelFault, String),
    /// The test's `never` has matched; this pattern, in this line.
    Never(String, String),
}

/// A line that marks a moment of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The kernel's first words.
    Kernel,
    /// The first process begins.
    Init,
    /// The test's own sign that the boot is done.
    Ready,
}

/// The console.
pub struct Console {
    escapes: Escapes,
    faults: FaultFinder,
    never: Vec<Search>,
    ready: Option<Search>,
    search: Option<Search>,
    before: Option<u8>,
    line: Vec<u8>,
    lines: VecDeque<Vec<u8>>,
    /// What came behind the end of the last search.
    pending: VecDeque<u8>,
    marks: Vec<Mark>,
    alarm: Option<Alarm>,
    /// Text is collected here, up to so much.
    capture: Option<(Vec<u8>, usize)>,
}

impl Console {
    /// A console with nothing said on it.
    pub fn new(faults: FaultFinder, never: &[Pattern], ready: Option<&Pattern>) -> Self {
        Self {
            escapes: Escapes::new(),
            faults,
            never: never
                .iter()
                .map(|pattern| Search::new(pattern.clone(), None))
                .collect(),
            ready: ready.map(|pattern| Search::new(pattern.clone(), None)),
            search: None,
            before: None,
            line: Vec::new(),
            lines: VecDeque::new(),
            pending: VecDeque::new(),
            marks: Vec::new(),
            alarm: None,
            capture: None,
        }
    }

    /// Looks for `pattern` from here on; without one everything is read over.
    pub fn look_for(&mut self, pattern: Option<&Pattern>) {
        self.search = pattern.map(|pattern| Search::new(pattern.clone(), self.before));
    }

    /// Keeps the text from here on, up to `most` bytes.
    pub fn begin_capture(&mut self, most: usize) {
        self.capture = Some((Vec::new(), most));
    }

    /// The text that was kept; nothing if it was too much.
    pub fn end_capture(&mut self) -> Option<Vec<u8>> {
        let (text, most) = self.capture.take()?;
        (text.len() <= most).then_some(text)
    }

    /// Takes what the guest has said, to be looked at by [`advance`](Self::advance).
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
    }

    /// Looks at what was pushed until the search is complete or there is an alarm. Says if the search is complete.
    pub fn advance(&mut self) -> bool {
        while self.alarm.is_none() {
            let Some(byte) = self.pending.front().copied() else {
                return false;
            };
            if !self.escapes.passes(byte) {
                self.pending.pop_front();
                continue;
            }
            match self.search.as_mut().and_then(|search| search.feed(&[byte])) {
                // It was complete before this byte, which is for the next step, and so is its escape's state: text.
                Some(0) => {
                    self.search = None;
                    return true;
                }
                Some(_) => {
                    self.take(byte);
                    self.search = None;
                    return true;
                }
                None => self.take(byte),
            }
        }
        false
    }

    /// Nothing more comes. Says if that completes the search.
    pub fn end(&mut self) -> bool {
        if self.advance() {
            return true;
        }
        self.end_line();
        let ended = self.search.as_mut().is_some_and(Search::end);
        if ended {
            self.search = None;
        }
        ended && self.alarm.is_none()
    }

    /// A byte of text is over.
    fn take(&mut self, byte: u8) {
        self.pending.pop_front();
        self.before = Some(byte);
        if let Some((text, most)) = &mut self.capture
            && text.len() <= *most
        {
            text.push(byte);
        }
        for search in &mut self.never {
            if search.feed(&[byte]).is_some() {
                let mut line = self.line.clone();
                line.push(byte);
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                self.alarm
                    .get_or_insert(Alarm::Never(search.pattern().to_string(), line));
            }
        }
        if self
            .ready
            .as_mut()
            .is_some_and(|search| search.feed(&[byte]).is_some())
        {
            self.ready = None;
            self.marks.push(Mark::Ready);
        }
        match byte {
            b'\n' => self.end_line(),
            // A bare one draws over the line; two in a row are a driver's habit.
            b'\r' => {}
            _ => {
                self.line.push(byte);
                if self.line.len() == LINE_MAX {
                    self.end_line();
                }
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return;
        }
        if let Some(fault) = self.faults.look(&line) {
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            self.alarm.get_or_insert(Alarm::Kernel(fault, text));
        }
        let has = |text: &[u8]| line.windows(text.len()).any(|window| window == text);
        if has(b"Linux version ") && !self.marks.contains(&Mark::Kernel) {
            self.marks.push(Mark::Kernel);
        } else if has(b"Run ") && has(b" as init process") && !self.marks.contains(&Mark::Init) {
            self.marks.push(Mark::Init);
        }
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The alarm, if there is one.
    pub fn alarm(&self) -> Option<&Alarm> {
        self.alarm.as_ref()
    }

    /// Goes on reading for the sake of the lines only: the alarm has been taken note of.
    pub fn drain(&mut self) {
        let alarm = self.alarm.take();
        self.search = None;
        self.never.clear();
        while !self.pending.is_empty() {
            self.advance();
            self.alarm = None;
        }
        self.alarm = alarm;
    }

    /// The marks that were passed so far.
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// The last lines, the one that is not ended among them.
    pub fn last_lines(&self) -> Vec<String> {
        let lines = self.lines.iter().chain(Some(&self.line));
        lines
            .filter(|line| !line.is_empty())
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect()
    }
}

#[cfg(test)]
mod tests;
