//! virtio-balloon: memory that the guest gives up and takes back (virtio 1.3, section 5.5).
//!
//! | queue | what comes | feature |
//! |---|---|---|
//! | inflate | numbers of pages that the guest gives up: the host gets them back | |
//! | deflate | numbers of pages that it takes back: it reads zeros there, so nothing is to be done | |
//! | statistics | a report on its memory; the buffer stays here until the next one is wanted | STATS_VQ |
//! | hinting | pages that are free now, and stay so until the host says otherwise | FREE_PAGE_HINT |
//! | reporting | pages that are free and may be used again as soon as the buffer is given back | PAGE_REPORTING |
//!
//! Queues are counted over the features that were negotiated, as every driver and device does: without statistics, queue 2 is
//! the hinting queue. A guest may name any page; only RAM is given back, and to whom it belonged is the guest's affair.

#![forbid(unsafe_code)]

mod handle;
mod pages;
mod stats;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use handle::{BalloonError, BalloonHandle, BalloonStatus};
pub use pages::{PAGE, PageReturner};
pub use stats::BalloonStats;

use super::config_change::ConfigChange;
use super::device::{
    DeviceState, DeviceStateError, DeviceTraits, EventSource, QueueResources, QueueState, StartError,
    VirtioDevice, read_config_from,
};
use super::mailbox::{self, Mailbox};
use super::queue::{DeviceQueue, RING_FEATURES, RequestChain};
use crate::timer::Timer;
use crate::warn_guest;

/// Device type of virtio-balloon.
const KIND: u32 = 5;
const QUEUE_SIZE: u16 = 256;
/// num_pages, actual, free_page_hint_cmd_id.
const CONFIG_LEN: u64 = 12;
const ACTUAL: Range<u64> = 4..8;
const STATE_VERSION: u32 = 1;

// Feature bits (section 5.5.3).
const STATS: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const HINTING: u64 = 1 << 3;
const REPORTING: u64 = 1 << 5;

/// Hinting command: the run is to end.
const CMD_STOP: u32 = 0;
/// Hinting command: the guest may have the pages back.
const CMD_DONE: u32 = 1;

/// Event source: a call from the control side.
const CALL: u32 = 0;
/// Event source: time for a report.
const REPORT: u32 = 1;

/// Pages that one request may name; drivers name 256 or 1024. What is beyond stays with the guest.
const MOST_PAGES: usize = 1 << 14;
/// Pages or ranges that one turn looks at, so that other devices of the thread have theirs.
const BUDGET: usize = 1 << 14;

/// What a balloon is made to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BalloonConfig {
    /// Pages of 4 KiB that the guest should give up from the start.
    pub target_pages: u32,
    /// The guest may take pages back when it would run out of memory otherwise.
    pub deflate_on_oom: bool,
    /// Between two reports of the guest on its memory; zero for none, ever.
    pub stats_interval: Duration,
    /// The guest tells which pages it does not use.
    pub free_page_reporting: bool,
    /// The guest can be asked which pages it does not use.
    pub free_page_hinting: bool,
}

/// How far hinting is: what the host last asked for, and where the guest is. Both are numbers of runs, or 0 for a run that
/// was stopped and 1 for one whose pages the guest has back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hinting {
    /// The host's command.
    pub host_cmd: u32,
    /// The guest's answer; nothing before the first.
    pub guest_cmd: Option<u32>,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Stats,
    Hinting,
    Reporting,
    /// Its feature was not negotiated.
    Unused,
}

/// What queue `index` of a device with the features `offered` is for, if `features` were negotiated.
fn role(index: u16, offered: u64, features: u64) -> Option<Role> {
    let optional = [
        (STATS, Role::Stats),
        (HINTING, Role::Hinting),
        (REPORTING, Role::Reporting),
    ];
    let count = optional
        .iter()
        .filter(|(feature, _)| offered & feature != 0)
        .count()
        + 2;
    let used = optional.iter().filter(|(feature, _)| features & feature != 0);
    let mut roles = [Role::Inflate, Role::Deflate]
        .into_iter()
        .chain(used.map(|(_, role)| *role));
    let role = roles.nth(index.into()).unwrap_or(Role::Unused);
    (usize::from(index) < count).then_some(role)
}

/// A started queue.
struct Started {
    role: Role,
    queue: DeviceQueue,
    chain: RequestChain,
    /// Head of the statistics' buffer, which is not given back before the next report is wanted.
    held: Option<u16>,
}

/// What is saved.
#[derive(Serialize, Deserialize)]
struct State {
    target_pages: u32,
    actual_pages: u32,
    stats_interval: Duration,
    stats: BalloonStats,
    hinting: Hinting,
    last_run: u32,
    release: bool,
}

/// A balloon.
pub struct Balloon {
    features: u64,
    state: State,
    returner: Box<dyn PageReturner>,
    timer: Timer,
    mailbox: Mailbox<Balloon>,
    queues: Vec<Option<Started>>,
    change: ConfigChange,
    pages: Vec<u32>,
}

