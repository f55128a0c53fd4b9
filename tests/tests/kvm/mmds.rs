//! Metadata for a guest: put over the API, fetched in the guest over its network interface, and never seen on the host's.

use std::net::TcpListener;

use berth_tests::invocation::{Invocation, berth, run, script};
use berth_tests::netns::Netns;
use berth_tests::served::Served;
use serde_json::{Value, json};

const SERVICE: &str = "169.254.169.254";

/// A guest with an interface that leads to its host and to the metadata, which runs `work` when it is started over the API.
fn guest(netns: &Netns, work: &str) -> Invocation {
    let set_up = "set -e
         ip address add 10.77.0.2/24 dev eth0
         ip link set eth0 up
         ip route add 169.254.169.254 dev eth0";
    script(&format!("{set_up}\n{work}"))
        .args(["--api-only", "--net", "tap=tap0,mac=02:00:00:00:00:77"])
        .inside(netns)
        .open_input()
}

/// A namespace whose tap has the metadata's own address as well: what goes out would find somebody there.
fn trap() -> (Netns, TcpListener) {
    let netns = Netns::with_tap("tap0", "10.77.0.1/24");
    netns.ip(&format!("address add {SERVICE}/32 dev tap0"));
    let listener = netns.enter(|| TcpListener::bind((SERVICE, 80))).unwrap();
    listener.set_nonblocking(true).unwrap();
    (netns, listener)
}

fn nobody_came(listener: &TcpListener) {
    let came = listener.accept();
    assert!(
        came.as_ref()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
        "{came:?}"
    );
}

#[test]
fn a_guest_reads_what_the_api_put_and_other_traffic_reaches_the_tap() {
    let (netns, listener) = trap();
    let served = Served::start(guest(
        &netns,
        "wget -q -O - http://169.254.169.254/latest/meta-data/ami-id; echo
         wget -q -O - http://169.254.169.254/latest/; echo
         wget -q -O - --header 'Accept: application/json' http://169.254.169.254/latest/meta-data; echo
         wget -q -O - http://169.254.169.254/large | wc -c
         wget -q -O - http://169.254.169.254/none 2>&1 || true
         ping -c 1 -W 20 10.77.0.1 >/dev/null
         echo pinged",
    ));
    served.refuses(
        "PUT",
        "/mmds/config",
        &json!({"network_interfaces": ["eth7"]}),
        "no network interface",
    );
    served.tell("PUT", "/mmds/config", &json!({"network_interfaces": ["net1"]}));
    let latest = json!({"meta-data": {"ami-id": "ami-7"}, "user-data": "u"});
    served.tell(
        "PUT",
        "/mmds",
        &json!({"latest": latest, "large": "x".repeat(45_000)}),
    );
    let config = served.get("/vm/config")["mmds-config"].clone();
    let expected = json!({"version": "V1", "network_interfaces": ["net1"], "ipv4_address": SERVICE, "imds_compat": false});
    assert_eq!(config, expected);
    served.tell("POST", "/berth/v1/start", &Value::Null);
    let outcome = served.running.finish();
    outcome.expect_code(0);
    let said = outcome.out().replace('\r', "");
    for expected in [
        "ami-7\n",
        "meta-data/\nuser-data\n",
        "{\"ami-id\":\"ami-7\"}\n",
        "45000\n",
        "HTTP/1.1 404 Not Found",
        "pinged",
    ] {
        assert!(said.contains(expected), "{expected:?} is missing: {outcome}");
    }
    nobody_came(&listener);
}

