//! Looking at VMs: ps, inspect, logs, events.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::super::say::{print, print_json, printed};
use super::args::{EventsArgs, InspectArgs, LogsArgs, PsArgs};
use super::{code, describe, lines, open, refuse};
use crate::exit_code;
use crate::fleet::journal::Follower;
use crate::fleet::{Entry, FleetError, State, Status};
use crate::rotate::aside;

/// `berth ps`.
pub(in super::super) fn ps(args: PsArgs) -> u8 {
    code(open(args.state).and_then(|fleet| {
        let mut shown = Vec::new();
        for entry in fleet.list()? {
            // One that was removed meanwhile is none.
            let Ok(status) = entry.status() else { continue };
            if args.all || status.is_live() {
                shown.push((entry, status));
            }
        }
        Ok(if args.json {
            print_json(&shown.iter().map(|(entry, _)| summary(entry)).collect::<Value>())
        } else if args.quiet {
            print(&lines(shown.iter().map(|(entry, _)| entry.meta().id.as_str())))
        } else {
            print(&table(&shown))
        })
    }))
}

/// What is known about a VM, and how large it is.
fn summary(entry: &Entry) -> Value {
    let mut value = describe(entry);
    if let Ok(spec) = entry.spec() {
        value["cpus"] = spec.cpus.into();
        value["memory"] = spec.memory.0.into();
    }
    value
}

fn table(vms: &[(Entry, Status)]) -> String {
    let width = vms
        .iter()
        .map(|(entry, _)| entry.name().len())
        .max()
        .unwrap_or(0)
        .max(4);
    let mut text = format!(
        "{:width$}  {:12}  {:8}  {:>7}  {:>4}  {:>6}  {}\n",
        "NAME", "ID", "STATE", "PID", "CPUS", "MEMORY", "SINCE"
    );
    for (entry, status) in vms {
        let live = status.live.as_ref().filter(|_| status.is_live());
        let pid = live.map_or_else(|| "-".to_owned(), |live| live.pid.to_string());
        let (cpus, memory) = match entry.spec() {
            Ok(spec) => (spec.cpus.to_string(), spec.memory.to_string()),
            Err(_) => ("?".to_owned(), "?".to_owned()),
        };
        let since = match (status.state, live, &status.ended) {
            (State::Stopped, _, Some(ended)) => {
                format!(
                    "{}, exit code {} ({})",
                    ago(&ended.stopped),
                    ended.exit_code,
                    ended.reason
                )
            }
            (_, Some(live), _) if !live.started.is_empty() => ago(&live.started),
            _ => ago(&entry.meta().created),
        };
        // A string takes any text.
        let _ = writeln!(
            text,
            "{:width$}  {:12}  {:8}  {pid:>7}  {cpus:>4}  {memory:>6}  {since}",
            entry.name(),
            entry.meta().id,
            status.state
        );
    }
    text
}

/// How long ago a point in time was, in its largest unit.
fn ago(time: &str) -> String {
    let Ok(then) = humantime::parse_rfc3339(time) else {
        return "-".to_owned();
    };
    let seconds = SystemTime::now()
        .duration_since(then)
        .map_or(0, |age| age.as_secs());
    let (count, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..86400 => (seconds / 3600, "h"),
        _ => (seconds / 86400, "d"),
    };
    format!("{count} {unit} ago")
}

/// `berth inspect`.
pub(in super::super) fn inspect(args: InspectArgs) -> u8 {
    let fleet = match open(args.state) {
        Ok(fleet) => fleet,
        Err(error) => return refuse(&error),
    };
    let (mut values, mut first) = (Vec::new(), exit_code::OK);
    for reference in &args.vms {
        let all = fleet.find(reference).and_then(|entry| {
            let mut value = describe(&entry);
            value["spec"] = json!(entry.spec()?);
            value["console_log"] = entry.console_log().to_string_lossy().into();
            value["console_socket"] = entry.console_socket().to_string_lossy().into();
            value["log"] = entry.log().to_string_lossy().into();
            Ok(value)
        });
        match all {
            Ok(value) => values.push(value),
            Err(error) => {
                let code = refuse(&error);
                if first == exit_code::OK {
                    first = code;
                }
            }
        }
    }
    let shown = print_json(&Value::Array(values));
    if first == exit_code::OK { shown } else { first }
}

/// `berth logs`.
pub(in super::super) fn logs(args: LogsArgs) -> u8 {
    code(open(args.state).and_then(|fleet| {
        let entry = fleet.find(&args.vm)?;
        let path = if args.vmm {
            entry.log()
        } else {
            entry.console_log()
        };
        // Before the end of the VM is looked for, so that nothing it said is missed.
        let process = if args.follow { entry.process()? } else { None };
        let mut follower = Follower::new(&path, true)?;
        let mut text = fs::read(aside(&path, 1)).unwrap_or_default();
        text.extend(follower.read()?);
        let text = args.tail.map_or(text.as_slice(), |lines| tail(&text, lines));
        let shown = show(text);
        match process {
            Some((process, _)) if shown == exit_code::OK => follow(&mut follower, &process),
            _ => Ok(shown),
        }
    }))
}

