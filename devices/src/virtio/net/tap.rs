//! A tap interface of the host as what is behind a network card (Linux `Documentation/networking/tuntap.rst`).
//!
//! The interface must exist, unless it is asked for otherwise: who may make one, with which addresses and on which bridge, is the
//! administrator's affair. The kernel takes and gives frames with virtio's own header, so checksums and segmentation stay undone between guests.

#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, c_uint, ifreq};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_HOST_USO,
};

use super::backend::{NetBackend, Steering};
use super::header::HEADER;

const DEVICE: &str = "/dev/net/tun";
/// Bytes of an interface's name, the NUL aside.
const NAME_MAX: usize = libc::IFNAMSIZ - 1;
/// What every user of a tap asks for: frames as they are, with virtio's header.
const PLAIN: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// The same for a tap of several queues.
const SEVERAL: c_int = PLAIN | libc::IFF_MULTI_QUEUE;

/// Which offload lets the kernel give what a driver's feature allows.
const OFFLOADS: [(u32, c_uint); 7] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    (VIRTIO_NET_F_GUEST_UFO, libc::TUN_F_UFO),
    (VIRTIO_NET_F_GUEST_USO4, libc::TUN_F_USO4),
    (VIRTIO_NET_F_GUEST_USO6, libc::TUN_F_USO6),
];
/// The kernel knows both or, before Linux 6.2, none.
const USO: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// What a kernel takes from guests if it takes these offloads; it cannot be asked.
const TAKEN: [(c_uint, u32); 2] = [
    (libc::TUN_F_UFO, VIRTIO_NET_F_HOST_UFO),
    (USO, VIRTIO_NET_F_HOST_USO),
];

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can be called that.
    #[error("{name:?} cannot be the name of a network interface: {why}")]
    Name {
        /// The name.
        name: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// There is no such interface.
    #[error(
        "tap {name} does not exist; make it with: ip tuntap add {name} mode tap && ip link set {name} up"
    )]
    Missing {
        /// The interface.
        name: String,
    },
    /// There is no such interface, and no right to make it.
    #[error(
        "tap {name} does not exist, and there is no right to make it; run as root, or make it with: ip tuntap add {name} mode tap user $USER && ip link set {name} up"
    )]
    MakeRights {
        /// The interface.
        name: String,
    },
    /// It is an interface of another kind.
    #[error("{name} is not a tap interface; make one with: ip tuntap add NAME mode tap")]
    NotTap {
        /// The interface.
        name: String,
    },
    /// It was not made for several queues.
    #[error(
        "tap {name} has one queue; make it anew for several with: ip tuntap add {name} mode tap multi_queue, or leave out queues"
    )]
    OneQueue {
        /// The interface.
        name: String,
    },
    /// Someone has it.
    #[error("tap {name} is busy: another process, perhaps another VM, uses it")]
    Busy {
        /// The interface.
        name: String,
    },
    /// It belongs to someone else.
    #[error("no right to use tap {name}; its owner may: ip tuntap add {name} mode tap user NAME")]
    Owner {
        /// The interface.
        name: String,
    },
    /// No right to the device file.
    #[error("no right to open {DEVICE}; run as root, or let the user read and write it")]
    DeviceRights,
    /// The device file does not exist.
    #[error("{DEVICE} does not exist; load the module: modprobe tun")]
    NoDevice,
    /// The kernel refused something else.
    #[error("tap {name}: {what} failed: {cause}")]
    Host {
        /// The interface.
        name: String,
        /// The call.
        what: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// An open tap interface.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    mtu: u16,
    features: u64,
}

impl Tap {
    /// Opens the interface `name` for one card.
    pub fn open(name: &str) -> Result<Self, TapError> {
        Self::open_queue(name, false)
    }

    /// The same; an interface that does not exist is made, brought up, and gone with the card.
    pub fn open_or_make(name: &str) -> Result<Self, TapError> {
        Self::open_or_make_queue(name, false)
    }

