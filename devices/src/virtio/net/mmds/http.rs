//! Requests to the service and what it answers: the paths, headers, statuses and sentences of Firecracker's MMDS.

use std::net::Ipv4Addr;
use std::sync::Arc;

use httparse::{EMPTY_HEADER, Header, Status};
use serde_json::Value;

use super::counts::Event;
use super::store::MetadataStore;
use super::token::{Authority, SECONDS};

/// How the service answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmdsConfig {
    /// Where it is.
    pub address: Ipv4Addr,
    /// Whether it only answers who has a token (version 2).
    pub tokens: bool,
    /// Whether it answers in plain text whatever is asked for.
    pub imds_compat: bool,
}

/// The longest request, head and body.
pub(super) const REQUEST_MAX: usize = 4096;
const HEADERS_MAX: usize = 48;

const TOKEN_PATH: &str = "/latest/api/token";
const TOKEN: [&str; 2] = ["X-metadata-token", "X-aws-ec2-metadata-token"];
const TOKEN_SECONDS: [&str; 2] = [
    "X-metadata-token-ttl-seconds",
    "X-aws-ec2-metadata-token-ttl-seconds",
];
const FORWARDED: [&str; 1] = ["X-Forwarded-For"];

const TEXT: &str = "text/plain";
const JSON: &str = "application/json";

/// Answers requests.
pub(super) struct Service {
    config: MmdsConfig,
    store: Arc<MetadataStore>,
    authority: Authority,
}

/// A request that was read, and its answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Served {
    /// How many bytes the request had.
    pub(super) len: usize,
    /// What to send.
    pub(super) answer: Vec<u8>,
    /// Whether the connection ends with it.
    pub(super) close: bool,
}

/// What is said to a request.
struct Answer {
    status: (u16, &'static str),
    kind: &'static str,
    /// A header of its own.
    header: Option<(String, String)>,
    body: String,
}

impl Answer {
    fn new(status: (u16, &'static str), body: impl Into<String>) -> Self {
        Self {
            status,
            kind: TEXT,
            header: None,
            body: body.into(),
        }
    }

    fn bad(why: impl Into<String>) -> Self {
        Self::new((400, "Bad Request"), why)
    }

    /// As it is sent.
    fn bytes(&self, version: u8, close: bool) -> Vec<u8> {
        let (code, words) = self.status;
        let connection = if close { "close" } else { "keep-alive" };
        let header = self
            .header
            .as_ref()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .unwrap_or_default();
        format!(
            "HTTP/1.{version} {code} {words}\r\nServer: Berth\r\nConnection: {connection}\r\n{header}Content-Type: {}\r\nContent-Length: {}\r\n\r\n{}",
            self.kind,
            self.body.len(),
            self.body
        )
        .into_bytes()
    }
}

impl Service {
    /// Answers by `config` from `store`. It fails only if the host has no random bytes to give.
    pub(super) fn new(config: MmdsConfig, store: Arc<MetadataStore>) -> std::io::Result<Self> {
        let authority = Authority::new()?;
        Ok(Self {
            config,
            store,
            authority,
        })
    }

    /// Serves the request that `bytes` begin with; none while it is not whole.
    pub(super) fn serve(&self, bytes: &[u8]) -> Option<Served> {
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let refuse = |why: &str| {
            Some(Served {
                len: bytes.len(),
                answer: Answer::bad(why).bytes(1, true),
                close: true,
            })
        };
        let full = bytes.len() >= REQUEST_MAX;
        let head = match request.parse(bytes) {
            Ok(Status::Complete(head)) => head,
            Ok(Status::Partial) if full => return refuse("Invalid request."),
            Ok(Status::Partial) => return None,
            Err(_) => return refuse("Invalid request."),
        };
        let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version)
        else {
            return refuse("Invalid request.");
        };
        let headers = Headers(request.headers);
        // No request to the service has a body that means anything; one of unknown length is not worth reading.
        let body = match headers.get(&["Content-Length"]) {
            None => Some(0),
            Some((_, value)) => text(value).parse::<usize>().ok(),
        };
        let Some(body) = body.filter(|_| headers.get(&["Transfer-Encoding"]).is_none()) else {
            return refuse("Invalid request.");
        };
        let len = match head.checked_add(body) {
            Some(len) if len <= REQUEST_MAX => len,
            _ => return refuse("Invalid request."),
        };
        if len > bytes.len() {
            return None;
        }
        let close = headers.close(version);
        let answer = self.answer(method, target, &headers);
        Some(Served {
            len,
            answer: answer.bytes(version, close),
            close,
        })
    }

