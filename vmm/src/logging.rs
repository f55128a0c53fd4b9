//! The log: lines to standard error or to a file, warnings and worse unless asked for more. A file is put aside when it is
//! full ([`Bound`]). Where somebody can ask for it, the level can change while Berth runs ([`LogLevel`]).
//!
//! A plain level costs a start nothing. Directives per module (`info,berth::vcpu=debug`) need a parser that takes a while to
//! build, so it is built only for them. Records of the `log` crate are shown with directives alone: some libraries write them
//! as often as a guest wants.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, layer, reload};

pub use crate::rotate::Bound;
use crate::rotate::RotatingFile;
use crate::spec::Fault;
use crate::unmade;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Everything from this level up.
    Level(LevelFilter),
    /// By directives, which [`start`] reads.
    Directives(String),
}

impl Default for Filter {
    fn default() -> Self {
        Self::Level(LevelFilter::WARN)
    }
}

impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Level(level) => level.fmt(f),
            Self::Directives(text) => f.write_str(text),
        }
    }
}

impl std::str::FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.contains([',', '=', '[']) {
            return match EnvFilter::builder().parse(text) {
                Ok(_) => Ok(Self::Directives(text.to_owned())),
                Err(error) => Err(format!(
                    "{text:?} cannot be read: {error}; write it as in info,berth::vcpu=debug"
                )),
            };
        }
        let level = LEVELS.iter().position(|level| level.eq_ignore_ascii_case(text));
        match level {
            Some(0) => Ok(Self::Level(LevelFilter::OFF)),
            Some(1) => Ok(Self::Level(LevelFilter::ERROR)),
            Some(2) => Ok(Self::Level(LevelFilter::WARN)),
            Some(3) => Ok(Self::Level(LevelFilter::INFO)),
            Some(4) => Ok(Self::Level(LevelFilter::DEBUG)),
            Some(5) => Ok(Self::Level(LevelFilter::TRACE)),
            _ => Err(format!(
                "{text:?} is no level; use {} or directives",
                LEVELS.join(", ")
            )),
        }
    }
}

/// How large a log file becomes where nothing is said.
pub const BOUND: Bound = Bound {
    size: 16 << 20,
    keep: 3,
};

/// Where the log goes, and who can change it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Target<'a> {
    /// A file instead of standard error, and how large it becomes.
    pub file: Option<(&'a Path, Bound)>,
    /// Whether its level can be changed later.
    pub adjustable: bool,
}

/// The log, started.
#[derive(Debug)]
#[must_use]
pub struct Log {
    /// The file, if it was not there before.
    created: Option<PathBuf>,
    level: Option<LogLevel>,
}

impl Log {
    /// What changes its level, if it was asked for.
    pub fn level(&self) -> Option<LogLevel> {
        self.level.clone()
    }

    /// Takes back a file that was made for nothing: for a VM that was refused.
    pub fn discard_empty_file(self) {
        let empty = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.len() == 0);
        if let Some(path) = self.created.filter(empty) {
            // If it cannot be removed, it is still empty.
            let _ = fs::remove_file(path);
        }
    }
}

/// Starts the log. To be called once, before any thread that logs.
pub fn start(filter: &Filter, target: Target<'_>) -> Result<Log, Fault> {
    let Some((path, bound)) = target.file else {
        let terminal = io::stderr().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        let lines = StderrLines { terminal };
        let level = if target.adjustable {
            Some(install_adjustable(filter, Sink::Stderr(lines), colour)?)
        } else {
            install(filter, lines, colour)?;
            None
        };
        return Ok(Log { created: None, level });
    };
    let (file, created) = open(path, bound).map_err(|cause| unwritable(path, &cause))?;
    let level = if target.adjustable {
        Some(install_adjustable(filter, Sink::File(file), false)?)
    } else {
        install(filter, Mutex::new(file), false)?;
        None
    };
    Ok(Log { created, level })
}

fn unwritable(path: &Path, cause: &io::Error) -> Fault {
    Fault::new(
        "log-file",
        format!("{}: {}", path.display(), unmade::why(path, cause)),
    )
}

/// Where the lines of a log go that can be led elsewhere.
#[derive(Debug)]
enum Sink {
    Stderr(StderrLines),
    File(RotatingFile),
}

/// A sink that the log and whoever leads it elsewhere share.
#[derive(Debug, Clone)]
struct SharedSink(Arc<Mutex<Sink>>);