/// The last lines of a text; one that has no end yet is a line too.
fn tail(text: &[u8], lines: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let Some(skipped) = lines.checked_sub(1) else {
        return &[];
    };
    let mut ends = (0..body.len()).rev().filter(|&at| body[at] == b'\n');
    ends.nth(skipped).map_or(text, |at| &text[at + 1..])
}

/// Shows what comes until the process has ended.
fn follow(follower: &mut Follower, process: &OwnedFd) -> Result<u8, FleetError> {
    loop {
        let ended = wait(follower, Some(process))?;
        let shown = show(&follower.read()?);
        if ended || shown != exit_code::OK {
            return Ok(shown);
        }
    }
}

/// Waits for more to read; says if the process has ended, or nobody reads standard output any more.
fn wait(follower: &Follower, process: Option<&OwnedFd>) -> Result<bool, FleetError> {
    let stdout = io::stdout();
    let watch = follower.watch();
    let mut fds = vec![
        PollFd::new(&watch, PollFlags::IN),
        // Only its end.
        PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty()),
    ];
    fds.extend(process.map(|process| PollFd::new(process, PollFlags::IN)));
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => Ok(fds[1..].iter().any(|fd| !fd.revents().is_empty())),
        Err(error) => Err(FleetError::Io {
            path: Path::new("standard output").to_owned(),
            what: "waited for",
            cause: error.into(),
        }),
    }
}

fn show(bytes: &[u8]) -> u8 {
    let mut stdout = io::stdout().lock();
    printed(stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// `berth events`.
pub(in super::super) fn events(args: EventsArgs) -> u8 {
    code(open(args.state).and_then(|fleet| {
        let wanted: Vec<_> = args
            .vms
            .iter()
            .map(|reference| fleet.find(reference))
            .collect::<Result<_, _>>()?;
        let wanted: Vec<_> = wanted.iter().map(|entry| entry.meta().id.as_str()).collect();
        let past = args.past || args.no_follow;
        let mut follower = Follower::journal(fleet.root(), past)?;
        loop {
            let text: String = follower
                .lines()?
                .iter()
                .filter_map(|line| line_of(line, &wanted, args.json))
                .collect();
            let shown = print(&text);
            if shown != exit_code::OK || args.no_follow || wait(&follower, None)? {
                return Ok(shown);
            }
        }
    }))
}

/// An event as it is shown, if it is to be.
fn line_of(line: &str, wanted: &[&str], as_json: bool) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or_default();
    if !wanted.is_empty() && !wanted.contains(&text("id")) {
        return None;
    }
    if as_json {
        return Some(format!("{line}\n"));
    }
    let mut shown = format!(
        "{} {} {} {}",
        text("time"),
        text("id"),
        text("name"),
        text("event")
    );
    let known = ["time", "id", "name", "event"];
    for (key, value) in event
        .as_object()?
        .iter()
        .filter(|(key, _)| !known.contains(&key.as_str()))
    {
        // A string takes any text.
        let _ = match value.as_str() {
            Some(text) if text.contains(' ') => write!(shown, " {key}={text:?}"),
            Some(text) => write!(shown, " {key}={text}"),
            None => write!(shown, " {key}={value}"),
        };
    }
    shown.push('\n');
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_last_lines_of_a_text() {
        let text = b"one\ntwo\nthree\n";
        for (lines, expected) in [
            (0, ""),
            (1, "three\n"),
            (2, "two\nthree\n"),
            (3, "one\ntwo\nthree\n"),
            (9, "one\ntwo\nthree\n"),
        ] {
            assert_eq!(String::from_utf8_lossy(tail(text, lines)), expected, "{lines}");
        }
        assert_eq!(tail(b"one\ntw", 1), b"tw");
        assert_eq!(tail(b"", 5), b"");
    }

    #[test]
    fn an_event_is_shown_in_a_line_or_as_it_is() {
        let line = r#"{"time":"T","id":"1","name":"web","event":"stopped","exit_code":2,"message":"a b","reason":"exit"}"#;
        assert_eq!(
            line_of(line, &[], false).unwrap(),
            "T 1 web stopped exit_code=2 message=\"a b\" reason=exit\n"
        );
        assert_eq!(line_of(line, &["1"], true).unwrap(), format!("{line}\n"));
        assert_eq!(line_of(line, &["2"], true), None);
        assert_eq!(line_of("half a li", &[], true), None);
    }

    #[test]
    fn ages_are_in_their_largest_unit() {
        for (seconds, expected) in [
            (5, "5 s ago"),
            (125, "2 min ago"),
            (7300, "2 h ago"),
            (200_000, "2 d ago"),
        ] {
            let then = SystemTime::now() - Duration::from_secs(seconds);
            assert_eq!(ago(&crate::events::timestamp(then)), expected);
        }
        assert_eq!(ago("never"), "-");
    }
}
