//! From a spec to a VM that can be started. Files and devices are opened first: most of what can be wrong is wrong there.
//!
//! The order of the KVM calls matters: memory slots before the interrupt controller, which makes every later slot wait.

use std::path::PathBuf;
use std::sync::Arc;

use berth_arch::probe;
use berth_arch::x86_64::acpi::{self, AcpiDevice, Machine};
use berth_arch::x86_64::assist::VcpuAssist;
use berth_arch::x86_64::boot_regs::{self, Entry};
use berth_arch::x86_64::cpuid::{self, GuestCpu};
use berth_arch::x86_64::kind::{self, HostKind};
use berth_arch::x86_64::{layout, mptable};
use berth_boot::{BootEntry, BootRequest, CommandLine, EntryPolicy, KernelSource};
use berth_devices::Memory;
use berth_devices::bus::Bus;
use berth_devices::irqchip::IoApic;
use berth_devices::virtio::net::mmds::MetadataStore;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use super::ports::{self, Outputs, Ports};
use super::virtio;
use super::{Board, BuildError, StateError, Vm, state};
use crate::console::Console;
use crate::console::output::Stream;
use crate::console::panic::{PanicMessage, PanicWatch};
use crate::guest::{self, Launch, Streams};
use crate::irq::IrqLines;
use crate::memory::image::{Image, Origin};
use crate::memory::uffd::map_handled;
use crate::memory::{self, GuestMemory, MemoryError};
use crate::ready::LineWatch;
use crate::snapshot::Components;
use crate::spec::{self, CpuTemplateSpec, ReadySpec, ThreadsSpec, ValidSpec, VmSpec};
use crate::stop::{StopCell, StopReason};
use crate::timing::Timing;
use crate::vcpu::VcpuParts;

/// A VM that has not started, and the console that leads to it.
pub(crate) struct Built {
    pub(crate) vm: Vm,
    pub(crate) console: Console,
}

/// A machine that was saved.
pub(crate) struct Saved {
    /// Its parts.
    pub(crate) components: Components,
    /// Its RAM.
    pub(crate) memory: SavedMemory,
    /// What ran its kernel.
    pub(crate) kind: HostKind,
    /// How the shipped guest's streams lead to the host's.
    pub(crate) streams: Streams,
    /// What its clocks advance by, from the nanoseconds that have passed since it was saved.
    pub(crate) advance: fn(u64) -> u64,
}

/// A saved machine's RAM.
pub(crate) enum SavedMemory {
    /// A file, to be mapped privately.
    Image(Image),
    /// A process that brings the pages, by its socket.
    Handler(PathBuf),
}

impl SavedMemory {
    fn map(self, size: u64) -> Result<(Arc<Memory>, Origin), MemoryError> {
        match self {
            Self::Image(image) => Ok((memory::map_image(&image)?, Origin::Image(image))),
            Self::Handler(socket) => {
                let (memory, handler) = map_handled(size, &socket)?;
                Ok((memory, Origin::Handler(handler)))
            }
        }
    }
}

/// What is there before vCPUs are.
struct Base {
    kvm: Kvm,
    vm: Arc<VmFd>,
    memory: GuestMemory,
    lines: IrqLines,
}

/// Builds what `spec` describes.
pub(crate) fn build(
    spec: &ValidSpec,
    launch: Launch,
    metadata: &Arc<MetadataStore>,
    timing: &mut Timing,
) -> Result<Built, BuildError> {
    let spec: &VmSpec = spec;
    let mut outside = Outside::open(spec, metadata, launch.streams)?;
    timing.mark("open files");
    let base = Base::new(outside.with_files(memory::map(spec.memory.0)?)?, timing)?;
    let (mut vcpus, hint) = create_vcpus(&base.kvm, &base.vm, spec)?;
    timing.mark("vCPUs");
    let kind = probe_kind(&mut vcpus[0], &base.memory.ram, hint)?;
    timing.mark("probe the host");

    let memory = &base.memory.ram;
    let count = outside.devices.len();
    let cmdline = command_line(spec, launch, count, kind);
    let boot = berth_boot::load(memory, &boot_request(spec, &kernel_source(spec), &cmdline))?;
    timing.mark("load the kernel");
    describe_machine(memory, spec, count)?;
    enter_at(&vcpus[0], memory, boot.entry, spec.memory.0)?;
    timing.mark("boot tables, registers");

    let facts = Facts {
        kind,
        launch,
        origin: Origin::Nothing,
        shipped: spec.kernel.is_none(),
        assisted: kind == HostKind::Interpreted && spec.assist,
    };
    let built = assemble(base, outside, vcpus, facts)?;
    timing.mark("devices");
    Ok(built)
}

