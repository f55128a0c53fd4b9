//! Networks for who is not root: one passt for each interface, at the other end of a pair of sockets.
//!
//! ```text
//!   guest ◀──frames──▶ Stream ◀──socket pair──▶ passt ◀──the user's own sockets──▶ the host's network
//! ```
//! passt is a DHCP server, a router and a resolver to the guest, and an ordinary program to the host. It ends when its socket does,
//! however the VM ends. It shows every guest the same network ([`GUEST`] and [`GATEWAY`], as QEMU's), so a saved guest finds it
//! again wherever it goes on.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use berth_devices::virtio::net::Stream;
use command_fds::{CommandFdExt, FdMapping};

use crate::spec::{NetSpec, PublishSpec};

const PROGRAM: &str = "passt";
/// Addresses of the guest and of its gateway.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The gateway's hardware address: it must not change under a saved guest.
const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];
/// The socket's number in passt, which takes none that a standard stream may have.
const SOCKET: i32 = 3;
/// How long passt may take to be there.
const PATIENCE: Duration = Duration::from_secs(5);
/// Stack of the thread that waits for passt's end.
const STACK: usize = 64 << 10;
/// Where names are looked up, and where systemd says what stands behind an address of its own there.
const RESOLVERS: &str = "/etc/resolv.conf";
const SYSTEMD_RESOLVERS: &str = "/run/systemd/resolve/resolv.conf";

/// Why there is no user-mode network.
#[derive(Debug, thiserror::Error)]
pub enum UserNetError {
    /// There is no passt.
    #[error("a user-mode network needs passt, and there is none in PATH; install the package passt")]
    Missing,
    /// A port that cannot be published.
    #[error("port {port} of the host cannot be published as {publish}: {why}")]
    Port {
        /// The port.
        port: u16,
        /// As the user wrote it.
        publish: PublishSpec,
        /// The host's reason, and what to do.
        why: String,
    },
    /// Its options are not these.
    #[error("the passt installed here is too old: it does not know {option}; install one of 2023 or later")]
    Old {
        /// An option.
        option: String,
    },
    /// It ended at once.
    #[error("passt ended at once{}", said(.last.as_ref()))]
    Ended {
        /// The last line of its standard error.
        last: Option<String>,
    },
    /// The host refused something.
    #[error("a user-mode network: {what} failed: {cause}")]
    Host {
        /// What.
        what: &'static str,
        /// Why.
        cause: io::Error,
    },
}

fn said(last: Option<&String>) -> String {
    last.map_or_else(
        || " and did not say why; see whether it runs by itself (passt --foreground)".to_owned(),
        |line| format!(" and says: {line}"),
    )
}

fn host(what: &'static str) -> impl Fn(io::Error) -> UserNetError {
    move |cause| UserNetError::Host { what, cause }
}

/// Starts a passt for `net`, whose guest has the hardware address `mac`, and connects to it.
pub(crate) fn start(net: &NetSpec, mac: [u8; 6]) -> Result<Stream, UserNetError> {
    for port in &net.publish {
        check_port(port)?;
    }
    let (ours, theirs) = UnixStream::pair().map_err(host("a pair of sockets"))?;
    let resolvers = fs::read_to_string(RESOLVERS).unwrap_or_default();
    let behind = fs::read_to_string(SYSTEMD_RESOLVERS).unwrap_or_default();
    let mut command = Command::new(PROGRAM);
    command
        .args(options(net))
        .args(resolver_options(net, &resolvers, &behind))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .current_dir("/")
        // Keys that a terminal turns into signals are not for it: it lives as long as the VM.
        .process_group(0)
        .fd_mappings(vec![FdMapping {
            parent_fd: OwnedFd::from(theirs),
            child_fd: SOCKET,
        }])
        .map_err(|cause| UserNetError::Host {
            what: "handing over a socket",
            cause: io::Error::other(cause),
        })?;
    let mut child = command.spawn().map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => UserNetError::Missing,
        _ => host("starting passt")(cause),
    })?;
    // It holds our copy of the other end.
    drop(command);
    let stderr = child.stderr.take();
    if let Err(cause) = wait_until_there(&ours, mac) {
        if cause.kind() == io::ErrorKind::WouldBlock {
            let _ = child.kill();
        }
        return Err(post_mortem(&mut child, stderr, &cause));
    }
    thread::Builder::new()
        .name("passt".to_owned())
        .stack_size(STACK)
        .spawn(move || watch(child, stderr))
        .map_err(host("a thread"))?;
    Stream::new(ours).map_err(host("a socket that does not wait"))
}

