//! Snapshots by Firecracker's paths and by Berth's.

use std::path::PathBuf;
use std::time::Instant;

use super::configure::{after_start, before_start};
use super::error::ApiError;
use super::route::{Reply, Scene};
use super::types::{
    BerthSnapshot, BerthSnapshotKind, HugePages, MemoryBackendType, NetworkOverride, SnapshotCreateParams,
    SnapshotLoadParams, SnapshotType,
};
use crate::machine::{LoadRequest, MachineError, MachineState, Overrides};
use crate::snapshot::{Found, SnapshotKind, SnapshotRequest, SnapshotTarget};
use crate::spec::{NetSpec, SerialSpec};

/// `PUT /snapshot/create`
pub(crate) fn create(scene: &mut Scene<'_>, _: &str, params: SnapshotCreateParams) -> Result<(), ApiError> {
    after_start(scene)?;
    if scene.machine.state() != MachineState::Paused {
        return Err(ApiError::bad(
            "The VM runs: pause it before a snapshot is taken (PATCH /vm with the state Paused).",
        ));
    }
    let request = SnapshotRequest {
        target: SnapshotTarget::Files {
            state: params.snapshot_path,
            memory: params.mem_file_path,
        },
        kind: match params.snapshot_type {
            SnapshotType::Full => SnapshotKind::Full,
            SnapshotType::Diff => SnapshotKind::Diff,
        },
        durable: true,
    };
    scene.machine.snapshot(&request)?;
    Ok(())
}

/// `PUT /snapshot/load`
pub(crate) fn load(scene: &mut Scene<'_>, _: &str, params: SnapshotLoadParams) -> Result<(), ApiError> {
    before_start(scene)?;
    if scene.side.configured {
        return Err(ApiError::bad(
            "Loading a microVM snapshot not allowed after configuring boot-specific resources: it brings its own.",
        ));
    }
    if params.huge_pages != HugePages::None {
        let what = "Berth does not back guest memory with huge pages yet; set it to None";
        return Err(ApiError::lacks("huge_pages", what));
    }
    let (memory, handler) = match (params.mem_backend, params.mem_file_path) {
        (Some(_), Some(_)) | (None, None) => {
            return Err(ApiError::bad(
                "mem_backend: give either `mem_backend` or `mem_file_path`, and not both.",
            ));
        }
        (None, Some(path)) => (path, None),
        (Some(backend), None) => match backend.backend_type {
            MemoryBackendType::File => (backend.backend_path, None),
            // The file is the handler's affair.
            MemoryBackendType::Uffd => (PathBuf::new(), Some(backend.backend_path)),
        },
    };
    let state = params.snapshot_path;
    let nets = nets(&state, &memory, &params.network_overrides)?;
    let own = scene.machine.spec().serial.clone();
    let request = LoadRequest {
        from: SnapshotTarget::Files { state, memory },
        resume: params.resume_vm,
        overrides: Overrides {
            serial: Some(own).filter(|serial| *serial != SerialSpec::Stdio),
            nets,
            vsock: params.vsock_override.map(|vsock| vsock.uds_path),
            keep_clock: params.clock_realtime == Some(false),
            ..Overrides::default()
        },
        verify: false,
        handler,
        prefetch: false,
    };
    scene.machine.load(&request)?;
    scene.side.started = Some(std::time::SystemTime::now());
    Ok(())
}

/// The network interfaces of a saved machine with those taps that are to be others; none if none is.
fn nets(
    state: &std::path::Path,
    memory: &std::path::Path,
    overrides: &[NetworkOverride],
) -> Result<Vec<NetSpec>, ApiError> {
    if overrides.is_empty() {
        return Ok(Vec::new());
    }
    let found = Found::open_files(state, memory).map_err(MachineError::from)?;
    let mut nets = found.body.spec.nets;
    for other in overrides {
        let net = nets
            .iter_mut()
            .find(|net| net.id.as_ref() == Some(&other.iface_id));
        let Some(net) = net else {
            return Err(ApiError::bad(format!(
                "network_overrides: the snapshot has no network interface {:?}.",
                other.iface_id
            )));
        };
        net.tap.clone_from(&other.host_dev_name);
        net.user = false;
        net.publish.clear();
        net.loopback = false;
    }
    Ok(nets)
}

/// `POST /berth/v1/snapshot`
pub(crate) fn take(scene: &mut Scene<'_>, _: &str, params: BerthSnapshot) -> Result<Reply, ApiError> {
    after_start(scene)?;
    let ran = scene.machine.state() == MachineState::Running;
    let kind = match params.kind {
        BerthSnapshotKind::Full => SnapshotKind::Full,
        BerthSnapshotKind::Diff => SnapshotKind::Diff,
    };
    let request = SnapshotRequest {
        kind,
        durable: params.durable.unwrap_or(true),
        ..SnapshotRequest::to(params.path)
    };
    let stopped = Instant::now();
    scene.machine.pause()?;
    let taken = if params.beside {
        scene.machine.begin_snapshot(&request).map(Some)
    } else {
        scene.machine.snapshot(&request).map(|_| None)
    };
    // A guest whose snapshot failed goes on as if nobody had asked for one.
    let goes_on = match &taken {
        Ok(_) => params.resume.unwrap_or(ran),
        Err(_) => ran,
    };
    if goes_on {
        scene.machine.resume()?;
        tracing::info!("the guest stood still for {:?} to be saved", stopped.elapsed());
    }
    let Some(writing) = taken? else {
        return Ok(Reply::Done);
    };
    let events = scene.machine.events().clone();
    Ok(Reply::later(move || {
        writing.wait().map_err(MachineError::from)?;
        events.emit(request.event());
        Ok(Reply::Done)
    }))
}
