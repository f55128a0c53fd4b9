//! A client of the program's API: one request on a connection of its own.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long the program may take to open its socket and to answer.
const DEADLINE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// Fails unless it has this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> &Self {
        assert!(self.status == status, "expected status {status}: {self:?}");
        self
    }
}

/// Sends `body`, if it is not null, to `path` by `verb` through the socket, which may not be there yet.
pub fn request(socket: &Path, verb: &str, path: &str, body: &Value) -> Answer {
    let mut stream = connect(socket);
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("a socket takes a time limit");
    let head = format!("{verb} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    let request = if body.is_null() {
        head + "\r\n"
    } else {
        let body = body.to_string();
        let len = body.len();
        format!("{head}Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}")
    };
    stream
        .write_all(request.as_bytes())
        .expect("the program reads its socket");
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .unwrap_or_else(|error| panic!("{verb} {path}: {error}, after {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Answer {
        status: status.unwrap_or_else(|| panic!("{verb} {path}: no answer: {text:?}")),
        body: body.to_owned(),
    }
}

/// Connects as soon as somebody listens: a program that was just started does not at first.
fn connect(socket: &Path) -> UnixStream {
    let start = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(start.elapsed() < DEADLINE, "{}: {error}", socket.display()),
        }
        thread::sleep(Duration::from_millis(1));
    }
}