#[test]
fn version_2_wants_a_token_and_a_restored_guest_finds_the_service_but_nothing_of_the_other_vm() {
    let (netns, listener) = trap();
    let mut served = Served::start(guest(
        &netns,
        "token() {
             printf 'PUT /latest/api/token HTTP/1.0\\r\\nX-aws-ec2-metadata-token-ttl-seconds: 600\\r\\n\\r\\n' | nc 169.254.169.254 80 | tail -n 1
         }
         ask() {
             wget -q -O - --header \"X-metadata-token: $1\" http://169.254.169.254/name 2>&1 || true
             echo
         }
         token=$(token)
         ask none
         ask $token
         echo changing
         read line
         ask $token
         echo saving
         read line
         ask $token
         ask $(token)
         echo restored
         read line
         ask $(token)",
    ));
    let config = json!({"version": "V2", "network_interfaces": ["net1"]});
    served.tell("PUT", "/mmds/config", &config);
    served.tell("PUT", "/mmds", &json!({"name": "first"}));
    served.tell("POST", "/berth/v1/start", &Value::Null);
    let said = served.running.wait_for("changing");
    assert!(
        said.contains("401 Unauthorized") && said.contains("first"),
        "{said}"
    );
    served.tell("PATCH", "/mmds", &json!({"name": "second"}));
    served.running.send("\n");
    let said = served.running.wait_for("saving");
    assert!(said.contains("second"), "{said}");
    let counted = served.get("/berth/v1/metrics.json")["mmds"].take();
    let many = ["rx_count", "tx_frames", "connections_created"].map(|name| counted[name].as_u64() >= Some(4));
    assert_eq!(
        (many, counted["rx_invalid_token"].as_u64()),
        ([true; 3], Some(1)),
        "{counted}"
    );
    let snapshot = served.path("snapshot");
    served.tell(
        "POST",
        "/berth/v1/snapshot",
        &json!({"path": snapshot, "resume": false}),
    );
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("snapshot");
    std::fs::rename(&snapshot, &kept).unwrap();
    served.tell("POST", "/berth/v1/kill", &Value::Null);
    // Its command was not done, which is told.
    served.running.finish().expect_code(130);

    let restore = berth(["run", "--restore"]).arg(&kept).inside(&netns).open_input();
    let mut served = Served::start(restore);
    served.running.send("\n");
    let said = served.running.wait_for("restored");
    assert!(
        said.contains("401 Unauthorized"),
        "the token was another VM's: {said}"
    );
    assert!(said.contains("404 Not Found"), "there is no metadata yet: {said}");
    assert_eq!(served.get("/vm/config")["mmds-config"]["version"], "V2");
    served.tell("PUT", "/mmds", &json!({"name": "third"}));
    served.running.send("\n");
    let outcome = served.running.finish();
    outcome.expect_code(0);
    assert!(outcome.out().contains("third"), "{outcome}");
    nobody_came(&listener);
}

#[test]
fn a_file_of_metadata_is_read_at_the_start_and_what_is_wrong_with_it_is_said() {
    let netns = Netns::with_tap("tap0", "10.77.0.1/24");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("vm.toml");
    let write = |metadata: &str, nets: &str| {
        let text = format!(
            "nets = [{{ tap = \"tap0\" }}]\nmmds = {{ file = \"metadata.json\", nets = [{nets}] }}\n"
        );
        std::fs::write(&config, text).unwrap();
        std::fs::write(folder.path().join("metadata.json"), metadata).unwrap();
    };
    let start = || {
        run(["--cold", "--config"])
            .arg(&config)
            .inside(&netns)
            .command([
                "sh",
                "-c",
                "ip link set eth0 up; ip address add 10.77.0.2/24 dev eth0; ip route add 169.254.169.254 dev eth0; wget -q -O - http://169.254.169.254/name",
            ])
    };
    for (metadata, nets, words) in [
        ("[1]", "", "metadata.json: line 1: "),
        ("{\"a\":", "", "metadata.json: line 1: "),
        (
            &format!("{{\"a\": \"{}\"}}", "x".repeat(60_000)),
            "",
            "its limit is 51200",
        ),
        (
            "{}",
            "\"net2\"",
            "mmds: there is no network interface \"net2\"; there are net1",
        ),
    ] {
        write(metadata, nets);
        let outcome = start().finish();
        let sentence = outcome.sentence(crate::codes::USER);
        assert!(sentence.contains(words), "{sentence}");
    }
    write("{\"name\": \"from a file\"}", "\"net1\"");
    let outcome = start().finish();
    outcome.expect_code(0);
    assert!(outcome.out().contains("from a file"), "{outcome}");
}
