//! `berth test`: finds test files, has their cases run, and tells what came of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use berth_arch::probe;
use berth_arch::x86_64::kind::HostKind;
use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::say::{complain, print};
use crate::boot_test::expand::{self, Expanded, Outside};
use crate::boot_test::file::{self, FileFault, Source};
use crate::boot_test::images::Setup;
use crate::boot_test::pattern::Pattern;
use crate::boot_test::plan::Case;
use crate::boot_test::report::terminal::{Look, Say, Terminal};
use crate::boot_test::report::{Counts, json, junit, tap};
use crate::boot_test::schedule::{self, Options};
use crate::boot_test::verdict::{Kind, Verdict};
use crate::image::Partial;
use crate::signals::Signals;
use crate::spec::{self, Limits};
use crate::{doctor, event, exit_code};

/// The exit code when a test failed.
const FAILED: u8 = 1;
/// The exit code when this host cannot run the tests.
const HOST: u8 = 3;

pub(super) const ABOUT: &str = "\
Run boot tests: VMs described in TOML files, and what is to happen in them.

A FILE is a test file; of a FOLDER, those in it and below whose names end in .test.toml are. Cases run at once as far as processors and \
memory go. docs/ci.md has the whole of it, `berth schema test` the fields.";

pub(super) const AFTER: &str = "\
Examples:
  berth test boot.test.toml
  berth test tests/ --jobs 4 --junit report.xml --output evidence
  berth test boot.test.toml --var kernel=build/bzImage --filter memory=1G

Exit codes:
  0         all tests passed, flaky ones too
  1         a test failed
  2         an argument or a test file is wrong
  3         this host cannot run them
  128+N     ended by signal N; the reports say which tests were interrupted";

/// Arguments of `berth test`.
#[derive(Debug, Default, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct TestArgs {
    /// Test files, or folders of them
    #[arg(required = true, value_name = "FILE|FOLDER")]
    pub paths: Vec<PathBuf>,

    /// How many processors to keep busy [default: all]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,

    /// Only cases whose names match this regular expression; a plain word is one
    #[arg(long, value_name = "REGEX")]
    pub filter: Option<String>,

    /// Print the cases instead of running them
    #[arg(long)]
    pub list: bool,

    /// Run slow tests too
    #[arg(long)]
    pub slow: bool,

    /// End all when a test fails
    #[arg(long)]
    pub fail_fast: bool,

    /// Try a case that failed again, up to N times; one that then passes is told as flaky
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retries: u32,

    /// Give a variable of the test files another value; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    pub var: Vec<String>,

    /// Keep console, description and timing of cases that failed in this folder [default: a new one in $TMPDIR]
    #[arg(long, short, value_name = "FOLDER")]
    pub output: Option<PathBuf>,

    /// Keep them of all cases, disks and snapshots too
    #[arg(long)]
    pub keep: bool,

    /// Write JUnit XML to this file
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,

    /// Write TAP to this file, or - for standard output
    #[arg(long, value_name = "FILE")]
    pub tap: Option<PathBuf>,

    /// Write JSON with the boots' timing to this file, or - for standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Why the tests cannot be run, and the exit code for it. What there is to say was said.
type Refused = u8;

fn refuse<T>(sentence: &dyn std::fmt::Display) -> Result<T, Refused> {
    complain(sentence);
    Err(exit_code::USER)
}

/// Runs it. Returns the exit code.
pub(super) fn run(args: &TestArgs) -> u8 {
    run_or_refuse(args).unwrap_or_else(|code| code)
}

