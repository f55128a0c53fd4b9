//! Saving a machine and going on from what was saved.

use std::path::PathBuf;

use berth_arch::probe;
use berth_arch::x86_64::cpuid;
use berth_arch::x86_64::kind::HostKind;

use super::ahead::Ahead;
use super::{Live, Machine, MachineError, MachineState, deadline, metadata, settled, take_terminal};
use crate::events::EventKind;
use crate::guest::Streams;
use crate::ready::Awaited;
use crate::snapshot::{
    self, Found, HostFacts, SnapshotError, SnapshotReport, SnapshotRequest, SnapshotTarget, Writing,
};
use crate::spec::{self, ConsoleSpec, DiskSpec, Limits, NetSpec, PmemSpec, SerialSpec, VmSpec, VsockSpec};
use crate::vm::{self, Built, Saved, SavedMemory};

/// A snapshot to go on from.
#[derive(Debug, Clone)]
pub struct LoadRequest {
    /// Where it is.
    pub from: SnapshotTarget,
    /// Whether the guest runs at once; otherwise it is paused.
    pub resume: bool,
    /// What of the machine is to be another.
    pub overrides: Overrides,
    /// Read all of the memory first and compare its sums.
    pub verify: bool,
    /// Read in advance what the machine before this one needed until it was ready, or write down what this one needs.
    pub prefetch: bool,
    /// The socket of the page-fault handler that brings the memory, whose file is not opened then.
    pub handler: Option<PathBuf>,
}

/// What of a saved machine is to be another. By default nothing is.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Where the serial line leads.
    pub serial: Option<SerialSpec>,
    /// The time limit in seconds, counted from the restore.
    pub timeout: Option<u64>,
    /// The network interfaces, in their order: where they lead, and what else is given.
    pub nets: Vec<NetSpec>,
    /// Where the ports of the console lead, in their order; the names stay.
    pub consoles: Vec<ConsoleSpec>,
    /// The files of the disks, in their order; each must hold what the guest's disk held.
    pub disks: Vec<PathBuf>,
    /// The files in its memory, in their order; each must hold what the guest's held.
    pub pmem: Vec<PathBuf>,
    /// The Unix socket of its vsock.
    pub vsock: Option<PathBuf>,
    /// The CID of its vsock.
    pub cid: Option<u32>,
    /// Their overlays, in the same order, where the disks are given.
    pub overlays: Vec<Option<PathBuf>>,
    /// The command that the shipped guest is still to be told.
    pub(crate) command: Option<Vec<String>>,
    /// How the shipped guest's streams lead to the host's, if it has not been told yet.
    pub(crate) streams: Option<Streams>,
    /// Whether the guest's clocks stay where they were, instead of passing the time that the machine missed.
    pub keep_clock: bool,
}

impl Overrides {
    /// Devices that lead where these do; those of a kind of which there are none lead where they did.
    pub(crate) fn of_devices(
        disks: &[DiskSpec],
        pmem: &[PmemSpec],
        nets: &[NetSpec],
        consoles: &[ConsoleSpec],
        vsock: Option<&VsockSpec>,
    ) -> Self {
        Self {
            nets: nets.to_vec(),
            consoles: consoles.to_vec(),
            disks: disks.iter().map(|disk| disk.path.clone()).collect(),
            pmem: pmem.iter().map(|pmem| pmem.path.clone()).collect(),
            overlays: disks.iter().map(|disk| disk.overlay.clone()).collect(),
            vsock: vsock.map(|vsock| vsock.path.clone()),
            cid: vsock.map(|vsock| vsock.cid),
            ..Self::default()
        }
    }
}

impl Machine {
    /// Takes a snapshot of the paused machine, which can go on afterwards.
    pub fn snapshot(&mut self, request: &SnapshotRequest) -> Result<SnapshotReport, MachineError> {
        self.need("be saved before it is paused", MachineState::Paused)?;
        let live = self.live("be saved")?;
        let report = snapshot::take(&live.vm, &live.spec, request)?;
        self.events.emit(request.event());
        Ok(report)
    }

    /// Takes a snapshot of the paused machine, which can go on at once: its memory is written as it is now, by a copy of this
    /// process. Whoever waits for that should tell of it ([`Machine::events`]).
    pub fn begin_snapshot(&mut self, request: &SnapshotRequest) -> Result<Writing, MachineError> {
        self.need("be saved before it is paused", MachineState::Paused)?;
        let live = self.live("be saved")?;
        Ok(snapshot::begin(&live.vm, &live.spec, request)?)
    }

    /// Becomes the machine that was saved.
    pub fn load(&mut self, request: &LoadRequest) -> Result<(), MachineError> {
        self.need("load a snapshot", MachineState::NotStarted)?;
        let found = match &request.from {
            SnapshotTarget::Directory(path) => Found::open(path)?,
            SnapshotTarget::Files { state, memory } => Found::open_files(state, memory)?,
        };
        check(&found)?;
        if request.verify {
            found.verify()?;
        }
        self.timing.mark("read the snapshot");
        let spec = overridden(&found, &request.overrides)?;
        let valid = spec::validate(&spec, Limits::of_host(&spec)).map_err(MachineError::Faults)?;
        metadata::load(&valid, &self.metadata)?;
        let ahead = request.prefetch.then(|| Ahead::of(&found));
        // One that was saved when it was ready does not say so again, and its clones would be in each other's way.
        let sign = self.awaiting.then(|| Awaited::of(&valid)).transpose();
        let sign = sign.map_err(|fault| MachineError::Faults(vec![fault]))?.flatten();
        let saved = Saved {
            memory: match &request.handler {
                Some(socket) => SavedMemory::Handler(socket.clone()),
                None => SavedMemory::Image(found.image()?),
            },
            kind: found.body.host.kind,
            streams: request.overrides.streams.unwrap_or(found.body.streams),
            advance: if request.overrides.keep_clock {
                |_| 0
            } else {
                |passed| passed
            },
            components: found.body.components,
        };
        let Built { mut vm, mut console } = vm::restore(&valid, saved, &self.metadata, &mut self.timing)?;
        let terminal = take_terminal(&valid, &mut console)?;
        vm.start_paused()?;
        self.timing.mark("vCPU threads");
        self.record = ahead.and_then(|ahead| ahead.begin(&vm));
        self.spec = spec;
        let mut live = Live {
            vm,
            console,
            terminal,
            sign,
            deadline: deadline(&valid, self.timing.start()),
            settled: settled(),
            spec: valid,
        };
        self.events.emit(EventKind::Restored { path: found.path });
        if request.resume {
            live.vm.resume();
            self.events.emit(EventKind::Resumed);
        }
        self.live = Some(live);
        Ok(())
    }
}