/// Builds the machine that was saved, to be started paused. `spec` says where its devices lead to now.
pub(crate) fn restore(
    spec: &ValidSpec,
    saved: Saved,
    metadata: &Arc<MetadataStore>,
    timing: &mut Timing,
) -> Result<Built, BuildError> {
    let spec: &VmSpec = spec;
    let mut components = saved.components;
    let mut outside = Outside::open(spec, metadata, saved.streams)?;
    timing.mark("open files");
    let (memory, origin) = saved.memory.map(spec.memory.0)?;
    if let Origin::Handler(handler) = &origin {
        handler
            .watch(outside.stop.clone())
            .map_err(|cause| BuildError::Host {
                what: "a thread that watches the page-fault handler",
                cause,
            })?;
    }
    let base = Base::new(outside.with_files(memory)?, timing)?;
    let advance = state::restore_clock(&mut components, &base.vm, saved.advance)?;
    let mut vcpus = Vec::with_capacity(spec.cpus as usize);
    let mut assists = Vec::with_capacity(spec.cpus as usize);
    for index in 0..spec.cpus {
        let state = state::take_vcpu(&mut components, index)?;
        let vcpu = base
            .vm
            .create_vcpu(index.into())
            .map_err(refused("KVM_CREATE_VCPU"))?;
        let ticks = u128::from(advance) * u128::from(state.vcpu.tsc_khz.unwrap_or(0)) / 1_000_000;
        state
            .vcpu
            .write(&base.vm, &vcpu, ticks as u64)
            .map_err(|cause| StateError::Vcpu { index, cause })?;
        vcpus.push(vcpu);
        assists.push(state.assist);
    }
    timing.mark("vCPUs");
    let facts = Facts {
        kind: saved.kind,
        launch: Launch {
            streams: saved.streams,
            wait: false,
        },
        origin,
        shipped: spec.kernel.is_none(),
        assisted: assists.first().is_some_and(Option::is_some),
    };
    let mut built = assemble(base, outside, vcpus, facts)?;
    built.vm.restore(components, assists)?;
    new_generation(built.vm.memory().0)?;
    built.vm.announce_generation();
    timing.mark("devices");
    Ok(built)
}

/// What a VM has of the outside world.
struct Outside {
    stop: Arc<StopCell>,
    devices: virtio::Devices,
    console: Console,
    panic: PanicMessage,
    outputs: Outputs,
    /// The port for it is how the guest says that it is ready.
    ready_by_port: bool,
    threads: ThreadsSpec,
}

impl Outside {
    /// Opens every file and device that `spec` names: most of what can be wrong is wrong there.
    fn open(spec: &VmSpec, metadata: &Arc<MetadataStore>, streams: Streams) -> Result<Self, BuildError> {
        let stop = StopCell::new().map_err(|cause| BuildError::Host {
            what: "an event descriptor",
            cause,
        })?;
        let stop = Arc::new(stop);
        let devices = virtio::devices(spec, metadata)?;
        let shipped = spec.kernel.is_none();
        let mut console = Console::open(&spec.serial, shipped && streams == Streams::Piped, &stop)?;
        if let Some(limit) = &spec.serial_rate_limit {
            console.limit(limit.bucket());
        }
        let panic = PanicMessage::default();
        watch_for_sign(&mut console, &spec.ready, &stop);
        let outputs = outputs(&mut console, shipped.then_some(streams), &panic, &stop)?;
        Ok(Self {
            stop,
            devices,
            console,
            panic,
            outputs,
            ready_by_port: spec.ready == ReadySpec::Port,
            threads: spec.threads.clone(),
        })
    }

    /// RAM with the devices' files behind it.
    fn with_files(&mut self, ram: Arc<Memory>) -> Result<GuestMemory, MemoryError> {
        GuestMemory::new(ram, std::mem::take(&mut self.devices.files))
    }
}

