//! Berth's own routes.

use std::time::SystemTime;

use super::configure::{self, BERTH};
use super::error::ApiError;
use super::route::Scene;
use super::types::BerthVm;
use crate::events;

/// `GET /berth/v1/vm`
pub(crate) fn vm(scene: &mut Scene<'_>) -> Result<BerthVm, ApiError> {
    let identity = scene.machine.events().vm().clone();
    Ok(BerthVm {
        id: identity.id,
        name: identity.name,
        state: scene.machine.state(),
        pid: std::process::id(),
        spec: scene.machine.spec().clone(),
        started_at: started(scene).map(events::timestamp),
        berth_version: BERTH,
    })
}

fn started(scene: &Scene<'_>) -> Option<SystemTime> {
    scene.side.started
}

/// `POST /berth/v1/start`
pub(crate) fn start(scene: &mut Scene<'_>, _: &str) -> Result<(), ApiError> {
    configure::start(scene)
}

/// `POST /berth/v1/pause`
pub(crate) fn pause(scene: &mut Scene<'_>, _: &str) -> Result<(), ApiError> {
    Ok(scene.machine.pause()?)
}

/// `POST /berth/v1/resume`
pub(crate) fn resume(scene: &mut Scene<'_>, _: &str) -> Result<(), ApiError> {
    Ok(scene.machine.resume()?)
}

/// `POST /berth/v1/power-button`
pub(crate) fn power_button(scene: &mut Scene<'_>, _: &str) -> Result<(), ApiError> {
    Ok(scene.machine.press_power_button()?)
}

/// `POST /berth/v1/ctrl-alt-del`
pub(crate) fn ctrl_alt_del(scene: &mut Scene<'_>, _: &str) -> Result<(), ApiError> {
    Ok(scene.machine.send_ctrl_alt_del()?)
}

/// `POST /berth/v1/kill`
pub(crate) fn kill(scene: &mut Scene<'_>, _: &str) -> Result<(), ApiError> {
    scene.machine.kill();
    Ok(())
}
