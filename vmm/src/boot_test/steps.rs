//! From the tables of a test file to steps: each does one thing, has what that needs and nothing else, and can be done where it
//! stands.
#![forbid(unsafe_code)]

use berth_arch::hex;

use super::expand::Scope;
use super::file::{FileFault, Source, StepTable};
use super::pattern::Pattern;
use super::place::Places;
use super::plan::{Action, Button, ExitReason, FileCheck, ImageRef, Step};
use super::shell;
use crate::spec::VmSpec;

/// What a step may do, and what else may stand beside that.
const KINDS: [(&str, &[&str]); 12] = [
    ("expect", &["within"]),
    ("expect_regex", &["within"]),
    ("send", &["within"]),
    ("run", &["status", "stdout", "within"]),
    ("exit", &["status", "within"]),
    ("snapshot", &["within"]),
    ("restore", &["within"]),
    ("attach", &["image", "within"]),
    ("detach", &["within"]),
    ("press", &[]),
    ("file", &["disk", "image", "contains", "matches", "absent"]),
    ("offset", &["disk", "image", "bytes", "hex"]),
];

/// The fields of `table` that are given.
fn given(table: &StepTable) -> Vec<&'static str> {
    let StepTable {
        expect,
        expect_regex,
        send,
        run,
        status,
        stdout,
        exit,
        snapshot,
        restore,
        attach,
        detach,
        press,
        file,
        disk,
        image,
        contains,
        matches,
        absent,
        offset,
        bytes,
        hex,
        within,
    } = table;
    let fields = [
        ("expect", expect.is_some()),
        ("expect_regex", expect_regex.is_some()),
        ("send", send.is_some()),
        ("run", run.is_some()),
        ("status", status.is_some()),
        ("stdout", stdout.is_some()),
        ("exit", exit.is_some()),
        ("snapshot", snapshot.is_some()),
        ("restore", restore.is_some()),
        ("attach", attach.is_some()),
        ("detach", detach.is_some()),
        ("press", press.is_some()),
        ("file", file.is_some()),
        ("disk", disk.is_some()),
        ("image", image.is_some()),
        ("contains", contains.is_some()),
        ("matches", matches.is_some()),
        ("absent", absent.is_some()),
        ("offset", offset.is_some()),
        ("bytes", bytes.is_some()),
        ("hex", hex.is_some()),
        ("within", within.is_some()),
    ];
    fields
        .into_iter()
        .filter_map(|(name, is_given)| is_given.then_some(name))
        .collect()
}

/// The steps of a case.
pub(super) fn read(source: &Source, spec: &VmSpec, scope: &Scope<'_>) -> Result<Vec<Step>, FileFault> {
    let tables = &source.test.step;
    if tables.is_empty() {
        let message = "it has no steps; say what is to happen, as in [[step]] and expect = \"login: \"";
        return Err(FileFault {
            line: None,
            field: None,
            ..source.fault("step", message)
        });
    }
    let mut steps = Vec::with_capacity(tables.len());
    let mut so_far = SoFar::default();
    let places = Places::of(&source.text);
    for (index, table) in tables.iter().enumerate() {
        let reader = Reader {
            source,
            spec,
            scope,
            table,
            places: &places,
            place: format!("step[{index}]"),
            next: tables.get(index + 1),
        };
        let step = reader.step()?;
        reader.check(&step.action, &mut so_far)?;
        steps.push(step);
    }
    Ok(steps)
}

/// What the steps before have done.
#[derive(Default)]
struct SoFar {
    ended: bool,
    heard: bool,
    /// Snapshots, and whether the guest has gone on since each.
    snapshots: Vec<(String, bool)>,
}

struct Reader<'a> {
    source: &'a Source,
    spec: &'a VmSpec,
    scope: &'a Scope<'a>,
    table: &'a StepTable,
    places: &'a Places<'a>,
    place: String,
    next: Option<&'a StepTable>,
}

