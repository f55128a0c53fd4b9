//! All cases, as many at once as the host has processors and memory for.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::case::{self, Around};
use super::plan::Case;
use super::report;
use super::verdict::{Attempt, Kind, Outcome, Verdict};

/// How much memory a VM takes besides its guest's.
const OVERHEAD: u64 = 32 << 20;

/// How to run cases.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many processors they may keep busy.
    pub jobs: usize,
    /// How much memory they may take, in bytes.
    pub memory: u64,
    /// How often a case that failed is tried again.
    pub retries: u32,
    /// Whether the first failure ends all.
    pub fail_fast: bool,
    /// Whether slow ones are run.
    pub slow: bool,
    /// Whether everything is kept of all cases.
    pub keep: bool,
    /// The folder for their folders.
    pub output: PathBuf,
    /// How long a guest on this host may be silent and idle.
    pub usual_hang: Duration,
}

/// Told what happens, from several threads.
pub trait Observer: Sync {
    /// Case `index` begins.
    fn began(&self, index: usize, case: &Case);
    /// It does something else.
    fn does(&self, index: usize, what: &str);
    /// It is over.
    fn ended(&self, index: usize, verdict: &Verdict);
}

/// What is left to run and to run it with.
struct State {
    next: usize,
    jobs: usize,
    memory: u64,
    running: usize,
}

struct Shared<'a> {
    cases: &'a [Case],
    folders: Vec<PathBuf>,
    options: &'a Options,
    cancel: &'a EventFd,
    stopped: &'a AtomicBool,
    observer: &'a dyn Observer,
    state: Mutex<State>,
    changed: Condvar,
    verdicts: Mutex<Vec<Option<Verdict>>>,
}

/// Runs the cases; `cancel` readable and `stopped` set end them early. The verdicts are in the order of the cases.
pub fn run(
    cases: &[Case],
    options: &Options,
    cancel: &EventFd,
    stopped: &AtomicBool,
    observer: &dyn Observer,
) -> Vec<Verdict> {
    let shared = Shared {
        cases,
        folders: folders(cases),
        options,
        cancel,
        stopped,
        observer,
        state: Mutex::new(State {
            next: 0,
            jobs: options.jobs,
            memory: options.memory,
            running: 0,
        }),
        changed: Condvar::new(),
        verdicts: Mutex::new(vec![None; cases.len()]),
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.min(cases.len()) {
            scope.spawn(|| while shared.work() {});
        }
    });
    let verdicts = shared
        .verdicts
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let cut = |index: usize| Verdict::skipped(&cases[index], Outcome::Interrupted);
    verdicts
        .into_iter()
        .enumerate()
        .map(|(index, verdict)| verdict.unwrap_or_else(|| cut(index)))
        .collect()
}

/// What a case takes: no more processors than there are.
fn cost(case: &Case, options: &Options) -> (usize, u64) {
    let cpus = usize::try_from(case.spec.cpus).unwrap_or(usize::MAX);
    (
        cpus.clamp(1, options.jobs),
        case.spec.memory.0.saturating_add(OVERHEAD),
    )
}