/// What passt is told.
fn options(net: &NetSpec) -> Vec<String> {
    let mut options: Vec<String> = ["--foreground", "--stderr", "--quiet"].map(str::to_owned).into();
    let mut option = |name: &str, value: String| options.extend([name.to_owned(), value]);
    option("--fd", SOCKET.to_string());
    option("--address", GUEST.to_string());
    option("--netmask", "24".to_owned());
    option("--gateway", GATEWAY.to_string());
    option(
        "--mac-addr",
        GATEWAY_MAC.map(|byte| format!("{byte:02x}")).join(":"),
    );
    for port in &net.publish {
        let address = port
            .address
            .map_or_else(String::new, |address| format!("{address}/"));
        let name = if port.udp { "--udp-ports" } else { "--tcp-ports" };
        option(name, format!("{address}{}:{}", port.host, port.guest));
    }
    if !net.loopback {
        options.push("--no-map-gw".to_owned());
    }
    options
}

/// The resolvers of `conf`, a resolv.conf.
fn resolvers(conf: &str) -> impl Iterator<Item = IpAddr> {
    conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|&word| word == "nameserver")?;
        words.next()?.parse().ok()
    })
}

/// A resolver on the host's loopback is out of the guest's reach, unless all of the loopback is within: it is told the ones behind.
fn resolver_options(net: &NetSpec, conf: &str, behind: &str) -> Vec<String> {
    if net.loopback || resolvers(conf).any(|address| !address.is_loopback()) {
        return Vec::new();
    }
    let behind = resolvers(behind).filter(|address| !address.is_loopback());
    let options: Vec<_> = behind
        .flat_map(|address| ["--dns".to_owned(), address.to_string()])
        .collect();
    if options.is_empty() {
        tracing::warn!(
            "a guest with a user-mode network will look up no names: {RESOLVERS} has no resolver apart from the host's loopback; \
             give loopback for it to be reached"
        );
    }
    options
}

/// Whether a port is free: passt would be content with IPv4 or IPv6 alone, and is not told why it has neither.
fn check_port(publish: &PublishSpec) -> Result<(), UserNetError> {
    let bind = |address: IpAddr| {
        let at = SocketAddr::new(address, publish.host);
        if publish.udp {
            UdpSocket::bind(at).map(|_| ())
        } else {
            TcpListener::bind(at).map(|_| ())
        }
    };
    let result = match publish.address {
        Some(address) => bind(address),
        // That is both; IPv4 alone where there is no IPv6.
        None => bind(Ipv6Addr::UNSPECIFIED.into()).or_else(|cause| match cause.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(cause),
            _ => bind(Ipv4Addr::UNSPECIFIED.into()),
        }),
    };
    result.map_err(|cause| UserNetError::Port {
        port: publish.host,
        publish: *publish,
        why: match cause.kind() {
            io::ErrorKind::AddrInUse => "another program has it; publish another one".to_owned(),
            io::ErrorKind::PermissionDenied => "only root may have it; publish one from 1024 on".to_owned(),
            io::ErrorKind::AddrNotAvailable => "the host does not have that address; leave it out".to_owned(),
            _ => format!("{cause}; publish another one"),
        },
    })
}

/// Asks for the gateway's hardware address as the guest will, and waits for an answer: passt is there then, and has its ports.
fn wait_until_there(mut socket: &UnixStream, mac: [u8; 6]) -> io::Result<()> {
    const ARP: [u8; 10] = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1];
    let mut question = vec![0xff; 6];
    question.extend(mac);
    question.extend(ARP);
    question.extend(mac);
    question.extend(GUEST.octets());
    question.extend([0; 6]);
    question.extend(GATEWAY.octets());
    let len = question.len() as u32;
    socket.write_all(&[&len.to_be_bytes(), &question[..]].concat())?;
    let until = Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut prefix = [0; 4];
        socket.read_exact(&mut prefix)?;
        let len = u32::from_be_bytes(prefix);
        if len > u32::from(u16::MAX) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut frame = vec![0; len as usize];
        socket.read_exact(&mut frame)?;
        if frame.get(12..14) == Some(&ARP[..2]) {
            return Ok(());
        }
    }
}

