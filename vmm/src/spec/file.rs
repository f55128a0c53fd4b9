//! VM files: TOML or JSON, each fault with its line, its field and what to write instead.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::VmSpec;

/// More than this is no description of a VM but a mistake.
const SIZE_MAX: u64 = 1 << 20;

/// How alike two names must be for one to be a misspelling of the other, from 0 to 1.
const ALIKE: f64 = 0.5;

/// The language of a VM file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// TOML.
    Toml,
    /// JSON.
    Json,
}

impl Format {
    /// The one that the file's name ends in, or that its text looks like where the name says nothing.
    fn of(path: &Path, text: &str) -> Option<Self> {
        match path.extension().map(OsStr::to_ascii_lowercase) {
            Some(extension) if extension == "toml" => Some(Self::Toml),
            Some(extension) if extension == "json" => Some(Self::Json),
            Some(_) => None,
            // Standard input, a pipe of the shell, a plain name. No TOML file begins with a brace.
            None if text.trim_start().starts_with('{') => Some(Self::Json),
            None => Some(Self::Toml),
        }
    }
}

/// What is wrong with the text of a VM file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// The field, where it is known, as in `disks[0].path`.
    pub field: Option<String>,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ParseError {}

/// Why a VM file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened or read.
    #[error("{}: {cause}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// It is far too long.
    #[error("{}: it is longer than 1 MiB, which no VM file needs; name a .toml or .json file", .0.display())]
    TooLong(PathBuf),
    /// It is not text.
    #[error("{}: it is not UTF-8 text; name a .toml or .json file", .0.display())]
    NotText(PathBuf),
    /// Neither TOML nor JSON by its name.
    #[error("{}: its name ends neither in .toml nor in .json; rename it to what it holds", .0.display())]
    Extension(PathBuf),
    /// Its text is wrong.
    #[error("{}: {cause}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: ParseError,
    },
}

/// Reads the VM file at `path`, or standard input if it is `-`. Relative paths in it are taken from its folder.
pub fn read(path: &Path) -> Result<VmSpec, FileError> {
    let failed = |cause| FileError::Read {
        path: path.to_owned(),
        cause,
    };
    let mut bytes = Vec::new();
    let stdin = path.as_os_str() == "-";
    let end = if stdin {
        io::stdin().lock().take(SIZE_MAX + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(SIZE_MAX + 1).read_to_end(&mut bytes))
    };
    end.map_err(failed)?;
    if bytes.len() as u64 > SIZE_MAX {
        return Err(FileError::TooLong(path.to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|_| FileError::NotText(path.to_owned()))?;
    let format = Format::of(path, &text).ok_or_else(|| FileError::Extension(path.to_owned()))?;
    let mut spec = parse(&text, format).map_err(|cause| FileError::Parse {
        path: path.to_owned(),
        cause,
    })?;
    if let Some(folder) = path.parent().filter(|_| !stdin) {
        spec.take_paths_from(folder);
    }
    Ok(spec)
}

/// Reads the text file at `path`, which is no `what` if it is longer than `mib` MiB.
pub(crate) fn text(path: &Path, mib: u64, what: &str) -> io::Result<String> {
    let most = mib << 20;
    let mut text = String::new();
    File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        return Err(io::Error::other(format!(
            "it is longer than {mib} MiB, which no {what} is"
        )));
    }
    Ok(text)
}

/// Reads a description from text. Nothing is taken from anywhere else, so this is what the fuzzer feeds.
pub fn parse(text: &str, format: Format) -> Result<VmSpec, ParseError> {
    // A mark that some editors put in front.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match format {
        Format::Toml => toml(text),
        Format::Json => parse_json(text),
    }
}

const GIVEN_TWICE: &str = "the field is given twice; give it once";

/// Reads a TOML document.
pub(crate) fn toml<T: DeserializeOwned>(text: &str) -> Result<T, ParseError> {
    let fault = |field: String, error: &::toml::de::Error| {
        let span = error.span().unwrap_or_default();
        let at = span.start.min(text.len());
        let line = text
            .get(..at)
            .map_or(1, |before| before.matches('\n').count() + 1);
        match (error.message(), text.get(span)) {
            ("duplicate key", Some(key)) => ParseError::from_serde(line, key.to_owned(), GIVEN_TWICE),
            (message, _) => ParseError::from_serde(line, field, message),
        }
    };
    let deserializer = ::toml::Deserializer::parse(text).map_err(|error| fault(String::new(), &error))?;
    serde_path_to_error::deserialize(deserializer)
        .map_err(|error| fault(error.path().to_string(), error.inner()))
}

fn parse_json(text: &str) -> Result<VmSpec, ParseError> {
    if text.trim_start().is_empty() {
        let empty = "the text is empty; write {} for the guest that ships with Berth";
        return Err(ParseError::from_serde(1, String::new(), empty));
    }
    json(text, "a VM in JSON")
}