impl Write for SharedSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Sink::Stderr(lines) => lines.make_writer().write(bytes),
            Sink::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for SharedSink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Opens the file; also says its path if it was not there before.
fn open(path: &Path, bound: Bound) -> io::Result<(RotatingFile, Option<PathBuf>)> {
    let absent = matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound);
    let file = RotatingFile::open(path, bound)?;
    Ok((file, absent.then(|| path.to_owned())))
}

fn install_adjustable(filter: &Filter, sink: Sink, colour: bool) -> Result<LogLevel, Fault> {
    let (choice, handle) = reload::Layer::new(Choice::new(filter)?);
    let sink = SharedSink(Arc::new(Mutex::new(sink)));
    // As below.
    let lines = fmt::layer()
        .with_writer(sink.clone())
        .with_ansi(colour)
        .log_internal_errors(false);
    global(tracing_subscriber::registry().with(lines.with_filter(choice)))?;
    Ok(LogLevel {
        handle,
        current: Arc::new(Mutex::new(filter.clone())),
        sink,
    })
}

fn install<W>(filter: &Filter, writer: W, colour: bool) -> Result<(), Fault>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // A log that cannot be written is not worth a word on standard error, which may be just as full.
    let lines = fmt::Subscriber::builder()
        .with_writer(writer)
        .with_ansi(colour)
        .log_internal_errors(false);
    match filter {
        Filter::Level(level) => global(lines.with_max_level(*level).finish())?,
        Filter::Directives(text) => lines
            .with_env_filter(directives(text)?)
            .finish()
            .try_init()
            .map_err(|error| Fault::new("log", error.to_string()))?,
    }
    Ok(())
}

fn directives(text: &str) -> Result<EnvFilter, Fault> {
    let filter = EnvFilter::builder().parse(text);
    filter.map_err(|error| Fault::new("log-level", format!("{text:?}: {error}")))
}

fn global(lines: impl Subscriber + Send + Sync) -> Result<(), Fault> {
    tracing::subscriber::set_global_default(lines).map_err(|error| Fault::new("log", error.to_string()))
}

/// Changes what is logged; to be cloned freely.
#[derive(Debug, Clone)]
pub struct LogLevel {
    handle: reload::Handle<Choice, Registry>,
    current: Arc<Mutex<Filter>>,
    sink: SharedSink,
}

impl LogLevel {
    /// Appends to the file or pipe at `path` from now on.
    pub fn redirect(&self, path: &Path) -> Result<(), Fault> {
        let file = RotatingFile::open_at_once(path, BOUND).map_err(|cause| unwritable(path, &cause))?;
        *self.sink.0.lock().unwrap_or_else(PoisonError::into_inner) = Sink::File(file);
        Ok(())
    }

    /// What is logged now.
    pub fn get(&self) -> Filter {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Logs by `filter` from now on.
    pub fn set(&self, filter: Filter) -> Result<(), Fault> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let choice = Choice::new(&filter)?;
        self.handle
            .reload(choice)
            .map_err(|error| Fault::new("log-level", error.to_string()))?;
        *current = filter;
        Ok(())
    }
}

/// A filter that another can take the place of.
#[derive(Debug)]
enum Choice {
    Level(LevelFilter),
    Directives(Box<EnvFilter>),
}

impl Choice {
    fn new(filter: &Filter) -> Result<Self, Fault> {
        Ok(match filter {
            Filter::Level(level) => Self::Level(*level),
            Filter::Directives(text) => Self::Directives(Box::new(directives(text)?)),
        })
    }
}