/// Why passt did not come.
fn post_mortem(child: &mut Child, stderr: Option<ChildStderr>, cause: &io::Error) -> UserNetError {
    let mut text = Vec::new();
    if let Some(stderr) = stderr {
        let _ = stderr.take(1 << 16).read_to_end(&mut text);
    }
    let _ = child.wait();
    let text = String::from_utf8_lossy(&text);
    // getopt's words.
    let unknown = text.lines().find_map(|line| {
        let (_, option) = line.split_once("unrecognized option '")?;
        option.strip_suffix('\'')
    });
    if let Some(option) = unknown {
        let option = option.to_owned();
        return UserNetError::Old { option };
    }
    if cause.kind() == io::ErrorKind::WouldBlock {
        return UserNetError::Host {
            what: "waiting for passt, which needs a network of the host with a default route,",
            cause: io::ErrorKind::TimedOut.into(),
        };
    }
    let last = text.lines().rfind(|line| tells(line));
    UserNetError::Ended {
        last: last.map(|line| line.trim().to_owned()),
    }
}

/// Whether a line of passt's says something: it complains of each that syslog does not take.
fn tells(line: &str) -> bool {
    !line.trim().is_empty() && !line.starts_with("Failed to send ")
}

/// Passes on what passt says, and waits for its end.
fn watch(mut child: Child, stderr: Option<ChildStderr>) {
    if let Some(stderr) = stderr {
        for line in BufReader::new(stderr.take(u64::MAX))
            .lines()
            .map_while(Result::ok)
        {
            if tells(&line) {
                tracing::info!("passt: {}", line.trim());
            }
        }
    }
    match child.wait() {
        // Its end of the socket pair was closed.
        Ok(status) if status.success() => {}
        Ok(status) => tracing::warn!("passt, a user-mode network, has ended ({status})"),
        Err(cause) => tracing::warn!("passt cannot be waited for: {cause}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> NetSpec {
        NetSpec::from_option(text.as_ref()).unwrap()
    }

    #[test]
    fn passt_is_told_of_every_published_port_and_of_one_network() {
        let net = net("user,publish=8080:80,publish=127.0.0.1:53:5353/udp,publish=[::1]:1:2");
        let options = options(&net).join(" ");
        assert_eq!(
            options,
            "--foreground --stderr --quiet --fd 3 --address 10.0.2.15 --netmask 24 --gateway 10.0.2.2 --mac-addr \
             52:55:0a:00:02:02 --tcp-ports 8080:80 --udp-ports 127.0.0.1/53:5353 --tcp-ports ::1/1:2 --no-map-gw"
        );
    }

    #[test]
    fn a_resolver_on_the_loopback_is_replaced_by_those_behind_it() {
        let local = "# stub\nnameserver 127.0.0.53\noptions edns0\n";
        let behind = "nameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver 2001:db8::53\n";
        let plain = net("user");
        let expected = ["--dns", "192.0.2.53", "--dns", "2001:db8::53"];
        assert_eq!(resolver_options(&plain, local, behind), expected);
        assert_eq!(resolver_options(&plain, behind, local), [""; 0]);
        assert_eq!(resolver_options(&plain, local, ""), [""; 0]);
        assert_eq!(resolver_options(&net("user,loopback"), local, behind), [""; 0]);
    }

    #[test]
    fn a_port_that_another_program_has_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        for text in [format!("{port}:80"), format!("127.0.0.1:{port}:80")] {
            let error = check_port(&text.parse().unwrap()).unwrap_err().to_string();
            let expected = format!(
                "port {port} of the host cannot be published as {text}: another program has it; publish another one"
            );
            assert_eq!(error, expected);
        }
        check_port(&format!("{port}:80/udp").parse().unwrap()).expect("that is another one");
        let elsewhere = format!("192.0.2.77:{port}:80").parse().unwrap();
        let error = check_port(&elsewhere).unwrap_err().to_string();
        assert!(
            error.ends_with("the host does not have that address; leave it out"),
            "{error}"
        );
    }

    #[test]
    fn what_ended_says_why_in_its_last_line_and_an_old_one_which_option() {
        let end = |script: &str| {
            let mut child = Command::new("sh")
                .args(["-c", script])
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let stderr = child.stderr.take();
            post_mortem(&mut child, stderr, &io::ErrorKind::UnexpectedEof.into()).to_string()
        };
        assert_eq!(
            end("printf 'No interface\\nFailed to send 9 bytes to syslog\\n\\n' >&2"),
            "passt ended at once and says: No interface"
        );
        assert!(end("exit 1").starts_with("passt ended at once and did not say why; "));
        assert_eq!(
            end("echo \"passt: unrecognized option '--fd'\" >&2"),
            "the passt installed here is too old: it does not know --fd; install one of 2023 or later"
        );
    }
}
