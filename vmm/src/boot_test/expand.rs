//! From a test file to its cases: variables, the matrix, and everything that can be known to be wrong before a VM runs.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use toml::{Table, Value};

use super::file::{FileFault, Source, shown};
use super::images::{self, Setup};
use super::pattern::Pattern;
use super::plan::{Case, Hang};
use super::template::{self, TemplateError};
use super::{steps, template::is_name};
use crate::spec::{self, Limits, ParseError, VmSpec};

/// More cases than this of one file are a mistake.
pub const CASES_MAX: usize = 512;
/// How long a case may take that does not say.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Longer than this waits for nothing.
const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Variables from outside: flags, and the environment.
pub struct Outside<'a> {
    /// Those of flags.
    pub flags: &'a BTreeMap<String, String>,
    /// A variable of the environment.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// The folder for images that files have made, absolute.
    pub images: &'a Path,
}

/// What a test file comes to.
#[derive(Debug, Clone, Default)]
pub struct Expanded {
    /// Its cases.
    pub cases: Vec<Case>,
    /// The images that they need made.
    pub images: Vec<Setup>,
}

/// The cases of a test file.
pub fn expand(source: &Source, outside: &Outside<'_>) -> Result<Expanded, FileFault> {
    let fields = vm_fields();
    let mut variables = variables(source, outside)?;
    let setups = images(source, outside, &variables)?;
    for (name, setup) in &setups {
        let path = setup.options.output.to_string_lossy().into_owned();
        if variables.insert(name.clone(), Value::String(path)).is_some() {
            return Err(source.fault(name, "vars has it too; give one of them another name"));
        }
    }
    let axes = axes(source, outside, &variables)?;
    let count = axes
        .iter()
        .try_fold(1_usize, |count, (_, values)| count.checked_mul(values.len()))
        .filter(|&count| count <= CASES_MAX);
    let Some(count) = count else {
        return Err(source.fault(
            "matrix",
            format!(
                "its lists combine to more than {CASES_MAX} cases; make them shorter, or two files of them"
            ),
        ));
    };
    let used = RefCell::new(BTreeSet::new());
    let mut cases = Vec::with_capacity(count);
    for number in 0..count {
        let values = combination(&axes, number);
        let all: BTreeMap<_, _> = variables
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .chain(values.iter().cloned())
            .collect();
        let scope = Scope {
            values: &all,
            used: &used,
            images: outside.images,
        };
        cases.push(case(source, &values, &scope)?);
    }
    let used = used.into_inner();
    if let Some((name, _)) = axes
        .iter()
        .find(|(name, _)| !fields.contains(name) && !used.contains(name))
    {
        let known: Vec<_> = fields.iter().map(String::as_str).collect();
        let instead = spec::nearest_of(name, &known);
        return Err(source.fault(
            format!("matrix.{name}"),
            format!("it is no field of a VM and ${{{name}}} stands nowhere in this file; {instead}"),
        ));
    }
    let needed = |(name, setup): (String, Setup)| used.contains(&name).then_some(setup);
    Ok(Expanded {
        cases,
        images: setups.into_iter().filter_map(needed).collect(),
    })
}

/// The images of a file. Variables of the matrix are not for them: they are made once.
fn images(
    source: &Source,
    outside: &Outside<'_>,
    variables: &BTreeMap<String, Value>,
) -> Result<Vec<(String, Setup)>, FileFault> {
    let scope = Scope {
        values: variables,
        used: &RefCell::default(),
        images: outside.images,
    };
    images::read(source, &scope)
}

/// The names of a VM's fields.
fn vm_fields() -> BTreeSet<String> {
    // A description is plain data.
    match serde_json::to_value(VmSpec::default()) {
        Ok(serde_json::Value::Object(fields)) => fields.into_iter().map(|(name, _)| name).collect(),
        _ => BTreeSet::new(),
    }
}

/// The variables that have one value.
fn variables(source: &Source, outside: &Outside<'_>) -> Result<BTreeMap<String, Value>, FileFault> {
    let mut values = BTreeMap::new();
    for (name, value) in &source.test.vars {
        let field = format!("vars.{name}");
        check_name(source, &field, name, "a variable")?;
        let flag = outside.flags.get(name).map(String::as_str);
        values.insert(name.clone(), variable(source, &field, value, flag, outside)?);
    }
    Ok(values)
}

