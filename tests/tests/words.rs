//! What the shipped guest's init makes of the words that the host sends it, checked on the host (`guests/words.c`).
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::{Command, Stdio};

use berth_tests::guests;

/// What init makes of what a serial line brings.
fn read(line: &str) -> String {
    let mut child = Command::new(guests::words())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let line = line.to_owned();
    // Its output may fill a pipe before it has read all.
    let writer = std::thread::spawn(move || input.write_all(line.as_bytes()));
    let output = child.wait_with_output().unwrap();
    // It may end before it has read all.
    let _ = writer.join().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_word_is_understood_and_nothing_behind_the_line_is_lost() {
    let entropy = "00ff7F".to_owned() + &"01".repeat(61);
    let line = format!(
        "piped term=xterm-256color tty=24x80 hostname=box entropy={entropy} time=1700000000.000000007 \
         machine-id=0123456789abcdef0123456789ABCDEF run=sh%00-c%00echo%20$x%3d1\n\x05hello\n"
    );
    let numbers = "0 255 127".to_owned() + &" 1".repeat(61);
    assert_eq!(
        read(&line),
        format!(
            "piped\n24 rows 80 columns\nterm xterm-256color\nhostname box\n\
             machine-id 0123456789abcdef0123456789ABCDEF\ntime 1700000000 7\nentropy {numbers}\n\
             word sh\nword -c\nword echo $x=1\nleft \x05hello\n"
        )
    );
}

#[test]
fn unknown_and_malformed_words_are_as_if_they_were_not_there() {
    for word in [
        "-",
        "piped=1",
        "waits",
        "unknown=1",
        "tty=",
        "tty=24",
        "tty=24x",
        "tty=24x80x",
        "tty=65536x1",
        "term=",
        "hostname=",
        "time=1",
        "time=1.",
        "time=1.1000000000",
        "time=99999999999999999999.0",
        "time=-1.0",
        "machine-id=0123456789abcdef0123456789abcde",
        "machine-id=0123456789abcdef0123456789abcdefa",
        "machine-id=0123456789abcdef0123456789abcdeg",
        "entropy=",
        "entropy=g0",
        "entropy=0",
    ] {
        assert_eq!(read(&format!("{word}\n")), "left ", "{word}");
        assert_eq!(read(&format!("  {word}  piped \n")), "piped\nleft ", "{word}");
    }
}

#[test]
fn words_of_a_command_may_be_empty_and_hold_anything() {
    assert_eq!(read("run=a%00%00b%\n"), "word a\nword \nword b%\nleft ");
    assert_eq!(read("run=%zz%0%0a%25\n"), "word %zz%0\n%\nleft ");
    assert_eq!(read("run=\n"), "word \nleft ");
}

#[test]
fn a_line_of_64_kib_is_one_and_a_longer_one_is_none() {
    let command = "run=".to_owned() + &"a%00".repeat(16_000);
    let words = read(&format!("{command}\n"));
    assert_eq!(words.matches("word a\n").count(), 16_000);
    let full = "x".repeat(65_535);
    assert_eq!(read(&format!("{full}\n")), "left ");
    assert_eq!(read(&format!("{full}x\n")), "no line");
    assert_eq!(read("piped"), "no line");
}

#[test]
fn more_entropy_than_is_taken_is_left_out() {
    let text = read(&format!("entropy={}\n", "ab".repeat(100)));
    assert_eq!(text.matches(" 171").count(), 64);
}
