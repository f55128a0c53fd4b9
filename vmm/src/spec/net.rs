//! Network interfaces in a description: on a tap of the host, or by user-mode networking.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::str::FromStr;

use berth_devices::virtio::net::random_mac;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::limit::FlagLimit;
use super::options::{OptionError, key_value, lossy, number, once, set, split};
use super::options::{is_one, one};
use super::{RateLimitSpec, table};

const FORM: &str = "tap=NAME[,create][,queues=N][,spread] or user[,publish=HOST:GUEST]…[,loopback], and [,mac=ADDRESS][,io-thread=N][,bandwidth=SIZE][,ops=NUMBER]";

/// A network interface (virtio-net).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // They are switches of the description.
pub struct NetSpec {
    /// What the API calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Name of the host's tap interface, which must exist if it is not to be made. Needed unless `user` is set.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 15))]
    pub tap: String,
    /// Whether a tap that does not exist is made and brought up. It goes with the VM.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub create: bool,
    /// With `tap`: how many pairs of queues the guest may use at once, 1 to 16; one for each virtual CPU at most is of use.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 16))]
    pub queues: u16,
    /// Whether each pair of queues has an I/O thread of its own: `io_thread` the first pair, and those that follow the others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spread: bool,
    /// Whether the guest shares the host's network through passt instead of a tap, for which nobody needs root's rights.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user: bool,
    /// With `user`: ports of the host that lead to the guest's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<PublishSpec>,
    /// With `user`: whether the guest reaches what listens on the host's loopback, at the address of its gateway.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub loopback: bool,
    /// The guest's hardware address, as `02:00:00:00:00:01`; without it Berth makes one.
    #[serde(default)]
    pub mac: Option<String>,
    /// The I/O thread that it belongs to, counted from 0.
    #[serde(default)]
    pub io_thread: u32,
    /// Limits to what the guest receives.
    #[serde(default, deserialize_with = "table::optional")]
    pub rx_rate_limit: Option<RateLimitSpec>,
    /// Limits to what the guest sends.
    #[serde(default, deserialize_with = "table::optional")]
    pub tx_rate_limit: Option<RateLimitSpec>,
}

impl Default for NetSpec {
    fn default() -> Self {
        Self {
            id: None,
            tap: String::new(),
            create: false,
            queues: one(),
            spread: false,
            user: false,
            publish: Vec::new(),
            loopback: false,
            mac: None,
            io_thread: 0,
            rx_rate_limit: None,
            tx_rate_limit: None,
        }
    }
}

impl NetSpec {
    /// Reads `tap=NAME[,create]…` or `user[,publish=HOST:GUEST]…`; the limits hold for either direction.
    pub fn from_option(text: &OsStr) -> Result<Self, OptionError> {
        let mut net = Self::default();
        let (mut tap, mut io_thread, mut queues) = (None, None, None);
        let mut limit = FlagLimit::default();
        for part in split(text) {
            let (key, value) = key_value(&part);
            if limit.take(key, value)? {
                continue;
            }
            match (key, value) {
                (b"tap", Some(value)) => set(&mut tap, value, "tap")?,
                (b"mac", Some(value)) => set(&mut net.mac, value, "mac")?,
                (b"io-thread", Some(value)) => set(&mut io_thread, value, "io-thread")?,
                (b"queues", Some(value)) => set(&mut queues, value, "queues")?,
                (b"spread", None) => once(&mut net.spread, "spread")?,
                (b"create", None) => once(&mut net.create, "create")?,
                (b"user", None) => once(&mut net.user, "user")?,
                (b"loopback", None) => once(&mut net.loopback, "loopback")?,
                (b"publish", Some(value)) => {
                    let value = str::from_utf8(value).map_err(|_| OptionError::NotText("publish"))?;
                    net.publish.push(value.parse().map_err(OptionError::Publish)?);
                }
                (b"", None) => {}
                _ => {
                    return Err(OptionError::Unknown {
                        option: lossy(&part),
                        form: FORM,
                    });
                }
            }
        }
        if tap.is_none() && !net.user {
            return Err(OptionError::Missing {
                text: lossy(text),
                what: "tap",
                form: FORM,
            });
        }
        net.tap = tap.unwrap_or_default();
        if let Some(thread) = io_thread {
            net.io_thread = number(&thread)?;
        }
        if let Some(queues) = queues {
            net.queues = number(&queues)?;
        }
        net.rx_rate_limit = limit.finish();
        net.tx_rate_limit.clone_from(&net.rx_rate_limit);
        Ok(net)
    }

    /// What it is called as interface `number`, from 1: one by a flag may have no id.
    pub fn name(&self, number: usize) -> String {
        self.id.clone().unwrap_or_else(|| format!("net{number}"))
    }

    /// The guest's hardware address, if one is given and it can be read.
    pub fn mac_address(&self) -> Option<[u8; 6]> {
        let mut bytes = self.mac.as_deref()?.split(':');
        let mut address = [0; 6];
        for byte in &mut address {
            let digits = bytes
                .next()
                .filter(|digits| digits.len() == 2 && !digits.starts_with('+'))?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        bytes.next().is_none().then_some(address)
    }

    /// The hardware address of interface `number`, from 1, if none is given. Nobody but passt sees that of a user-mode one, so it
    /// can be the same in every VM.
    pub(crate) fn own_mac(&self, number: usize) -> io::Result<[u8; 6]> {
        if self.user {
            Ok([0x52, 0x55, 0x0a, 0, 0x02, (number as u8).wrapping_add(0x0e)])
        } else {
            random_mac()
        }
    }

    /// What leads to it, for people.
    pub(crate) fn describe(&self) -> String {
        if !self.user {
            return format!("tap {}", self.tap);
        }
        let ports: Vec<_> = self.publish.iter().map(|port| format!(" {port}")).collect();
        if ports.is_empty() {
            "user-mode".to_owned()
        } else {
            format!("user-mode, published:{}", ports.concat())
        }
    }
}

/// A hardware address as it is written.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A port of the host that leads to one of the guest's, as `[ADDRESS:]HOST:GUEST[/udp]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishSpec {
    /// At which of the host's addresses; all, if none is given.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// UDP instead of TCP.
    pub udp: bool,
}

