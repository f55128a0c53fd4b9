//! One attempt at a case: a VM from its start to the test's end, step by step.
#![forbid(unsafe_code)]

mod disks;
mod log;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::log::Log;
use super::console::{Alarm, Console, Mark};
use super::driven::DrivenEnd;
use super::faults::{FaultFinder, KernelFault};
use super::pattern::Pattern;
use super::plan::{Action, Button, Case, ExitReason, Hang, Step};
use super::process::{Begin, End, Process, Woken};
use super::progress::Progress;
use super::shell::{self, Exchange};
use super::verdict::{Attempt, Failure, Kind, Marks, StepTime};
use crate::client;
use crate::spec::VmSpec;

/// How long a guest that is in trouble may go on telling of it.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long it may pause meanwhile.
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// The console's log, in the attempt's folder.
pub const CONSOLE_LOG: &str = "console.log";

/// Where an attempt takes place.
pub struct Around<'a> {
    /// Its folder: absolute, its own, and there.
    pub folder: &'a Path,
    /// Readable when all is to end.
    pub cancel: &'a EventFd,
    /// How long a guest on this host may be silent and idle.
    pub usual_hang: Duration,
    /// Told what is being done.
    pub tell: &'a (dyn Fn(&str) + Sync),
}

/// Why an attempt is over before its end.
enum Stop {
    Failed(Failure),
    Interrupted,
}

impl Stop {
    fn failed(kind: Kind, message: impl Into<String>) -> Self {
        Self::Failed(Failure {
            kind,
            message: message.into(),
            step: None,
            lines: Vec::new(),
        })
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::failed(
            Kind::Vmm,
            format!("the VM's process cannot be dealt with: {error}"),
        )
    }
}

/// What a wait came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Found,
    Ended,
}

/// Runs the case once.
pub fn attempt(case: &Case, around: &Around<'_>) -> Attempt {
    let began = Instant::now();
    let mut attempt = Attempt {
        folder: Some(around.folder.to_owned()),
        ..Attempt::default()
    };
    let stop = match Run::begin(case, around) {
        Ok(mut run) => {
            let stop = run.steps(&mut attempt).err();
            let stop = run.finish(stop);
            attempt.marks = run.marks;
            stop
        }
        Err(stop) => Some(stop),
    };
    match stop {
        None => {}
        Some(Stop::Interrupted) => attempt.interrupted = true,
        Some(Stop::Failed(failure)) => attempt.failure = Some(failure),
    }
    attempt.took = began.elapsed();
    attempt
}

struct Run<'a> {
    case: &'a Case,
    around: &'a Around<'a>,
    spec: VmSpec,
    /// Images that took the place of a disk's own.
    attached: Vec<Option<PathBuf>>,
    process: Process,
    console: Console,
    log: Log,
    progress: Progress,
    began: Instant,
    deadline: Instant,
    marks: Marks,
    commands: u64,
}

impl<'a> Run<'a> {
    fn begin(case: &'a Case, around: &'a Around<'a>) -> Result<Self, Stop> {
        let folder = around.folder;
        let spec = disks::own(&case.spec, folder)?;
        let file = folder.join("vm.toml");
        let text = toml::to_string(&spec).map_err(|error| {
            Stop::failed(Kind::Refused, format!("the VM cannot be written down: {error}"))
        })?;
        fs::write(&file, text)?;
        let mut allowed = case.allow.clone();
        if case.must_panic() {
            allowed.push(KernelFault::Panic);
        }
        let log = Log::new(&folder.join(CONSOLE_LOG))?;
        let began = Instant::now();
        let begin = Begin::Boot {
            spec: &file,
            cold: !case.warm,
        };
        Ok(Self {
            case,
            around,
            attached: vec![None; spec.disks.len()],
            spec,
            process: Process::start(folder, 0, &begin)?,
            console: Console::new(FaultFinder::new(&allowed), &case.never, case.ready.as_ref()),
            log,
            progress: Progress::new(),
            began,
            deadline: began + case.timeout,
            marks: Marks::default(),
            commands: 0,
        })
    }

    fn steps(&mut self, attempt: &mut Attempt) -> Result<(), Stop> {
        let mut heard = false;
        for (index, step) in self.case.steps.iter().enumerate() {
            let shown = step.to_string();
            (self.around.tell)(&shown);
            let began = Instant::now();
            // The shipped guest's prompt need not be waited for in each file.
            let needs_shell = matches!(step.action, Action::Run { .. } | Action::Send(_));
            let ready = if needs_shell && !heard && self.case.is_shipped() && self.spec.command.is_empty() {
                self.shipped_prompt(step)
            } else {
                Ok(())
            };
            heard |= needs_shell || matches!(step.action, Action::Expect(_));
            ready.and_then(|()| self.step(step)).map_err(|mut stop| {
                if let Stop::Failed(failure) = &mut stop {
                    failure.step = Some((index, step.line));
                }
                stop
            })?;
            attempt.steps.push(StepTime {
                step: shown,
                took: began.elapsed(),
            });
        }
        Ok(())
    }