impl Base {
    /// A VM with its memory and interrupt controllers, in the order that costs least.
    fn new(memory: GuestMemory, timing: &mut Timing) -> Result<Self, BuildError> {
        let kvm = probe::kvm::open()?;
        let vm = Arc::new(kvm.create_vm().map_err(refused("KVM_CREATE_VM"))?);
        timing.mark("create VM");
        memory::set_slots(&vm, &memory)?;
        // Intel CPUs before 2010 run real mode in these pages; others do not care whether they are set.
        if let Err(error) = vm.set_identity_map_address(layout::KVM_IDENTITY_MAP) {
            tracing::debug!("KVM_SET_IDENTITY_MAP_ADDR: {error}");
        }
        if let Err(error) = vm.set_tss_address(layout::KVM_TSS as usize) {
            tracing::debug!("KVM_SET_TSS_ADDR: {error}");
        }
        timing.mark("guest memory");
        let lines = IrqLines::new(vm.clone())?;
        timing.mark("interrupt controller");
        Ok(Self {
            kvm,
            vm,
            memory,
            lines,
        })
    }
}

/// What a machine is, besides what its spec says.
struct Facts {
    kind: HostKind,
    launch: Launch,
    /// It runs the shipped guest.
    shipped: bool,
    origin: Origin,
    assisted: bool,
}

/// Puts the devices in their places and the vCPUs beside them.
fn assemble(base: Base, outside: Outside, vcpus: Vec<VcpuFd>, facts: Facts) -> Result<Built, BuildError> {
    let Base {
        kvm,
        vm,
        memory,
        lines,
    } = base;
    let Outside {
        stop,
        devices,
        console,
        panic,
        outputs,
        ready_by_port,
        threads,
    } = outside;
    let events = ports::machine_events(stop.clone(), panic, ready_by_port);
    let ports = Ports::new(&lines, outputs, &events)?;
    // Only the shipped init raises OUT1.
    if facts.shipped && (facts.launch.wait || facts.launch.streams == Streams::Piped) {
        ports.legacy.com1.hold_input_until_out1();
    }
    let mut mmio = Bus::new();
    let ioapic = Arc::new(IoApic::new(lines.clone()));
    mmio.insert(layout::IOAPIC, layout::PAGE_SIZE, ioapic.clone())?;
    let virtio = virtio::place(devices, &threads, &vm, &memory.reach, &lines, &mut mmio)?;

    let (port_bus, mmio) = (Arc::new(ports.bus), Arc::new(mmio));
    let parts = |(index, vcpu)| -> Result<VcpuParts, BuildError> {
        let assist = if facts.assisted {
            let assist = VcpuAssist::new(memory.reach.clone(), &vm)?;
            Some(assist.with_read_only(memory.read_only.clone()))
        } else {
            None
        };
        Ok(VcpuParts {
            index,
            cpus: threads.of_vcpu(index),
            vcpu,
            _memory: memory.clone(),
            ports: port_bus.clone(),
            mmio: mmio.clone(),
            stop: stop.clone(),
            counters: Arc::default(),
            assist,
        })
    };
    let vcpus = (0..).zip(vcpus).map(parts).collect::<Result<_, _>>()?;
    let board = Board {
        kvm,
        vm,
        memory,
        origin: facts.origin,
        ioapic,
        kind: facts.kind,
        streams: facts.launch.streams,
    };
    let vm = Vm::new(vcpus, virtio, ports.legacy, board, stop);
    Ok(Built { vm, console })
}

fn refused(ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
    move |cause| BuildError::Ioctl { ioctl, cause }
}