    /// Opens the interface `name` so many times as a card has pairs of queues; `make` says whether it is made if it does not exist. It
    /// gives frames by the first of them only until it is told otherwise.
    pub fn open_pairs(name: &str, pairs: u16, make: bool) -> Result<(Vec<Self>, TapQueues), TapError> {
        let first = if make {
            Self::open_or_make_queue(name, true)
        } else {
            Self::open_queue(name, true)
        };
        let mut taps = vec![first?];
        for _ in 1..pairs {
            taps.push(Self::open_queue(name, true)?);
        }
        let failed = |what| {
            move |cause| TapError::Host {
                name: name.to_owned(),
                what,
                cause,
            }
        };
        let fds = taps.iter().map(|tap| tap.fd.try_clone());
        let fds: io::Result<Vec<_>> = fds.collect();
        let mut queues = TapQueues {
            attached: taps.len(),
            fds: fds.map_err(failed("another descriptor"))?,
        };
        queues
            .spread(1)
            .map_err(failed("detaching a queue (TUNSETQUEUE)"))?;
        Ok((taps, queues))
    }

    fn open_queue(name: &str, several: bool) -> Result<Self, TapError> {
        let interface = Interface::find(name)?;
        let fd = interface.device()?;
        interface.attach(&fd, several)?;
        Self::attached(&interface, fd)
    }

    fn open_or_make_queue(name: &str, several: bool) -> Result<Self, TapError> {
        match Self::open_queue(name, several) {
            Err(TapError::Missing { .. }) => {}
            result => return result,
        }
        let interface = Interface::named(name)?;
        let fd = interface.device()?;
        let flags = if several { SEVERAL } else { PLAIN };
        interface
            .set_interface(&fd, flags)
            .and_then(|()| interface.bring_up())
            .map_err(|cause| match Errno::from_io_error(&cause) {
                Some(Errno::PERM | Errno::ACCESS) => TapError::MakeRights {
                    name: interface.name(),
                },
                // Somebody else was faster.
                Some(Errno::BUSY) => TapError::Busy {
                    name: interface.name(),
                },
                _ => interface.host("making it (TUNSETIFF)", cause),
            })?;
        Self::attached(&interface, fd)
    }

    /// The interface whose descriptor `fd` is.
    fn attached(interface: &Interface<'_>, fd: OwnedFd) -> Result<Self, TapError> {
        let length = HEADER as c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        unsafe { ioctl(&fd, libc::TUNSETVNETHDRSZ, &mut { length }) }
            .map_err(|cause| interface.host("setting the header's length (TUNSETVNETHDRSZ)", cause))?;
        let features = offered(&fd);
        let mtu = interface.mtu();
        Ok(Self { fd, mtu, features })
    }
}

impl NetBackend for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn start(&mut self, features: u64) -> io::Result<()> {
        set_offloads(&self.fd, offloads(features))
    }

    fn receives_by(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }

    fn sends_by(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }
}

/// The queues of a tap with several, by which the kernel gives frames. What it has for one that is detached it drops, as it does
/// with those that come while no card is there.
#[derive(Debug)]
pub struct TapQueues {
    /// Each is the descriptor of one [`Tap`] too.
    fds: Vec<OwnedFd>,
    /// So many of the first are attached.
    attached: usize,
}

impl Steering for TapQueues {
    fn spread(&mut self, pairs: u16) -> io::Result<()> {
        let pairs = usize::from(pairs).min(self.fds.len());
        while self.attached > pairs {
            set_queue(&self.fds[self.attached - 1], libc::IFF_DETACH_QUEUE)?;
            self.attached -= 1;
        }
        let before = self.attached;
        while self.attached < pairs {
            if let Err(cause) = set_queue(&self.fds[self.attached], libc::IFF_ATTACH_QUEUE) {
                // One that was attached just now can be detached.
                self.spread(before as u16)?;
                return Err(cause);
            }
            self.attached += 1;
        }
        Ok(())
    }
}

fn set_queue(fd: &OwnedFd, how: c_int) -> io::Result<()> {
    let mut request = empty_request();
    request.ifr_ifru.ifru_flags = how as libc::c_short;
    // SAFETY: TUNSETQUEUE reads an ifreq.
    unsafe { ioctl(fd, libc::TUNSETQUEUE, &mut request) }
}

/// The offloads that `features` allow. Segments come with checksums undone, so that feature is needed for the others.
fn offloads(features: u64) -> c_uint {
    if features & 1 << VIRTIO_NET_F_GUEST_CSUM == 0 {
        return 0;
    }
    let mut wanted = 0;
    for (feature, offload) in OFFLOADS {
        if features & 1 << feature != 0 {
            wanted |= offload;
        }
    }
    // ECN says how to segment, not whether.
    let segments = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    if wanted & segments == 0 {
        wanted &= !libc::TUN_F_TSO_ECN;
    }
    // A driver that wants one of the two gets none: then the kernel segments for it.
    if wanted & USO != USO {
        wanted &= !USO;
    }
    wanted
}