impl Balloon {
    /// A balloon, and the way to it for whoever controls the VM. It fails only if the host has no descriptors to give.
    pub fn new(config: BalloonConfig, returner: Box<dyn PageReturner>) -> io::Result<(Self, BalloonHandle)> {
        let mut features = RING_FEATURES;
        for (wanted, feature) in [
            (config.deflate_on_oom, DEFLATE_ON_OOM),
            (!config.stats_interval.is_zero(), STATS),
            (config.free_page_hinting, HINTING),
            (config.free_page_reporting, REPORTING),
        ] {
            features |= if wanted { feature } else { 0 };
        }
        let timer = Timer::new()?;
        timer.every(config.stats_interval);
        let (caller, mailbox) = mailbox::channel()?;
        let balloon = Self {
            features,
            state: State {
                target_pages: config.target_pages,
                actual_pages: 0,
                stats_interval: config.stats_interval,
                stats: BalloonStats::default(),
                hinting: Hinting {
                    host_cmd: CMD_STOP,
                    guest_cmd: None,
                },
                last_run: CMD_DONE,
                release: true,
            },
            returner,
            timer,
            mailbox,
            queues: std::iter::repeat_with(|| None).take(5).collect(),
            change: ConfigChange::default(),
            pages: Vec::new(),
        };
        Ok((balloon, BalloonHandle { caller }))
    }

    fn set_target(&mut self, pages: u32) {
        self.state.target_pages = pages;
        self.change.announce();
    }

    fn status(&self) -> BalloonStatus {
        BalloonStatus {
            target_pages: self.state.target_pages,
            actual_pages: self.state.actual_pages,
            stats_interval: self.state.stats_interval,
            stats: self.state.stats,
        }
    }

    fn set_stats_interval(&mut self, interval: Duration) -> Result<(), BalloonError> {
        if self.features & STATS == 0 {
            return Err(BalloonError::NoStats);
        }
        if interval.is_zero() {
            return Err(BalloonError::StatsStay);
        }
        self.state.stats_interval = interval;
        self.timer.every(interval);
        Ok(())
    }

    fn start_hinting(&mut self, release: bool) -> Result<(), BalloonError> {
        // 0 and 1 are no runs.
        let next = self.state.last_run.wrapping_add(1).max(CMD_DONE + 1);
        self.command_hinting(next)?;
        self.state.last_run = next;
        self.state.release = release;
        Ok(())
    }

    fn stop_hinting(&mut self) -> Result<(), BalloonError> {
        self.command_hinting(CMD_DONE)
    }

    fn hinting(&self) -> Result<Hinting, BalloonError> {
        if self.features & HINTING == 0 {
            return Err(BalloonError::NoHinting);
        }
        Ok(self.state.hinting)
    }

    fn command_hinting(&mut self, command: u32) -> Result<(), BalloonError> {
        self.hinting()?;
        self.state.hinting.host_cmd = command;
        self.change.announce();
        Ok(())
    }

    fn config(&self) -> [u8; CONFIG_LEN as usize] {
        let mut config = [0; CONFIG_LEN as usize];
        let State {
            target_pages,
            actual_pages,
            ..
        } = self.state;
        for (to, word) in
            config
                .chunks_exact_mut(4)
                .zip([target_pages, actual_pages, self.state.hinting.host_cmd])
        {
            to.copy_from_slice(&word.to_le_bytes());
        }
        config
    }

    /// Serves one queue until it is empty or others should have their turn.
    fn serve(&mut self, started: &mut Started) {
        if started.role == Role::Unused {
            return;
        }
        let mut budget = BUDGET;
        started.queue.disable_kicks();
        loop {
            if budget == 0 {
                started.queue.kick_again();
                break;
            }
            if started.queue.pop(&mut started.chain) {
                let work = self.handle(started);
                budget = budget.saturating_sub(work.max(1));
            } else if started.queue.enable_kicks() {
                started.queue.disable_kicks();
            } else {
                break;
            }
        }
        started.queue.signal();
    }

    /// Does one request and gives it back, but for a report's buffer. Returns how much work that was.
    fn handle(&mut self, started: &mut Started) -> usize {
        let Started {
            role,
            queue,
            chain,
            held,
        } = started;
        let work = match role {
            Role::Inflate => self.inflate(queue, chain),
            Role::Stats => {
                self.state.stats.update(chain);
                // A driver has one buffer; if it has more, one of them waits here.
                if let Some(before) = held.replace(chain.head()) {
                    queue.complete(before, 0);
                }
                return 1;
            }
            Role::Hinting => self.hint(queue, chain),
            Role::Reporting => self.free(queue, chain),
            Role::Deflate | Role::Unused => 1,
        };
        queue.complete(chain.head(), 0);
        work
    }