    fn answer(&self, method: &str, target: &str, headers: &Headers<'_>) -> Answer {
        let path = match target.strip_prefix("http://") {
            // The absolute form names the host first.
            Some(rest) => rest.find('/').map_or("", |at| &rest[at..]),
            None => target,
        };
        if path.is_empty() {
            return Answer::bad("Invalid URI.");
        }
        match method {
            "GET" => self.get(path, headers),
            "PUT" => self.put(path, headers),
            _ => Answer {
                header: Some(("Allow".to_owned(), "GET, PUT".to_owned())),
                ..Answer::new((405, "Method Not Allowed"), "Not allowed HTTP method.")
            },
        }
    }

    fn get(&self, path: &str, headers: &Headers<'_>) -> Answer {
        const UNAUTHORIZED: (u16, &str) = (401, "Unauthorized");
        if self.config.tokens {
            match headers.get(&TOKEN) {
                None => {
                    self.store.count(Event::NoToken);
                    return Answer::new(
                        UNAUTHORIZED,
                        "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to \
                         specify the session token.",
                    );
                }
                Some((_, token)) if !self.authority.accepts(token) => {
                    self.store.count(Event::InvalidToken);
                    return Answer::new(UNAUTHORIZED, "MMDS token not valid.");
                }
                Some(_) => {}
            }
        }
        let json = !self.config.imds_compat && headers.accept_json();
        let pointer = strict(path);
        let pointer = pointer.strip_suffix('/').unwrap_or(&pointer);
        let found = self.store.at(pointer, |value| {
            if json {
                Some(value.to_string())
            } else {
                listing(value)
            }
        });
        match found {
            None => Answer::new((404, "Not Found"), format!("Resource not found: {path}.")),
            Some(None) => Answer::new(
                (501, "Not Implemented"),
                "Cannot retrieve value. The value has an unsupported type.",
            ),
            Some(Some(body)) => Answer {
                kind: if json { JSON } else { TEXT },
                ..Answer::new((200, "OK"), body)
            },
        }
    }

