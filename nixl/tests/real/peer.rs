//! A process that serves memory: it says where, and tells every notification that it gets.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read as _, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nixl::{
    Agent, AgentConfig, AgentName, Attention, Fabric, HugePages, LocalDescs, MemKind, Memory, PeerMemory, Read, Region,
    RemoteDescs,
};

use rustix::process::{Pid, Signal, kill_process};

/// Set in a process that is a peer; its value is the peer's name and the bytes to serve.
pub(crate) const ROLE: &str = "NIXL_TEST_PEER";

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The byte that the peer serves at `offset`.
pub(crate) fn pattern(offset: u64) -> u8 {
    let mixed = offset.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// Loads NIXL; prints `SKIPPED` where there is none.
pub(crate) fn nixl_is_there() -> bool {
    nixl_sys::testing::require_nixl().is_some()
}

/// Loads NIXL and makes an agent with a name that only this process uses; to be closed before the process ends.
pub(crate) fn agent(config: impl FnOnce(AgentName) -> AgentConfig, name: &str) -> Option<Arc<Agent>> {
    let api = nixl_sys::testing::require_nixl()?;
    let name = AgentName::new(format!("{name}-{}", std::process::id())).unwrap();
    Some(Agent::start(api, config(name)).expect("an agent"))
}

/// Runs `test` in a process of its own, with `env` set; for tests that need another UCX.
pub(crate) fn in_child(test: &str, env: &[(&str, &str)]) -> Option<String> {
    const MARK: &str = "NIXL_TEST_CHILD";
    if std::env::var_os(MARK).is_some() {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(MARK, "1").envs(env.iter().copied());
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}");
    assert!(output.status.success(), "{test} in a child: {}", output.status);
    Some(text)
}

/// What runs in a peer process. As a test of its own it does nothing.
#[test]
fn peer_process() {
    let Some(role) = std::env::var_os(ROLE) else { return };
    let role = role.to_str().unwrap();
    let (name, len) = role.split_once(':').unwrap();
    let len: u64 = len.parse().unwrap();
    let agent = agent(AgentConfig::serve, name).unwrap();
    agent.attention(Attention::Eager);
    let mut notifications = agent.take_notifications().unwrap();
    let region = agent.register(Memory::host(len, HugePages::Off).unwrap()).wait().unwrap();
    let bytes: Vec<u8> = (0..len).map(pattern).collect();
    region.write_at(0, &bytes).unwrap();
    let metadata = agent.local_metadata().wait().unwrap();
    say(&format!("READY {} {}", region.base(), hex(&metadata)));
    std::thread::spawn(move || {
        while let Some(notification) = notifications.blocking_recv() {
            say(&format!("NOTIF {} {}", notification.from, hex(&notification.message)));
        }
    });
    // The parent holds the other end; it ends us by closing it, or by dying.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    // Not closed on purpose: a peer may die at any time.
    std::process::exit(0);
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n@@{line}").unwrap();
    out.flush().unwrap();
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

pub(crate) struct Peer {
    child: Child,
    _stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub(crate) metadata: Vec<u8>,
    pub(crate) base: u64,
    pub(crate) len: u64,
}

impl Peer {
    pub(crate) fn start(name: &str, len: u64) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "peer::peer_process", "--nocapture", "--test-threads=1"]);
        command.env(ROLE, OsStr::new(&format!("{name}:{len}"))).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut peer = Self { child, _stdin: stdin, stdout, metadata: Vec::new(), base: 0, len };
        let ready = peer.line();
        let mut words = ready.strip_prefix("READY ").expect("the peer is ready").split(' ');
        peer.base = words.next().unwrap().parse().unwrap();
        peer.metadata = unhex(words.next().unwrap());
        peer
    }

    /// The next thing that the peer says.
    fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the peer has died");
            if let Some(said) = line.trim_end_matches('\n').strip_prefix("@@") {
                return said.to_owned();
            }
        }
    }

    /// Waits for the peer's next notification: who sent it, and its bytes.
    pub(crate) fn notification(&mut self) -> (String, Vec<u8>) {
        let line = self.line();
        let (from, message) = line.strip_prefix("NOTIF ").expect("a notification").split_once(' ').unwrap();
        (from.to_owned(), unhex(message))
    }

    pub(crate) fn memory(&self) -> PeerMemory {
        PeerMemory {
            kind: MemKind::Dram,
            device: 0,
            ranges: std::iter::once(self.base..self.base + self.len).collect(),
        }
    }

    /// A read of `(offset at the peer, offset here, length)`.
    pub(crate) fn read(&self, peer: &AgentName, region: &Region, parts: &[(u64, u64, u64)]) -> Read {
        Read {
            peer: peer.clone(),
            local: LocalDescs::new(region, parts.iter().map(|part| (part.1, part.2))).unwrap(),
            remote: RemoteDescs::new(&self.memory(), parts.iter().map(|part| (self.base + part.0, part.2))).unwrap(),
            notify: None,
        }
    }

    pub(crate) fn alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Stops it, as a machine does that has no time for it.
    pub(crate) fn pause(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn wait_until(what: &str, mut there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !there() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