/// The features that can be had: all those of the guest's side that the kernel accepts, and what every tap takes from a guest.
fn offered(fd: &OwnedFd) -> u64 {
    let host = [
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN,
    ];
    let mut features = host.iter().fold(0, |bits, feature| bits | 1 << feature);
    // One after the other, but those that only go together.
    let alone = OFFLOADS.iter().filter(|(_, offload)| offload & USO == 0);
    let groups = alone.map(|(_, offload)| *offload).chain([USO]);
    for group in groups {
        let members = OFFLOADS.iter().filter(|(_, offload)| offload & group != 0);
        let more = members.fold(features, |bits, (feature, _)| bits | 1 << feature);
        if set_offloads(fd, offloads(more)).is_ok() {
            features = more;
            let taken = TAKEN.iter().filter(|(offload, _)| *offload == group);
            features = taken.fold(features, |bits, (_, feature)| bits | 1 << feature);
        }
    }
    features
}

fn set_offloads(fd: &OwnedFd, offloads: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument as a number and follows no pointer.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// An interface that exists.
struct Interface<'a> {
    name: &'a str,
    /// For questions about it.
    socket: OwnedFd,
}

impl<'a> Interface<'a> {
    fn find(name: &'a str) -> Result<Self, TapError> {
        let interface = Self::named(name)?;
        match interface.ask(libc::SIOCGIFFLAGS) {
            Ok(_) => Ok(interface),
            Err(cause) if Errno::from_io_error(&cause) == Some(Errno::NODEV) => Err(interface.missing()),
            Err(cause) => Err(interface.host("looking it up (SIOCGIFFLAGS)", cause)),
        }
    }

    /// One that may exist.
    fn named(name: &'a str) -> Result<Self, TapError> {
        if let Some(why) = name_fault(name) {
            let name = name.to_owned();
            return Err(TapError::Name { name, why });
        }
        let family = AddressFamily::INET;
        let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(|cause| {
            TapError::Host {
                name: name.to_owned(),
                what: "opening a socket",
                cause: cause.into(),
            }
        })?;
        Ok(Self { name, socket })
    }

    /// A descriptor that is no interface's yet.
    fn device(&self) -> Result<OwnedFd, TapError> {
        let tun = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(|cause| self.device_error(cause))?;
        Ok(OwnedFd::from(tun))
    }

    /// Lets frames pass.
    fn bring_up(&self) -> io::Result<()> {
        let mut request = self.ask(libc::SIOCGIFFLAGS)?;
        // SAFETY: SIOCGIFFLAGS has filled in the flags, and these are integers.
        unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
        // SAFETY: SIOCSIFFLAGS reads an ifreq.
        unsafe { ioctl(&self.socket, libc::SIOCSIFFLAGS, &mut request) }
    }

    /// Makes `fd` the interface's. TUNSETIFF makes an interface that does not exist, but we have just seen it; should it have
    /// been deleted since, what was made is not persistent, and goes with the descriptor.
    fn attach(&self, fd: &OwnedFd, several: bool) -> Result<(), TapError> {
        // It may have been made for several queues, and then each user must say so; or for one.
        let (wanted, other) = if several {
            (SEVERAL, PLAIN)
        } else {
            (PLAIN, SEVERAL)
        };
        let result = match self.set_interface(fd, wanted) {
            Err(cause) if Errno::from_io_error(&cause) == Some(Errno::INVAL) => {
                let result = self.set_interface(fd, other);
                if several && result.is_ok() {
                    return Err(TapError::OneQueue { name: self.name() });
                }
                result
            }
            result => result,
        };
        result.map_err(|cause| match Errno::from_io_error(&cause) {
            Some(Errno::BUSY) => TapError::Busy { name: self.name() },
            Some(Errno::INVAL) => TapError::NotTap { name: self.name() },
            Some(Errno::PERM | Errno::ACCESS) => TapError::Owner { name: self.name() },
            _ => self.host("attaching to it (TUNSETIFF)", cause),
        })?;
        let mut made = self.request();
        // SAFETY: TUNGETIFF writes an ifreq.
        unsafe { ioctl(fd, libc::TUNGETIFF, &mut made) }
            .map_err(|cause| self.host("reading its flags (TUNGETIFF)", cause))?;
        // SAFETY: TUNGETIFF has filled in the flags.
        let flags = c_int::from(unsafe { made.ifr_ifru.ifru_flags });
        if flags & (libc::IFF_PERSIST | libc::IFF_MULTI_QUEUE) == 0 {
            return Err(self.missing());
        }
        Ok(())
    }

