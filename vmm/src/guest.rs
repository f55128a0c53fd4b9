//! The guest that ships with Berth: kernel and root image, unpacked when Berth was built and part of the program file.
//!
//! They are read from the program's own mapping, so a start pays for the pages it touches and for nothing else. How its
//! init is spoken to stands in `resources/guest/README.md`.

use std::borrow::Cow;

use crate::spec::VmSpec;

/// Bytes at the start of a page, so that the pages that hold them hold little else.
#[repr(C, align(4096))]
struct Paged<B: ?Sized>(B);

static KERNEL: &Paged<[u8]> = &Paged(*include_bytes!(concat!(env!("OUT_DIR"), "/vmlinux")));
static ROOT: &Paged<[u8]> = &Paged(*include_bytes!(concat!(env!("OUT_DIR"), "/rootfs.erofs")));

/// The kernel, an ELF file.
pub(crate) fn kernel() -> &'static [u8] {
    &KERNEL.0
}

/// Tells one shipped guest from another: a machine that was saved with one cannot go on with the next.
pub(crate) const ID: &str = env!("BERTH_GUEST_ID");

/// The root image: erofs, a multiple of 512 bytes.
pub(crate) fn root() -> &'static [u8] {
    &ROOT.0
}

/// What the shipped kernel is told, whatever the host: where its root and its console are, and to say nothing needless.
pub(crate) const COMMAND_LINE: &str =
    "console=ttyS0 loglevel=3 reboot=k panic=-1 root=/dev/vda rootfstype=erofs ro pci=off tsc=reliable";

/// What the shipped kernel is told besides where its code is interpreted: a page that is mapped in vain costs more than a fault.
pub(crate) const INTERPRETED_COMMAND_LINE: &str = "fault_around_bytes=4K";

/// How the shipped init's standard streams lead to the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Streams {
    /// All on the first serial line, a terminal of this many rows and columns (0 = unknown).
    Terminal {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// Input and output on the first line, input in frames; errors on the second.
    Piped,
}

/// How the shipped guest is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Where its streams lead.
    pub(crate) streams: Streams,
    /// Whether its init says when it is ready and waits to be told what to run, instead of reading it on the command line.
    pub(crate) wait: bool,
}

impl Launch {
    /// What init gets behind ` -- ` on the kernel's command line.
    pub(crate) fn words(self, spec: &VmSpec) -> String {
        if self.wait {
            "wait".to_owned()
        } else {
            init_words(spec, self.streams)
        }
    }
}

/// Gets an address for each interface, then becomes the command.
const WITH_ADDRESSES: &str = "ip link set $0 up; udhcpc -i $0 -nqt5 -T1 >/dev/null 2>&1 || echo \"$0: no address by DHCP\" >&2; exec \"$@\"";

/// The command of `spec` as the shipped guest is to run it: where user-mode networks are, after it has asked for its addresses.
fn command(spec: &VmSpec, streams: Streams) -> Cow<'_, [String]> {
    let mut command = Cow::Borrowed(&spec.command[..]);
    for (number, _) in spec.nets.iter().enumerate().rev().filter(|(_, net)| net.user) {
        if command.is_empty() {
            command.to_mut().push("sh".to_owned());
            if matches!(streams, Streams::Terminal { .. }) {
                command.to_mut().push("-l".to_owned());
            }
        }
        let before = ["sh", "-c", WITH_ADDRESSES].map(str::to_owned);
        let before = before.into_iter().chain([format!("eth{number}")]);
        command.to_mut().splice(..0, before);
    }
    command
}

/// What the shipped init gets behind ` -- `: how to run what. No command is a shell.
pub(crate) fn init_words(spec: &VmSpec, streams: Streams) -> String {
    let command = &*command(spec, streams);
    let mut words = match streams {
        Streams::Terminal { rows, columns } => {
            let mut words = vec![format!("tty={rows}x{columns}")];
            words.extend(terminal_type().map(|term| format!("term={term}")));
            words
        }
        Streams::Piped => vec!["piped".to_owned()],
    };
    // With pipes there is nobody to prompt: a shell reads its commands from its input.
    let shell = ["sh".to_owned()];
    let command = match streams {
        Streams::Piped if command.is_empty() => &shell,
        _ => command,
    };
    if !command.is_empty() {
        let encoded: Vec<_> = command.iter().map(|word| percent_encode(word)).collect();
        words.push(format!("run={}", encoded.join("%00")));
    }
    words.join(" ")
}

/// The kind of the user's terminal, where it has a plain name.
fn terminal_type() -> Option<String> {
    let plain = |text: &String| {
        !text.is_empty()
            && text.len() < 32
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-+.".contains(&byte))
    };
    std::env::var("TERM").ok().filter(plain)
}

/// Keeps the kernel's own splitting and quoting away from a word.
fn percent_encode(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:,+@=".contains(&byte);
    word.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02x}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::NetSpec;

    fn run(command: &[&str]) -> VmSpec {
        VmSpec {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            ..VmSpec::default()
        }
    }

    #[test]
    fn a_user_mode_network_has_an_address_before_the_command_runs() {
        let mut spec = run(&["true"]);
        for net in ["user", "tap=t", "user"] {
            spec.nets.push(NetSpec::from_option(net.as_ref()).unwrap());
        }
        let first = ["sh", "-c", WITH_ADDRESSES, "eth0"];
        let last = ["sh", "-c", WITH_ADDRESSES, "eth2", "true"];
        assert_eq!(*command(&spec, Streams::Piped), [&first[..], &last].concat());
        spec.command.clear();
        spec.nets.truncate(1);
        let terminal = Streams::Terminal { rows: 0, columns: 0 };
        assert_eq!(*command(&spec, terminal), [&first[..], &["sh", "-l"]].concat());
    }

    #[test]
    fn words_survive_the_kernels_splitting() {
        let spec = run(&["sh", "-c", "echo \"a b\" = $x", "", "é"]);
        assert_eq!(
            init_words(&spec, Streams::Piped),
            "piped run=sh%00-c%00echo%20%22a%20b%22%20=%20%24x%00%00%c3%a9"
        );
    }

    #[test]
    fn no_command_is_a_shell_on_a_terminal() {
        let words = init_words(
            &run(&[]),
            Streams::Terminal {
                rows: 24,
                columns: 80,
            },
        );
        assert!(
            words.starts_with("tty=24x80") && !words.contains("run="),
            "{words}"
        );
    }

    #[test]
    fn no_command_with_pipes_is_a_shell_that_reads_them() {
        assert_eq!(init_words(&run(&[]), Streams::Piped), "piped run=sh");
    }

    #[test]
    fn the_root_image_is_whole_sectors_and_the_kernel_an_elf_file() {
        assert_eq!(root().len() % 512, 0);
        assert!(kernel().starts_with(b"\x7fELF"));
    }
}