fn run_or_refuse(args: &TestArgs) -> Result<u8, Refused> {
    let output = output_path(args.output.as_deref())?;
    let images = output.join(IMAGES);
    let Expanded {
        cases,
        images: setups,
    } = expanded(args, &images)?;
    if args.list {
        return Ok(print(&list(&cases)));
    }
    let usual_hang = check_host(&cases, args.slow)?;
    let began = Instant::now();
    let reports = Reports::open(args)?;
    // Before any thread is started: it concerns them all.
    let signals = Signals::take().map_err(|error| fault("a signal descriptor", &error))?;
    let cancel =
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|error| fault("an event descriptor", &error))?;
    make_output(&output, args.output.is_some())?;
    let options = Options {
        jobs: args.jobs.map_or_else(processors, usize::from),
        memory: probe::host::available_memory().unwrap_or(u64::MAX) / 10 * 9,
        retries: args.retries,
        fail_fast: args.fail_fast,
        slow: args.slow,
        keep: args.keep,
        output: output.clone(),
        usual_hang,
    };
    let terminal = terminal(args, cases.len());
    let stopped = AtomicBool::new(false);
    let remove_images = || {
        if !args.keep {
            // What is left behind is in nobody's way.
            let _ = fs::remove_dir_all(&images);
        }
    };
    let interrupted = match make_images(setups, &images, &signals)? {
        Made::All => None,
        Made::Until(signal) => Some(signal),
        Made::Wrong(fault) => {
            remove_images();
            let _ = fs::remove_dir(&output);
            return refuse(&fault);
        }
    };
    stopped.store(interrupted.is_some(), Ordering::Release);
    let (verdicts, signal) = run_until_signal(&signals, &cancel, &stopped, || {
        schedule::run(&cases, &options, &cancel, &stopped, &terminal)
    })?;
    let signal = interrupted.or(signal);
    remove_images();
    let took = began.elapsed();
    terminal.summary(&verdicts, took);
    // Fails where something was kept, and then it is to stay.
    let _ = fs::remove_dir(&output);
    let written = reports.write(&verdicts, took);
    let code = code(&verdicts, signal);
    Ok(if written == exit_code::OK || code != exit_code::OK {
        code
    } else {
        written
    })
}

fn fault(what: &str, error: &io::Error) -> Refused {
    complain(&format_args!("{what}: {error}"));
    exit_code::FAULT
}

fn code(verdicts: &[Verdict], signal: Option<i32>) -> u8 {
    let refused = |verdict: &Verdict| {
        verdict
            .failure()
            .is_some_and(|failure| failure.kind == Kind::Refused)
    };
    if let Some(signal) = signal {
        return exit_code::of_signal(signal);
    }
    if verdicts.iter().any(refused) {
        return exit_code::USER;
    }
    let counts = Counts::of(verdicts);
    if counts.failed + counts.interrupted > 0 {
        FAILED
    } else {
        exit_code::OK
    }
}

/// Runs `work` on another thread; a signal ends it early. Gives what it made, and the signal.
fn run_until_signal<T: Send>(
    signals: &Signals,
    cancel: &EventFd,
    stopped: &AtomicBool,
    work: impl FnOnce() -> T + Send,
) -> Result<(T, Option<i32>), Refused> {
    let done =
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|error| fault("an event descriptor", &error))?;
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let made = work();
            // Fails only when the counter is full.
            let _ = done.write(1);
            made
        });
        let mut signal = None;
        while let Some(came) = wait(signals, &done)? {
            signal.get_or_insert(came);
            stopped.store(true, Ordering::Release);
            // As above.
            let _ = cancel.write(1);
        }
        match worker.join() {
            Ok(made) => Ok((made, signal)),
            // A panic has ended the program before.
            Err(_) => Err(exit_code::FAULT),
        }
    })
}

/// All cases that the arguments mean, with nothing wrong in any of them.
fn expanded(args: &TestArgs, images: &Path) -> Result<Expanded, Refused> {
    let mut flags = BTreeMap::new();
    for text in &args.var {
        let Some((name, value)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return refuse(&format_args!(
                "var: {text:?} gives nothing a value; write it as NAME=VALUE"
            ));
        };
        if flags.insert(name.to_owned(), value.to_owned()).is_some() {
            return refuse(&format_args!("var: {name} is given twice; give it once"));
        }
    }
    let filter = match &args.filter {
        None => None,
        Some(text) => match Pattern::regex(text) {
            Ok(pattern) => Some(pattern),
            Err(error) => return refuse(&format_args!("filter: {error}")),
        },
    };
    let outside = Outside {
        flags: &flags,
        environment: &|name| std::env::var(name).ok(),
        images,
    };
    let (mut all, mut known) = (Expanded::default(), BTreeSet::new());
    let mut seen = BTreeSet::new();
    for path in &args.paths {
        for path in file::find(path).or_else(|fault| refuse(&fault))? {
            if !seen.insert(path.clone()) {
                continue;
            }
            let source = Source::read(&path).or_else(|fault| refuse(&fault))?;
            known.extend(source.test.vars.keys().chain(source.test.matrix.keys()).cloned());
            let Expanded { cases, images } =
                expand::expand(&source, &outside).or_else(|fault| refuse(&fault))?;
            all.cases.extend(cases);
            all.images.extend(images);
        }
    }
    if let Some(name) = flags.keys().find(|name| !known.contains(*name)) {
        let known: Vec<_> = known.iter().map(String::as_str).collect();
        let instead = if known.is_empty() {
            "they have none".to_owned()
        } else {
            spec::nearest_of(name, &known)
        };
        return refuse(&format_args!(
            "var: no test file has a variable {name:?}; {instead}"
        ));
    }
    if let Some(filter) = filter {
        let count = all.cases.len();
        all.cases.retain(|case| filter.is_in(case.name.as_bytes()));
        if all.cases.is_empty() {
            let text = args.filter.as_deref().unwrap_or_default();
            return refuse(&format_args!(
                "filter: {text:?} matches none of the {count} cases; --list prints their names"
            ));
        }
    }
    Ok(all)
}