impl Shared<'_> {
    /// Runs the next case when there is room for it. Says if there was one.
    fn work(&self) -> bool {
        let Some((index, jobs, memory)) = self.take() else {
            return false;
        };
        let verdict = self.case(index);
        self.observer.ended(index, &verdict);
        if self.options.fail_fast && verdict.outcome == Outcome::Failed {
            self.stopped.store(true, Ordering::Release);
            // Fails only when the counter is full.
            let _ = self.cancel.write(1);
        }
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(verdict);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.jobs += jobs;
        state.memory += memory;
        state.running -= 1;
        drop(state);
        self.changed.notify_all();
        true
    }

    /// The next case, in their order, and what was taken for it.
    fn take(&self) -> Option<(usize, usize, u64)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.stopped.load(Ordering::Acquire) {
                return None;
            }
            let index = state.next;
            let (jobs, memory) = cost(self.cases.get(index)?, self.options);
            // One that is too large for the room that all of them have runs alone.
            let fits = jobs <= state.jobs && memory <= state.memory;
            if fits || state.running == 0 {
                let (jobs, memory) = (jobs.min(state.jobs), memory.min(state.memory));
                state.next += 1;
                state.running += 1;
                state.jobs -= jobs;
                state.memory -= memory;
                return Some((index, jobs, memory));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn case(&self, index: usize) -> Verdict {
        let case = &self.cases[index];
        if case.slow && !self.options.slow {
            return Verdict::skipped(case, Outcome::Skipped("it is slow; --slow runs it"));
        }
        self.observer.began(index, case);
        let mut attempts = Vec::new();
        for number in 0..=self.options.retries {
            let name = &self.folders[index];
            let name = match number {
                0 => name.clone(),
                number => PathBuf::from(format!("{}-retry-{number}", name.display())),
            };
            let folder = self.options.output.join(name);
            let mut attempt = self.attempt(index, &folder);
            if !clean(&folder, &attempt, self.options.keep) {
                attempt.folder = None;
            }
            let again = attempt
                .failure
                .as_ref()
                .is_some_and(|failure| failure.kind != Kind::Refused);
            attempts.push(attempt);
            if !again || self.stopped.load(Ordering::Acquire) {
                break;
            }
        }
        Verdict::judge(case, attempts)
    }

    fn attempt(&self, index: usize, folder: &Path) -> Attempt {
        let case = &self.cases[index];
        if let Err(error) = make_folder(folder) {
            return Attempt::impossible(format!("{}: {error}", folder.display()));
        }
        let around = Around {
            folder,
            cancel: self.cancel,
            usual_hang: self.options.usual_hang,
            tell: &|what| self.observer.does(index, what),
        };
        case::attempt(case, &around)
    }
}

/// A new folder in place of one that an earlier run has left.
fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Leaves in the folder what there is to see; says if it leaves anything.
fn clean(folder: &Path, attempt: &Attempt, keep: bool) -> bool {
    if attempt.has_passed() && !keep {
        // What is left behind is in nobody's way.
        let _ = fs::remove_dir_all(folder);
        return false;
    }
    if !keep {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if name.starts_with("snapshot-") {
                let _ = fs::remove_dir_all(path);
            } else if name.starts_with("attached-") || name.ends_with(".overlay") {
                let _ = fs::remove_file(path);
            }
        }
    }
    let _ = fs::write(folder.join("result.json"), report::json::attempt(attempt));
    folder.exists()
}

/// A folder's name for each case, all different, and the same in the next run.
fn folders(cases: &[Case]) -> Vec<PathBuf> {
    const MOST: usize = 80;
    let mut taken = BTreeSet::new();
    let mut folders = Vec::with_capacity(cases.len());
    for case in cases {
        let file = case.file.file_name().unwrap_or_default().to_string_lossy();
        let file = file.split('.').next().unwrap_or_default();
        let mut slug = String::new();
        for c in format!("{file} {}", case.name).chars() {
            if c.is_ascii_alphanumeric() {
                slug.push(c.to_ascii_lowercase());
            } else if !slug.ends_with('-') && !slug.is_empty() {
                slug.push('-');
            }
        }
        slug.truncate(MOST);
        let slug = slug.trim_matches('-').to_owned();
        let mut name = slug.clone();
        let mut number = 1;
        while !taken.insert(name.clone()) {
            number += 1;
            name = format!("{slug}-{number}");
        }
        folders.push(PathBuf::from(name));
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_test::testing::case;

    #[test]
    fn folders_are_named_after_cases_and_differ() {
        let mut cases = vec![case("a/boot.test.toml", "It boots! [memory=1G]")];
        cases.push(cases[0].clone());
        cases.push(case("b/boot.test.toml", &"x".repeat(200)));
        let folders = folders(&cases);
        assert_eq!(folders[0], Path::new("boot-it-boots-memory-1g"));
        assert_eq!(folders[1], Path::new("boot-it-boots-memory-1g-2"));
        assert_eq!(folders[2].as_os_str().len(), 80);
    }

    #[test]
    fn a_case_takes_no_more_than_there_is() {
        let mut case = case("a", "b");
        case.spec.cpus = 8;
        let options = Options {
            jobs: 2,
            ..crate::boot_test::testing::options()
        };
        assert_eq!(cost(&case, &options), (2, (256 << 20) + OVERHEAD));
    }
}