/// Makes the vCPUs and tells each what it is. Also says whether CPUID hints at an interpreted host.
fn create_vcpus(kvm: &Kvm, vm: &VmFd, spec: &VmSpec) -> Result<(Vec<VcpuFd>, bool), BuildError> {
    let count = spec.cpus;
    let mut supported = cpuid::supported(kvm)?;
    let interpreted = cpuid::looks_interpreted(supported.as_slice());
    let template = spec.cpu_template.as_ref().map(CpuTemplateSpec::template);
    if let Some(template) = &template {
        template.check(kvm)?;
        template.change_cpuid(supported.as_mut_slice())?;
    }
    let tsc_deadline = kvm.check_extension(kvm_ioctls::Cap::TscDeadlineTimer);
    let mut vcpus = Vec::with_capacity(count as usize);
    for index in 0..count {
        let vcpu = vm.create_vcpu(index.into()).map_err(refused("KVM_CREATE_VCPU"))?;
        let tsc_khz = vcpu.get_tsc_khz().ok();
        let cpu = GuestCpu {
            index,
            count,
            tsc_deadline,
            tsc_khz,
            interpreted,
        };
        cpuid::set(&vcpu, &cpuid::guest_cpuid(supported.as_slice(), cpu))?;
        for refused in boot_regs::set_common(&vcpu, true)? {
            tracing::info!("{refused}; the guest starts without it");
        }
        if let Some(template) = &template {
            template.change_msrs(&vcpu)?;
        }
        vcpus.push(vcpu);
    }
    Ok((vcpus, interpreted))
}

/// Finds out what runs ring 0, before anything of the guest is in memory.
fn probe_kind(vcpu: &mut VcpuFd, memory: &Arc<Memory>, hint: bool) -> Result<HostKind, BuildError> {
    // Any entry will do; PVH's needs no page tables.
    let entry = Entry::Pvh { rip: 0 };
    boot_regs::set_entry(vcpu, entry)?;
    let kind = kind::kind_of_vcpu(vcpu, &**memory, entry)?;
    if hint != (kind == HostKind::Interpreted) {
        tracing::warn!(
            "CPUID hints at another kind of host than this is ({kind:?}); the guest's CPUID may lack features"
        );
    }
    Ok(kind)
}

fn kernel_source(spec: &VmSpec) -> KernelSource {
    match &spec.kernel {
        Some(path) => KernelSource::File(path.clone()),
        None => KernelSource::Embedded {
            name: "(shipped with Berth)",
            bytes: guest::kernel(),
        },
    }
}

fn boot_request<'a>(spec: &'a VmSpec, kernel: &'a KernelSource, cmdline: &'a CommandLine) -> BootRequest<'a> {
    BootRequest {
        kernel,
        initrd: spec.initrd.as_deref(),
        cmdline,
        entry: match spec.entry {
            spec::Entry::Auto => EntryPolicy::Auto,
            spec::Entry::Linux64 => EntryPolicy::Linux64,
            spec::Entry::Pvh => EntryPolicy::Pvh,
        },
        rsdp: Some(layout::ACPI_RSDP),
    }
}

/// What a kernel that Berth knows nothing of is told: its console, and how to end.
const FOREIGN_COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1";

/// The kernel's command line: Berth's part, then the user's, then what the shipped init gets.
fn command_line(spec: &VmSpec, launch: Launch, devices: usize, kind: HostKind) -> CommandLine {
    let mut line = CommandLine::new();
    let shipped = spec.kernel.is_none();
    if let Some(text) = &spec.cmdline_replace {
        line.push(text.as_str());
    } else {
        let own = if shipped {
            guest::COMMAND_LINE
        } else {
            FOREIGN_COMMAND_LINE
        };
        line.push(spec.cmdline_base.as_deref().unwrap_or(own));
        line.push(virtio::command_line(devices));
        if kind == HostKind::Interpreted && spec.assist {
            line.push(cpuid::interpreted_command_line());
            line.push(if shipped {
                guest::INTERPRETED_COMMAND_LINE
            } else {
                // The shipped kernel has none, and says so.
                "mitigations=off"
            });
        }
    }
    line.push(spec.cmdline.as_str());
    if shipped {
        line.set_init_arguments(launch.words(spec));
    }
    line
}

/// Writes the tables by which a kernel finds processors and devices.
fn describe_machine(memory: &Arc<Memory>, spec: &VmSpec, virtio: usize) -> Result<(), BuildError> {
    let mut devices = vec![AcpiDevice::Com1];
    devices.extend(spec.kernel.is_none().then_some(AcpiDevice::Com2));
    devices.extend([AcpiDevice::CmosClock, AcpiDevice::Pvpanic]);
    devices.extend((0..virtio).map(AcpiDevice::VirtioMmio));
    acpi::write(
        &**memory,
        &Machine {
            cpus: spec.cpus,
            devices,
        },
    )?;
    mptable::write(&**memory, spec.cpus)?;
    new_generation(memory)
}

