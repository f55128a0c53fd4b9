//! Routes of devices: disks, network interfaces, entropy, the serial port, and those that Berth does not have.

use berth_devices::storage::FileDisk;
use berth_devices::virtio::net::{MAX_PAIRS, Tap};

use super::configure::{after_start, amend, before_start};
use super::error::ApiError;
use super::limits;
use super::route::Scene;
use super::side::{DriveExtra, Side};
use super::types::{
    BerthWindow, Drive, EntropyDevice, NetworkInterface, PartialDrive, PartialNetworkInterface, SerialDevice,
    Vsock,
};
use crate::spec::{DiskSpec, NetSpec, SerialSpec, VmSpec, VsockSpec};

/// The name in the path and that in the body must be one.
pub(super) fn same_id(field: &str, path: &str, body: &str) -> Result<(), ApiError> {
    if path == body {
        return Ok(());
    }
    Err(ApiError::bad(format!(
        "{field}: The id from the path [{path}] does not match the id from the body [{body}]!"
    )))
}

/// The disks as Firecracker describes them.
pub(crate) fn drives(spec: &VmSpec, side: &Side) -> Vec<Drive> {
    let drive = |(number, disk): (usize, &DiskSpec)| {
        let drive_id = disk.name(number);
        let extra = side.drives.get(&drive_id).cloned().unwrap_or_default();
        Drive {
            drive_id,
            is_root_device: extra.root,
            partuuid: extra.partuuid,
            cache_type: extra.cache,
            is_read_only: disk.read_only,
            path_on_host: Some(disk.path.clone()),
            rate_limiter: limits::of(disk.rate_limit.as_ref()),
            io_engine: extra.engine,
            socket: None,
        }
    };
    (1..).zip(&spec.disks).map(drive).collect()
}

/// The network interfaces as Firecracker describes them.
pub(crate) fn nets(spec: &VmSpec) -> Vec<NetworkInterface> {
    let interface = |(number, net): (usize, &NetSpec)| NetworkInterface {
        iface_id: net.name(number),
        host_dev_name: net.tap.clone(),
        queues: net.queues,
        user: net.user,
        publish: net.publish.clone(),
        loopback: net.loopback,
        guest_mac: net.mac.clone(),
        mtu: None,
        rx_rate_limiter: limits::of(net.rx_rate_limit.as_ref()),
        tx_rate_limiter: limits::of(net.tx_rate_limit.as_ref()),
    };
    (1..).zip(&spec.nets).map(interface).collect()
}

/// `PUT /drives/{drive_id}`
pub(crate) fn put_drive(scene: &mut Scene<'_>, id: &str, drive: Drive) -> Result<(), ApiError> {
    before_start(scene)?;
    same_id("drive_id", id, &drive.drive_id)?;
    if drive.socket.is_some() {
        let what = "Berth does not take disks from vhost-user backends yet; give path_on_host";
        return Err(ApiError::lacks("socket", what));
    }
    let Some(path) = drive.path_on_host.clone() else {
        return Err(ApiError::bad("path_on_host: the field is missing; add it."));
    };
    let other_root = |(name, other): (&String, &DriveExtra)| other.root && name != id;
    let taken = scene.side.root_pmem.is_some() || scene.side.drives.iter().any(other_root);
    if drive.is_root_device && taken {
        return Err(ApiError::bad(
            "is_root_device: A root block device already exists! Only one drive can be it.",
        ));
    }
    // What is wrong with the file is told now, where it can be mended.
    FileDisk::open(&path, drive.is_read_only).map_err(|cause| {
        ApiError::bad(format!(
            "path_on_host: Unable to create the virtio block device: {cause}"
        ))
    })?;
    amend(scene, |spec| {
        let disk = DiskSpec {
            id: Some(id.to_owned()),
            path,
            read_only: drive.is_read_only,
            rate_limit: limits::spec(drive.rate_limiter),
            ..DiskSpec::default()
        };
        let at = spec.disks.iter().position(|disk| disk.id.as_deref() == Some(id));
        match (at, drive.is_root_device) {
            (Some(at), true) => {
                spec.disks.remove(at);
                spec.disks.insert(0, disk);
            }
            (None, true) => spec.disks.insert(0, disk),
            (Some(at), false) => spec.disks[at] = disk,
            (None, false) => spec.disks.push(disk),
        }
    })?;
    let extra = DriveExtra {
        root: drive.is_root_device,
        partuuid: drive.partuuid,
        cache: drive.cache_type,
        engine: drive.io_engine,
    };
    scene.side.drives.insert(id.to_owned(), extra);
    tell_root(scene)
}

