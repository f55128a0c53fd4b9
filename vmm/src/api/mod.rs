//! The REST API: Firecracker's paths, and Berth's own below `/berth/v1`, over HTTP/1.1 on a Unix socket.
//!
//! ```text
//!   client ──▶ server ──▶ route: reads the body ──ControlHandle::post──▶ handler, with the machine, on the control thread
//!     ▲                                                                             │
//!     └──────────────── status and JSON ◀───────────── oneshot ─────────────────────┘
//! ```
//! One thread serves all clients ([`server`]). What there is stands in one table ([`table`]), which is both served and
//! described ([`openapi`]). Whatever a handler changes it changes on the control thread, one request after the other; nothing
//! ever waits there for a client.
#![forbid(unsafe_code)]
#![allow(
    clippy::needless_pass_by_value,
    clippy::unnecessary_wraps,
    reason = "all handlers have one signature"
)]

mod balloon;
mod berth;
mod configure;
mod devices;
mod error;
mod limits;
mod mmds;
mod observe;
mod openapi;
mod pmem;
mod prepare;
mod route;
mod server;
mod side;
mod snapshot;
mod socket;
mod table;
#[cfg(test)]
mod tests;
mod types;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use tokio::runtime;
use tokio::sync::watch;
use tokio::task::LocalSet;

pub use configure::FIRECRACKER;
pub use observe::MetricsWriter;
pub use prepare::{Preparation, Prepared};
pub use socket::SocketError;
pub(crate) use socket::{SocketFile, listen};

use self::server::Server;
use crate::control::ControlHandle;

/// Why there is no API.
#[derive(Debug, thiserror::Error)]
pub enum ApiStartError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No thread.
    #[error("the host refused a thread for the API: {0}")]
    Thread(io::Error),
}

/// The API of one VM, served until this is dropped.
#[derive(Debug)]
pub struct Api {
    ended: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    /// Removed last, so that whoever finds it finds somebody behind it.
    _file: SocketFile,
}

impl Api {
    /// Serves the API of the machine behind `control` at `path`, with what was prepared for it.
    pub fn start(path: &Path, control: ControlHandle, prepared: Prepared) -> Result<Self, ApiStartError> {
        let Prepared { side, limits, .. } = prepared;
        let (listener, file) = socket::listen(path)?;
        let (ended, end) = watch::channel(false);
        let serve = move || {
            let metrics = side.api.clone();
            let server = Server {
                control,
                side: Arc::new(Mutex::new(side)),
                routes: table::routes(),
                limits,
                metrics,
                ended: end,
            };
            let served = runtime::Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()
                .and_then(|runtime| LocalSet::new().block_on(&runtime, server.serve(listener)));
            if let Err(error) = served {
                tracing::error!("api: the socket is not served any more: {error}");
            }
        };
        let thread = thread::Builder::new()
            .name("api".to_owned())
            .spawn(serve)
            .map_err(ApiStartError::Thread)?;
        tracing::info!("api: served at {}", path.display());
        Ok(Self {
            ended,
            thread: Some(thread),
            _file: file,
        })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.ended.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic on it was reported by the panic hook.
            let _ = thread.join();
        }
    }
}