/// Waits for a signal, whose number it gives, or for `done`.
fn wait(signals: &Signals, done: &EventFd) -> Result<Option<i32>, Refused> {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(event::borrow(done), PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(fault("to wait for the tests", &error.into())),
        }
        if let Some(signal) = signals.next() {
            return Ok(Some(signal));
        }
        if done.read().is_ok() {
            return Ok(None);
        }
    }
}

/// What became of the images that files want made.
enum Made {
    All,
    /// This signal came before.
    Until(i32),
    /// A file wants what cannot be.
    Wrong(FileFault),
}

/// Makes the images. A source may be slow without end, so a signal does not wait for it: the thread that reads it ends with the
/// program, and what it makes has no name.
fn make_images(setups: Vec<Setup>, folder: &Path, signals: &Signals) -> Result<Made, Refused> {
    let Some(first) = setups.first() else {
        return Ok(Made::All);
    };
    if let Err(error) = fs::create_dir_all(folder) {
        return Ok(Made::Wrong(FileFault {
            message: format!("{}: {error}", folder.display()),
            ..first.fault.clone()
        }));
    }
    let done =
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|error| fault("an event descriptor", &error))?;
    let told = done
        .try_clone()
        .map_err(|error| fault("an event descriptor", &error))?;
    let partial = Partial::default();
    let theirs = partial.clone();
    let worker = std::thread::Builder::new()
        .name("images".to_owned())
        .spawn(move || {
            let made = setups.iter().try_for_each(|setup| setup.build(&theirs));
            // Fails only when the counter is full.
            let _ = told.write(1);
            made
        })
        .map_err(|error| fault("a thread for images", &error))?;
    if let Some(signal) = wait(signals, &done)? {
        partial.discard();
        return Ok(Made::Until(signal));
    }
    match worker.join() {
        Ok(Ok(())) => Ok(Made::All),
        Ok(Err(fault)) => Ok(Made::Wrong(fault)),
        // A panic has ended the program before.
        Err(_) => Err(exit_code::FAULT),
    }
}

fn list(cases: &[Case]) -> String {
    let mut text = String::new();
    for case in cases {
        let slow = if case.slow { " (slow)" } else { "" };
        // Writing to a string cannot fail.
        let _ = std::fmt::Write::write_fmt(
            &mut text,
            format_args!("{}: {}{slow}\n", case.file.display(), case.name),
        );
    }
    text
}

