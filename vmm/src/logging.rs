//! The log: lines to standard error or to a file, warnings and worse unless asked for more.
//!
//! A plain level costs a start nothing. Directives per module (`info,berth::vcpu=debug`) need a parser that takes a while to
//! build, so it is built only for them. Records of the `log` crate are shown with directives alone: some libraries write them
//! as often as a guest wants.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::util::SubscriberInitExt;

use crate::spec::Fault;

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

/// The log, started.
#[derive(Debug)]
#[must_use]
pub struct Log {
    /// The file, if it was not there before.
    created: Option<PathBuf>,
}

impl Log {
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
pub fn start(filter: &Filter, file: Option<&Path>) -> Result<Log, Fault> {
    let Some(path) = file else {
        let terminal = io::stderr().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        install(filter, StderrLines { terminal }, colour)?;
        return Ok(Log { created: None });
    };
    let (file, log) =
        open(path).map_err(|cause| Fault::new("log-file", format!("{}: {cause}", path.display())))?;
    install::<Arc<File>>(filter, Arc::new(file), false)?;
    Ok(log)
}

fn open(path: &Path) -> io::Result<(File, Log)> {
    let mut options = OpenOptions::new();
    options.append(true);
    match options.clone().create_new(true).open(path) {
        Ok(file) => Ok((
            file,
            Log {
                created: Some(path.to_owned()),
            },
        )),
        // Also where it names what no new file can be, such as a dangling link or a pipe.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Ok((options.create(true).open(path)?, Log { created: None }))
        }
        Err(error) => Err(error),
    }
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
        Filter::Level(level) => global(lines.with_max_level(*level).finish()),
        Filter::Directives(text) => {
            let filter = EnvFilter::builder().parse(text);
            let filter = filter.map_err(|error| Fault::new("log-level", format!("{text:?}: {error}")))?;
            let lines = lines.with_env_filter(filter).finish();
            lines
                .try_init()
                .map_err(|error| Fault::new("log", error.to_string()))
        }
    }
}

fn global(lines: impl Subscriber + Send + Sync) -> Result<(), Fault> {
    tracing::subscriber::set_global_default(lines).map_err(|error| Fault::new("log", error.to_string()))
}

/// Standard error, one write per line. A terminal is raw while a VM runs and needs to be told to return the carriage.
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
        let (file, log) = open(&path).unwrap();
        log.discard_empty_file();
        assert!(!path.exists());
        drop(file);

        let (mut file, log) = open(&path).unwrap();
        file.write_all(b"line\n").unwrap();
        log.discard_empty_file();
        open(&path).unwrap().1.discard_empty_file();
        fs::write(&path, "").unwrap();
        open(&path).unwrap().1.discard_empty_file();
        assert!(path.exists());
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_named() {
        let fault = start(&Filter::default(), Some(Path::new("/nonexistent/log"))).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "log-file: /nonexistent/log: No such file or directory (os error 2)"
        );
    }
}
