//! A client of a VM's API, as plain as can be, for tests that must see every byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::invocation::{Invocation, Running};

/// How long an answer may take: a start of the machine is among them.
const ANSWER: Duration = Duration::from_secs(60);

/// A `berth run` with an API.
pub struct Served {
    /// The program.
    pub running: Running,
    folder: TempDir,
}

impl Served {
    /// Starts it, and returns when the API is there.
    pub fn start(invocation: Invocation) -> Self {
        // Some clients put the socket's path where a host's name belongs, and those have no capital letters.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = tempfile::Builder::new()
            .prefix(&format!("berth-{}-{number}", std::process::id()))
            .rand_bytes(0)
            .tempdir()
            .expect("there is room for a folder");
        let socket = folder.path().join("api.sock");
        let mut running = invocation
            .args(["--log-level", "warn,berth::api=info", "--api-sock"])
            .arg(&socket)
            .start();
        running.wait_for_error("api: served at ");
        Self { running, folder }
    }

    /// Where its API is.
    pub fn socket(&self) -> PathBuf {
        self.path("api.sock")
    }

    /// A path in a folder that goes with it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Asks it something on a connection of its own.
    pub fn ask(&self, verb: &str, path: &str, body: &Value) -> (u16, Value) {
        Connection::open(&self.socket()).ask(verb, path, body)
    }

    /// What is at a path.
    pub fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask("GET", path, &Value::Null);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// Tells it something that it must do.
    #[track_caller]
    pub fn tell(&self, verb: &str, path: &str, body: &Value) {
        let (status, answer) = self.ask(verb, path, body);
        assert_eq!(status, 204, "{verb} {path} {body}: {answer}");
    }

    /// Tells it something that it must refuse, with 400 and a sentence that has `words`.
    #[track_caller]
    pub fn refuses(&self, verb: &str, path: &str, body: &Value, words: &str) {
        let (status, answer) = self.ask(verb, path, body);
        let sentence = answer["fault_message"].as_str().unwrap_or_default();
        assert_eq!(status, 400, "{verb} {path}: {answer}");
        assert!(sentence.contains(words), "{verb} {path}: {sentence}");
    }
}

/// A connection to an API, kept open.
pub struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects.
    pub fn open(socket: &Path) -> Self {
        let stream =
            UnixStream::connect(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        stream
            .set_read_timeout(Some(ANSWER))
            .expect("the time is not zero");
        Self(BufReader::new(stream))
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("the server reads");
    }

    /// Asks and waits for the answer.
    pub fn ask(&mut self, verb: &str, path: &str, body: &Value) -> (u16, Value) {
        self.send(request(verb, path, body).as_bytes());
        self.answer()
    }

    /// Asks as long as there is somebody to answer: nothing if the server has hung up, for its VM may end at any time.
    pub fn ask_while_there(&mut self, verb: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        let sent = self.0.get_mut().write_all(request(verb, path, body).as_bytes());
        let begun = sent.and_then(|()| self.0.fill_buf().map(|bytes| !bytes.is_empty()));
        begun.is_ok_and(|any| any).then(|| self.answer())
    }

    /// Reads one answer.
    pub fn answer(&mut self) -> (u16, Value) {
        let (mut status, mut length) = (0, 0);
        loop {
            let line = self.line();
            if let Some(code) = line.strip_prefix("HTTP/1.1 ") {
                status = code[..3].parse().expect("a status is a number");
            } else if let Some(told) = line.to_lowercase().strip_prefix("content-length: ") {
                length = told.parse().expect("a length is a number");
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("the body is as long as told");
        let text = String::from_utf8(body).expect("answers are text");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Reads a line, without its end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("the server answers");
        assert!(line.ends_with('\n'), "the server hung up after {line:?}");
        line.trim_end().to_owned()
    }

    /// All that still comes until the server hangs up.
    pub fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).expect("the server hangs up");
        rest
    }
}

/// A request as it is sent; null stands for no body.
pub fn request(verb: &str, path: &str, body: &Value) -> String {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    format!(
        "{verb} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