/// Whether `what`, which `field` names, may be called so.
pub(super) fn check_name(source: &Source, field: &str, name: &str, what: &str) -> Result<(), FileFault> {
    if is_name(name) {
        return Ok(());
    }
    let rule = "has letters, digits, dot, dash and underscore, and begins with a letter";
    Err(source.fault(field, format!("{name:?} is no name for {what}, which {rule}")))
}

fn variable(
    source: &Source,
    field: &str,
    value: &Value,
    flag: Option<&str>,
    outside: &Outside<'_>,
) -> Result<Value, FileFault> {
    /// Where a variable is in the environment.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Environment {
        env: String,
        default: Option<Value>,
    }
    let Value::Table(_) = value else {
        let value = scalar(source, field, value)?;
        return match flag {
            Some(text) => like(source, field, &value, text),
            None => Ok(value),
        };
    };
    let from: Environment =
        serde_path_to_error::deserialize(value.clone()).map_err(|error| from_serde(source, field, &error))?;
    let default = match &from.default {
        Some(default) => Some(scalar(source, &format!("{field}.default"), default)?),
        None => None,
    };
    match (
        flag.map(str::to_owned)
            .or_else(|| (outside.environment)(&from.env)),
        default,
    ) {
        (Some(text), Some(default)) => like(source, field, &default, &text),
        (Some(text), None) => Ok(Value::String(text)),
        (None, Some(default)) => Ok(default),
        (None, None) => Err(source.fault(
            field,
            format!(
                "the environment has no {}; set it, give it a default, or use --var {}=VALUE",
                from.env,
                field.trim_start_matches("vars.")
            ),
        )),
    }
}

/// A value that stands for itself.
fn scalar(source: &Source, field: &str, value: &Value) -> Result<Value, FileFault> {
    match value {
        Value::String(text) if text.contains("${") => Err(source.fault(
            field,
            "a variable's value cannot hold another variable; put both where they are used",
        )),
        Value::String(_) | Value::Integer(_) | Value::Boolean(_) => Ok(value.clone()),
        _ => Err(source.fault(
            field,
            "a variable's value is a text, a whole number, or true or false; put anything else in quotes",
        )),
    }
}

/// A text from outside as a value of the kind that the file gives.
fn like(source: &Source, field: &str, value: &Value, text: &str) -> Result<Value, FileFault> {
    let read = match value {
        Value::Integer(_) => text.parse().ok().map(Value::Integer),
        Value::Boolean(_) => text.parse().ok().map(Value::Boolean),
        _ => Some(Value::String(text.to_owned())),
    };
    let kind = match value {
        Value::Integer(_) => "a whole number",
        _ => "true or false",
    };
    read.ok_or_else(|| source.fault(field, format!("{text:?}, from outside the file, is not {kind}")))
}

/// A list of the matrix.
type Axis = (String, Vec<Value>);

fn axes(
    source: &Source,
    outside: &Outside<'_>,
    variables: &BTreeMap<String, Value>,
) -> Result<Vec<Axis>, FileFault> {
    let mut axes = Vec::new();
    for (name, list) in &source.test.matrix {
        let field = format!("matrix.{name}");
        check_name(source, &field, name, "a variable")?;
        if variables.contains_key(name) {
            return Err(source.fault(field, "vars has it too; leave it out of one of them"));
        }
        let Some(list) = list.as_array().filter(|list| !list.is_empty()) else {
            return Err(source.fault(
                field,
                "it is no list with something in it; write it as [\"128M\", \"1G\"]",
            ));
        };
        let mut values = Vec::with_capacity(list.len());
        for (index, value) in list.iter().enumerate() {
            let field = format!("{field}[{index}]");
            let value = scalar(source, &field, value)?;
            if values.contains(&value) {
                return Err(source.fault(field, "it is in the list already; leave it out"));
            }
            values.push(value);
        }
        if let Some(text) = outside.flags.get(name) {
            values = vec![like(source, &field, &values[0], text)?];
        }
        axes.push((name.clone(), values));
    }
    Ok(axes)
}

/// Combination `number` of the lists: the last one changes first.
fn combination(axes: &[Axis], mut number: usize) -> Vec<(String, Value)> {
    let mut values = Vec::with_capacity(axes.len());
    for (name, list) in axes.iter().rev() {
        values.push((name.clone(), list[number % list.len()].clone()));
        number /= list.len();
    }
    values.reverse();
    values
}

