//! The demo's processes: started from this very binary, ended by id.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

const START_WITHIN: Duration = Duration::from_secs(60);
/// Above the sidecar's own budget for draining and closing.
const STOP_WITHIN: Duration = Duration::from_secs(40);

/// The ports that a process says it has bound.
#[derive(Debug, Deserialize)]
pub(super) struct Ports {
    /// Of its HTTP server.
    pub(super) http: u16,
}

/// One running process.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    pub(super) ports: Ports,
}

/// All of them, ended in reverse order of their start.
#[derive(Debug, Default)]
pub(super) struct Children(Vec<Process>);

impl Children {
    /// Starts `kvgate <args>` with its log in `folder` and waits until it can be talked to.
    pub(super) async fn start(&mut self, folder: &Path, name: &str, args: &[String]) -> Result<&Process> {
        let (log, ports) = (folder.join(format!("{name}.log")), folder.join(format!("{name}.ports.json")));
        let stderr = std::fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let program = std::env::current_exe().context("find this program")?;
        let child = Command::new(program)
            .args(args)
            .arg("--ports-file")
            .arg(&ports)
            .args(["--log-format", "text", "--end-with-parent", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            // Ctrl-C on the terminal reaches the whole foreground group; the demo ends its children itself, in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        // From here on it is ours to end, also when this future is dropped while it waits.
        self.0.push(Process { name: name.to_owned(), child, log, ports: Ports { http: 0 } });
        let process = self.0.last_mut().context("the process that was just started")?;
        process.ports = process.wait_for_ports(&ports).await?;
        Ok(process)
    }

    /// The first process that has ended by itself, with its log's tail.
    pub(super) fn check(&mut self) -> Result<()> {
        for process in &mut self.0 {
            if let Some(status) = process.child.try_wait().context("look after a process")? {
                bail!("{} ended by itself ({status}):\n{}", process.name, process.log_tail());
            }
        }
        Ok(())
    }

    /// Ends every process: SIGTERM, then SIGKILL for what is left. Returns the names of those that had to be killed.
    pub(super) async fn stop(mut self) -> Vec<String> {
        let mut killed = Vec::new();
        while let Some(mut process) = self.0.pop() {
            if !process.end().await {
                killed.push(process.name);
            }
        }
        killed
    }
}

impl Process {
    /// Its HTTP address, without a path.
    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.http)
    }

    async fn wait_for_ports(&mut self, file: &Path) -> Result<Ports> {
        let until = Instant::now() + START_WITHIN;
        loop {
            if let Ok(text) = tokio::fs::read_to_string(file).await
                && let Ok(ports) = serde_json::from_str(&text)
            {
                return Ok(ports);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} could not start ({status}):\n{}", self.name, self.log_tail());
            }
            if Instant::now() >= until {
                bail!("{} is not up after {START_WITHIN:?}:\n{}", self.name, self.log_tail());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether it ended by itself when asked to.
    async fn end(&mut self) -> bool {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // Without an id it has ended already.
        let Some(pid) = pid else { return true };
        if kill_process(pid, Signal::TERM).is_ok() && timeout(STOP_WITHIN, self.child.wait()).await.is_ok() {
            return true;
        }
        self.child.kill().await.is_err()
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(12)).map(|line| format!("  {line}\n")).collect()
    }
}
