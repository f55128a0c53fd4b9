//! The HTTP server: connections, limits of size and time, and the way from a request to its route and back.
//!
//! One thread serves all clients. What needs the machine is posted to the control thread and waited for without holding up
//! anybody else; a client that sends or reads slowly holds up itself alone.

use std::convert::Infallible;
use std::os::unix::net::UnixListener as StdListener;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderValue, SERVER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::error::ApiError;
use super::observe::{self, MINUTE};
use super::openapi;
use super::route::{Action, Job, Reply, Request, Route, Scene, Verb};
use super::side::Side;
use super::table;
use crate::control::{ControlHandle, Gone};
use crate::metrics::ApiMetrics;

/// What clients may take of the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The largest body, in bytes.
    pub(crate) body: usize,
    /// How long a request's head may take to come; also how long a connection may stay idle after a request.
    pub(crate) head: Duration,
    /// How long a body may take to come.
    pub(crate) body_time: Duration,
    /// How long answers may still take when the VM has ended.
    pub(crate) farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 50 << 10,
            head: Duration::from_secs(60),
            body_time: Duration::from_secs(10),
            farewell: Duration::from_millis(250),
        }
    }
}

/// How long to wait for descriptors if the process has none left for a new client.
const NO_DESCRIPTORS: Duration = Duration::from_millis(100);

/// How much of a body that is too large is read before its sender is told so.
const DRAIN_MAX: usize = 4 << 20;

/// Firecracker's paths know no other statuses than its own; Berth's have HTTP's.
pub(super) const OWN: &str = "/berth/";

/// What the server serves, and with what.
pub(super) struct Server {
    pub(super) control: ControlHandle,
    pub(super) side: Arc<Mutex<Side>>,
    pub(super) routes: Vec<Route>,
    pub(super) limits: Limits,
    pub(super) metrics: Arc<ApiMetrics>,
    /// Becomes true when the VM has ended.
    pub(super) ended: watch::Receiver<bool>,
}

