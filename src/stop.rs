//! From signals to the token that every subcommand drains on.

use std::io;

use rustix::process::{Signal as RawSignal, getpid, kill_process};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A token that SIGTERM or SIGINT cancels. A second one ends the process at once, as SIGKILL does: whoever sends it does not want to wait,
/// and orderly ends of libraries may wait for what hangs.
///
/// # Errors
/// When the process cannot listen for signals.
pub(crate) fn on_signal() -> io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = stop.clone();
    // Lives as long as the runtime: it ends with the process.
    TaskTracker::new().spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        tracing::info!("asked to stop");
        token.cancel();
        either(&mut terminate, &mut interrupt).await;
        tracing::warn!("asked to stop again: ending at once");
        if let Err(error) = kill_process(getpid(), RawSignal::KILL) {
            tracing::error!(%error, "this process cannot end itself");
        }
    });
    Ok(stop)
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