/// The variables of a case.
pub(super) struct Scope<'a> {
    values: &'a BTreeMap<String, Value>,
    used: &'a RefCell<BTreeSet<String>>,
    /// The folder for images that files have made.
    pub(super) images: &'a Path,
}

impl Scope<'_> {
    fn value(&self, name: &str) -> Result<Value, TemplateError> {
        if let Some(value) = self.values.get(name) {
            self.used.borrow_mut().insert(name.to_owned());
            return Ok(value.clone());
        }
        let known: Vec<_> = self.values.keys().map(String::as_str).collect();
        Err(TemplateError::Unknown {
            name: name.to_owned(),
            hint: if known.is_empty() {
                "name it below [vars] or [matrix]".to_owned()
            } else {
                spec::nearest_of(name, &known).trim_end_matches('?').to_owned()
            },
        })
    }

    /// The text of `field` with its variables.
    pub(super) fn fill(&self, source: &Source, field: &str, text: &str) -> Result<String, FileFault> {
        template::fill(text, |name| self.value(name)).map_err(|error| source.fault(field, error.to_string()))
    }

    /// The same for all texts in a value.
    pub(super) fn fill_value(
        &self,
        source: &Source,
        field: &str,
        value: &mut Value,
    ) -> Result<(), FileFault> {
        template::fill_value(value, field, &|name| self.value(name))
            .map_err(|(field, error)| source.fault(field, error.to_string()))
    }

    /// Fails if there is nothing at `path`, and nothing will be.
    pub(super) fn exists(&self, source: &Source, field: &str, path: &Path) -> Result<(), FileFault> {
        if path.starts_with(self.images) {
            return Ok(());
        }
        exists(source, field, path)
    }

    /// The same for a regular expression.
    pub(super) fn regex(&self, source: &Source, field: &str, text: &str) -> Result<Pattern, FileFault> {
        let text = self.fill(source, field, text)?;
        Pattern::regex(&text).map_err(|error| source.fault(field, error.to_string()))
    }

    /// The same for a duration.
    pub(super) fn duration(&self, source: &Source, field: &str, text: &str) -> Result<Duration, FileFault> {
        let text = self.fill(source, field, text)?;
        let duration = humantime::parse_duration(&text).map_err(|_| {
            let instead = "write a number and its unit, as in 500ms, 30s or 5m";
            source.fault(field, format!("{text:?} is no duration; {instead}"))
        })?;
        if duration.is_zero() || duration > DURATION_MAX {
            let limits = "give more than nothing and at most 7 days";
            return Err(source.fault(field, format!("{text:?} cannot be waited for; {limits}")));
        }
        Ok(duration)
    }
}

fn case(source: &Source, values: &[(String, Value)], scope: &Scope<'_>) -> Result<Case, FileFault> {
    let test = &source.test;
    let parameters: Vec<_> = values
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), shown(value)?)))
        .collect();
    let mut name = scope.fill(source, "name", &source.name())?;
    if name.trim().is_empty() || name.contains(|c: char| c.is_control()) {
        return Err(source.fault(
            "name",
            "it is no line of text; say in a few words what the test shows",
        ));
    }
    if !parameters.is_empty() {
        let shown: Vec<_> = parameters
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        name = format!("{name} [{}]", shown.join(", "));
    }
    let spec = vm(source, values, scope)?;
    let never = test.never.iter().enumerate();
    let never = never.map(|(index, text)| scope.regex(source, &format!("never[{index}]"), text));
    Ok(Case {
        file: source.path.clone(),
        name,
        parameters,
        steps: steps::read(source, &spec, scope)?,
        spec,
        timeout: match &test.timeout {
            Some(text) => scope.duration(source, "timeout", text)?,
            None => TIMEOUT,
        },
        hang: match test.hang.as_deref() {
            None => Hang::Usual,
            Some("never") => Hang::Never,
            Some(text) => Hang::After(scope.duration(source, "hang", text)?),
        },
        slow: test.slow,
        warm: test.warm,
        allow: test.allow.clone(),
        never: never.collect::<Result<_, _>>()?,
        ready: match &test.ready {
            Some(text) => Some(scope.regex(source, "ready", text)?),
            None => None,
        },
    })
}