/// Reads one JSON object, which is `what` to the one who wrote it.
pub(crate) fn json<T: DeserializeOwned>(text: &str, what: &str) -> Result<T, ParseError> {
    let fault = |field: String, error: &serde_json::Error| {
        let message = error.to_string();
        // The place is told on its own.
        let place = format!(" at line {} column {}", error.line(), error.column());
        ParseError::from_serde(
            error.line(),
            field,
            message.strip_suffix(&place).unwrap_or(&message),
        )
    };
    // Serde would also take a list of the fields' values, which nobody could read.
    if !text.trim_start().starts_with('{') {
        let problem = format!("{what} is an object; begin it with {{");
        return Err(ParseError::from_serde(1, String::new(), &problem));
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        // In broken JSON the field that was being read says nothing about what is broken.
        let field = if error.inner().is_data() {
            error.path().to_string()
        } else {
            String::new()
        };
        fault(field, error.inner())
    })?;
    deserializer.end().map_err(|error| fault(String::new(), &error))?;
    Ok(value)
}

impl ParseError {
    /// From where serde was and what it said, in plainer words.
    pub(crate) fn from_serde(line: usize, path: String, message: &str) -> Self {
        let unknown = |kind: &str| message.strip_prefix(kind)?.strip_prefix(" `")?.split_once('`');
        let twice = message
            .strip_prefix("duplicate field `")
            .and_then(|name| name.strip_suffix('`'));
        let (field, message) = if let Some((name, known)) = unknown("unknown field") {
            (
                named(&path, name),
                format!("unknown field; {}", nearest(name, known)),
            )
        } else if let Some((name, known)) = unknown("unknown variant") {
            (path, format!("unknown value {name:?}; {}", nearest(name, known)))
        } else if let Some(name) = twice {
            (named(&path, name), GIVEN_TWICE.to_owned())
        } else {
            (path, plain(message))
        };
        // The path of the whole is a dot.
        let field = Some(field).filter(|field| !field.is_empty() && field != ".");
        Self {
            line: line.max(1),
            field,
            message,
        }
    }
}

/// The path of field `name`: where it is unknown the path may end before it.
fn named(path: &str, name: &str) -> String {
    match path {
        "" | "." => name.to_owned(),
        path if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        path => format!("{path}.{name}"),
    }
}

/// The known name that `name` most likely should be, or all of them. `known` is the rest of serde's sentence, with each
/// name between backquotes.
fn nearest(name: &str, known: &str) -> String {
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    nearest_of(name, &known)
}

/// The same of a list.
pub(crate) fn nearest_of(name: &str, known: &[&str]) -> String {
    let alike = |known: &&str| strsim::normalized_damerau_levenshtein(&name.to_lowercase(), known);
    let best = known.iter().copied().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    match best {
        Some(best) if alike(&best) >= ALIKE => format!("did you mean {best}?"),
        _ => format!("the known ones are {}", known.join(", ")),
    }
}

/// Serde's sentences in everyone's words.
fn plain(message: &str) -> String {
    let message = message.trim().replace('\n', " ");
    let found = |kind: &str| {
        let (found, expected) = message.strip_prefix(kind)?.rsplit_once(", expected ")?;
        Some((value(found), expected))
    };
    if let Some((value, expected)) = found("invalid type: ") {
        format!("{value} is not {}{}", kind(expected), hint(value, expected))
    } else if let Some((value, _)) = found("invalid value: ") {
        format!("{value} is out of range")
    } else if let Some(field) = message.strip_prefix("missing field ") {
        format!("the field {} is missing; add it", field.trim_matches('`'))
    } else if message.starts_with("EOF while parsing") {
        "the text ends too early; see whether a bracket or a quote is left open".to_owned()
    } else if message == "trailing characters" {
        "there is more text behind its end; leave it out".to_owned()
    } else {
        message
    }
}

/// What serde calls a value it found, less its type where the value says it.
fn value(found: &str) -> &str {
    let quoted = |kind: &str| found.strip_prefix(kind)?.split('`').nth(1);
    match found {
        "map" => "a table",
        "sequence" => "a list",
        found => ["integer ", "floating point ", "boolean "]
            .iter()
            .find_map(|kind| quoted(kind))
            .or_else(|| found.strip_prefix("string "))
            .unwrap_or(found),
    }
}

/// What serde calls a type it expected.
fn kind(expected: &str) -> &str {
    match expected {
        "u32" | "u64" => "a whole number",
        "a boolean" => "true or false",
        "a string" => "text",
        "path string" => "a path",
        "a sequence" => "a list",
        expected => expected,
    }
}

/// What to do about the mistakes that the languages themselves lead to.
fn hint(value: &str, expected: &str) -> &'static str {
    match (value, expected) {
        ("a table", "a sequence") => "; in TOML, put its name in double brackets",
        (_, "a sequence") => "; put it in brackets",
        (_, "a string" | "path string") => "; put it in quotes",
        (value, "a boolean") if matches!(unquoted(value), Some("true" | "false")) => "; leave out the quotes",
        (value, "u32" | "u64") if unquoted(value).is_some_and(|text| text.parse::<u64>().is_ok()) => {
            "; leave out the quotes"
        }
        _ => "",
    }
}

fn unquoted(value: &str) -> Option<&str> {
    value.strip_prefix('"')?.strip_suffix('"')
}

#[cfg(test)]
mod tests;