impl Server {
    /// Serves until `ended` says that the VM is no more, and then until all that was asked before is answered.
    pub(super) async fn serve(self, listener: StdListener) -> std::io::Result<()> {
        let listener = UnixListener::from_std(listener)?;
        let server = Rc::new(self);
        let (limits, mut ended) = (server.limits, server.ended.clone());
        let mut clients = JoinSet::new();
        let mut minutes = tokio::time::interval_at(tokio::time::Instant::now() + MINUTE, MINUTE);
        loop {
            tokio::select! {
                biased;
                _ = ended.wait_for(|ended| *ended) => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        clients.spawn_local(client(server.clone(), stream));
                    }
                    Err(error) => {
                        tracing::warn!("api: a client cannot be accepted: {error}");
                        tokio::time::sleep(NO_DESCRIPTORS).await;
                    }
                },
                Some(_) = clients.join_next() => {}
                _ = minutes.tick() => server.flush_metrics(),
            }
        }
        let all = async { while clients.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(limits.farewell, all).await;
        Ok(())
    }

    /// Has the metrics written to their file, if they have one.
    fn flush_metrics(&self) {
        // Once the VM has ended there is nothing to write.
        let _ = observe::flush_soon(&self.control, self.side.clone());
    }

    /// Serves one request.
    async fn answer(&self, request: hyper::Request<Incoming>) -> Response<Out> {
        let begun = Instant::now();
        let method = request.method().clone();
        let result = self.handle(request).await;
        self.metrics
            .served(method.as_str(), result.is_err(), begun.elapsed());
        let mut response = result.unwrap_or_else(Refusal::response);
        let headers = response.headers_mut();
        headers.insert(
            SERVER,
            HeaderValue::from_static(concat!("Berth/", env!("CARGO_PKG_VERSION"))),
        );
        response
    }

    async fn handle(&self, request: hyper::Request<Incoming>) -> Result<Response<Out>, Refusal> {
        let (head, body) = request.into_parts();
        let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
        // Firecracker takes a path with a slash behind it for the one without.
        let trimmed = match path.trim_end_matches('/') {
            "" => "/",
            trimmed => trimmed,
        };
        let verb = Verb::of(&head.method);
        let found = verb.and_then(|verb| {
            self.routes
                .iter()
                .filter(|route| route.verb == verb)
                .find_map(|route| Some((route, route.matches(trimmed)?)))
        });
        let body = self.read(&head.headers, body).await?;
        let Some((route, id)) = found else {
            return Err(self.unknown(head.method.as_str(), trimmed));
        };
        let request = Request {
            id: id.to_owned(),
            query: query.to_owned(),
            body,
        };
        match &route.action {
            Action::Machine(prepare) => {
                let job = prepare(request)?;
                let reply = self.on_control_thread(job).await?;
                Ok(success(reply))
            }
            Action::OpenApi => {
                let document = Reply::json(&openapi::document(&self.routes))?;
                Ok(success(document))
            }
            Action::Events => Ok(self.events(&request.query)),
        }
    }

    /// Runs `job` where the machine is, while this thread serves others.
    async fn on_control_thread(&self, job: Job) -> Result<Reply, ApiError> {
        let (answer, answered) = oneshot::channel();
        let side = self.side.clone();
        self.control.post(move |machine| {
            let mut side = side.lock().unwrap_or_else(PoisonError::into_inner);
            // A client that has gone does not want to know.
            let _ = answer.send(job(&mut Scene {
                machine,
                side: &mut side,
            }));
        })?;
        match answered.await.map_err(|_| ApiError::from(Gone))?? {
            Reply::Later(later) => {
                let waited = tokio::task::spawn_blocking(|| later.wait()).await;
                waited.map_err(|_| ApiError::from(Gone))?
            }
            reply => Ok(reply),
        }
    }

    /// Reads a body that may be no longer, and take no longer, than the limits say.
    async fn read(&self, headers: &HeaderMap, body: Incoming) -> Result<Vec<u8>, Refusal> {
        let limit = self.limits.body;
        let too_large = || {
            Refusal::last(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("The body is larger than the limit of {limit} bytes."),
            ))
        };
        let told = headers
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if told.is_some_and(|told| told > limit as u64) {
            // Few clients look for an answer before they have sent all they have to say.
            if !headers.contains_key(EXPECT) {
                let _ = tokio::time::timeout(self.limits.body_time, drain(body)).await;
            }
            return Err(too_large());
        }
        let mut bytes = Vec::with_capacity(told.unwrap_or_default() as usize);
        let whole = async {
            let mut body = pin!(body);
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| {
                    Refusal::last(ApiError::bad(format!("The body cannot be read: {error}.")))
                })?;
                let Ok(data) = frame.into_data() else { continue };
                if bytes.len() + data.len() > limit {
                    return Err(too_large());
                }
                bytes.extend_from_slice(&data);
            }
            Ok(())
        };
        let Ok(read) = tokio::time::timeout(self.limits.body_time, whole).await else {
            let seconds = self.limits.body_time.as_secs();
            return Err(Refusal::last(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("The body did not come within {seconds} s."),
            )));
        };
        read?;
        Ok(bytes)
    }

    /// Why there is no such route.
    fn unknown(&self, method: &str, path: &str) -> Refusal {
        if !path.starts_with(OWN) {
            return Refusal::from(ApiError::bad(format!(
                "Invalid request method and/or path: {method} {}.",
                path.trim_start_matches('/')
            )));
        }
        let verbs: Vec<_> = self
            .routes
            .iter()
            .filter(|route| route.matches(path).is_some())
            .map(|route| route.verb.name())
            .collect();
        if verbs.is_empty() {
            let message = format!("There is no path {path}; GET {OWN}v1/openapi.json lists those there are.");
            return Refusal::from(ApiError::new(StatusCode::NOT_FOUND, message));
        }
        let verbs = verbs.join(", ");
        let message = format!("{path} knows {verbs}, not {method}.");
        Refusal {
            allow: HeaderValue::from_str(&verbs).ok(),
            ..Refusal::from(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message))
        }
    }

    /// Every event from now on, or with `past=true` those remembered first, a line of JSON each.
    fn events(&self, query: &str) -> Response<Out> {
        let past = query.split('&').any(|pair| pair == "past=true");
        let (teller, mut told) = mpsc::channel(EVENTS_WAITING);
        self.control.events().listen(past, move |event| {
            let line = event.to_json() + "\n";
            teller.try_send(Bytes::from(line)).is_ok()
        });
        let (sender, receiver) = mpsc::channel(1);
        let mut ended = self.ended.clone();
        tokio::task::spawn_local(async move {
            loop {
                let line = tokio::select! {
                    biased;
                    line = told.recv() => line,
                    () = sender.closed() => None,
                    // By now everything has been told.
                    _ = ended.wait_for(|ended| *ended) => told.try_recv().ok(),
                };
                let Some(line) = line else { break };
                if sender.send(line).await.is_err() {
                    break;
                }
            }
        });
        content(Out::Events(receiver), table::LINES)
    }
}

