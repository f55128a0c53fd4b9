//! Routes of the balloon.

use std::time::Duration;

use berth_devices::virtio::balloon::{BalloonError, BalloonHandle};

use super::configure::amend;
use super::error::ApiError;
use super::route::Scene;
use super::types::{
    Balloon, BalloonHintingStatus, BalloonStartCmd, BalloonStats, BalloonStatsUpdate, BalloonUpdate,
};
use crate::machine::MachineState;
use crate::spec::{BalloonSpec, ByteSize, VmSpec};

/// Pages of 4 KiB in a MiB.
const PAGES_PER_MIB: u32 = 256;

fn none() -> ApiError {
    ApiError::bad("balloon: the VM has none; PUT /balloon before it starts.")
}

fn failed(error: BalloonError) -> ApiError {
    ApiError::bad(format!("{error}."))
}

/// The balloon as Firecracker describes it.
pub(crate) fn of(spec: &VmSpec) -> Option<Balloon> {
    let balloon = spec.balloon.as_ref()?;
    Some(Balloon {
        amount_mib: u32::try_from(balloon.target.0 >> 20).unwrap_or(u32::MAX),
        deflate_on_oom: balloon.deflate_on_oom,
        stats_polling_interval_s: u16::try_from(balloon.stats_interval).unwrap_or(u16::MAX),
        free_page_hinting: balloon.free_page_hinting,
        free_page_reporting: balloon.free_page_reporting,
    })
}

fn is_running(scene: &Scene<'_>) -> bool {
    scene.machine.state() != MachineState::NotStarted
}

/// The running balloon. What is asked of it is done by its I/O thread, at once.
fn live(scene: &mut Scene<'_>) -> Result<BalloonHandle, ApiError> {
    scene.machine.devices()?.balloon.clone().ok_or_else(none)
}

/// `GET /balloon`
pub(crate) fn get(scene: &mut Scene<'_>) -> Result<Balloon, ApiError> {
    let mut balloon = of(scene.machine.spec()).ok_or_else(none)?;
    if is_running(scene) {
        let status = live(scene)?.status().map_err(failed)?;
        balloon.amount_mib = status.target_pages / PAGES_PER_MIB;
        balloon.stats_polling_interval_s = u16::try_from(status.stats_interval.as_secs()).unwrap_or(u16::MAX);
    }
    Ok(balloon)
}

/// `PUT /balloon`
pub(crate) fn put(scene: &mut Scene<'_>, _: &str, balloon: Balloon) -> Result<(), ApiError> {
    amend(scene, |spec| {
        spec.balloon = Some(BalloonSpec {
            target: ByteSize(u64::from(balloon.amount_mib) << 20),
            deflate_on_oom: balloon.deflate_on_oom,
            stats_interval: balloon.stats_polling_interval_s.into(),
            free_page_reporting: balloon.free_page_reporting,
            free_page_hinting: balloon.free_page_hinting,
        });
    })
}

/// `PATCH /balloon`
pub(crate) fn patch(scene: &mut Scene<'_>, _: &str, update: BalloonUpdate) -> Result<(), ApiError> {
    let target = u64::from(update.amount_mib) << 20;
    if !is_running(scene) {
        return amend_own(scene, |balloon| balloon.target = ByteSize(target));
    }
    let memory = scene.machine.spec().memory;
    if target >= memory.0 {
        return Err(ApiError::bad(format!(
            "amount_mib: a guest with {memory} of memory cannot give back {} MiB.",
            update.amount_mib
        )));
    }
    let pages = update.amount_mib.saturating_mul(PAGES_PER_MIB);
    live(scene)?.set_target(pages).map_err(failed)
}

fn amend_own(scene: &mut Scene<'_>, change: impl FnOnce(&mut BalloonSpec)) -> Result<(), ApiError> {
    if scene.machine.spec().balloon.is_none() {
        return Err(none());
    }
    amend(scene, |spec| {
        if let Some(balloon) = &mut spec.balloon {
            change(balloon);
        }
    })
}

/// `GET /balloon/statistics`
pub(crate) fn statistics(scene: &mut Scene<'_>) -> Result<BalloonStats, ApiError> {
    let status = live(scene)?.status().map_err(failed)?;
    if status.stats_interval.is_zero() {
        return Err(failed(BalloonError::NoStats));
    }
    let stats = status.stats;
    Ok(BalloonStats {
        target_pages: status.target_pages,
        actual_pages: status.actual_pages,
        target_mib: status.target_pages / PAGES_PER_MIB,
        actual_mib: status.actual_pages / PAGES_PER_MIB,
        swap_in: stats.swap_in,
        swap_out: stats.swap_out,
        major_faults: stats.major_faults,
        minor_faults: stats.minor_faults,
        free_memory: stats.free_memory,
        total_memory: stats.total_memory,
        available_memory: stats.available_memory,
        disk_caches: stats.disk_caches,
        hugetlb_allocations: stats.hugetlb_allocations,
        hugetlb_failures: stats.hugetlb_failures,
        oom_kill: stats.oom_kill,
        alloc_stall: stats.alloc_stall,
        async_scan: stats.async_scan,
        direct_scan: stats.direct_scan,
        async_reclaim: stats.async_reclaim,
        direct_reclaim: stats.direct_reclaim,
    })
}

/// `PATCH /balloon/statistics`
pub(crate) fn patch_statistics(
    scene: &mut Scene<'_>,
    _: &str,
    update: BalloonStatsUpdate,
) -> Result<(), ApiError> {
    let seconds = u64::from(update.stats_polling_interval_s);
    if is_running(scene) {
        let interval = Duration::from_secs(seconds);
        return live(scene)?.set_stats_interval(interval).map_err(failed);
    }
    if scene
        .machine
        .spec()
        .balloon
        .as_ref()
        .is_some_and(|balloon| (balloon.stats_interval == 0) != (seconds == 0))
    {
        return Err(ApiError::bad(
            "stats_polling_interval_s: statistics are switched on and off by PUT /balloon alone.",
        ));
    }
    amend_own(scene, |balloon| balloon.stats_interval = seconds)
}

/// `PATCH /balloon/hinting/start`
pub(crate) fn start_hinting(scene: &mut Scene<'_>, command: BalloonStartCmd) -> Result<(), ApiError> {
    live(scene)?
        .start_hinting(command.acknowledge_on_stop)
        .map_err(failed)
}

/// `PATCH /balloon/hinting/stop`
pub(crate) fn stop_hinting(scene: &mut Scene<'_>, _: &str) -> Result<(), ApiError> {
    live(scene)?.stop_hinting().map_err(failed)
}

/// `GET /balloon/hinting/status`
pub(crate) fn hinting(scene: &mut Scene<'_>) -> Result<BalloonHintingStatus, ApiError> {
    let hinting = live(scene)?.hinting().map_err(failed)?;
    Ok(BalloonHintingStatus {
        host_cmd: hinting.host_cmd,
        guest_cmd: hinting.guest_cmd,
    })
}
