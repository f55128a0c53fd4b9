//! The user's terminal in raw mode, and back on every way out.
//!
//! Drop restores it; so does the panic hook, since a release build aborts on panic. A signal ends Berth through the
//! control loop and thus through drop. Only SIGKILL leaves a raw terminal behind (`reset` helps).

use std::io::IsTerminal;
use std::sync::Mutex;

use berth_devices::contained;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// What the terminal was before Berth changed it, for the panic hook.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Stdin's terminal, raw as long as this lives.
#[derive(Debug)]
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Makes stdin raw if it is a terminal; `None` if it is not.
    pub(crate) fn take() -> std::io::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        if let Ok(mut slot) = BEFORE.lock() {
            *slot = Some(before);
        }
        restore_on_panic();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was. Does nothing where it was not changed.
fn restore() {
    // `try_lock`: the panic hook must not wait.
    if let Ok(mut slot) = BEFORE.try_lock()
        && let Some(before) = slot.take()
    {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
    }
}

fn restore_on_panic() {
    let next = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !contained::is_here() {
            restore();
        }
        next(info);
    }));
}
