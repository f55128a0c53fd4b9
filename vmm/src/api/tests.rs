//! The API over its real socket, in front of a machine that is never started.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::server::Limits;
use super::{Api, Prepared, table};
use crate::control::{self, ControlHandle};
use crate::event;
use crate::events::{EventHub, EventKind, Identity};
use crate::machine::Machine;
use crate::spec::VmSpec;
use crate::timing::Timing;

/// A control thread with a machine, and its API.
struct Host {
    api: Option<Api>,
    control: ControlHandle,
    end: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity {
            id: "0123456789ab".to_owned(),
            name: None,
        };
        let hub = EventHub::new(identity);
        let (control, inbox) = control::channel(hub.clone()).unwrap();
        let (end, ended) = mpsc::channel();
        let thread = thread::spawn(move || {
            let timing = Timing::new(false, Instant::now());
            let mut machine = Machine::new(VmSpec::default(), timing, hub);
            while ended.try_recv().is_err() {
                let mut fds = [PollFd::from_borrowed_fd(
                    event::borrow(inbox.wake()),
                    PollFlags::IN,
                )];
                poll(&mut fds, None).unwrap();
                inbox.serve(&mut machine);
            }
        });
        let path = folder.path().join("api.sock");
        let prepared = Prepared {
            limits,
            ..Prepared::default()
        };
        let api = Api::start(&path, control.clone(), prepared).unwrap();
        Self {
            api: Some(api),
            control,
            end,
            thread: Some(thread),
            folder,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Status and body of one request on a connection of its own.
    fn ask(&self, verb: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = self.connect();
        stream.write_all(request(verb, path, body).as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        answers(&mut stream).pop().expect("there is an answer")
    }

    fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.ask("PUT", path, &body.to_string())
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, "");
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// Refused with 400 and a sentence that has all of `words`.
    #[track_caller]
    fn refused(&self, verb: &str, path: &str, body: &str, words: &[&str]) {
        let (status, answer) = self.ask(verb, path, body);
        let sentence = answer["fault_message"].as_str().unwrap_or_default();
        assert_eq!(status, 400, "{verb} {path}: {answer}");
        for word in words {
            assert!(sentence.contains(word), "{verb} {path}: {sentence}");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.api.take());
        let _ = self.end.send(());
        let _ = self.control.post(|_| ());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn request(verb: &str, path: &str, body: &str) -> String {
    format!(
        "{verb} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Every answer until the server closes the connection.
fn answers(stream: &mut UnixStream) -> Vec<(u16, Value)> {
    let mut bytes = Vec::new();
    // A server that hangs up before it has read all breaks the connection, behind its answer.
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    let text = String::from_utf8(bytes).unwrap();
    let mut answers = Vec::new();
    let mut rest = text.as_str();
    while let Some((head, after)) = rest.split_once("\r\n\r\n") {
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok())
            .unwrap_or(0);
        let (body, next) = after.split_at(length);
        answers.push((status, serde_json::from_str(body).unwrap_or(body.into())));
        rest = next;
    }
    answers
}

#[test]
fn a_machine_is_configured_field_by_field_and_shown_as_it_is() {
    let host = Host::new();
    assert_eq!(host.get("/")["state"], "Not started");
    assert_eq!(host.get("/version")["firecracker_version"], "1.17.0");
    let machine = json!({"vcpu_count": 2, "mem_size_mib": 64});
    assert_eq!(host.put("/machine-config", &machine), (204, "".into()));
    let patch = json!({"mem_size_mib": 128, "track_dirty_pages": true}).to_string();
    assert_eq!(host.ask("PATCH", "/machine-config", &patch).0, 204);
    let expected = json!({
        "vcpu_count": 2, "mem_size_mib": 128, "smt": false, "track_dirty_pages": true, "huge_pages": "None"
    });
    assert_eq!(host.get("/machine-config"), expected);
    assert_eq!(host.get("/vm/config")["machine-config"], expected);
    assert_eq!(host.get("/berth/v1/vm")["spec"]["cpus"], 2);
}

#[test]
fn the_root_drive_comes_first_and_the_kernel_is_told() {
    let host = Host::new();
    let file = |name: &str| {
        let path = host.folder.path().join(name);
        std::fs::write(&path, [0; 512]).unwrap();
        path
    };
    let (kernel, data, root) = (file("kernel"), file("data"), file("root"));
    let boot = json!({"kernel_image_path": kernel, "boot_args": "console=ttyS0 panic=1"});
    assert_eq!(host.put("/boot-source", &boot).0, 204);
    let drive = json!({"drive_id": "data", "is_root_device": false, "path_on_host": data});
    assert_eq!(host.put("/drives/data", &drive).0, 204);
    let drive =
        json!({"drive_id": "root", "is_root_device": true, "is_read_only": true, "path_on_host": root});
    assert_eq!(host.put("/drives/root", &drive).0, 204);
    let spec = host.get("/berth/v1/vm")["spec"].clone();
    assert_eq!(spec["disks"][0]["id"], "root");
    assert_eq!(spec["disks"][1]["id"], "data");
    assert_eq!(spec["cmdline_base"], "console=ttyS0 panic=1");
    assert_eq!(spec["cmdline"], "root=/dev/vda ro");
    assert_eq!(spec["rng"], false);

    let drive =
        json!({"drive_id": "root", "is_root_device": true, "partuuid": "0eaa91a0-01", "path_on_host": root});
    assert_eq!(host.put("/drives/root", &drive).0, 204);
    assert_eq!(
        host.get("/berth/v1/vm")["spec"]["cmdline"],
        "root=PARTUUID=0eaa91a0-01 rw"
    );
    let second = json!({"drive_id": "data", "is_root_device": true, "path_on_host": data}).to_string();
    host.refused(
        "PUT",
        "/drives/data",
        &second,
        &["A root block device already exists"],
    );
    assert_eq!(host.get("/vm/config")["drives"][0]["partuuid"], "0eaa91a0-01");
}

#[test]
fn what_is_wrong_or_lacking_is_a_sentence_that_names_it() {
    let host = Host::new();
    let machine = |field: &str, value: Value| {
        let mut body = json!({"vcpu_count": 1, "mem_size_mib": 64});
        body[field] = value;
        body.to_string()
    };
    for (field, value) in [
        ("vcpu_count", 0.into()),
        ("vcpu_count", "1".into()),
        ("mem_size_mib", 0.into()),
        ("smt", true.into()),
        ("huge_pages", "2M".into()),
        ("huge_pages", "3M".into()),
        ("cpu_template", "T2".into()),
        ("colour", "red".into()),
    ] {
        host.refused("PUT", "/machine-config", &machine(field, value), &[field]);
    }
    host.refused(
        "PUT",
        "/machine-config",
        &machine("vcpu_count", 1000.into()),
        &["cpus: 1000"],
    );
    for (path, body, words) in [
        ("/machine-config", "", &["Empty PUT request"][..]),
        ("/machine-config", "{", &["json body", "ends too early"]),
        ("/machine-config", "[1]", &["object"]),
        (
            "/boot-source",
            r#"{"kernel_image_path":"/nope"}"#,
            &["kernel_image_path", "/nope"],
        ),
        ("/cpu-config", r#"{"cpuid_modifiers":[{}]}"#, &["cpuid_modifiers"]),
        (
            "/drives/a",
            r#"{"drive_id":"b","is_root_device":false,"path_on_host":"/x"}"#,
            &["drive_id", "[a]", "[b]"],
        ),
        ("/drives/a!", "{}", &["API Resource IDs"]),
        (
            "/drives/",
            "{}",
            &["Invalid request method and/or path: PUT drives"],
        ),
        (
            "/drives/a",
            r#"{"drive_id":"a","is_root_device":false,"socket":"/x"}"#,
            &["socket"],
        ),
        (
            "/network-interfaces/a",
            r#"{"iface_id":"a","host_dev_name":"berth-no-tap"}"#,
            &["host_dev_name", "berth-no-tap"],
        ),
        (
            "/actions",
            r#"{"action_type":"Dance"}"#,
            &["action_type", "Dance"],
        ),
        (
            "/actions",
            r#"{"action_type":"SendCtrlAltDel"}"#,
            &["before starting"],
        ),
        ("/actions", r#"{"action_type":"FlushMetrics"}"#, &["metrics_path"]),
        (
            "/pmem/a",
            r#"{"id":"a","path_on_host":"/x"}"#,
            &["path_on_host", "/x: there is no such file"],
        ),
        ("/hotplug/memory", r#"{"total_size_mib":1}"#, &["hotplug/memory"]),
        (
            "/mmds/config",
            r#"{"network_interfaces":[]}"#,
            &["network_interfaces"],
        ),
        (
            "/mmds/config",
            r#"{"network_interfaces":["a"],"ipv4_address":"a.b.c.d"}"#,
            &["ipv4_address"],
        ),
        (
            "/balloon",
            r#"{"amount_mib":4096,"deflate_on_oom":true}"#,
            &["balloon"],
        ),
    ] {
        host.refused("PUT", path, body, words);
    }
    host.refused("PATCH", "/vm", r#"{"state":"Paused"}"#, &["before starting"]);
    host.refused("GET", "/balloon", "", &["balloon"]);
    host.refused("GET", "/version", "{}", &["GET request cannot have a body"]);
    // A refused request changes nothing.
    assert_eq!(host.get("/machine-config")["vcpu_count"], 1);
    assert_eq!(host.get("/vm/config")["drives"], json!([]));
}

#[test]
fn the_serial_ports_limit_is_kept_and_one_without_a_size_limits_nothing() {
    let host = Host::new();
    let limit = |size: u64| json!({"rate_limiter": {"size": size, "refill_time": 100, "one_time_burst": 5}});
    assert_eq!(host.put("/serial", &limit(1000)).0, 204);
    let kept = host.get("/berth/v1/vm")["spec"]["serial_rate_limit"].clone();
    assert_eq!(kept, json!({"size": "1000", "refill_ms": 100, "burst": "5"}));
    assert_eq!(host.put("/serial", &limit(0)).0, 204);
    assert_eq!(host.get("/berth/v1/vm")["spec"]["serial_rate_limit"], Value::Null);
}

#[test]
fn an_object_is_not_taken_for_the_list_of_its_values() {
    let host = Host::new();
    for (path, body, words) in [
        (
            "/entropy",
            r#"{"rate_limiter":[null,null]}"#,
            &["rate_limiter", "give an object"],
        ),
        (
            "/entropy",
            r#"{"rate_limiter":{"ops":[1,2,3]}}"#,
            &["ops", "give an object"],
        ),
        (
            "/snapshot/load",
            r#"{"snapshot_path":"s","mem_backend":["File","m"]}"#,
            &["mem_backend", "give an object"],
        ),
        (
            "/cpu-config",
            r#"{"msr_modifiers":[["0x10","0b1"]]}"#,
            &["msr_modifiers[0]", "give a table"],
        ),
    ] {
        host.refused("PUT", path, body, words);
    }
}

#[test]
fn cpu_templates_that_no_x86_here_can_be_are_refused() {
    let host = Host::new();
    for (path, body, words) in [
        (
            "/cpu-config",
            r#"{"msr_modifiers":[{"addr":"0x10a","bitmap":"0b2"}]}"#,
            &["msr_modifiers[0].bitmap", "'2' says nothing about a bit"][..],
        ),
        (
            "/cpu-config",
            r#"{"vcpu_features":[{"index":0,"bitmap":"0b1"}]}"#,
            &["vcpu_features", "Arm"],
        ),
        (
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":64,"cpu_template":"T2"}"#,
            &["cpu_template", "T2", "set it to None"],
        ),
    ] {
        host.refused("PUT", path, body, words);
    }
    assert_eq!(host.get("/vm/config")["cpu-config"], Value::Null);
}

#[test]
fn wrong_verbs_and_paths_have_firecrackers_status_on_its_paths_and_https_on_berths() {
    let host = Host::new();
    for (verb, path) in [
        ("POST", "/actions"),
        ("DELETE", "/vm"),
        ("GET", "/drives"),
        ("BREW", "/"),
    ] {
        host.refused(verb, path, "", &["Invalid request method and/or path", verb]);
    }
    assert_eq!(host.ask("GET", "/berth/v1/nothing", "").0, 404);
    let (status, body) = host.ask("PUT", "/berth/v1/vm", "{}");
    assert_eq!(status, 405);
    assert_eq!(body["fault_message"], "/berth/v1/vm knows GET, not PUT.");
}

#[test]
fn metadata_is_put_patched_and_read() {
    let host = Host::new();
    assert_eq!(host.get("/mmds"), json!({}));
    host.refused("PATCH", "/mmds", "{}", &["not initialized"]);
    assert_eq!(host.put("/mmds", &json!({"a": {"b": 1}})).0, 204);
    assert_eq!(host.ask("PATCH", "/mmds", r#"{"a":{"c":2}}"#).0, 204);
    assert_eq!(host.get("/mmds"), json!({"a": {"b": 1, "c": 2}}));
    let large = json!({"a": "x".repeat(60 << 10)});
    assert_eq!(host.put("/mmds", &large).0, 413);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let host = Host::new();
    let mut stream = host.connect();
    let mut text = String::new();
    for cpus in 1..=9 {
        let body = json!({"vcpu_count": cpus, "mem_size_mib": 64}).to_string();
        text += &request("PUT", "/machine-config", &body);
        text += &request("GET", "/machine-config", "");
    }
    stream.write_all(text.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let answers = answers(&mut stream);
    assert_eq!(answers.len(), 18);
    for (index, pair) in answers.chunks(2).enumerate() {
        assert_eq!(pair[0].0, 204);
        assert_eq!(pair[1].1["vcpu_count"], index + 1);
    }
}

#[test]
fn slow_heads_and_bodies_are_cut_off_and_hold_up_nobody() {
    let host = Host::with_limits(Limits {
        head: Duration::from_millis(100),
        body_time: Duration::from_millis(100),
        ..Limits::default()
    });
    let mut head = host.connect();
    head.write_all(b"GET /vers").unwrap();
    let mut body = host.connect();
    body.write_all(b"PUT /mmds HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        .unwrap();
    assert_eq!(host.get("/")["state"], "Not started");
    assert_eq!(answers(&mut head), []);
    let answer = answers(&mut body);
    assert_eq!(answer.len(), 1);
    assert_eq!(answer[0].0, 408);
}

#[test]
fn a_body_of_unknown_length_is_counted_while_it_comes() {
    let host = Host::new();
    let mut stream = host.connect();
    stream
        .write_all(b"PUT /mmds HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    // The server hangs up in the midst of it.
    let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
    while stream.write_all(chunk.as_bytes()).is_ok() {}
    assert_eq!(answers(&mut stream)[0].0, 413);
}

#[test]
fn events_are_lines_that_end_with_the_vm() {
    let mut host = Host::new();
    let mut stream = host.connect();
    stream
        .write_all(request("GET", "/berth/v1/events?past=true", "").as_bytes())
        .unwrap();
    let mut seen = String::new();
    let mut bytes = [0; 4096];
    while !seen.contains("created") {
        let count = stream.read(&mut bytes).unwrap();
        seen += std::str::from_utf8(&bytes[..count]).unwrap();
    }
    host.control.events().emit(EventKind::Paused);
    drop(host.api.take());
    stream.read_to_string(&mut seen).unwrap();
    assert!(
        seen.contains(r#""event":"paused"}"#) && seen.ends_with("0\r\n\r\n"),
        "{seen}"
    );
}

#[test]
fn metrics_count_requests_in_both_forms() {
    let host = Host::new();
    host.get("/");
    host.refused("GET", "/nothing", "", &[]);
    let text = host.get("/berth/v1/metrics");
    let text = text.as_str().unwrap();
    assert!(
        text.contains("berth_api_request_seconds_count{verb=\"get\"} 2\n"),
        "{text}"
    );
    assert!(
        text.contains("berth_api_failures_total{verb=\"get\"} 1\n"),
        "{text}"
    );
    let json = host.get("/berth/v1/metrics.json");
    assert_eq!(json["api"][0]["requests"], 3);
    assert_eq!(json["mmds"]["rx_accepted"], 0);
    assert!(text.contains("\nberth_mmds_tx_bytes_total 0\n"), "{text}");
    assert!(json["resident_bytes"].as_u64().unwrap() > 1 << 20);

    let path = host.folder.path().join("metrics");
    assert_eq!(host.put("/metrics", &json!({"metrics_path": path})).0, 204);
    let flush = json!({"action_type": "FlushMetrics"});
    assert_eq!(host.put("/actions", &flush).0, 204);
    let line: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(line["mmds"]["tx_count"], 0);
    assert!(line["utc_timestamp_ms"].is_u64());
    assert_eq!(line["get_api_requests"]["requests"], 4);
}

/// Every reference in a document.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(to)) = fields.get("$ref") {
                found.push(to.clone());
            }
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn the_openapi_document_has_every_route_and_only_references_that_lead_somewhere() {
    let host = Host::new();
    let document = host.get("/berth/v1/openapi.json");
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = std::collections::HashSet::new();
    for route in table::routes() {
        let operation = &document["paths"][route.path][route.verb.name().to_lowercase()];
        assert!(operation["summary"].is_string(), "{} {}", route.verb, route.path);
        assert_eq!(operation["requestBody"].is_object(), route.body.is_some());
        assert!(ids.insert(operation["operationId"].to_string()));
    }
    let count: usize = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .map(|verbs| verbs.as_object().unwrap().len())
        .sum();
    assert_eq!(count, table::routes().len());
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 100);
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("it leads into the document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}