/// Has the kernel told which disk or file in memory its root file system is on, behind what it is told otherwise.
pub(crate) fn tell_root(scene: &mut Scene<'_>) -> Result<(), ApiError> {
    let side = &mut *scene.side;
    let own = side
        .cmdline
        .get_or_insert_with(|| scene.machine.spec().cmdline.clone())
        .clone();
    let root = side.drives.iter().find(|(_, drive)| drive.root);
    let pmem = side.root_pmem.as_ref();
    scene.machine.configure(|spec| {
        let words = root.map(|(id, drive)| {
            let disk = spec.disks.iter().find(|disk| disk.id.as_ref() == Some(id));
            let mode = if disk.is_some_and(|disk| disk.read_only) {
                "ro"
            } else {
                "rw"
            };
            match &drive.partuuid {
                Some(partition) => format!("root=PARTUUID={partition} {mode}"),
                None => format!("root=/dev/vda {mode}"),
            }
        });
        let words = words.or_else(|| {
            let id = pmem?;
            let at = spec.pmem.iter().position(|pmem| pmem.id.as_ref() == Some(id))?;
            let mode = if spec.pmem[at].read_only { "ro" } else { "rw" };
            Some(format!("root=/dev/pmem{at} {mode}"))
        });
        let words = words.unwrap_or_default();
        format!("{own} {words}").trim().clone_into(&mut spec.cmdline);
    })?;
    Ok(())
}

/// `PATCH /drives/{drive_id}`
pub(crate) fn patch_drive(scene: &mut Scene<'_>, id: &str, change: PartialDrive) -> Result<(), ApiError> {
    after_start(scene)?;
    same_id("drive_id", id, &change.drive_id)?;
    let disks = &scene.machine.spec().disks;
    let at = (1..)
        .zip(disks)
        .position(|(number, disk)| disk.name(number) == id);
    let missing = || ApiError::bad(format!("drive_id: there is no drive {id:?}."));
    let at = at.ok_or_else(missing)?;
    let (_, handle) = scene
        .machine
        .devices()?
        .disks
        .get(at)
        .cloned()
        .ok_or_else(missing)?;
    let PartialDrive {
        path_on_host,
        rate_limiter,
        ..
    } = change;
    if let Some(path) = path_on_host {
        let moved = handle.set_path(&path);
        moved.map_err(|cause| ApiError::bad(format!("path_on_host: {cause}.")))?;
        scene.machine.note(|spec| {
            let disk = &mut spec.disks[at];
            if disk.path != path {
                // It belonged to the image that was there.
                disk.overlay = None;
                disk.path.clone_from(&path);
            }
        });
    }
    if rate_limiter.is_some() {
        let limited = handle.set_limits(limits::change(rate_limiter));
        limited.map_err(|cause| ApiError::bad(format!("rate_limiter: {cause}.")))?;
        scene
            .machine
            .note(|spec| limits::merge(&mut spec.disks[at].rate_limit, rate_limiter));
    }
    Ok(())
}

/// `PUT /network-interfaces/{iface_id}`
pub(crate) fn put_net(scene: &mut Scene<'_>, id: &str, net: NetworkInterface) -> Result<(), ApiError> {
    before_start(scene)?;
    same_id("iface_id", id, &net.iface_id)?;
    if net.mtu.is_some() {
        let what =
            "Berth tells the guest the MTU of the tap; set it there (ip link set TAP mtu N) and leave it out";
        return Err(ApiError::lacks("mtu", what));
    }
    if !net.user {
        if net.host_dev_name.is_empty() {
            return Err(ApiError::bad(
                "host_dev_name: it is missing; name a tap of the host, or set user.".to_owned(),
            ));
        }
        let opened = match net.queues {
            0 | 1 => Tap::open(&net.host_dev_name).map(drop),
            // Their number may be beyond all measure; what it may be is said later.
            queues => Tap::open_pairs(&net.host_dev_name, queues.min(MAX_PAIRS), false).map(drop),
        };
        opened.map_err(|cause| {
            ApiError::bad(format!(
                "host_dev_name: Could not create the network device: {cause}"
            ))
        })?;
    }
    amend(scene, |spec| {
        let net = NetSpec {
            id: Some(id.to_owned()),
            tap: net.host_dev_name,
            queues: net.queues,
            user: net.user,
            publish: net.publish,
            loopback: net.loopback,
            mac: net.guest_mac,
            rx_rate_limit: limits::spec(net.rx_rate_limiter),
            tx_rate_limit: limits::spec(net.tx_rate_limiter),
            ..NetSpec::default()
        };
        match spec.nets.iter_mut().find(|net| net.id.as_deref() == Some(id)) {
            Some(own) => *own = net,
            None => spec.nets.push(net),
        }
    })
}

