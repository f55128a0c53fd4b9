//! The machine's own routes: what it is and boots, before it starts; what it does, afterwards.

use std::path::Path;
use std::time::SystemTime;

use berth_arch::x86_64::cpuid;

use super::error::ApiError;
use super::route::Scene;
use super::types::{
    ActionType, BootSource, CpuConfig, CpuTemplate, FirecrackerVersion, FullVmConfiguration, HugePages,
    InstanceActionInfo, InstanceInfo, InstanceState, MachineConfiguration, MachineUpdate, Vm, VmState,
};
use super::{balloon, devices, mmds, observe, pmem};
use crate::machine::MachineState;
use crate::spec::{self, ByteSize, CpuTemplateSpec, Limits, VmSpec};

/// The version of Firecracker whose API is spoken here.
pub const FIRECRACKER: &str = "1.17.0";

/// Berth's own version.
pub(crate) const BERTH: &str = env!("CARGO_PKG_VERSION");

/// What a kernel is told if its user says nothing, as Firecracker has it.
const BOOT_ARGS: &str = "reboot=k panic=1 pci=off nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.nopnp \
                         i8042.dumbkbd";

/// `GET /`
pub(crate) fn info(scene: &mut Scene<'_>) -> Result<InstanceInfo, ApiError> {
    Ok(InstanceInfo {
        app_name: "Berth",
        id: scene.machine.events().vm().id.clone(),
        state: match scene.machine.state() {
            MachineState::NotStarted => InstanceState::NotStarted,
            MachineState::Running => InstanceState::Running,
            MachineState::Paused => InstanceState::Paused,
        },
        vmm_version: BERTH,
    })
}

/// `GET /version`
pub(crate) fn version(_: &mut Scene<'_>) -> Result<FirecrackerVersion, ApiError> {
    Ok(FirecrackerVersion {
        firecracker_version: FIRECRACKER,
        berth_version: BERTH,
    })
}

/// Changes the description of a machine that has not started; not if that would make a fault that was not there before.
pub(crate) fn amend(scene: &mut Scene<'_>, change: impl FnOnce(&mut VmSpec)) -> Result<(), ApiError> {
    let state = scene.machine.state();
    if state != MachineState::NotStarted {
        return Err(ApiError::too_late(state));
    }
    let faults = |spec: &VmSpec| {
        spec::validate(spec, Limits::of_host(spec))
            .err()
            .unwrap_or_default()
    };
    let mut spec = scene.machine.spec().clone();
    let before = faults(&spec);
    change(&mut spec);
    let new: Vec<_> = faults(&spec)
        .iter()
        .filter(|fault| !before.contains(fault))
        .map(ToString::to_string)
        .collect();
    if !new.is_empty() {
        return Err(ApiError::bad(new.join("; ")));
    }
    scene.side.configured = true;
    Ok(scene.machine.configure(|own| *own = spec)?)
}

/// Refuses what comes too late.
pub(crate) fn before_start(scene: &Scene<'_>) -> Result<(), ApiError> {
    match scene.machine.state() {
        MachineState::NotStarted => Ok(()),
        state => Err(ApiError::too_late(state)),
    }
}

/// Refuses what comes too early.
pub(crate) fn after_start(scene: &Scene<'_>) -> Result<(), ApiError> {
    match scene.machine.state() {
        MachineState::NotStarted => Err(ApiError::too_early()),
        _ => Ok(()),
    }
}

/// `GET /machine-config`
pub(crate) fn machine(scene: &mut Scene<'_>) -> Result<MachineConfiguration, ApiError> {
    Ok(scene.side.machine(scene.machine.spec()))
}

/// `PUT /machine-config`
pub(crate) fn put_machine(
    scene: &mut Scene<'_>,
    _: &str,
    machine: MachineConfiguration,
) -> Result<(), ApiError> {
    let MachineConfiguration {
        vcpu_count,
        mem_size_mib,
        smt,
        track_dirty_pages,
        huge_pages,
        cpu_template,
    } = machine;
    let update = MachineUpdate {
        vcpu_count: Some(vcpu_count),
        mem_size_mib: Some(mem_size_mib),
        smt: Some(smt),
        track_dirty_pages: Some(track_dirty_pages),
        huge_pages: Some(huge_pages),
        cpu_template,
    };
    patch_machine(scene, "", update)
}

