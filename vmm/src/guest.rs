//! The guest that ships with Berth: kernel and root image, unpacked when Berth was built and part of the program file.
//!
//! They are read from the program's own mapping, so a start pays for the pages it touches and for nothing else.

/// Bytes at the start of a page, so that the pages that hold them hold little else.
#[repr(C, align(4096))]
struct Paged<B: ?Sized>(B);

static KERNEL: &Paged<[u8]> = &Paged(*include_bytes!(concat!(env!("OUT_DIR"), "/vmlinux")));
static ROOT: &Paged<[u8]> = &Paged(*include_bytes!(concat!(env!("OUT_DIR"), "/rootfs.erofs")));

/// The kernel, an ELF file.
pub(crate) fn kernel() -> &'static [u8] {
    &KERNEL.0
}

/// The root image: erofs, a multiple of 512 bytes.
pub(crate) fn root() -> &'static [u8] {
    &ROOT.0
}

/// What the shipped kernel is told, whatever the host: where its root and its console are, and to say nothing needless.
pub(crate) const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=k panic=-1 root=/dev/vda rootfstype=erofs ro";

/// `words` as the shipped init takes them behind ` -- `: percent-encoded, so that the kernel's own splitting and quoting
/// cannot change them. An empty word is a lone `%`.
pub(crate) fn encode_command(words: &[String]) -> String {
    words.iter().map(|word| encode_word(word)).collect::<Vec<_>>().join(" ")
}

fn encode_word(word: &str) -> String {
    if word.is_empty() {
        return "%".to_owned();
    }
    word.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b':' | b',' | b'+' | b'@' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02x}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_kernels_splitting() {
        let words = ["sh", "-c", "echo \"a b\" = $x", "", "é"].map(str::to_owned);
        assert_eq!(encode_command(&words), "sh -c echo%20%22a%20b%22%20%3d%20%24x % %c3%a9");
    }
}
