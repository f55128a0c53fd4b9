//! The log and the metrics.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::ApiStartError;
use super::configure::before_start;
use super::error::ApiError;
use super::prepare::Prepared;
use super::route::Scene;
use super::side::Side;
use super::types::{BerthLog, Logger, Metrics};
use crate::control::{ControlHandle, Gone};
use crate::logging::LogLevel;
use crate::metrics;

/// How often metrics are written to their file.
pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// A file that metrics are written to, a line of JSON at a time.
#[derive(Debug)]
pub(crate) struct MetricsFile {
    file: File,
    config: Metrics,
}

impl MetricsFile {
    /// How it was asked for.
    pub(crate) fn config(&self) -> Metrics {
        self.config.clone()
    }
}

/// Opens a file or a pipe to append to; a pipe that nobody reads does not hold up anybody.
fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// `PUT /metrics`
pub(crate) fn put_metrics(scene: &mut Scene<'_>, _: &str, config: Metrics) -> Result<(), ApiError> {
    before_start(scene)?;
    if scene.side.metrics.is_some() {
        return Err(ApiError::bad(
            "metrics_path: Reinitialization of metrics not allowed: they have a file already.",
        ));
    }
    let path = &config.metrics_path;
    let file = open(path).map_err(|cause| {
        ApiError::bad(format!(
            "metrics_path: Cannot initialize the metrics system due to bad user input: {}: {cause}",
            path.display()
        ))
    })?;
    scene.side.metrics = Some(MetricsFile { file, config });
    Ok(())
}

/// Writes the metrics to their file, as `FlushMetrics` asks for.
pub(crate) fn flush(scene: &mut Scene<'_>) -> Result<(), ApiError> {
    let Some(out) = &mut scene.side.metrics else {
        return Err(ApiError::bad(
            "FlushMetrics: there is no file for metrics; PUT /metrics with a metrics_path first.",
        ));
    };
    let mut line = metrics::firecracker_line(&metrics::report(scene.machine, &scene.side.api));
    line.push('\n');
    out.file.write_all(line.as_bytes()).map_err(|cause| {
        ApiError::bad(format!(
            "FlushMetrics: {}: {cause}",
            out.config.metrics_path.display()
        ))
    })
}

/// Has the control thread write the metrics to their file, if they have one.
pub(super) fn flush_soon(control: &ControlHandle, side: Arc<Mutex<Side>>) -> Result<(), Gone> {
    control.post(move |machine| {
        let mut side = side.lock().unwrap_or_else(PoisonError::into_inner);
        let side = &mut *side;
        if side.metrics.is_some()
            && let Err(error) = flush(&mut Scene { machine, side })
        {
            tracing::warn!("api: {}", error.message);
        }
    })
}

/// Writes metrics to their file where no server does, until it is dropped.
#[derive(Debug)]
pub struct MetricsWriter {
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsWriter {
    /// Begins, if what was prepared has a file for metrics.
    pub fn start(control: ControlHandle, prepared: Prepared) -> Result<Option<Self>, ApiStartError> {
        if prepared.side.metrics.is_none() {
            return Ok(None);
        }
        let side = Arc::new(Mutex::new(prepared.side));
        let (end, ended) = mpsc::channel();
        let work = move || {
            // The first line says that the guest has started.
            while flush_soon(&control, side.clone()).is_ok()
                && ended.recv_timeout(MINUTE) == Err(RecvTimeoutError::Timeout)
            {}
        };
        let thread = thread::Builder::new().name("metrics".to_owned()).spawn(work);
        Ok(Some(Self {
            end: Some(end),
            thread: Some(thread.map_err(ApiStartError::Thread)?),
        }))
    }
}

impl Drop for MetricsWriter {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic on it was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// `GET /berth/v1/metrics`
pub(crate) fn prometheus(scene: &mut Scene<'_>) -> String {
    metrics::prometheus(&metrics::report(scene.machine, &scene.side.api))
}

/// `GET /berth/v1/metrics.json`
pub(crate) fn json(scene: &mut Scene<'_>) -> Result<metrics::Report, ApiError> {
    Ok(metrics::report(scene.machine, &scene.side.api))
}

/// `PUT /logger`
pub(crate) fn put_logger(scene: &mut Scene<'_>, _: &str, logger: Logger) -> Result<(), ApiError> {
    before_start(scene)?;
    let log = log(scene)?;
    if let Some(path) = &logger.log_path {
        log.redirect(path)
            .map_err(|fault| ApiError::bad(format!("log_path: {}", fault.message)))?;
    }
    if logger.level.is_none() && logger.module.is_none() {
        return Ok(());
    }
    let level = match logger.level.as_deref() {
        // Firecracker takes both.
        Some(level) if level.eq_ignore_ascii_case("warning") => "warn".to_owned(),
        Some(level) => level.to_ascii_lowercase(),
        None => "info".to_owned(),
    };
    let filter = match logger.module {
        Some(module) => format!("off,{module}={level}"),
        None => level,
    };
    set_level(log, &filter)
}

fn log<'a>(scene: &'a Scene<'_>) -> Result<&'a LogLevel, ApiError> {
    let log = scene.machine.log();
    log.ok_or_else(|| ApiError::bad("The log of this process cannot be changed."))
}

fn set_level(log: &LogLevel, text: &str) -> Result<(), ApiError> {
    let bad = |why: String| ApiError::bad(format!("level: {why}"));
    let filter = text.parse().map_err(bad)?;
    log.set(filter).map_err(|fault| bad(fault.message))
}

/// `GET /berth/v1/log`
pub(crate) fn get_log(scene: &mut Scene<'_>) -> Result<BerthLog, ApiError> {
    let level = log(scene)?.get().to_string();
    Ok(BerthLog { level })
}

/// `PATCH /berth/v1/log`
pub(crate) fn patch_log(scene: &mut Scene<'_>, _: &str, wanted: BerthLog) -> Result<(), ApiError> {
    set_level(log(scene)?, &wanted.level)
}