    /// Ends the VM, if it has not ended, and says what there is to say about why.
    fn finish(&mut self, mut stop: Option<Stop>) -> Option<Stop> {
        if let Some(Stop::Failed(Failure {
            kind: Kind::Kernel(_) | Kind::Never,
            ..
        })) = &stop
        {
            self.last_words();
        }
        self.end_process();
        self.console.drain();
        if let Some(Stop::Failed(failure)) = &mut stop {
            failure.lines = self.console.last_lines();
        }
        stop
    }

    /// Ends the VM's process, and hears what it still has to say.
    fn end_process(&mut self) {
        let (log, console) = (&mut self.log, &mut self.console);
        self.process.kill(|bytes| {
            log.write(bytes);
            console.push(bytes);
        });
    }

    /// Lets a kernel in trouble say the rest of it.
    fn last_words(&mut self) {
        let end = Instant::now() + LAST_WORDS;
        while self.process.ended().is_none() {
            let quiet = Instant::now() + LAST_PAUSE;
            match self.pump(quiet.min(end), &[]) {
                Ok(Woken::Guest) if Instant::now() < end => {}
                _ => return,
            }
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), Stop> {
        let limit = self.limit(step);
        match &step.action {
            Action::Expect(pattern) => {
                self.expect(pattern, limit, &format!("{pattern}"))?;
                if self.case.ready.is_none() && self.marks.ready.is_none() {
                    self.marks.ready = Some(self.began.elapsed());
                }
                Ok(())
            }
            Action::Send(text) => {
                self.process.send(text.as_bytes());
                Ok(())
            }
            Action::Run {
                command,
                status,
                stdout,
            } => self.run(command, *status, stdout.as_ref(), limit),
            Action::Exit { reason, status } => self.exit(*reason, *status, limit),
            Action::Snapshot { name, ends } => self.save(name, *ends, limit),
            Action::Restore(name) => self.restore(name),
            Action::Attach { disk, image } => self.attach(*disk, image, limit),
            Action::Detach { disk, .. } => self.detach(*disk, limit),
            Action::Press(button) => {
                let path = match button {
                    Button::Power => "/berth/v1/power-button",
                    Button::CtrlAltDel => "/berth/v1/ctrl-alt-del",
                };
                self.call("POST", path, None, limit).map(drop)
            }
            Action::File { image, path, check } => self.file(image, path, check),
            Action::Bytes { image, offset, bytes } => self.bytes(image, *offset, bytes),
        }
    }

    /// When the step's time is over.
    fn limit(&self, step: &Step) -> Instant {
        let own = step.within.and_then(|within| Instant::now().checked_add(within));
        own.map_or(self.deadline, |own| own.min(self.deadline))
    }

    fn expect(&mut self, pattern: &Pattern, limit: Instant, what: &str) -> Result<(), Stop> {
        self.console.look_for(Some(pattern));
        match self.until(limit, what)? {
            Heard::Found => Ok(()),
            Heard::Ended => Err(self.ended_before(what)),
        }
    }

    fn shipped_prompt(&mut self, step: &Step) -> Result<(), Stop> {
        let prompt =
            Pattern::plain("root@berth:").map_err(|error| Stop::failed(Kind::Vmm, error.to_string()))?;
        let limit = self.limit(step);
        self.expect(&prompt, limit, "the shell's prompt")?;
        if self.case.ready.is_none() {
            self.marks.ready = Some(self.began.elapsed());
        }
        Ok(())
    }

    fn run(
        &mut self,
        command: &str,
        status: i64,
        stdout: Option<&Pattern>,
        limit: Instant,
    ) -> Result<(), Stop> {
        self.commands += 1;
        let exchange = Exchange::new(command, self.commands);
        let shown = format!("{command:?}");
        let pattern = |pattern: Result<Pattern, _>| {
            pattern.map_err(|error: super::pattern::PatternError| Stop::failed(Kind::Vmm, error.to_string()))
        };
        let (begin, end) = (pattern(exchange.begin())?, pattern(exchange.end())?);
        self.process.send(exchange.typed().as_bytes());
        self.expect(&begin, limit, &format!("the shell's start of {shown}"))?;
        self.console.begin_capture(shell::OUTPUT_MAX);
        self.expect(&end, limit, &format!("the end of {shown}"))?;
        let Some(said) = self.console.end_capture() else {
            let message = format!("{shown} printed more than {} bytes", shell::OUTPUT_MAX);
            return Err(Stop::failed(Kind::Content, message));
        };
        let (output, ended) = exchange.result(&said);
        if ended != Some(status) {
            let ended = ended.map_or_else(|| "none".to_owned(), |ended| ended.to_string());
            let message = format!(
                "{shown} ended with status {ended} instead of {status}{}",
                excerpt(&output)
            );
            return Err(Stop::failed(Kind::Status, message));
        }
        match stdout {
            Some(pattern) if !pattern.is_in(output.as_bytes()) => {
                let message = format!(
                    "what {shown} printed does not match {pattern}{}",
                    excerpt(&output)
                );
                Err(Stop::failed(Kind::Content, message))
            }
            _ => Ok(()),
        }
    }

    fn exit(&mut self, reason: ExitReason, status: Option<u8>, limit: Instant) -> Result<(), Stop> {
        self.console.look_for(None);
        while self.until(limit, "the guest's end")? != Heard::Ended {}
        let Some(End::Vm(end)) = self.process.ended() else {
            return Err(self.ended_before(""));
        };
        let matches = match reason {
            ExitReason::Any => true,
            // Its poweroff writes 0 to the exit port.
            ExitReason::Shutdown if self.case.is_shipped() => {
                end.reason == "shutdown" || (end.reason == "exit" && end.status == Some(0))
            }
            ExitReason::Panic => end.reason == "panicked",
            reason => end.reason == reason.word(),
        };
        if !matches {
            let message = format!("{}, and not by {}", how(end), reason.word());
            return Err(Stop::failed(kind(end), message));
        }
        match (status, end.status) {
            (Some(wanted), Some(found)) if wanted != found => Err(Stop::failed(
                Kind::Status,
                format!("the guest ended with status {found} instead of {wanted}"),
            )),
            _ => Ok(()),
        }
    }

    fn save(&mut self, name: &str, ends: bool, limit: Instant) -> Result<(), Stop> {
        let mut body = json!({ "path": self.snapshot(name), "durable": false });
        if ends {
            body["resume"] = Value::Bool(false);
        }
        self.call("POST", "/berth/v1/snapshot", Some(&body), limit)
            .map(drop)
    }

    fn restore(&mut self, name: &str) -> Result<(), Stop> {
        self.end_process();
        // One that had to be killed leaves its socket.
        let _ = fs::remove_file(self.process.api());
        let from = self.snapshot(name);
        let number = self.process.number() + 1;
        self.process = Process::start(self.around.folder, number, &Begin::Restore { from: &from })?;
        self.progress = Progress::new();
        Ok(())
    }

    fn snapshot(&self, name: &str) -> PathBuf {
        self.around.folder.join(format!("snapshot-{name}"))
    }

    /// Asks the VM's API, and hears the guest meanwhile: one that cannot get rid of what it says cannot be paused.
    fn call(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        limit: Instant,
    ) -> Result<Value, Stop> {
        let done = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let api = self.process.api();
        let time = limit
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        let answer = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let answer = client::request(&api, method, path, body, time);
                // Fails only when the counter is full.
                let _ = done.write(1);
                answer
            });
            while !thread.is_finished() {
                // The request has a limit of its own.
                match self.pump(Instant::now() + Duration::from_secs(1), &[&done]) {
                    Ok(_) if self.process.ended().is_none() => {}
                    _ => break,
                }
            }
            thread.join()
        });
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(match self.process.ended() {
                Some(_) => self.ended_before("the request's end"),
                None => Stop::failed(Kind::Vmm, format!("the VM refused: {error}")),
            }),
            Err(_) => Err(Stop::failed(Kind::Vmm, "the VM's API could not be asked")),
        }
    }

    /// Hears the guest once, or waits in vain until `time`.
    fn pump(&mut self, time: Instant, other: &[&EventFd]) -> io::Result<Woken> {
        let (log, console) = (&mut self.log, &mut self.console);
        let (progress, marks) = (&mut self.progress, &mut self.marks);
        let began = self.began;
        self.process.wait(time, other, |bytes| {
            log.write(bytes);
            console.push(bytes);
            progress.heard();
            marks.first_output.get_or_insert_with(|| began.elapsed());
        })
    }

    /// Waits until the console has what is looked for or the guest has ended.
    fn until(&mut self, limit: Instant, what: &str) -> Result<Heard, Stop> {
        let began = Instant::now();
        let hang = match self.case.hang {
            Hang::Usual => Some(self.around.usual_hang),
            Hang::After(time) => Some(time),
            Hang::Never => None,
        };
        loop {
            let found = self.console.advance();
            self.note_marks();
            if let Some(alarm) = self.console.alarm() {
                return Err(alarmed(alarm));
            }
            if found {
                return Ok(Heard::Found);
            }
            if self.process.ended().is_some() {
                let found = self.console.end();
                self.note_marks();
                return match self.console.alarm() {
                    Some(alarm) => Err(alarmed(alarm)),
                    None if found => Ok(Heard::Found),
                    None => Ok(Heard::Ended),
                };
            }
            let now = Instant::now();
            let idle = self.progress.idle();
            if let Some(hang) = hang.filter(|hang| idle >= *hang && self.progress.is_known()) {
                return Err(self.hung(hang, what));
            }
            if now >= limit {
                let waited = now - began;
                if self.progress.is_known() && idle >= (waited / 2).max(Duration::from_secs(1)) {
                    return Err(self.hung(idle, what));
                }
                let message = format!("{what} did not come within {}", shown(waited));
                return Err(Stop::failed(Kind::Timeout, message));
            }
            let cancel = self.around.cancel;
            match self.pump(limit.min(self.progress.next()), &[cancel])? {
                Woken::Other => return Err(Stop::Interrupted),
                Woken::Time | Woken::Guest => {}
            }
            if Instant::now() >= self.progress.next() {
                self.progress.look(&self.process.api(), self.process.pid());
            }
        }
    }

    fn note_marks(&mut self) {
        for mark in self.console.marks() {
            let time = match mark {
                Mark::Kernel => &mut self.marks.kernel,
                Mark::Init => &mut self.marks.init,
                Mark::Ready => &mut self.marks.ready,
            };
            time.get_or_insert_with(|| self.began.elapsed());
        }
    }

    fn hung(&self, idle: Duration, what: &str) -> Stop {
        let message = format!(
            "the guest hangs: for {} it said nothing and used no device while {what} was waited for, and {}",
            shown(idle),
            self.progress.cpus()
        );
        Stop::failed(Kind::Hang, message)
    }

    /// The guest has ended, and something else was waited for.
    fn ended_before(&self, what: &str) -> Stop {
        let waited = match what {
            "" => String::new(),
            what => format!("{what} was waited for, but "),
        };
        match self.process.ended() {
            Some(End::Vm(end)) => Stop::failed(kind(end), waited + &how(end)),
            Some(End::Refused(why)) => Stop::failed(Kind::Refused, why.clone()),
            Some(End::Crashed(how)) => {
                Stop::failed(Kind::Vmm, format!("{waited}the VM's process ended {how}"))
            }
            None => Stop::failed(Kind::Vmm, "the VM's process does not end"),
        }
    }
}

