//! Starting an agent's thread.

use std::{
    ffi::{CString, NulError},
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self as std_mpsc, RecvTimeoutError},
    },
    time::Duration,
};

use nixl_sys::Api;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{
    Agent, clock,
    config::{AgentConfig, AgentError, Progress},
    driver::Driver,
    inbox::Inbox,
    raw::RawAgent,
    shared::Shared,
    shm::Room,
};
use crate::fabric::Closed;

/// How long NIXL may take to make an agent and its backend.
const START_BUDGET: Duration = Duration::from_secs(60);

impl Agent {
    /// Makes an agent with its backend, on a thread of its own. Blocks until it is there: about 0.4 s for the first one of a
    /// process, 30 ms for the next.
    ///
    /// # Errors
    /// When NIXL cannot make it; see [`AgentError`].
    pub fn start(api: &'static Api, config: AgentConfig) -> Result<Arc<Self>, AgentError> {
        let params = c_params(&config.backend_params)?;
        let inbox = Inbox::new(config.max_queued.max(1), config.attention);
        let shared = Arc::new(Shared::new(inbox));
        let (stream, notifications) = mpsc::channel(config.max_notifications.max(1));
        let (started, wait_started) = std_mpsc::sync_channel(1);
        let agent = Arc::new(Self {
            name: config.name.clone(),
            shared: Arc::clone(&shared),
            notifications: Mutex::new(Some(notifications)),
        });
        let thread = move || {
            // Whoever starts the agent waits below; should it be gone, the agent ends with its inbox.
            match set_up(api, &config, &params) {
                Ok(raw) => {
                    drop(started.send(Ok(())));
                    // After NIXL has started its own threads: they would inherit it.
                    clock::sleep_exactly();
                    drive(Driver::new(raw, &shared, config.max_in_flight, stream));
                }
                Err(error) => drop(started.send(Err(error))),
            }
        };
        // Detached: it ends when the inbox is closed, and `Fabric::close` waits for that.
        let _detached =
            std::thread::Builder::new().name("nixl-agent".to_owned()).spawn(thread).map_err(AgentError::Thread)?;
        // Should it come up later after all, it ends at once: nobody has its inbox any more.
        wait_started.recv_timeout(START_BUDGET).map_err(|error| match error {
            RecvTimeoutError::Timeout => AgentError::Slow(START_BUDGET),
            RecvTimeoutError::Disconnected => AgentError::Died,
        })??;
        Ok(agent)
    }
}

fn c_params(params: &[(String, String)]) -> Result<Vec<(CString, CString)>, AgentError> {
    let owned = |(key, value): &(String, String)| -> Result<_, NulError> {
        Ok((CString::new(key.as_str())?, CString::new(value.as_str())?))
    };
    params.iter().map(|pair| owned(pair).map_err(|_| AgentError::Parameter { key: pair.0.clone() })).collect()
}

fn set_up(api: &'static Api, config: &AgentConfig, params: &[(CString, CString)]) -> Result<RawAgent, AgentError> {
    let progress_us = match config.progress {
        Progress::Off => 0,
        Progress::Every(interval) => u64::try_from(interval.get().as_micros()).unwrap_or(u64::MAX),
    };
    if let Some(gpu) = &config.gpu {
        gpu.make_current().map_err(|source| AgentError::Gpu { name: config.name.clone(), source })?;
    }
    let failed = |source| AgentError::Create { name: config.name.clone(), source };
    let name = CString::new(config.name.as_str()).unwrap_or_default();
    let mut raw = RawAgent::create(api, &name, progress_us).map_err(failed)?;
    let available = raw.plugins().map_err(failed)?;
    let room = Room::look(&config.backend, params);
    let params: Vec<_> = params.iter().cloned().chain(room.more.clone()).collect();
    let made = match CString::new(config.backend.as_str()) {
        Ok(plugin) if available.contains(&config.backend) => raw
            .create_backend(&plugin, &params)
            .map_err(|source| AgentError::Backend { backend: config.backend.clone(), source }),
        _ => Err(AgentError::NoPlugin { wanted: config.backend.clone(), available }),
    };
    drop(room);
    match made {
        Ok(()) => Ok(raw),
        Err(error) => {
            // Nothing was registered yet: an agent that does not go away costs little, and the first error says more.
            let _leaked = raw.destroy();
            Err(error)
        }
    }
}

/// Runs the thread to its end. After a panic nothing is known about the handles: all of them are leaked, and so is the memory.
fn drive(driver: Driver) {
    // Unwinding must not drop what hardware may write, so nothing here is dropped unless it is said.
    let mut driver = ManuallyDrop::new(driver);
    let shared = Arc::clone(&driver.shared);
    let quiet = catch_unwind(AssertUnwindSafe(|| {
        driver.run();
        driver.let_everything_go()
    }));
    let ended = match quiet {
        Ok(quiet) => catch_unwind(AssertUnwindSafe(|| ManuallyDrop::into_inner(driver).destroy(quiet))).ok(),
        Err(_panic) => {
            driver.transfers.lose();
            shared.inbox.close(Duration::ZERO);
            None
        }
    };
    // What is still in the inbox is answered by being dropped.
    drop(shared.inbox.take(usize::MAX));
    match ended {
        Some((how, stats)) => shared.end(how, Some(stats)),
        None => shared.end(Closed::Stuck, None),
    }
}
