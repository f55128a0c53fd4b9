//! A client of a VM's API: one request over its Unix socket, and the answer.
//!
//! HTTP/1.1 as far as Berth's own server speaks it: a status, headers, and a body of known length, in chunks, or up to the
//! connection's end. Each request has a connection of its own.
#![forbid(unsafe_code)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::unix;

/// How long a line of the answer's head may be.
const LINE_MAX: u64 = 16 << 10;
/// How long an answer may be.
const BODY_MAX: u64 = 64 << 20;

/// Why there is no answer, or not the one hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or nobody answers in time.
    #[error("its API does not answer: {0}")]
    Io(#[from] io::Error),
    /// What came is no answer.
    #[error("its API's answer cannot be read: {0}")]
    Answer(&'static str),
    /// The server refuses.
    #[error("{sentence}")]
    Refused {
        /// The status.
        status: u16,
        /// In its words.
        sentence: String,
    },
}

impl ClientError {
    /// Whether the server says that what was asked for cannot be.
    pub fn is_user(&self) -> bool {
        matches!(self, Self::Refused { status: 400..500, .. })
    }
}

/// Asks the server at `socket`. What it answers is JSON, or null for an empty answer.
pub fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
    timeout: Duration,
) -> Result<Value, ClientError> {
    let stream = unix::connect(socket)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    (&stream).write_all((head + &body).as_bytes())?;
    let (status, body) = answer(&mut BufReader::new(&stream))?;
    let value: Option<Value> = serde_json::from_slice(&body).ok();
    if (200..300).contains(&status) {
        return match value {
            Some(value) => Ok(value),
            None if body.is_empty() => Ok(Value::Null),
            None => Err(ClientError::Answer("it is not JSON")),
        };
    }
    let sentence = value
        .as_ref()
        .and_then(|value| value.get("fault_message"))
        .and_then(Value::as_str);
    Err(ClientError::Refused {
        status,
        sentence: sentence.map_or_else(|| format!("its API answers with status {status}"), str::to_owned),
    })
}

fn answer(reader: &mut impl BufRead) -> Result<(u16, Vec<u8>), ClientError> {
    let status = loop {
        let status = status(&line(reader)?)?;
        // Anything below 200 announces the answer proper.
        if status >= 200 {
            break status;
        }
        while !line(reader)?.is_empty() {}
    };
    let (mut length, mut chunked) = (None, false);
    loop {
        let header = line(reader)?;
        let Some((name, value)) = header.split_once(':') else {
            break;
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let number = value
                .parse::<u64>()
                .map_err(|_| ClientError::Answer("its length is no number"))?;
            length = Some(number);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.eq_ignore_ascii_case("chunked");
        }
    }
    let mut body = Vec::new();
    if status == 204 {
        return Ok((status, body));
    }
    if chunked {
        read_chunks(reader, &mut body)?;
    } else if let Some(length) = length {
        read_exactly(reader, length, &mut body)?;
    } else {
        reader.take(BODY_MAX).read_to_end(&mut body)?;
    }
    Ok((status, body))
}

fn status(line: &str) -> Result<u16, ClientError> {
    let mut words = line.split(' ');
    let version = words.next().unwrap_or_default();
    let status = words.next().and_then(|word| word.parse().ok());
    status
        .filter(|status| version.starts_with("HTTP/1.") && (100..600).contains(status))
        .ok_or(ClientError::Answer("it is not HTTP"))
}

fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> Result<(), ClientError> {
    loop {
        let head = line(reader)?;
        let size = head.split(';').next().unwrap_or_default().trim();
        let size =
            u64::from_str_radix(size, 16).map_err(|_| ClientError::Answer("a chunk's size is no number"))?;
        if size == 0 {
            while !line(reader)?.is_empty() {}
            return Ok(());
        }
        read_exactly(reader, size, body)?;
        line(reader)?;
    }
}

fn read_exactly(reader: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> Result<(), ClientError> {
    if length > BODY_MAX - body.len() as u64 {
        return Err(ClientError::Answer("it is too long"));
    }
    if reader.take(length).read_to_end(body)? as u64 == length {
        Ok(())
    } else {
        Err(ClientError::Answer("it ends too early"))
    }
}

/// A line without its end.
fn line(reader: &mut impl BufRead) -> Result<String, ClientError> {
    let mut line = Vec::new();
    reader.take(LINE_MAX).read_until(b'\n', &mut line)?;
    match line.strip_suffix(b"\n") {
        Some(text) => {
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            Ok(String::from_utf8_lossy(text).into_owned())
        }
        None => Err(ClientError::Answer("it ends too early")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<(u16, String), String> {
        let result = answer(&mut text.as_bytes());
        result
            .map(|(status, body)| (status, String::from_utf8(body).unwrap()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_body_ends_by_its_length_its_chunks_or_with_the_connection() {
        for (text, status, body) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}rest", 200, "{}"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n",
                200,
                "{}",
            ),
            ("HTTP/1.0 400 Bad Request\n\n{}", 400, "{}"),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                200,
                "",
            ),
        ] {
            assert_eq!(read(text), Ok((status, body.to_owned())), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_answer_is_said_to_be_none() {
        for (text, expected) in [
            ("", "it ends too early"),
            ("SSH-2.0\r\n", "it is not HTTP"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
                "it ends too early",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
                "it is too long",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
                "a chunk's size is no number",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(
                error,
                format!("its API's answer cannot be read: {expected}"),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_refusal_is_told_in_the_servers_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let listener = unix::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 10];
            stream.read_exact(&mut asked).unwrap();
            stream
                .write_all(
                    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 26\r\n\r\n{\"fault_message\": \"no it\"}",
                )
                .unwrap();
            asked
        });
        let error = request(&path, "POST", "/a", None, Duration::from_secs(5)).unwrap_err();
        assert!(error.is_user());
        assert!(error.to_string().starts_with("no it"), "{error}");
        assert_eq!(&server.join().unwrap(), b"POST /a HT");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, chunks in "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n[0-9a-f\r\n ;]{0,40}") {
            let _ = answer(&mut bytes.as_slice());
            let _ = answer(&mut chunks.as_bytes());
        }
    }
}