    /// The only thing to put is the wish for a token.
    fn put(&self, path: &str, headers: &Headers<'_>) -> Answer {
        // A proxy would hand the token to somebody outside.
        if let Some((name, _)) = headers.get(&FORWARDED) {
            return Answer::bad(format!(
                "Invalid header. Reason: Unsupported header name. Key: {name}"
            ));
        }
        if strict(path) != TOKEN_PATH {
            return Answer::new((404, "Not Found"), format!("Resource not found: {path}."));
        }
        let Some((name, value)) = headers.get(&TOKEN_SECONDS) else {
            return Answer::bad(
                "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or \
                 `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.",
            );
        };
        let value = text(value);
        let Ok(seconds) = value.parse::<u32>() else {
            return Answer::bad(format!(
                "Invalid header. Reason: Invalid value. Key:{name}; Value:{value}"
            ));
        };
        if !SECONDS.contains(&seconds) {
            let (least, most) = (SECONDS.start(), SECONDS.end());
            return Answer::bad(format!(
                "Invalid time to live value provided for token: {seconds}. Please provide a value between {least} and {most}."
            ));
        }
        Answer {
            header: Some((name.to_owned(), seconds.to_string())),
            ..Answer::new((200, "OK"), self.authority.give(seconds))
        }
    }
}

/// A path with each row of slashes made one.
fn strict(path: &str) -> String {
    let mut before = None;
    path.chars()
        .filter(|&c| before.replace(c) != Some('/') || c != '/')
        .collect()
}

/// A value as EC2's service shows it: an object as the list of its keys, those of objects with a slash; a string as it is.
fn listing(value: &Value) -> Option<String> {
    match value {
        Value::Object(fields) => {
            let line = |(key, value): (&String, &Value)| {
                let slash = if value.is_object() { "/" } else { "" };
                format!("{key}{slash}")
            };
            Some(fields.iter().map(line).collect::<Vec<_>>().join("\n"))
        }
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

/// A header's value as text, for numbers and words; what is no text is neither.
fn text(value: &[u8]) -> &str {
    str::from_utf8(value).unwrap_or_default().trim()
}

struct Headers<'a>(&'a [Header<'a>]);

impl<'a> Headers<'a> {
    /// The first header of one of these names, its name as the client wrote it.
    fn get(&self, names: &[&str]) -> Option<(&'a str, &'a [u8])> {
        self.0
            .iter()
            .find(|header| names.iter().any(|name| header.name.eq_ignore_ascii_case(name)))
            .map(|header| (header.name, header.value))
    }

    /// Whether the client means the connection to end with the answer.
    fn close(&self, version: u8) -> bool {
        let value = self.get(&["Connection"]).map(|(_, value)| text(value));
        match value {
            Some(value) if value.eq_ignore_ascii_case("close") => true,
            Some(value) if value.eq_ignore_ascii_case("keep-alive") => false,
            _ => version == 0,
        }
    }

    /// Whether JSON is the first thing in the client's list that the service can say.
    fn accept_json(&self) -> bool {
        let list = self.get(&["Accept"]).map_or("", |(_, value)| text(value));
        let kinds = list
            .split(',')
            .map(|kind| kind.split(';').next().unwrap_or_default().trim());
        kinds
            .filter(|kind| {
                [JSON, TEXT, "text/*", "*/*"]
                    .iter()
                    .any(|known| kind.eq_ignore_ascii_case(known))
            })
            .map(|kind| kind.eq_ignore_ascii_case(JSON))
            .next()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::virtio::net::mmds::DEFAULT_ADDRESS;

    fn service(tokens: bool, imds_compat: bool) -> Service {
        let config = MmdsConfig {
            address: DEFAULT_ADDRESS,
            tokens,
            imds_compat,
        };
        let store = MetadataStore::default();
        let document = json!({
            "age": 43,
            "latest": {"meta-data": {"ami-id": "ami-1", "net": {"a/b": "slash"}, "list": ["x", 2]}},
            "name": "Jo\u{eb}l",
        });
        store.put(document).unwrap();
        Service::new(config, Arc::new(store)).unwrap()
    }

    /// Status, headers and body of the answer to a request with these headers.
    fn ask(service: &Service, line: &str, headers: &[&str]) -> (u16, String, String) {
        let head = [&["Host: 169.254.169.254"], headers].concat().join("\r\n");
        let request = format!("{line} HTTP/1.1\r\n{head}\r\n\r\n");
        let served = service.serve(request.as_bytes()).expect("it is whole");
        assert_eq!(served.len, request.len());
        let answer = String::from_utf8(served.answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("Content-Length: {}", body.len())),
            "{head}"
        );
        (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned())
    }

    #[test]
    fn values_are_listed_as_ec2_does_or_given_as_json() {
        let v1 = service(false, false);
        let json = "Accept: application/json";
        for (path, headers, status, kind, body) in [
            ("/", &[][..], 200, TEXT, "age\nlatest/\nname"),
            ("//latest//meta-data/", &[], 200, TEXT, "ami-id\nlist\nnet/"),
            ("/latest/meta-data/ami-id", &[], 200, TEXT, "ami-1"),
            ("/latest/meta-data/ami-id/", &["Accept: */*"], 200, TEXT, "ami-1"),
            ("/latest/meta-data/list/0", &[], 200, TEXT, "x"),
            ("/latest/meta-data/net/a~1b", &[], 200, TEXT, "slash"),
            ("/name", &[], 200, TEXT, "Jo\u{eb}l"),
            ("http://169.254.169.254/name", &[], 200, TEXT, "Jo\u{eb}l"),
            ("/latest/meta-data/ami-id", &[json], 200, JSON, "\"ami-1\""),
            ("/latest/meta-data/list", &[json], 200, JSON, "[\"x\",2]"),
            (
                "/age",
                &["accept: text/html, application/json;q=0.9, */*"],
                200,
                JSON,
                "43",
            ),
            (
                "/name",
                &["Accept: text/plain, application/json"],
                200,
                TEXT,
                "Jo\u{eb}l",
            ),
            ("/name", &["Accept: image/png"], 200, TEXT, "Jo\u{eb}l"),
            (
                "/age",
                &[],
                501,
                TEXT,
                "Cannot retrieve value. The value has an unsupported type.",
            ),
            (
                "/latest/meta-data/list",
                &[],
                501,
                TEXT,
                "Cannot retrieve value. The value has an unsupported type.",
            ),
            (
                "/nothing//here",
                &[json],
                404,
                TEXT,
                "Resource not found: /nothing//here.",
            ),
            ("name", &[], 404, TEXT, "Resource not found: name."),
            ("http://169.254.169.254", &[], 400, TEXT, "Invalid URI."),
        ] {
            let (found, head, said) = ask(&v1, &format!("GET {path}"), headers);
            assert_eq!((found, said.as_str()), (status, body), "{path}");
            assert!(head.contains(&format!("Content-Type: {kind}")), "{path}: {head}");
        }
    }

    #[test]
    fn as_imds_it_never_answers_in_json() {
        let (status, head, body) = ask(
            &service(false, true),
            "GET /latest",
            &["Accept: application/json"],
        );
        assert_eq!((status, body.as_str()), (200, "meta-data/"));
        assert!(head.contains("Content-Type: text/plain"), "{head}");
    }

    #[test]
    fn version_2_answers_who_has_a_token_by_either_name() {
        let v2 = service(true, false);
        let (status, _, body) = ask(&v2, "GET /name", &[]);
        assert_eq!(status, 401);
        assert!(
            body.starts_with("No MMDS token provided. Use `X-metadata-token` or"),
            "{body}"
        );
        let (status, _, body) = ask(&v2, "GET /name", &["X-metadata-token: made-up"]);
        assert_eq!((status, body.as_str()), (401, "MMDS token not valid."));
        for (ask_by, show_by) in [
            ("X-metadata-token-ttl-seconds", "X-metadata-token"),
            ("x-AWS-ec2-metadata-token-ttl-seconds", "x-aws-EC2-metadata-token"),
        ] {
            let (status, head, token) = ask(&v2, "PUT /latest/api/token", &[&format!("{ask_by}: 21600")]);
            assert_eq!(status, 200, "{token}");
            assert!(head.contains(&format!("{ask_by}: 21600")), "{head}");
            let (status, _, body) = ask(&v2, "GET /name", &[&format!("{show_by}: {token}")]);
            assert_eq!((status, body.as_str()), (200, "Jo\u{eb}l"));
            // Version 1 gives tokens too, and does not look at them.
            let (status, ..) = ask(
                &service(false, false),
                "GET /name",
                &[&format!("{show_by}: other")],
            );
            assert_eq!(status, 200);
        }
    }

    #[test]
    fn what_is_wrong_with_a_wish_for_a_token_is_said() {
        let v2 = service(true, false);
        for (path, headers, status, body) in [
            (
                TOKEN_PATH,
                &[][..],
                400,
                "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.",
            ),
            (
                TOKEN_PATH,
                &["X-metadata-token-ttl-seconds: 0"],
                400,
                "Invalid time to live value provided for token: 0. Please provide a value between 1 and 21600.",
            ),
            (
                TOKEN_PATH,
                &["X-metadata-token-ttl-seconds: 21601"],
                400,
                "Invalid time to live value provided for token: 21601. Please provide a value between 1 and 21600.",
            ),
            (
                TOKEN_PATH,
                &["X-metadata-token-ttl-seconds: soon"],
                400,
                "Invalid header. Reason: Invalid value. Key:X-metadata-token-ttl-seconds; Value:soon",
            ),
            (
                TOKEN_PATH,
                &["X-Forwarded-For: 1.2.3.4", "X-metadata-token-ttl-seconds: 60"],
                400,
                "Invalid header. Reason: Unsupported header name. Key: X-Forwarded-For",
            ),
            (
                "/latest/api/toke",
                &["X-metadata-token-ttl-seconds: 60"],
                404,
                "Resource not found: /latest/api/toke.",
            ),
        ] {
            let (found, _, said) = ask(&v2, &format!("PUT {path}"), headers);
            assert_eq!((found, said.as_str()), (status, body));
        }
    }

    #[test]
    fn other_verbs_are_told_which_there_are() {
        for verb in ["POST", "PATCH", "DELETE", "HEAD", "BREW"] {
            let (status, head, body) = ask(&service(true, false), &format!("{verb} /"), &[]);
            assert_eq!((status, body.as_str()), (405, "Not allowed HTTP method."));
            assert!(head.contains("Allow: GET, PUT"), "{head}");
        }
    }

    #[test]
    fn a_request_is_served_when_it_is_whole_and_the_next_begins_behind_it() {
        let service = service(false, false);
        let request = b"PUT /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /name HTTP/1.0\r\n\r\n";
        for len in 0..40 {
            assert_eq!(service.serve(&request[..len]), None, "{len}");
        }
        let first = service.serve(request).unwrap();
        assert_eq!((first.len, first.close), (41, false));
        let second = service.serve(&request[first.len..]).unwrap();
        assert_eq!((second.len, second.close), (request.len() - 41, true));
        assert!(second.answer.starts_with(b"HTTP/1.0 200 OK\r\n"));
    }

    #[test]
    fn what_is_no_request_or_too_long_ends_the_connection() {
        let service = service(false, false);
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(REQUEST_MAX));
        for bytes in [
            &b"\x16\x03\x01\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            &long.as_bytes()[..REQUEST_MAX],
        ] {
            let served = service.serve(bytes).unwrap();
            assert!(served.close);
            assert_eq!(served.len, bytes.len());
            assert!(served.answer.starts_with(b"HTTP/1.1 400 Bad Request\r\n"));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_read_past_them(bytes: Vec<u8>, cut in 0..80_usize) {
            let service = service(true, false);
            let mut request = b"PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 5\r\n\r\n".to_vec();
            request.truncate(cut);
            request.extend(&bytes);
            for bytes in [&bytes, &request] {
                if let Some(served) = service.serve(bytes) {
                    assert!(served.len <= bytes.len());
                }
            }
        }
    }
}