impl<S: Subscriber> layer::Filter<S> for Choice {
    fn enabled(&self, metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool {
        match self {
            Self::Level(level) => layer::Filter::<S>::enabled(level, metadata, context),
            Self::Directives(filter) => layer::Filter::<S>::enabled(&**filter, metadata, context),
        }
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self {
            Self::Level(level) => layer::Filter::<S>::callsite_enabled(level, metadata),
            Self::Directives(filter) => layer::Filter::<S>::callsite_enabled(&**filter, metadata),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        match self {
            Self::Level(level) => Some(*level),
            Self::Directives(filter) => layer::Filter::<S>::max_level_hint(&**filter),
        }
    }
}

/// Standard error, one write per line. A terminal is raw while a VM runs and needs to be told to return the carriage.
#[derive(Debug)]
struct StderrLines {
    terminal: bool,
}

impl<'a> MakeWriter<'a> for StderrLines {
    type Writer = Lines<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Lines {
            to: io::stderr(),
            terminal: self.terminal,
        }
    }
}

/// Writes whole lines at once.
struct Lines<W> {
    to: W,
    terminal: bool,
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.terminal {
            let text = String::from_utf8_lossy(bytes).replace('\n', "\r\n");
            self.to.write_all(text.as_bytes())?;
        } else {
            self.to.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_without_the_parser_of_directives() {
        for (text, level) in [
            ("off", LevelFilter::OFF),
            ("ERROR", LevelFilter::ERROR),
            (" warn ", LevelFilter::WARN),
            ("info", LevelFilter::INFO),
            ("debug", LevelFilter::DEBUG),
            ("trace", LevelFilter::TRACE),
        ] {
            assert_eq!(text.parse(), Ok(Filter::Level(level)), "{text}");
        }
        let directives = "info,berth::vcpu=debug";
        assert_eq!(directives.parse(), Ok(Filter::Directives(directives.to_owned())));
    }

    #[test]
    fn what_is_neither_level_nor_directive_is_refused() {
        let wrong = |text: &str| text.parse::<Filter>().unwrap_err();
        let levels = "off, error, warn, info, debug, trace";
        assert_eq!(
            wrong("wran"),
            format!("\"wran\" is no level; use {levels} or directives")
        );
        assert_eq!(wrong(""), format!("\"\" is no level; use {levels} or directives"));
        let sentence = wrong("berth=loud");
        assert!(
            sentence.starts_with("\"berth=loud\" cannot be read: ") && !sentence.contains('\n'),
            "{sentence}"
        );
    }

    #[test]
    fn a_filter_is_shown_as_it_is_read() {
        for text in ["off", "warn", "trace", "info,berth::vcpu=debug"] {
            assert_eq!(text.parse::<Filter>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_level_can_change_while_the_program_runs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let sink = SharedSink(Arc::new(Mutex::new(Sink::File(
            RotatingFile::open(&path, BOUND).unwrap(),
        ))));
        let (choice, handle) = reload::Layer::new(Choice::new(&Filter::default()).unwrap());
        let lines = fmt::layer()
            .with_writer(sink.clone())
            .with_ansi(false)
            .with_filter(choice);
        let level = LogLevel {
            handle,
            current: Arc::new(Mutex::new(Filter::default())),
            sink,
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            for (filter, word) in [
                ("warn", "one"),
                ("off,berth=info", "two"),
                ("error", "three"),
                ("info", "four"),
            ] {
                level.set(filter.parse().unwrap()).unwrap();
                assert_eq!(level.get().to_string(), filter);
                tracing::info!("{word}");
            }
        });
        let written = fs::read_to_string(&path).unwrap();
        let words: Vec<_> = written
            .lines()
            .filter_map(|line| line.rsplit(' ').next())
            .collect();
        assert_eq!(words, ["two", "four"]);
        assert!(level.redirect(Path::new("/nonexistent/log")).is_err());
        level.redirect(&folder.path().join("other")).unwrap();
        assert!(folder.path().join("other").exists());
    }

    #[test]
    fn lines_on_a_terminal_return_the_carriage() {
        let written = |terminal| {
            let mut lines = Lines {
                to: Vec::new(),
                terminal,
            };
            lines.write_all(b"one\ntwo\n").unwrap();
            lines.to
        };
        assert_eq!(written(true), b"one\r\ntwo\r\n");
        assert_eq!(written(false), b"one\ntwo\n");
    }

    #[test]
    fn a_log_file_made_for_nothing_is_taken_back_and_any_other_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = |created| Log { created, level: None };
        let (file, created) = open(&path, BOUND).unwrap();
        log(created).discard_empty_file();
        assert!(!path.exists());
        drop(file);

        let (mut file, created) = open(&path, BOUND).unwrap();
        file.write_all(b"line\n").unwrap();
        log(created).discard_empty_file();
        log(open(&path, BOUND).unwrap().1).discard_empty_file();
        fs::write(&path, "").unwrap();
        log(open(&path, BOUND).unwrap().1).discard_empty_file();
        assert!(path.exists());
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_named() {
        let fault = start(
            &Filter::default(),
            Target {
                file: Some((Path::new("/nonexistent/log"), BOUND)),
                adjustable: false,
            },
        )
        .unwrap_err();
        assert_eq!(
            fault.to_string(),
            "log-file: /nonexistent/log: No such file or directory (os error 2); make the folder /nonexistent first"
        );
    }
}