    fn inflate(&mut self, queue: &DeviceQueue, chain: &RequestChain) -> usize {
        let count = chain.readable_len() as usize / 4;
        if count > MOST_PAGES {
            warn_guest!(
                "virtio-balloon: {count} pages in one request; only the first {MOST_PAGES} are taken"
            );
        }
        self.pages.clear();
        let mut bytes = [0; 1024];
        let mut offset = 0;
        while self.pages.len() < count.min(MOST_PAGES) {
            let read = chain.read_at(offset, &mut bytes);
            if read < 4 {
                break;
            }
            let room = MOST_PAGES - self.pages.len();
            let (words, _) = bytes[..read].as_chunks();
            self.pages
                .extend(words.iter().take(room).map(|word| u32::from_le_bytes(*word)));
            offset += read as u32;
        }
        let work = self.pages.len();
        for range in pages::ranges(&mut self.pages) {
            pages::give_back(&*self.returner, queue.memory(), &range);
        }
        work
    }

    /// A command of the guest's, or free pages under the last one.
    fn hint(&mut self, queue: &DeviceQueue, chain: &RequestChain) -> usize {
        let mut command = [0; 4];
        let hinting = &mut self.state.hinting;
        if chain.readable_len() > 0 {
            if chain.read_at(0, &mut command) < command.len() {
                warn_guest!("virtio-balloon: a hinting command is shorter than 4 bytes");
                return 1;
            }
            let command = u32::from_le_bytes(command);
            let ended = command == CMD_STOP && hinting.guest_cmd == Some(hinting.host_cmd);
            hinting.guest_cmd = Some(command);
            if ended && self.state.release {
                hinting.host_cmd = CMD_DONE;
                self.change.announce();
            }
            return 1;
        }
        // Of a run that was ended the guest may have taken the pages back.
        if hinting.guest_cmd == Some(hinting.host_cmd) {
            self.free(queue, chain)
        } else {
            1
        }
    }

    /// Gives back the pages that are the request's buffers.
    fn free(&mut self, queue: &DeviceQueue, chain: &RequestChain) -> usize {
        for buffer in chain.writable() {
            let start = buffer.addr.0;
            pages::give_back(
                &*self.returner,
                queue.memory(),
                &(start..start + u64::from(buffer.len)),
            );
        }
        // Giving back takes time by its pages.
        chain.writable().len() + (chain.writable_len() >> 16) as usize
    }

    /// Asks for a report by giving its buffer back.
    fn ask_for_report(&mut self) {
        let stats = self
            .queues
            .iter_mut()
            .flatten()
            .find(|started| started.role == Role::Stats);
        if let Some(Started { queue, held, .. }) = stats
            && let Some(head) = held.take()
        {
            queue.complete(head, 0);
            queue.signal();
        }
    }
}

impl VirtioDevice for Balloon {
    fn traits(&self) -> DeviceTraits {
        let optional = self.features & (STATS | HINTING | REPORTING);
        DeviceTraits {
            kind: KIND,
            name: "balloon",
            features: self.features,
            queue_sizes: vec![QUEUE_SIZE; 2 + optional.count_ones() as usize],
            config_len: CONFIG_LEN,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut actual = self.state.actual_pages.to_le_bytes();
        for (at, byte) in (offset..=u64::MAX).zip(data) {
            if ACTUAL.contains(&at) {
                actual[(at - ACTUAL.start) as usize] = *byte;
            }
        }
        self.state.actual_pages = u32::from_le_bytes(actual);
    }

    fn start_queue(
        &mut self,
        index: u16,
        queue: QueueResources,
        at: Option<QueueState>,
    ) -> Result<(), StartError> {
        let role = role(index, self.features, queue.features).ok_or(StartError::NoSuchQueue { index })?;
        let interrupt = queue.interrupt.clone();
        let queue = DeviceQueue::new(index, queue, at)?;
        if role == Role::Inflate && at.is_none() {
            // A driver that begins anew has all its memory.
            self.state.actual_pages = 0;
            self.state.hinting.guest_cmd = None;
        }
        self.queues[usize::from(index)] = Some(Started {
            role,
            chain: queue.new_chain(),
            queue,
            held: None,
        });
        self.change.started(interrupt);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let mut started = self.queues.get_mut(usize::from(index))?.take()?;
        if started.held.is_some() {
            // It is there to be taken again.
            started.queue.undo_pop(1);
        }
        if self.queues.iter().all(Option::is_none) {
            self.change.stopped();
        }
        Some(started.queue.stop())
    }

    fn process_queue(&mut self, index: u16) {
        let index = usize::from(index);
        if let Some(mut started) = self.queues.get_mut(index).and_then(Option::take) {
            self.serve(&mut started);
            self.queues[index] = Some(started);
        }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        let timer = EventSource {
            fd: self.timer.fd(),
            token: REPORT,
        };
        vec![self.mailbox.source(CALL), timer]
    }

    fn process_event(&mut self, token: u32) {
        match token {
            CALL => {
                for call in self.mailbox.calls() {
                    call(self);
                }
            }
            REPORT if self.timer.rang() => self.ask_for_report(),
            _ => {}
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::new(STATE_VERSION, &self.state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let state: State = state.read(STATE_VERSION)?;
        let stats = self.features & STATS != 0;
        if stats == state.stats_interval.is_zero() {
            return Err(DeviceStateError::Data(
                "statistics are on in one of the two and off in the other".to_owned(),
            ));
        }
        self.state = state;
        self.timer.every(self.state.stats_interval);
        Ok(())
    }
}