/// The saved machine's description with what is to be another.
fn overridden(found: &Found, overrides: &Overrides) -> Result<VmSpec, MachineError> {
    let mut spec = found.body.spec.clone();
    let unfit = |why: String| SnapshotError::Unfit {
        path: found.path.clone(),
        why,
    };
    if let Some(serial) = &overrides.serial {
        spec.serial = serial.clone();
    }
    spec.timeout = overrides.timeout;
    if let Some(command) = &overrides.command {
        spec.command.clone_from(command);
    }
    if !overrides.nets.is_empty() {
        let (given, has) = (overrides.nets.len(), spec.nets.len());
        if given != has {
            return Err(unfit(format!("it has {has} network interfaces, but {given} are given")).into());
        }
        for (net, other) in spec.nets.iter_mut().zip(&overrides.nets) {
            lead_to(net, other);
        }
    }
    if !overrides.consoles.is_empty() {
        let (given, has) = (overrides.consoles.len(), spec.consoles.len());
        if given != has {
            return Err(unfit(format!("its console has {has} ports, but {given} are given")).into());
        }
        for (port, other) in spec.consoles.iter_mut().zip(&overrides.consoles) {
            port.socket.clone_from(&other.socket);
            port.file.clone_from(&other.file);
        }
    }
    if !overrides.disks.is_empty() {
        let (given, has) = (overrides.disks.len(), spec.disks.len());
        if given != has {
            return Err(unfit(format!("it has {has} disks, but {given} files are given")).into());
        }
        for (disk, path) in spec.disks.iter_mut().zip(&overrides.disks) {
            disk.path.clone_from(path);
            disk.overlay = None;
        }
        for (disk, overlay) in spec.disks.iter_mut().zip(&overrides.overlays) {
            disk.overlay.clone_from(overlay);
        }
    }
    if !overrides.pmem.is_empty() {
        let (given, has) = (overrides.pmem.len(), spec.pmem.len());
        if given != has {
            return Err(unfit(format!("it has {has} files in its memory, but {given} are given")).into());
        }
        for (pmem, path) in spec.pmem.iter_mut().zip(&overrides.pmem) {
            pmem.path.clone_from(path);
        }
    }
    if overrides.vsock.is_some() || overrides.cid.is_some() {
        let Some(vsock) = &mut spec.vsock else {
            return Err(unfit("it has no vsock, but one is given".to_owned()).into());
        };
        if let Some(path) = &overrides.vsock {
            vsock.path.clone_from(path);
        }
        vsock.cid = overrides.cid.unwrap_or(vsock.cid);
    }
    Ok(spec)
}

/// Has a saved network interface lead where another does, with what else is given of it.
fn lead_to(net: &mut NetSpec, other: &NetSpec) {
    net.tap.clone_from(&other.tap);
    net.create = other.create;
    net.user = other.user;
    net.publish.clone_from(&other.publish);
    net.loopback = other.loopback;
    for (own, given) in [
        (&mut net.rx_rate_limit, &other.rx_rate_limit),
        (&mut net.tx_rate_limit, &other.tx_rate_limit),
    ] {
        if given.is_some() {
            own.clone_from(given);
        }
    }
    if other.mac.is_some() {
        net.mac.clone_from(&other.mac);
    }
}

/// Whether a machine can be made of the snapshot on this host, as far as that shows before it is tried.
pub fn check(found: &Found) -> Result<(), MachineError> {
    found.fits()?;
    check_host(found)
}

/// Whether this host can go on with the guest. A host that is what the snapshot's was need not be asked what it supports.
fn check_host(found: &Found) -> Result<(), MachineError> {
    let then = &found.body.host;
    if HostFacts::here(then.kind) == *then {
        return Ok(());
    }
    let unfit = |why: String| SnapshotError::Unfit {
        path: found.path.clone(),
        why,
    };
    let kvm = probe::kvm::open().map_err(vm::BuildError::from)?;
    let supported = cpuid::supported(&kvm).map_err(vm::BuildError::from)?;
    let supported = supported.as_slice();
    let interpreted = cpuid::looks_interpreted(supported);
    if interpreted != (then.kind == HostKind::Interpreted) {
        let word = |interpreted| {
            if interpreted {
                "interpreted by KVM"
            } else {
                "run by the CPU"
            }
        };
        let (was, is) = (word(!interpreted), word(interpreted));
        return Err(unfit(format!("its kernel was {was}, but here kernels are {is}")).into());
    }
    let leaves = vm::cpuid_of(&found.body.components).map_err(|error| unfit(error.to_string()))?;
    let missing = cpuid::missing(&leaves, supported);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(unfit(format!(
            "this host's CPU ({}) lacks features that the guest has seen on {}: {}",
            cpuid::host_cpu(),
            then.cpu,
            missing.join(", ")
        ))
        .into())
    }
}