    fn set_interface(&self, fd: &OwnedFd, flags: c_int) -> io::Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes an ifreq.
        unsafe { ioctl(fd, libc::TUNSETIFF, &mut request) }
    }

    /// Its MTU, within what virtio's 16 bits say.
    fn mtu(&self) -> u16 {
        const DEFAULT: u16 = 1500;
        let Ok(answer) = self.ask(libc::SIOCGIFMTU) else {
            return DEFAULT;
        };
        // SAFETY: SIOCGIFMTU has filled in the MTU.
        let mtu = unsafe { answer.ifr_ifru.ifru_mtu };
        u16::try_from(mtu).unwrap_or(u16::MAX)
    }

    fn ask(&self, what: libc::Ioctl) -> io::Result<ifreq> {
        let mut request = self.request();
        // SAFETY: the callers' requests, SIOCGIFFLAGS and SIOCGIFMTU, read and write an ifreq.
        unsafe { ioctl(&self.socket, what, &mut request) }?;
        Ok(request)
    }

    fn request(&self) -> ifreq {
        let mut request = empty_request();
        // `find` saw to it that the name and a NUL fit.
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from as libc::c_char;
        }
        request
    }

    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn missing(&self) -> TapError {
        TapError::Missing { name: self.name() }
    }

    fn host(&self, what: &'static str, cause: io::Error) -> TapError {
        let name = self.name();
        TapError::Host { name, what, cause }
    }

    fn device_error(&self, cause: io::Error) -> TapError {
        match cause.kind() {
            io::ErrorKind::PermissionDenied => TapError::DeviceRights,
            io::ErrorKind::NotFound => TapError::NoDevice,
            _ => match Errno::from_io_error(&cause) {
                // The file is there and the module is not.
                Some(Errno::NODEV | Errno::NXIO) => TapError::NoDevice,
                _ => self.host("opening /dev/net/tun", cause),
            },
        }
    }
}

fn empty_request() -> ifreq {
    // SAFETY: an ifreq is integers, addresses made of them, and a pointer, for all of which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// What is wrong with an interface's name, by the kernel's rules (`dev_valid_name`).
fn name_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > NAME_MAX {
        return Some("it has more than 15 bytes");
    }
    if name == "." || name == ".." || name.contains(['/', ':', '\0']) || name.contains(char::is_whitespace) {
        return Some("it has a character that no interface's name may have");
    }
    // The kernel would take it for a pattern, and look for a number.
    name.contains('%').then_some("a percent sign is not allowed")
}

/// An ioctl that takes a pointer.
///
/// # Safety
/// `request` must be one that reads or writes a `T` and nothing past it.
unsafe fn ioctl<T>(fd: &OwnedFd, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: `argument` is a `T` for this call, which is what `request` reads or writes, as the caller promises.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused_before_the_kernel_is_asked() {
        for (name, why) in [
            ("", "it is empty"),
            ("0123456789abcdef", "it has more than 15 bytes"),
            ("a/b", "it has a character that no interface's name may have"),
            ("..", "it has a character that no interface's name may have"),
            ("a b", "it has a character that no interface's name may have"),
            ("tap%d", "a percent sign is not allowed"),
        ] {
            let error = Tap::open(name).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("{name:?} cannot be the name of a network interface: {why}")
            );
        }
        assert_eq!(name_fault("0123456789abcde"), None);
    }

    #[test]
    fn a_tap_that_does_not_exist_is_not_made() {
        let error = Tap::open("berth-none0").unwrap_err().to_string();
        let wanted = "tap berth-none0 does not exist; make it with: ip tuntap add berth-none0 mode tap && ip link set berth-none0 up";
        assert_eq!(error, wanted);
        assert!(!std::path::Path::new("/sys/class/net/berth-none0").exists());
    }

    #[test]
    fn the_kernel_gives_no_more_than_the_driver_takes() {
        let all = OFFLOADS.iter().fold(0, |bits, (feature, _)| bits | 1 << feature);
        assert_eq!(offloads(all), 0x7f);
        assert_eq!(
            offloads(all & !(1 << VIRTIO_NET_F_GUEST_USO6)),
            0x1f,
            "both or none"
        );
        assert_eq!(offloads(all & !(1 << VIRTIO_NET_F_GUEST_CSUM)), 0);
        assert_eq!(
            offloads(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_ECN),
            libc::TUN_F_CSUM
        );
    }
}
