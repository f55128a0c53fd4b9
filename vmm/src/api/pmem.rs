//! Routes of files in the guest's memory, Firecracker's persistent memory.

use super::configure::{after_start, amend, before_start};
use super::devices::{same_id, tell_root};
use super::error::ApiError;
use super::limits;
use super::route::Scene;
use super::side::Side;
use super::types::{PartialPmem, Pmem};
use crate::spec::{PmemSpec, VmSpec};
use crate::vm;

/// The files in memory as Firecracker describes them.
pub(crate) fn of(spec: &VmSpec, side: &Side) -> Vec<Pmem> {
    let one = |(number, pmem): (usize, &PmemSpec)| {
        let id = pmem.name(number);
        Pmem {
            root_device: side.root_pmem.as_ref() == Some(&id),
            id,
            path_on_host: pmem.path.clone(),
            read_only: pmem.read_only,
            rate_limiter: limits::of(pmem.rate_limit.as_ref()),
        }
    };
    (1..).zip(&spec.pmem).map(one).collect()
}

/// `PUT /pmem/{id}`
pub(crate) fn put(scene: &mut Scene<'_>, id: &str, pmem: Pmem) -> Result<(), ApiError> {
    before_start(scene)?;
    same_id("id", id, &pmem.id)?;
    let other = scene.side.root_pmem.as_ref().is_some_and(|other| other != id);
    if pmem.root_device && (other || scene.side.drives.values().any(|drive| drive.root)) {
        return Err(ApiError::bad(
            "root_device: A root device already exists! Only one drive or pmem device can be it.",
        ));
    }
    let own = PmemSpec {
        id: Some(id.to_owned()),
        path: pmem.path_on_host,
        read_only: pmem.read_only,
        rate_limit: limits::spec(pmem.rate_limiter),
        ..PmemSpec::default()
    };
    // What is wrong with the file is told now, where it can be mended.
    vm::try_pmem(&own, scene.machine.spec().memory).map_err(|cause| {
        ApiError::bad(format!(
            "path_on_host: Unable to create the virtio-pmem device: {cause}"
        ))
    })?;
    amend(scene, |spec| {
        match spec.pmem.iter_mut().find(|pmem| pmem.id.as_deref() == Some(id)) {
            Some(there) => *there = own,
            None => spec.pmem.push(own),
        }
    })?;
    if pmem.root_device {
        scene.side.root_pmem = Some(id.to_owned());
    } else {
        // It may have been the one.
        scene.side.root_pmem.take_if(|root| root == id);
    }
    tell_root(scene)
}

/// `PATCH /pmem/{id}`
pub(crate) fn patch(scene: &mut Scene<'_>, id: &str, change: PartialPmem) -> Result<(), ApiError> {
    after_start(scene)?;
    same_id("id", id, &change.id)?;
    let pmem = &scene.machine.spec().pmem;
    let at = (1..).zip(pmem).position(|(number, pmem)| pmem.name(number) == id);
    let missing = || ApiError::bad(format!("id: there is no pmem device {id:?}."));
    let at = at.ok_or_else(missing)?;
    let (_, handle) = scene
        .machine
        .devices()?
        .pmem
        .get(at)
        .cloned()
        .ok_or_else(missing)?;
    let limiter = change.rate_limiter;
    let limited = handle.set_limits(limits::change(limiter));
    limited.map_err(|cause| ApiError::bad(format!("{cause}.")))?;
    scene
        .machine
        .note(|spec| limits::merge(&mut spec.pmem[at].rate_limit, limiter));
    Ok(())
}