fn alarmed(alarm: &Alarm) -> Stop {
    match alarm {
        Alarm::Kernel(fault, line) => Stop::failed(Kind::Kernel(*fault), format!("{}: {line}", fault.name())),
        Alarm::Never(pattern, line) => Stop::failed(
            Kind::Never,
            format!("the console said what it must never say, {pattern}: {line}"),
        ),
    }
}

/// What it is called that a VM ended so where it should not.
fn kind(end: &DrivenEnd) -> Kind {
    match end.reason.as_str() {
        "panicked" => Kind::Kernel(KernelFault::Panic),
        "triple-fault" => Kind::TripleFault,
        "fault" => Kind::Vmm,
        _ => Kind::Ended,
    }
}

/// How a VM ended, for a sentence.
fn how(end: &DrivenEnd) -> String {
    match (end.reason.as_str(), end.status, &end.message) {
        ("exit", Some(status), _) => format!("the guest ended with status {status}"),
        ("shutdown", ..) => "the guest shut down".to_owned(),
        ("reset", ..) => "the guest asked for a reset".to_owned(),
        ("triple-fault", ..) => "the guest's CPU shut down at a triple fault".to_owned(),
        (_, _, Some(message)) => message.clone(),
        (reason, ..) => format!("the guest ended by {reason}"),
    }
}

/// The beginning of what was said, for a sentence.
fn excerpt(text: &str) -> String {
    const MOST: usize = 200;
    let text = text.trim();
    if text.is_empty() {
        return "; there is nothing in it".to_owned();
    }
    let mut short: String = text.chars().take(MOST).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("; there is {short:?}")
}

/// A duration as people say it.
pub(crate) fn shown(time: Duration) -> String {
    if time >= Duration::from_secs(600) {
        format!("{} min", time.as_secs() / 60)
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}