/// A text that is no published port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} publishes no port; write the host's port and the guest's, as 8080:80, with /udp behind it for UDP and an address of \
     the host before it if it is only for that one, as 127.0.0.1:8080:80"
)]
pub struct PublishError(String);

impl FromStr for PublishSpec {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, PublishError> {
        let wrong = || PublishError(text.to_owned());
        let (rest, udp) = match text.rsplit_once('/') {
            Some((rest, "udp")) => (rest, true),
            Some((rest, "tcp")) => (rest, false),
            Some(_) => return Err(wrong()),
            None => (text, false),
        };
        let (rest, guest) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => (Some(address), host),
            None => (None, rest),
        };
        let address = address.map(|address| {
            let inner = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            match inner {
                Some(inner) => inner.parse().map(IpAddr::V6),
                None => address.parse().map(IpAddr::V4),
            }
        });
        let port = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|&port| digits && port > 0)
        };
        Ok(Self {
            address: address.transpose().map_err(|_| wrong())?,
            host: port(host).ok_or_else(wrong)?,
            guest: port(guest).ok_or_else(wrong)?,
            udp,
        })
    }
}

impl fmt::Display for PublishSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(address) => write!(f, "{address}:")?,
            None => {}
        }
        let protocol = if self.udp { "/udp" } else { "" };
        write!(f, "{}:{}{protocol}", self.host, self.guest)
    }
}

impl PublishSpec {
    /// Whether both cannot be had: one port at one address, or at all.
    pub(super) fn collides(&self, other: &Self) -> bool {
        let apart = matches!((self.address, other.address), (Some(own), Some(other)) if own != other);
        self.host == other.host && self.udp == other.udp && !apart
    }
}

impl Serialize for PublishSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublishSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for PublishSpec {
    fn schema_name() -> Cow<'static, str> {
        "PublishSpec".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A port of the host and the guest's to which it leads, as `[ADDRESS:]HOST:GUEST[/udp]`.",
            "type": "string",
            "pattern": "^(([0-9.]+|\\[[0-9a-fA-F:.]+\\]):)?[0-9]+:[0-9]+(/(udp|tcp))?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_published_port_says_where_from_where_to_and_how() {
        let read = |text: &str| text.parse::<PublishSpec>();
        let plain = PublishSpec {
            address: None,
            host: 8080,
            guest: 80,
            udp: false,
        };
        assert_eq!(read("8080:80"), Ok(plain));
        assert_eq!(read("8080:80/tcp"), Ok(plain));
        assert_eq!(read("8080:80/udp"), Ok(PublishSpec { udp: true, ..plain }));
        let at = |address: &str| PublishSpec {
            address: Some(address.parse().unwrap()),
            ..plain
        };
        assert_eq!(read("127.0.0.1:8080:80"), Ok(at("127.0.0.1")));
        assert_eq!(read("[::1]:8080:80"), Ok(at("::1")));
        for wrong in [
            "",
            "80",
            "80:",
            ":80",
            "0:80",
            "80:0",
            "65536:80",
            "+1:80",
            "80:80/sctp",
            "a:80:80",
            "::1:80:80",
            "[::1:80:80",
            "1:2:3:4",
        ] {
            let error = read(wrong).expect_err(wrong).to_string();
            assert!(
                error.starts_with(&format!("{wrong:?} publishes no port; ")),
                "{error}"
            );
        }
    }

    #[test]
    fn ports_collide_at_one_address_or_if_one_is_at_all() {
        let collide = |one: &str, other: &str| {
            one.parse::<PublishSpec>()
                .unwrap()
                .collides(&other.parse().unwrap())
        };
        assert!(collide("80:1", "80:2"));
        assert!(collide("127.0.0.1:80:1", "80:2"));
        assert!(!collide("127.0.0.1:80:1", "127.0.0.2:80:1"));
        assert!(!collide("80:1", "80:1/udp"));
    }

    #[test]
    fn a_user_mode_interface_by_a_flag() {
        let read = |text: &str| NetSpec::from_option(text.as_ref()).map_err(|error| error.to_string());
        let net = read("user,publish=8080:80,publish=53:53/udp,loopback,mac=02:00:00:00:00:01").unwrap();
        assert!(net.user && net.loopback && net.tap.is_empty());
        assert_eq!(net.mac.as_deref(), Some("02:00:00:00:00:01"));
        let ports: Vec<_> = net.publish.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["8080:80", "53:53/udp"]);
        assert_eq!(net.describe(), "user-mode, published: 8080:80 53:53/udp");
        assert_eq!(
            read("user,user"),
            Err("the option user is given twice; give it once".to_owned())
        );
        assert!(
            read("user,publish=80")
                .unwrap_err()
                .starts_with("\"80\" publishes no port; ")
        );
        assert!(
            read("user=yes")
                .unwrap_err()
                .starts_with("unknown option \"user=yes\"; it takes ")
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(
            address in proptest::option::of(any::<IpAddr>()),
            host in 1..=u16::MAX,
            guest in 1..=u16::MAX,
            udp: bool,
        ) {
            let port = PublishSpec { address, host, guest, udp };
            prop_assert_eq!(port.to_string().parse(), Ok(port));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,30}") {
            let _ = text.parse::<PublishSpec>();
        }
    }
}