impl Reader<'_> {
    fn field(&self, name: &str) -> String {
        format!("{}.{name}", self.place)
    }

    fn fault(&self, name: &str, message: impl Into<String>) -> FileFault {
        self.source.fault(self.field(name), message)
    }

    fn fill(&self, name: &str, text: &str) -> Result<String, FileFault> {
        self.scope.fill(self.source, &self.field(name), text)
    }

    fn step(&self) -> Result<Step, FileFault> {
        let given = given(self.table);
        let kinds: Vec<_> = KINDS.iter().filter(|(kind, _)| given.contains(kind)).collect();
        let (kind, beside) = match kinds.as_slice() {
            [kind] => **kind,
            [] => {
                let known: Vec<_> = KINDS.iter().map(|(kind, _)| *kind).collect();
                let message = format!("it does nothing; give it one of {}", known.join(", "));
                return Err(self.source.fault(&self.place, message));
            }
            [first, second, ..] => {
                let (first, second) = (first.0, second.0);
                let message = format!("{first} and {second} are two steps; put [[step]] above each");
                return Err(self.fault(second, message));
            }
        };
        if let Some(other) = given
            .iter()
            .find(|field| **field != kind && !beside.contains(field))
        {
            let fits = match beside {
                [] => "nothing".to_owned(),
                fields => fields.join(", "),
            };
            let message =
                format!("it says nothing about {kind}, beside which can stand: {fits}; leave it out");
            return Err(self.fault(other, message));
        }
        let within = match &self.table.within {
            Some(text) => Some(self.scope.duration(self.source, &self.field("within"), text)?),
            None => None,
        };
        let action = self.action(kind)?;
        let line = self.places.line(&self.field(kind));
        Ok(Step { action, within, line })
    }

    fn action(&self, kind: &'static str) -> Result<Action, FileFault> {
        let table = self.table;
        let text = match kind {
            "expect" => &table.expect,
            "expect_regex" => &table.expect_regex,
            "send" => &table.send,
            "run" => &table.run,
            "exit" => &table.exit,
            "snapshot" => &table.snapshot,
            "restore" => &table.restore,
            "attach" => &table.attach,
            "press" => &table.press,
            "file" => &table.file,
            "detach" => &table.detach,
            _ => return self.bytes(),
        };
        let text = self.fill(kind, text.as_deref().unwrap_or_default())?;
        if text.is_empty() && kind != "send" {
            return Err(self.fault(kind, "it is empty; leave the step out, or say what it does"));
        }
        match kind {
            "expect" => Pattern::plain(&text)
                .map(Action::Expect)
                .map_err(|error| self.fault(kind, error.to_string())),
            "expect_regex" => Pattern::regex(&text)
                .map(Action::Expect)
                .map_err(|error| self.fault(kind, error.to_string())),
            "send" => Ok(Action::Send(text)),
            "run" => self.run(text),
            "exit" => self.exit(&text),
            "snapshot" => self.snapshot(text),
            "restore" => Ok(Action::Restore(text)),
            "attach" => self.attach(&text),
            "detach" => Ok(Action::Detach {
                disk: self.disk("detach", &text)?,
                name: text,
            }),
            "press" => match text.as_str() {
                "power" => Ok(Action::Press(Button::Power)),
                "ctrl-alt-del" => Ok(Action::Press(Button::CtrlAltDel)),
                _ => Err(self.fault(
                    kind,
                    format!("there is no button {text:?}; press power or ctrl-alt-del"),
                )),
            },
            _ => self.file(text),
        }
    }

    fn run(&self, command: String) -> Result<Action, FileFault> {
        if let Err(why) = shell::check(&command) {
            return Err(self.fault("run", why));
        }
        Ok(Action::Run {
            command,
            status: self.table.status.unwrap_or_default(),
            stdout: match &self.table.stdout {
                Some(text) => Some(self.scope.regex(self.source, &self.field("stdout"), text)?),
                None => None,
            },
        })
    }

    fn exit(&self, word: &str) -> Result<Action, FileFault> {
        let found = ExitReason::WORDS.iter().find(|(known, _)| *known == word);
        let Some((_, reason)) = found else {
            let known: Vec<_> = ExitReason::WORDS.iter().map(|(word, _)| *word).collect();
            let instead = crate::spec::nearest_of(word, &known);
            return Err(self.fault("exit", format!("no guest ends by {word:?}; {instead}")));
        };
        let status = match self.table.status {
            None => None,
            Some(_) if *reason != ExitReason::Exit => {
                let message = "only a guest that ends by exit gives a status; leave it out";
                return Err(self.fault("status", message));
            }
            Some(status) => match u8::try_from(status) {
                Ok(status) => Some(status),
                Err(_) => return Err(self.fault("status", format!("{status} is no status; give 0 to 255"))),
            },
        };
        Ok(Action::Exit {
            reason: *reason,
            status,
        })
    }

    fn snapshot(&self, name: String) -> Result<Action, FileFault> {
        let usable = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        if !name.chars().all(usable) || name.len() > 64 {
            let message = format!(
                "{name:?} is no name for a snapshot; it has letters, digits, dash and underscore, 64 at most"
            );
            return Err(self.fault("snapshot", message));
        }
        let next = self.next.and_then(|next| next.restore.as_deref());
        let ends = match next {
            Some(next) => self.fill("snapshot", next).is_ok_and(|next| next == name),
            None => false,
        };
        Ok(Action::Snapshot { name, ends })
    }

    /// Which disk a text means: its id, or `disk` and its number from 1.
    fn disk(&self, field: &str, text: &str) -> Result<usize, FileFault> {
        let names: Vec<_> = (1..)
            .zip(&self.spec.disks)
            .map(|(number, disk)| disk.name(number))
            .collect();
        if let Some(at) = names.iter().position(|name| name == text) {
            return Ok(at);
        }
        let instead = if names.is_empty() {
            "it has none; add one with [[vm.disks]]".to_owned()
        } else {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            crate::spec::nearest_of(text, &names)
        };
        Err(self.fault(field, format!("the VM has no disk {text:?}; {instead}")))
    }

    fn attach(&self, disk: &str) -> Result<Action, FileFault> {
        let disk = self.disk("attach", disk)?;
        let Some(image) = &self.table.image else {
            return Err(self.fault("attach", "the image is missing; add image = \"FILE\""));
        };
        let image = self.source.folder().join(self.fill("image", image)?);
        self.scope.exists(self.source, &self.field("image"), &image)?;
        Ok(Action::Attach { disk, image })
    }

    fn image(&self) -> Result<ImageRef, FileFault> {
        match (&self.table.disk, &self.table.image) {
            (Some(disk), None) => {
                let disk = self.fill("disk", disk)?;
                Ok(ImageRef::Disk(self.disk("disk", &disk)?))
            }
            (None, Some(image)) => {
                let image = self.fill("image", image)?;
                Ok(ImageRef::File(self.source.folder().join(image)))
            }
            _ => Err(self.source.fault(
                &self.place,
                "it does not say where to look; give it either disk = \"NAME\" or image = \"FILE\"",
            )),
        }
    }

    fn file(&self, path: String) -> Result<Action, FileFault> {
        if !path.starts_with('/') {
            return Err(self.fault(
                "file",
                format!("{path:?} does not begin at the file system's root; begin it with /"),
            ));
        }
        let table = self.table;
        let check = match (&table.contains, &table.matches, table.absent) {
            (None, None, None | Some(false)) => FileCheck::There,
            (Some(text), None, None) => FileCheck::Contains(self.fill("contains", text)?),
            (None, Some(text), None) => {
                FileCheck::Matches(self.scope.regex(self.source, &self.field("matches"), text)?)
            }
            (None, None, Some(true)) => FileCheck::Absent,
            _ => {
                return Err(self.fault(
                    "file",
                    "contains, matches and absent exclude each other; make a step of each",
                ));
            }
        };
        Ok(Action::File {
            image: self.image()?,
            path,
            check,
        })
    }

    fn bytes(&self) -> Result<Action, FileFault> {
        let table = self.table;
        let bytes = match (&table.bytes, &table.hex) {
            (Some(text), None) => self.fill("bytes", text)?.into_bytes(),
            (None, Some(text)) => {
                let text = self.fill("hex", text)?;
                hex::parse(&text.replace(' ', "")).ok_or_else(|| {
                    self.fault(
                        "hex",
                        format!("{text:?} is no row of hexadecimal digits, two for each byte"),
                    )
                })?
            }
            _ => {
                return Err(self.fault(
                    "offset",
                    "it does not say what is there; give it either bytes or hex",
                ));
            }
        };
        if bytes.is_empty() {
            return Err(self.fault("offset", "what is to be there is empty; give at least a byte"));
        }
        Ok(Action::Bytes {
            image: self.image()?,
            offset: table.offset.unwrap_or_default(),
            bytes,
        })
    }

    /// Whether the step can be done after those before it.
    fn check(&self, action: &Action, so_far: &mut SoFar) -> Result<(), FileFault> {
        let looks = matches!(action, Action::File { .. } | Action::Bytes { .. });
        if looks && !so_far.ended {
            let message = "the guest still has the disk; put an exit step before it";
            return Err(self.source.fault(&self.place, message));
        }
        if !looks && so_far.ended && !matches!(action, Action::Restore(_)) {
            let message = "the guest has ended in a step before; only its disks can be looked at now";
            return Err(self.source.fault(&self.place, message));
        }
        match action {
            Action::Expect(_) => so_far.heard = true,
            Action::Run { .. } if !so_far.heard && self.spec.kernel.is_some() => {
                let message = "nothing tells when the guest's shell is there; put an expect step for its prompt before it";
                return Err(self.fault("run", message));
            }
            Action::Exit { .. } => so_far.ended = true,
            Action::Snapshot { name, ends } => {
                if so_far.snapshots.iter().any(|(known, _)| known == name) {
                    return Err(self.fault(
                        "snapshot",
                        format!("there is a snapshot {name:?} already; choose another name"),
                    ));
                }
                so_far.snapshots.push((name.clone(), !ends));
            }
            Action::Restore(name) => {
                let Some((_, has_gone_on)) = so_far.snapshots.iter().find(|(known, _)| known == name) else {
                    let message = format!(
                        "no step before saves a snapshot {name:?}; put snapshot = {name:?} before it"
                    );
                    return Err(self.fault("restore", message));
                };
                let disks = self.spec.disks.iter().any(|disk| !disk.read_only);
                let writes = disks || self.spec.pmem.iter().any(|pmem| !pmem.read_only);
                if *has_gone_on && writes {
                    let message = "the guest may have written its disks since it was saved, which are not part of a snapshot; restore \
                        right behind the snapshot, or make the disks read-only";
                    return Err(self.fault("restore", message));
                }
                so_far.ended = false;
                // From here on it can be gone back to only with what has been written since.
                for (_, has_gone_on) in &mut so_far.snapshots {
                    *has_gone_on = true;
                }
            }
            Action::Attach { disk, .. } if self.spec.disks[*disk].overlay.is_some() => {
                let message =
                    "the disk has an overlay, which belongs to its image; attach to a disk without one";
                return Err(self.fault("attach", message));
            }
            _ => {}
        }
        Ok(())
    }
}
