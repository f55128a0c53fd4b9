//! Test files: what `[vm]`, `[matrix]`, `[[step]]` and the rest of one may hold. Whether it makes sense together says
//! [`expand`](super::expand).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;
use toml::{Table, Value};

use super::faults::KernelFault;
use super::place::Places;
use crate::image::BuildOptions;
use crate::spec::{self, ParseError, VmSpec, table};

/// What a folder's test files end in.
pub const SUFFIX: &str = ".test.toml";
/// More than this is no test file but a mistake.
const SIZE_MAX: u64 = 1 << 20;

/// A test file: a VM, and what is to happen in it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestFile {
    /// What the test shows; without it, the file's name.
    pub name: Option<String>,
    /// How long each case may take, as in 90s or 10m; 5 minutes without it.
    pub timeout: Option<String>,
    /// How long the guest may say and do nothing while something is waited for, as in 30s, or `never`. Without it a minute; five
    /// where guest kernels are interpreted.
    pub hang: Option<String>,
    /// Only run with --slow.
    #[serde(default)]
    pub slow: bool,
    /// Whether the shipped guest may go on from a kept one instead of booting.
    #[serde(default)]
    pub warm: bool,
    /// Kernel faults that do not fail the test.
    #[serde(default)]
    pub allow: Vec<KernelFault>,
    /// Regular expressions that the console must never match.
    #[serde(default)]
    pub never: Vec<String>,
    /// A regular expression for the line that says that the boot is done, for the reports. Without it, the first thing that is
    /// expected.
    pub ready: Option<String>,
    /// Variables, written `${name}` in the values of this file.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, VariableSchema>")]
    pub vars: Table,
    /// Lists of values: there is a case for each combination. A name that is a field of the VM sets it; each is a variable too.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Vec<ScalarSchema>>")]
    pub matrix: Table,
    /// Images that are made before the VMs run, each from directories and tar files, as `berth image build` does; where one is, the
    /// variable `image.NAME` says. `output` is not for it; without a format, ext4.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, BuildOptions>")]
    pub image: Table,
    /// The VM.
    #[serde(default)]
    #[schemars(with = "VmTable")]
    pub vm: Table,
    /// What is to happen, in this order.
    #[serde(default, deserialize_with = "table::list")]
    pub step: Vec<StepTable>,
}

impl table::Described for StepTable {
    const WHAT: &str = "a step; put [[step]] above what it does";
}

/// The VM of a test: any field of a VM file but `serial` and `timeout`.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "for the schema")]
struct VmTable {
    /// A VM file that the fields here come on top of.
    base: Option<PathBuf>,
    #[serde(flatten)]
    spec: VmSpec,
}

/// A value.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "for the schema")]
enum ScalarSchema {
    Text(String),
    Number(i64),
    Switch(bool),
}

/// A variable: its value, or where in the environment it is.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "for the schema")]
enum VariableSchema {
    Value(ScalarSchema),
    Environment {
        /// The variable of the environment.
        env: String,
        /// What it is where the environment lacks it.
        default: Option<ScalarSchema>,
    },
}

/// A step: one thing to do or to wait for, and how.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepTable {
    /// Wait until the guest says this.
    pub expect: Option<String>,
    /// Wait until what the guest says matches this regular expression.
    pub expect_regex: Option<String>,
    /// Type this.
    pub send: Option<String>,
    /// Run this in the guest's shell on the console.
    pub run: Option<String>,
    /// With `run`, the status it must end with, 0 without it; with `exit`, the status on the exit port.
    pub status: Option<i64>,
    /// With `run`, a regular expression that its output must match.
    pub stdout: Option<String>,
    /// Wait until the guest has ended, for this reason: shutdown, reset, exit, panic, triple-fault or any.
    pub exit: Option<String>,
    /// Save the VM under this name.
    pub snapshot: Option<String>,
    /// End the VM and go on from what was saved under this name.
    pub restore: Option<String>,
    /// Put another image into this disk of the running VM.
    pub attach: Option<String>,
    /// Take the image out of this disk of the running VM: it has no sectors then.
    pub detach: Option<String>,
    /// Press `power` or `ctrl-alt-del`.
    pub press: Option<String>,
    /// Look at this file of an ext4 file system, when the guest has ended.
    pub file: Option<String>,
    /// With `file` or `offset`, the disk that has it.
    pub disk: Option<String>,
    /// With `attach`, the image; with `file` or `offset`, an image that has it.
    pub image: Option<String>,
    /// With `file`, what it must hold.
    pub contains: Option<String>,
    /// With `file`, a regular expression that it must match.
    pub matches: Option<String>,
    /// With `file`, that it must not be there.
    pub absent: Option<bool>,
    /// Look at the bytes here, when the guest has ended.
    pub offset: Option<u64>,
    /// With `offset`, what must be there, as text.
    pub bytes: Option<String>,
    /// With `offset`, what must be there, as hexadecimal digits.
    pub hex: Option<String>,
    /// How long the step may take, as in 30s; what is left of the test's time without it.
    pub within: Option<String>,
}