/// `PATCH /network-interfaces/{iface_id}`
pub(crate) fn patch_net(
    scene: &mut Scene<'_>,
    id: &str,
    change: PartialNetworkInterface,
) -> Result<(), ApiError> {
    after_start(scene)?;
    same_id("iface_id", id, &change.iface_id)?;
    let nets = &scene.machine.spec().nets;
    let at = (1..).zip(nets).position(|(number, net)| net.name(number) == id);
    let missing = || ApiError::bad(format!("iface_id: there is no network interface {id:?}."));
    let at = at.ok_or_else(missing)?;
    if nets[at].spread {
        return Err(ApiError::bad(
            "Limits are for what one thread serves, and this interface is spread over several.".to_owned(),
        ));
    }
    let (_, handle) = scene
        .machine
        .devices()?
        .nets
        .get(at)
        .cloned()
        .ok_or_else(missing)?;
    let (receive, transmit) = (change.rx_rate_limiter, change.tx_rate_limiter);
    let limited = handle.set_limits(limits::change(receive), limits::change(transmit));
    limited.map_err(|cause| ApiError::bad(format!("{cause}.")))?;
    scene.machine.note(|spec| {
        limits::merge(&mut spec.nets[at].rx_rate_limit, receive);
        limits::merge(&mut spec.nets[at].tx_rate_limit, transmit);
    });
    Ok(())
}

/// `PATCH /berth/v1/console/{port}`
pub(crate) fn patch_console(scene: &mut Scene<'_>, port: &str, window: BerthWindow) -> Result<(), ApiError> {
    after_start(scene)?;
    let ports = scene.machine.spec().consoles.len();
    let number = port.parse().ok().filter(|number| (1..=ports).contains(number));
    match number {
        Some(1) => {}
        Some(_) => {
            return Err(ApiError::bad(format!(
                "port: {port} is a stream of bytes and no console, so it has no window; 1 is the console."
            )));
        }
        None => {
            return Err(ApiError::bad(format!(
                "port: there is no port {port:?}; this VM's console has {ports}, numbered from 1 (--console)."
            )));
        }
    }
    let handle = scene.machine.devices()?.console.clone();
    let handle = handle.ok_or_else(|| ApiError::bad("this VM has no console beside its serial port."))?;
    handle
        .resize(window.columns, window.rows)
        .map_err(|cause| ApiError::bad(format!("{cause}.")))
}

/// `DELETE` of a device.
pub(crate) fn delete(scene: &mut Scene<'_>, id: &str) -> Result<(), ApiError> {
    after_start(scene)?;
    Err(ApiError::bad(format!(
        "{id}: Berth does not unplug devices from a running VM yet."
    )))
}

/// `PUT /entropy`
pub(crate) fn put_entropy(scene: &mut Scene<'_>, _: &str, entropy: EntropyDevice) -> Result<(), ApiError> {
    before_start(scene)?;
    amend(scene, |spec| {
        spec.rng = true;
        spec.rng_rate_limit = limits::spec(entropy.rate_limiter);
    })?;
    scene.side.entropy = Some(entropy);
    Ok(())
}

/// `PUT /serial`
pub(crate) fn put_serial(scene: &mut Scene<'_>, _: &str, serial: SerialDevice) -> Result<(), ApiError> {
    before_start(scene)?;
    amend(scene, |spec| {
        spec.serial_rate_limit = serial.rate_limiter.and_then(limits::bandwidth);
        spec.serial = match serial.serial_out_path {
            Some(path) => SerialSpec::File(path),
            None => SerialSpec::Stdio,
        };
    })
}

/// `PUT /vsock`
pub(crate) fn put_vsock(scene: &mut Scene<'_>, _: &str, vsock: Vsock) -> Result<(), ApiError> {
    before_start(scene)?;
    amend(scene, |spec| {
        spec.vsock = Some(VsockSpec {
            cid: vsock.guest_cid,
            path: vsock.uds_path,
        });
    })
}

/// The vsock device as Firecracker describes it.
pub(crate) fn vsock_of(spec: &VmSpec) -> Option<Vsock> {
    spec.vsock.as_ref().map(|vsock| Vsock {
        guest_cid: vsock.cid,
        uds_path: vsock.path.clone(),
        vsock_id: None,
    })
}

/// `PUT` and `PATCH /hotplug/memory`
pub(crate) fn hotplug<T>(_: &mut Scene<'_>, _: &str, _: T) -> Result<(), ApiError> {
    Err(no_hotplug())
}

/// `GET /hotplug/memory`
pub(crate) fn hotplug_status(_: &mut Scene<'_>) -> Result<serde_json::Value, ApiError> {
    Err(no_hotplug())
}

fn no_hotplug() -> ApiError {
    ApiError::bad(
        "hotplug/memory: Berth cannot plug memory in yet; start the VM with all it may need, and a balloon to take some back.",
    )
}