/// `PATCH /machine-config`
pub(crate) fn patch_machine(scene: &mut Scene<'_>, _: &str, update: MachineUpdate) -> Result<(), ApiError> {
    before_start(scene)?;
    let MachineUpdate {
        vcpu_count,
        mem_size_mib,
        smt,
        track_dirty_pages,
        huge_pages,
        cpu_template,
    } = update;
    if vcpu_count == Some(0) {
        return Err(ApiError::bad(
            "vcpu_count: The vCPU number is invalid! Give 1 or more.",
        ));
    }
    if mem_size_mib == Some(0) {
        return Err(ApiError::bad(
            "mem_size_mib: The memory size (MiB) is invalid! Give 2 or more.",
        ));
    }
    if smt == Some(true) {
        let what = "Berth shows the guest a core for each vCPU and has no threads of one; set it to false";
        return Err(ApiError::lacks("smt", what));
    }
    if let Some(HugePages::Transparent | HugePages::Hugetlbfs2M) = huge_pages {
        let what = "Berth does not back guest memory with huge pages yet; set it to None";
        return Err(ApiError::lacks("huge_pages", what));
    }
    if let Some(why) = cpu_template.and_then(|template| no_template(template, &cpuid::host_cpu())) {
        return Err(ApiError::lacks("cpu_template", &why));
    }
    amend(scene, |spec| {
        if let Some(count) = vcpu_count {
            spec.cpus = count;
        }
        if let Some(mib) = mem_size_mib {
            spec.memory = ByteSize(mib.saturating_mul(1 << 20));
        }
    })?;
    if let Some(track) = track_dirty_pages {
        scene.side.track_dirty_pages = track;
    }
    Ok(())
}

/// Why a static CPU template is not taken on the host with the CPU `host`; nothing is if there is none. What each stands for changes
/// from one Firecracker to the next and is deprecated there, so Berth has custom ones alone.
fn no_template(template: CpuTemplate, host: &str) -> Option<String> {
    let (name, maker, vendor) = match template {
        CpuTemplate::None => return None,
        CpuTemplate::C3 => ("C3", "Intel", "GenuineIntel"),
        CpuTemplate::T2 => ("T2", "Intel", "GenuineIntel"),
        CpuTemplate::T2S => ("T2S", "Intel", "GenuineIntel"),
        CpuTemplate::T2CL => ("T2CL", "Intel", "GenuineIntel"),
        CpuTemplate::T2A => ("T2A", "AMD", "AuthenticAMD"),
        CpuTemplate::V1N1 => ("V1N1", "Arm", "Arm"),
    };
    Some(if host.starts_with(vendor) {
        format!(
            "Berth has no static CPU templates, which Firecracker deprecates; send what {name} stands for to /cpu-config as a custom one, \
             or set it to None"
        )
    } else {
        format!(
            "{name} is for CPUs of {maker}'s, and this host has another ({host}); leave it out or set it to None"
        )
    })
}

/// `PUT /cpu-config`
pub(crate) fn put_cpu(scene: &mut Scene<'_>, _: &str, cpu: CpuConfig) -> Result<(), ApiError> {
    before_start(scene)?;
    let arm = [
        ("reg_modifiers", cpu.reg_modifiers.is_empty()),
        ("vcpu_features", cpu.vcpu_features.is_empty()),
    ];
    if let Some((field, _)) = arm.iter().find(|(_, empty)| !empty) {
        let what = "it changes an Arm CPU, and this one is an x86; leave it out";
        return Err(ApiError::lacks(field, what));
    }
    let template = CpuTemplateSpec {
        kvm_capabilities: cpu.kvm_capabilities,
        cpuid_modifiers: cpu.cpuid_modifiers,
        msr_modifiers: cpu.msr_modifiers,
    };
    amend(scene, |spec| spec.cpu_template = Some(template))
}

/// The CPU template as Firecracker describes it.
fn cpu_of(spec: &VmSpec) -> Option<CpuConfig> {
    let template = spec.cpu_template.clone()?;
    Some(CpuConfig {
        kvm_capabilities: template.kvm_capabilities,
        cpuid_modifiers: template.cpuid_modifiers,
        msr_modifiers: template.msr_modifiers,
        ..CpuConfig::default()
    })
}