/// Gives the guest a VM generation id that no other VM has.
fn new_generation(memory: &Memory) -> Result<(), BuildError> {
    let host = |cause| BuildError::Host {
        what: "random bytes",
        cause,
    };
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| host(error.into()))?;
    // There is RAM below 1 MiB in every guest.
    memory
        .write_slice(&id, GuestAddress(layout::VM_GENERATION_ID))
        .map_err(|error| host(std::io::Error::other(error)))
}

fn enter_at(vcpu: &VcpuFd, memory: &Arc<Memory>, entry: BootEntry, size: u64) -> Result<(), BuildError> {
    let entry = match entry {
        BootEntry::Linux64 { rip } => Entry::Linux64 { rip },
        // A PVH entry comes from a 32-bit field.
        BootEntry::Pvh { rip } => Entry::Pvh { rip: rip as u32 },
    };
    boot_regs::write_tables(&**memory, entry, size.div_ceil(1 << 30))?;
    Ok(boot_regs::set_entry(vcpu, entry)?)
}

/// Looks on the console for the line by which the guest says that it is ready, if it is to.
fn watch_for_sign(console: &mut Console, ready: &ReadySpec, stop: &Arc<StopCell>) {
    // Validation has refused what is no pattern.
    if let Ok(Some(pattern)) = ready.pattern() {
        let output = std::mem::replace(&mut console.output, Box::new(std::io::sink()));
        let stop = stop.clone();
        console.output = Box::new(LineWatch::new(output, pattern, move || stop.tell_ready()));
    }
}

/// The serial ports' outputs: the console, watched for panics; in the shipped guest the second port, for the errors of a
/// command whose streams are pipes.
fn outputs(
    console: &mut Console,
    shipped: Option<Streams>,
    panic: &PanicMessage,
    stop: &Arc<StopCell>,
) -> Result<Outputs, BuildError> {
    let output = std::mem::replace(&mut console.output, Box::new(std::io::sink()));
    let ended = {
        let (stop, panic) = (stop.clone(), panic.clone());
        move || stop.stop(StopReason::Panicked(panic.get()))
    };
    let com1 = Box::new(PanicWatch::new(output, panic.clone(), ended));
    let com2: Option<Box<dyn std::io::Write + Send>> = match shipped {
        None => None,
        Some(Streams::Terminal { .. }) => Some(Box::new(std::io::sink())),
        Some(Streams::Piped) => {
            let stderr = std::os::fd::AsFd::as_fd(&std::io::stderr()).try_clone_to_owned();
            let stderr = stderr.map_err(|cause| BuildError::Host {
                what: "standard error",
                cause,
            })?;
            Some(Box::new(Stream::new(stderr, stop.clone())))
        }
    };
    Ok(Outputs { com1, com2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(spec: &VmSpec, kind: HostKind) -> String {
        let launch = Launch {
            streams: Streams::Piped,
            wait: false,
        };
        command_line(spec, launch, 1, kind).text()
    }

    #[test]
    fn interpreted_hosts_and_only_they_tell_linux_what_to_leave() {
        let spec = VmSpec::default();
        assert!(text(&spec, HostKind::Interpreted).contains("clearcpuid="));
        assert!(!text(&spec, HostKind::Native).contains("clearcpuid="));
        let unassisted = VmSpec {
            assist: false,
            ..spec
        };
        assert!(!text(&unassisted, HostKind::Interpreted).contains("clearcpuid="));
    }

    #[test]
    fn a_replaced_command_line_is_the_users_alone() {
        let spec = VmSpec {
            kernel: Some("vmlinux".into()),
            cmdline: "b".to_owned(),
            cmdline_replace: Some("a".to_owned()),
            ..VmSpec::default()
        };
        assert_eq!(text(&spec, HostKind::Interpreted), "a b");
    }

    #[test]
    fn devices_come_before_the_users_words_and_inits_come_last() {
        let spec = VmSpec {
            cmdline: "debug".to_owned(),
            command: vec!["true".to_owned()],
            ..VmSpec::default()
        };
        let text = text(&spec, HostKind::Native);
        assert!(
            text.ends_with("virtio_mmio.device=4K@0xd0000000:5 debug -- piped run=true"),
            "{text}"
        );
    }
}