/// What is wrong with a test file. Displays as a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFault {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1, where it is known.
    pub line: Option<usize>,
    /// The field, as in `step[1].within`.
    pub field: Option<String>,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// A test file as it was read: what it says, and where.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// What it says.
    pub test: TestFile,
}

impl Source {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self, FileFault> {
        let fault = |message: String| FileFault {
            path: path.to_owned(),
            line: None,
            field: None,
            message,
        };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(SIZE_MAX + 1).read_to_end(&mut bytes))
            .map_err(|cause| fault(open_failed(&cause)))?;
        if bytes.len() as u64 > SIZE_MAX {
            return Err(fault(
                "it is longer than 1 MiB, which no test file needs; name a TOML file".to_owned(),
            ));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| fault("it is not UTF-8 text; name a TOML file".to_owned()))?;
        Self::parse(path, text)
    }

    /// The same of a text that was read from `path`.
    pub fn parse(path: &Path, text: String) -> Result<Self, FileFault> {
        let text = match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.to_owned(),
            None => text,
        };
        match spec::toml::<TestFile>(&text) {
            Ok(test) => Ok(Self {
                path: path.to_owned(),
                text,
                test,
            }),
            Err(ParseError { line, field, message }) => Err(FileFault {
                path: path.to_owned(),
                line: Some(line),
                field,
                message,
            }),
        }
    }

    /// A fault of the field at `field`.
    pub fn fault(&self, field: impl Into<String>, message: impl Into<String>) -> FileFault {
        let field = field.into();
        FileFault {
            path: self.path.clone(),
            line: Places::of(&self.text).line(&field),
            field: Some(field),
            message: message.into(),
        }
    }

    /// The folder that paths in it are taken from.
    pub fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    /// What the test is called.
    pub fn name(&self) -> String {
        let stem = || {
            let name = self.path.file_name().unwrap_or_default().to_string_lossy();
            let name = name.strip_suffix(SUFFIX).or_else(|| name.strip_suffix(".toml"));
            name.map_or_else(|| self.path.display().to_string(), str::to_owned)
        };
        self.test.name.clone().unwrap_or_else(stem)
    }
}

fn open_failed(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::NotFound => "there is no such file; name a test file, or a folder of them".to_owned(),
        _ => cause.to_string(),
    }
}

/// The test files that `path` means: itself, or those of a folder and its subfolders whose names end in `.test.toml`.
pub fn find(path: &Path) -> Result<Vec<PathBuf>, FileFault> {
    let fault = |at: &Path, message: String| FileFault {
        path: at.to_owned(),
        line: None,
        field: None,
        message,
    };
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let (mut found, mut folders) = (Vec::new(), vec![path.to_owned()]);
    while let Some(folder) = folders.pop() {
        let entries = folder
            .read_dir()
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(|cause| fault(&folder, cause.to_string()))?;
        for entry in entries {
            let path = entry.path();
            let kind = entry
                .file_type()
                .map_err(|cause| fault(&path, cause.to_string()))?;
            // A link to a folder may lead back here.
            if kind.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(SUFFIX) {
                found.push(path);
            }
        }
    }
    if found.is_empty() {
        return Err(fault(
            path,
            format!("there is no test file in this folder; their names end in {SUFFIX}"),
        ));
    }
    found.sort();
    Ok(found)
}

/// A scalar as people write it.
pub(super) fn shown(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(switch) => Some(switch.to_string()),
        _ => None,
    }
}