/// `PUT /boot-source`
pub(crate) fn put_boot(scene: &mut Scene<'_>, _: &str, boot: BootSource) -> Result<(), ApiError> {
    before_start(scene)?;
    readable(
        "kernel_image_path",
        "The kernel file cannot be opened",
        &boot.kernel_image_path,
    )?;
    if let Some(initrd) = &boot.initrd_path {
        readable("initrd_path", "The initrd file cannot be opened", initrd)?;
    }
    let entropy = scene.side.entropy.is_some();
    amend(scene, |spec| {
        spec.kernel = Some(boot.kernel_image_path.clone());
        spec.initrd.clone_from(&boot.initrd_path);
        let args = boot.boot_args.as_deref().unwrap_or(BOOT_ARGS);
        spec.cmdline_base = Some(args.trim().to_owned());
        // From here on this is a machine of Firecracker's kind, which has what it was given and nothing else.
        spec.rng = entropy;
    })?;
    scene.side.boot = Some(boot);
    devices::tell_root(scene)
}

fn readable(field: &str, what: &str, path: &Path) -> Result<(), ApiError> {
    match berth_boot::open_file(path) {
        Ok(_) => Ok(()),
        Err(cause) => Err(ApiError::bad(format!(
            "{field}: {what}: {}: {cause}",
            path.display()
        ))),
    }
}

/// `PUT /actions`
pub(crate) fn act(scene: &mut Scene<'_>, _: &str, action: InstanceActionInfo) -> Result<(), ApiError> {
    match action.action_type {
        ActionType::InstanceStart => start(scene),
        ActionType::FlushMetrics => observe::flush(scene),
        ActionType::SendCtrlAltDel => {
            after_start(scene)?;
            Ok(scene.machine.send_ctrl_alt_del()?)
        }
    }
}

/// Builds the machine and lets its guest run.
pub(crate) fn start(scene: &mut Scene<'_>) -> Result<(), ApiError> {
    before_start(scene)?;
    let root = scene.side.root_pmem.is_some() || scene.side.drives.values().any(|drive| drive.root);
    if root && scene.machine.spec().kernel.is_none() {
        return Err(ApiError::bad(
            "Cannot start microvm without kernel configuration: a root drive needs a kernel; PUT /boot-source first.",
        ));
    }
    scene.machine.start()?;
    scene.side.started = Some(SystemTime::now());
    Ok(())
}

/// `PATCH /vm`
pub(crate) fn patch_vm(scene: &mut Scene<'_>, _: &str, vm: Vm) -> Result<(), ApiError> {
    match vm.state {
        VmState::Paused => scene.machine.pause()?,
        VmState::Resumed => scene.machine.resume()?,
    }
    Ok(())
}

/// `GET /vm/config`
pub(crate) fn config(scene: &mut Scene<'_>) -> Result<FullVmConfiguration, ApiError> {
    let spec = scene.machine.spec();
    let side = &*scene.side;
    Ok(FullVmConfiguration {
        balloon: balloon::of(spec),
        drives: devices::drives(spec, side),
        boot_source: side.boot.clone().or_else(|| boot_of(spec)),
        cpu_config: cpu_of(spec),
        logger: side.logger.clone(),
        machine_config: side.machine(spec),
        metrics: side.metrics.as_ref().map(observe::MetricsFile::config),
        memory_hotplug: None,
        mmds_config: mmds::of(spec),
        network_interfaces: devices::nets(spec),
        pmem: pmem::of(spec, side),
        vsock: devices::vsock_of(spec),
        entropy: side.entropy.clone().or_else(|| spec.rng.then(Default::default)),
    })
}

/// What a machine boots that was described by other means than the API.
fn boot_of(spec: &VmSpec) -> Option<BootSource> {
    Some(BootSource {
        kernel_image_path: spec.kernel.clone()?,
        initrd_path: spec.initrd.clone(),
        boot_args: spec.cmdline_base.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_template_is_refused_by_what_it_is_for() {
        let intel = "GenuineIntel 50657";
        assert_eq!(no_template(CpuTemplate::None, intel), None);
        for (template, host, words) in [
            (
                CpuTemplate::T2CL,
                intel,
                "send what T2CL stands for to /cpu-config",
            ),
            (CpuTemplate::T2A, intel, "T2A is for CPUs of AMD's"),
            (
                CpuTemplate::T2A,
                "AuthenticAMD a00f11",
                "send what T2A stands for",
            ),
            (
                CpuTemplate::T2,
                "AuthenticAMD a00f11",
                "T2 is for CPUs of Intel's",
            ),
            (CpuTemplate::V1N1, intel, "V1N1 is for CPUs of Arm's"),
        ] {
            let said = no_template(template, host).unwrap();
            assert!(said.contains(words), "{said}");
        }
    }
}
