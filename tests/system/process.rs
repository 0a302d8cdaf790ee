//! Processes of the binary under test: started on free ports, ended by id, their logs in the failure message.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Long enough for a loaded machine with two cores; a pass never waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub(crate) fn kvgate(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvgate"));
    command.args(args.split_whitespace()).stdin(Stdio::null());
    command
}

/// Runs to its end.
pub(crate) fn finished(command: &mut Command) -> (i32, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary starts");
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (status.code().unwrap_or(-1), text)
}

/// Whether this machine has NIXL; says so when not.
pub(crate) fn nixl_is_here() -> bool {
    nixl_sys::testing::require_nixl().is_some()
}

/// One running process; dropped = killed.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    folder: TempDir,
    pub(crate) http: u16,
    pub(crate) side_channel: Vec<u16>,
}

impl Running {
    /// Starts `kvgate <args>` and waits until it has written its ports.
    pub(crate) fn start(args: &str) -> Self {
        Self::start_as(kvgate(""), args)
    }

    /// The same in an environment of its own.
    pub(crate) fn start_as(kvgate: Command, args: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let log = File::create(folder.path().join("log")).expect("a log file");
        Self::start_in(folder, kvgate, args, log)
    }

    /// The same with its log somewhere else.
    pub(crate) fn start_with(args: &str, log: File) -> Self {
        Self::start_in(TempDir::new().expect("a temporary folder"), kvgate(""), args, log)
    }

    fn start_in(folder: TempDir, mut kvgate: Command, args: &str, log: File) -> Self {
        let ports = folder.path().join("ports.json");
        let child = kvgate
            .args(args.split_whitespace())
            .arg("--ports-file")
            .arg(&ports)
            .args(["--log-format", "text"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        let mut running = Self { child, folder, http: 0, side_channel: Vec::new() };
        let ports = wait_for("its ports file", || {
            let ended = running.child.try_wait().expect("the process can be asked");
            assert!(ended.is_none(), "kvgate {args} ended with {ended:?}:\n{}", running.log());
            serde_json::from_slice::<Value>(&std::fs::read(&ports).ok()?).ok()
        });
        running.http = port(&ports["http"]);
        running.side_channel =
            ports["side_channel"].as_array().map(|all| all.iter().map(port).collect()).unwrap_or_default();
        running
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// One request over a fresh connection: status, and the body as JSON (or null).
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        request(self.http, method, path, body)
    }

    /// Asks it to end and returns its exit code.
    pub(crate) fn terminate(self) -> i32 {
        self.signal_to_end();
        self.wait_for_end().unwrap_or(-1)
    }

    /// Asks it to end.
    pub(crate) fn signal_to_end(&self) {
        self.signal(Signal::TERM);
    }

    /// Stops it where it is, until [`Self::thaw`].
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is there");
    }

    /// Its exit code once it has ended; none when a signal has ended it.
    pub(crate) fn wait_for_end(mut self) -> Option<i32> {
        wait_for("its end", || self.child.try_wait().expect("the process can be asked")).code()
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(&mut self) {
        // It may have ended already; then there is nothing to kill and nothing to wait for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for a level: `Some` from `look`.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    #[expect(clippy::disallowed_methods, reason = "the deadline of a test's wait")]
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        #[expect(clippy::disallowed_methods, reason = "the deadline of a test's wait")]
        let now = Instant::now();
        assert!(now < until, "no {what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The first of `count` neighbouring free ports.
pub(crate) fn free_ports(count: u16) -> u16 {
    wait_for("neighbouring free ports", || {
        let first = std::net::TcpListener::bind("127.0.0.1:0").ok()?;
        let base = first.local_addr().ok()?.port();
        let rest: Result<Vec<_>, _> = (1..count)
            .map(|offset| std::net::TcpListener::bind(("127.0.0.1", base.checked_add(offset).unwrap_or(1))))
            .collect();
        rest.ok().map(|_| base)
    })
}

fn port(value: &Value) -> u16 {
    value.as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port")
}

/// One request over a fresh connection: status, and the body as JSON (or null).
pub(crate) fn request(port: u16, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the process listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("the request is sent");
    // A server may answer and close before it has read a body that it refuses.
    drop(stream.write_all(body.as_bytes()));
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    assert!(read.is_ok() || !answer.is_empty(), "no answer: {read:?}");
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

/// A file in a folder that goes with the value.
pub(crate) fn scratch_file(name: &str, content: &[u8]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a temporary folder");
    let file = folder.path().join(name);
    std::fs::write(&file, content).expect("the file is written");
    (folder, file)
}