/// The VM of a case.
fn vm(source: &Source, values: &[(String, Value)], scope: &Scope<'_>) -> Result<VmSpec, FileFault> {
    let mut table = source.test.vm.clone();
    for (field, value) in &mut table {
        scope.fill_value(source, &format!("vm.{field}"), value)?;
    }
    if table.contains_key("serial") {
        return Err(source.fault(
            "vm.serial",
            "the test itself is at the serial port's other end; leave it out",
        ));
    }
    if table.contains_key("timeout") {
        return Err(source.fault(
            "vm.timeout",
            "a test's time is timeout = \"60s\" above [vm]; write it there",
        ));
    }
    let mut all = match table.remove("base") {
        Some(base) => self::base(source, &base)?,
        None => Table::new(),
    };
    all.extend(table);
    let fields = vm_fields();
    let set = values.iter().filter(|(name, _)| fields.contains(name));
    all.extend(set.cloned());
    let mut spec: VmSpec = serde_path_to_error::deserialize(Value::Table(all)).map_err(|error| {
        let path = error.path().to_string();
        let from_matrix = values.iter().any(|(name, _)| *name == path);
        from_serde(source, if from_matrix { "matrix" } else { "vm" }, &error)
    })?;
    spec.take_paths_from(source.folder());
    check(source, &spec, scope)?;
    Ok(spec)
}

/// A VM file as a table, with its paths taken from where it lies.
fn base(source: &Source, base: &Value) -> Result<Table, FileFault> {
    let Some(path) = base.as_str().filter(|path| !path.is_empty()) else {
        return Err(source.fault("vm.base", "it is no path; name a VM file"));
    };
    let mut spec = spec::read(&source.folder().join(path))
        .map_err(|error| source.fault("vm.base", error.to_string()))?;
    // They are the test's.
    spec.serial = spec::SerialSpec::default();
    spec.timeout = None;
    // So that joining them to the test file's folder changes nothing.
    if let Ok(folder) = std::env::current_dir() {
        spec.take_paths_from(&folder);
    }
    Table::try_from(spec).map_err(|error| source.fault("vm.base", error.to_string()))
}

/// What is wrong with the VM wherever it is to run, and which of its files are not there.
fn check(source: &Source, spec: &VmSpec, scope: &Scope<'_>) -> Result<(), FileFault> {
    if let Err(faults) = spec::validate(spec, Limits::NONE)
        && let Some(fault) = faults.first()
    {
        let field = ["vm", &fault.field].join(".");
        // `disk 2` is no field of the file, but says which.
        return Err(if fault.field.contains(' ') {
            source.fault("vm", fault.to_string())
        } else {
            source.fault(field, fault.message.clone())
        });
    }
    let disks = spec.disks.iter().enumerate();
    let disks = disks.map(|(index, disk)| (format!("vm.disks[{index}].path"), &disk.path));
    let pmem = spec.pmem.iter().enumerate();
    let pmem = pmem.map(|(index, pmem)| (format!("vm.pmem[{index}].path"), &pmem.path));
    let files = [("vm.kernel", &spec.kernel), ("vm.initrd", &spec.initrd)];
    let files = files
        .into_iter()
        .filter_map(|(field, path)| Some((field.to_owned(), path.as_ref()?)));
    for (field, path) in files.chain(disks).chain(pmem) {
        scope.exists(source, &field, path)?;
    }
    Ok(())
}

/// Fails if there is nothing at `path`.
fn exists(source: &Source, field: &str, path: &Path) -> Result<(), FileFault> {
    match path.metadata() {
        Ok(data) if data.is_dir() => {
            Err(source.fault(field, format!("{}: it is a folder; name a file", path.display())))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(source.fault(
            field,
            format!(
                "{}: there is no such file; paths are taken from the test file's folder",
                path.display()
            ),
        )),
        Err(error) => Err(source.fault(field, format!("{}: {error}", path.display()))),
    }
}

/// What serde has against the value of `field`.
pub(super) fn from_serde(
    source: &Source,
    field: &str,
    error: &serde_path_to_error::Error<toml::de::Error>,
) -> FileFault {
    let path = match error.path().to_string().as_str() {
        "" | "." => field.to_owned(),
        path => format!("{field}.{path}"),
    };
    let ParseError { field, message, .. } = ParseError::from_serde(1, path, error.inner().message());
    source.fault(field.unwrap_or_default(), message)
}

#[cfg(test)]
mod tests;