/// Whether the host can run the cases; how long a guest here may be silent.
fn check_host(cases: &[Case], slow: bool) -> Result<Duration, Refused> {
    let report = probe::report();
    if !report.can_run() {
        complain(&doctor::summary(&report));
        return Err(HOST);
    }
    for case in cases.iter().filter(|case| slow || !case.slow) {
        if let Err(faults) = spec::validate(&case.spec, Limits::of_host(&case.spec)) {
            for fault in faults {
                complain(&format_args!("{}: {}: {fault}", case.file.display(), case.name));
            }
            return Err(HOST);
        }
    }
    Ok(match report.kind {
        Some(HostKind::Interpreted) => Duration::from_secs(300),
        _ => Duration::from_secs(60),
    })
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Where the cases' folders will be, absolute.
fn output_path(folder: Option<&Path>) -> Result<PathBuf, Refused> {
    let number = rustix::process::getpid().as_raw_pid();
    let path = match folder {
        Some(folder) => folder.to_owned(),
        None => std::env::temp_dir().join(format!("berth-test-{number}")),
    };
    std::path::absolute(&path).or_else(|error| refuse(&format_args!("output: {}: {error}", path.display())))
}

/// Makes that folder.
fn make_output(path: &Path, is_named: bool) -> Result<(), Refused> {
    let make = |recursive: bool| DirBuilder::new().recursive(recursive).mode(0o700).create(path);
    let shown = path.display();
    if !is_named {
        // An empty one is of a process that had the number before.
        let _ = fs::remove_dir(path);
        return make(false)
            .or_else(|error| refuse(&format_args!("{shown}: {error}; name a folder with --output")));
    }
    let there = path.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    if there && !path.join(MARK).exists() {
        return refuse(&format_args!(
            "output: {shown}: there is something in it that is not of an earlier run; name a new folder"
        ));
    }
    make(true)
        .and_then(|()| fs::write(path.join(MARK), ""))
        .or_else(|error| refuse(&format_args!("output: {shown}: {error}")))
}

/// The folder for images that were made, in that folder.
const IMAGES: &str = "images";
/// What tells a folder of earlier runs from any other.
const MARK: &str = ".berth-test";

fn terminal(args: &TestArgs, cases: usize) -> Terminal {
    let is_stdout = |path: &Option<PathBuf>| path.as_deref() == Some(Path::new("-"));
    let to_stderr = is_stdout(&args.tap) || is_stdout(&args.json);
    let variable = |name: &str| std::env::var(name).ok();
    let terminal = if to_stderr {
        io::stderr().is_terminal()
    } else {
        io::stdout().is_terminal()
    };
    let look = Look {
        unicode: doctor::unicode(variable),
        colours: terminal && variable("NO_COLOR").is_none_or(|value| value.is_empty()),
    };
    let say: Say = if to_stderr {
        Box::new(|text| io::stderr().write_all(text.as_bytes()))
    } else {
        Box::new(|text| {
            let mut stdout = io::stdout().lock();
            stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        })
    };
    let live = io::stderr().is_terminal() && variable("TERM").is_some_and(|term| term != "dumb");
    Terminal::new(look, say, live, cases)
}

/// The files for reports, opened before anything runs: hours of tests are not to end in a path that was wrong.
struct Reports {
    junit: Option<(PathBuf, File)>,
    tap: Option<Place>,
    json: Option<Place>,
}

enum Place {
    Stdout,
    File(PathBuf, File),
}

impl Reports {
    fn open(args: &TestArgs) -> Result<Self, Refused> {
        let file = |flag: &str, path: &Path| match File::create(path) {
            Ok(file) => Ok((path.to_owned(), file)),
            Err(error) => refuse(&format_args!("{flag}: {}: {error}", path.display())),
        };
        let place = |flag: &str, path: &PathBuf| {
            if path == Path::new("-") {
                return Ok(Place::Stdout);
            }
            file(flag, path).map(|(path, file)| Place::File(path, file))
        };
        if args.tap.as_deref() == Some(Path::new("-")) && args.json.as_deref() == Some(Path::new("-")) {
            return refuse(
                &"tap and json cannot both be written to standard output; name a file for one of them",
            );
        }
        Ok(Self {
            junit: args.junit.as_ref().map(|path| file("junit", path)).transpose()?,
            tap: args.tap.as_ref().map(|path| place("tap", path)).transpose()?,
            json: args.json.as_ref().map(|path| place("json", path)).transpose()?,
        })
    }

    /// Writes them all. The exit code says if that went well.
    fn write(self, verdicts: &[Verdict], took: Duration) -> u8 {
        let mut code = exit_code::OK;
        if let Some((path, file)) = self.junit {
            code = match junit::report(verdicts, took) {
                Ok(text) => Place::File(path, file).write(&text),
                Err(error) => not_written(&path, &error),
            };
        }
        if let Some(place) = self.tap {
            code = code.max(place.write(&tap::report(verdicts)));
        }
        if let Some(place) = self.json {
            code = code.max(place.write(&json::report(verdicts, took)));
        }
        code
    }
}

impl Place {
    fn write(self, text: &str) -> u8 {
        match self {
            Self::Stdout => print(text),
            Self::File(path, mut file) => match file.write_all(text.as_bytes()) {
                Ok(()) => exit_code::OK,
                Err(error) => not_written(&path, &error),
            },
        }
    }
}

fn not_written(path: &Path, why: &dyn std::fmt::Display) -> u8 {
    complain(&format_args!(
        "{}: the report cannot be written: {why}",
        path.display()
    ));
    exit_code::FAULT
}