/// Reads a body and forgets it, up to a length beyond which its sender is to be cut short.
async fn drain(body: Incoming) {
    let mut body = pin!(body);
    let mut length = 0;
    while let Some(Ok(frame)) = body.frame().await {
        length += frame.data_ref().map_or(0, Bytes::len);
        if length > DRAIN_MAX {
            break;
        }
    }
}

/// How many events may wait for a client to read them before the client counts as gone.
const EVENTS_WAITING: usize = 256;

/// Serves one connection.
async fn client(server: Rc<Server>, stream: UnixStream) {
    let mut ended = server.ended.clone();
    // A connection that has never asked anything may be idle as long as it likes.
    tokio::select! {
        readable = stream.readable() => if readable.is_err() { return },
        _ = ended.wait_for(|ended| *ended) => return,
    }
    let head = server.limits.head;
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head)
            .pipeline_flush(true)
            .auto_date_header(false)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
    );
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        _ = ended.wait_for(|ended| *ended) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!("api: a client's connection ended: {error}");
    }
}

/// An answer that is not a success.
struct Refusal {
    error: ApiError,
    /// Whether nothing more is to be read from this client.
    close: bool,
    allow: Option<HeaderValue>,
}

impl Refusal {
    /// One after which the connection cannot be used again.
    fn last(error: ApiError) -> Self {
        Self {
            error,
            close: true,
            allow: None,
        }
    }

    fn response(self) -> Response<Out> {
        let ApiError { status, message } = &self.error;
        tracing::info!("api: {}: {message}", status.as_u16());
        let mut response = content(Out::Whole(Some(self.error.body().into())), "application/json");
        *response.status_mut() = self.error.status;
        let headers = response.headers_mut();
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(verbs) = self.allow {
            headers.insert(ALLOW, verbs);
        }
        response
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self {
            error,
            close: false,
            allow: None,
        }
    }
}

fn success(reply: Reply) -> Response<Out> {
    match reply {
        Reply::Done => {
            let mut response = Response::new(Out::Whole(None));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Reply::Json(bytes) => content(Out::Whole(Some(bytes.into())), "application/json"),
        // Has been waited for.
        Reply::Later(_) => success(Reply::Done),
        Reply::Text(kind, bytes) => content(Out::Whole(Some(bytes.into())), kind),
    }
}

fn content(body: Out, kind: &'static str) -> Response<Out> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// What is sent back.
enum Out {
    /// All of it at once.
    Whole(Option<Bytes>),
    /// Lines as they come, until whoever tells them is done.
    Events(mpsc::Receiver<Bytes>),
}

impl Body for Out {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Events(lines) => {
                let line = std::task::ready!(lines.poll_recv(task));
                Poll::Ready(line.map(|line| Ok(Frame::data(line))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Events(_) => SizeHint::default(),
        }
    }
}
