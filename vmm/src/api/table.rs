//! Every route there is.

use super::route::{Action, Answer, Route, Verb};
use super::types::MemoryHotplug;
use super::{balloon, berth, configure, devices, mmds, observe, pmem, snapshot};

/// The type of a stream of JSON objects, a line each.
pub(crate) const LINES: &str = "application/x-ndjson";

/// Makes the table.
pub(crate) fn routes() -> Vec<Route> {
    [the_vm(), the_devices(), the_rest(), own()]
        .into_iter()
        .flatten()
        .collect()
}

/// Firecracker's for the machine.
fn the_vm() -> Vec<Route> {
    use Verb::{Patch, Put};
    vec![
        Route::get("/", "Which VM this is, and its state", configure::info),
        Route::get(
            "/version",
            "The version of the API, and Berth's",
            configure::version,
        ),
        Route::get("/vm/config", "The whole configuration", configure::config),
        Route::order(Patch, "/vm", "Pause or resume the guest", configure::patch_vm),
        Route::order(
            Put,
            "/actions",
            "Start the guest, write metrics, press Ctrl-Alt-Del",
            configure::act,
        ),
        Route::get("/machine-config", "The machine", configure::machine),
        Route::order(
            Put,
            "/machine-config",
            "Configure the machine before it starts",
            configure::put_machine,
        ),
        Route::order(
            Patch,
            "/machine-config",
            "Change the machine before it starts",
            configure::patch_machine,
        ),
        Route::order(Put, "/cpu-config", "A custom CPU template", configure::put_cpu),
        Route::order(
            Put,
            "/boot-source",
            "What the guest boots; without it, the guest that ships with Berth",
            configure::put_boot,
        ),
    ]
}

/// Firecracker's for devices.
fn the_devices() -> Vec<Route> {
    use Verb::{Delete, Patch, Put};
    vec![
        Route::order(
            Put,
            "/drives/{drive_id}",
            "Add or change a disk before the start",
            devices::put_drive,
        ),
        Route::order(
            Patch,
            "/drives/{drive_id}",
            "Change a disk of a running VM",
            devices::patch_drive,
        ),
        Route::plain(
            Delete,
            "/drives/{drive_id}",
            "Unplug a disk; refused",
            devices::delete,
        ),
        Route::order(
            Put,
            "/network-interfaces/{iface_id}",
            "Add or change a network interface before the start",
            devices::put_net,
        ),
        Route::order(
            Patch,
            "/network-interfaces/{iface_id}",
            "Change a network interface of a running VM",
            devices::patch_net,
        ),
        Route::plain(
            Delete,
            "/network-interfaces/{iface_id}",
            "Unplug a network interface; refused",
            devices::delete,
        ),
        Route::get("/balloon", "The balloon", balloon::get),
        Route::order(
            Put,
            "/balloon",
            "Add or change the balloon before the start",
            balloon::put,
        ),
        Route::order(Patch, "/balloon", "Change the balloon's size", balloon::patch),
        Route::get(
            "/balloon/statistics",
            "What the guest tells of its memory",
            balloon::statistics,
        ),
        Route::order(
            Patch,
            "/balloon/statistics",
            "Change how often the guest tells of its memory",
            balloon::patch_statistics,
        ),
        Route::optional(
            Patch,
            "/balloon/hinting/start",
            "Ask the guest which memory it does not use",
            balloon::start_hinting,
        ),
        Route::plain(
            Patch,
            "/balloon/hinting/stop",
            "Let the guest use that memory again",
            balloon::stop_hinting,
        ),
        Route::get("/balloon/hinting/status", "How far hinting is", balloon::hinting),
        Route::order(Put, "/pmem/{id}", "A file in the guest's memory", pmem::put),
        Route::order(
            Patch,
            "/pmem/{id}",
            "Change the limits of a file in memory",
            pmem::patch,
        ),
        Route::plain(
            Delete,
            "/pmem/{id}",
            "Unplug a file in memory; refused",
            devices::delete,
        ),
        Route::order(Put, "/vsock", "A vsock device", devices::put_vsock),
        Route::order(Put, "/entropy", "A source of entropy", devices::put_entropy),
        Route::order(Put, "/serial", "Where the serial port leads", devices::put_serial),
    ]
}

/// The rest of Firecracker's.
fn the_rest() -> Vec<Route> {
    use Verb::{Patch, Put};
    vec![
        Route::get(
            "/hotplug/memory",
            "Memory to plug in; refused",
            devices::hotplug_status,
        ),
        Route::order(
            Put,
            "/hotplug/memory",
            "Memory to plug in; refused",
            devices::hotplug::<MemoryHotplug>,
        ),
        Route::order(
            Patch,
            "/hotplug/memory",
            "Memory to plug in; refused",
            devices::hotplug::<MemoryHotplug>,
        ),
        Route::get("/mmds", "The guest's metadata", mmds::get),
        Route::order(Put, "/mmds", "Replace the guest's metadata", mmds::put),
        Route::order(Patch, "/mmds", "Merge into the guest's metadata", mmds::patch),
        Route::order(
            Put,
            "/mmds/config",
            "How the guest gets its metadata",
            mmds::put_config,
        ),
        Route::order(Put, "/logger", "The log", observe::put_logger),
        Route::order(Put, "/metrics", "A file for metrics", observe::put_metrics),
        Route::order(Put, "/snapshot/create", "Save a paused VM", snapshot::create),
        Route::order(Put, "/snapshot/load", "Go on from a saved VM", snapshot::load),
    ]
}

/// Berth's.
fn own() -> Vec<Route> {
    use Verb::Post;
    vec![
        Route::get("/berth/v1/vm", "The VM and its description", berth::vm),
        Route::plain(Post, "/berth/v1/start", "Start the guest", berth::start),
        Route::plain(Post, "/berth/v1/pause", "Pause the guest", berth::pause),
        Route::plain(Post, "/berth/v1/resume", "Let the guest go on", berth::resume),
        Route::plain(
            Post,
            "/berth/v1/power-button",
            "Press the power button",
            berth::power_button,
        ),
        Route::plain(
            Post,
            "/berth/v1/ctrl-alt-del",
            "Press Ctrl-Alt-Del",
            berth::ctrl_alt_del,
        ),
        Route::plain(Post, "/berth/v1/kill", "End the VM and its process", berth::kill),
        Route::long(
            Post,
            "/berth/v1/snapshot",
            "Save the VM in a folder",
            snapshot::take,
        ),
        Route::order(
            Verb::Patch,
            "/berth/v1/console/{port}",
            "Tell the guest the size of the window that shows a console's port: 1, the console itself",
            devices::patch_console,
        ),
        Route::text(
            "/berth/v1/metrics",
            "Metrics for Prometheus",
            "text/plain; version=0.0.4",
            observe::prometheus,
        ),
        Route::get("/berth/v1/metrics.json", "Metrics as JSON", observe::json),
        Route::get("/berth/v1/log", "What is logged", observe::get_log),
        Route::order(
            Verb::Patch,
            "/berth/v1/log",
            "Change what is logged",
            observe::patch_log,
        ),
        Route {
            query: Some(("past", "Whether to begin with the events that are remembered")),
            ..Route::own(
                "/berth/v1/events",
                "What happens to the VM, a line of JSON each, until it ends",
                Answer::Content(LINES),
                Action::Events,
            )
        },
        Route::own(
            "/berth/v1/openapi.json",
            "This document",
            Answer::Json(|_| schemars::json_schema!({"type": "object"})),
            Action::OpenApi,
        ),
    ]
}
