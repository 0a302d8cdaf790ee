//! `kvgate top`: one look as JSON at a sidecar and a router, and a terminal that is as it was before, however the program ends.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

use crate::process::{Running, finished, free_ports, kvgate, nixl_is_here, wait_for};

const ALTERNATE_SCREEN: &str = "\x1b[?1049h";
const MAIN_SCREEN: &str = "\x1b[?1049l";

fn once(url: &str) -> Value {
    let (code, text) = finished(&mut kvgate(&format!("top --once --json --url {url}")));
    assert_eq!(code, 0, "{text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("no JSON ({error}) but:\n{text}"))
}

#[test]
fn one_look_at_a_sidecar_and_at_a_router() {
    if !nixl_is_here() {
        return;
    }
    let base = free_ports(2);
    let engine = Running::start(&format!(
        "sim --role decode --listen 127.0.0.1:0 --side-channel 127.0.0.1:{base} --data-parallel-size 2 --num-blocks 8"
    ));
    let sidecar = Running::start(&format!(
        "sidecar --role decode --engine http://127.0.0.1:{} --engine-side-channel 127.0.0.1:{base} --data-parallel-size 2 \
         --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 --staging-bytes 16MiB",
        engine.http
    ));
    let url = format!("http://127.0.0.1:{}", sidecar.http);
    let ready = |snapshot: &Value| {
        snapshot["ranks"]
            .as_array()
            .is_some_and(|all| all.len() == 2 && all.iter().all(|rank| rank["state"] == "ready"))
    };
    let snapshot = wait_for("two ready ranks", || Some(once(&url)).filter(ready));
    assert_eq!(
        (snapshot["kind"].as_str(), snapshot["url"].as_str()),
        (Some("sidecar"), Some(url.as_str())),
        "{snapshot:#}"
    );
    assert!(snapshot["version"]["nixl"]["version"].is_string(), "{snapshot:#}");
    assert_eq!(snapshot["recent"], Value::Array(Vec::new()));
    // What this build does not answer is named; nothing else is.
    for missing in snapshot["missing"].as_array().expect("a list") {
        let path = missing["path"].as_str().expect("a path");
        assert_eq!(sidecar.request("GET", path, "").0, 404, "{missing}");
    }

    let router = Running::start(&format!(
        "router --prefill http://127.0.0.1:1 --decode http://127.0.0.1:{},sidecar={url} --intra-node-data-parallel-size 2 --host 127.0.0.1 --port 0",
        engine.http
    ));
    let snapshot = once(&format!("http://127.0.0.1:{}/", router.http));
    assert_eq!(snapshot["kind"], "router", "{snapshot:#}");
    assert_eq!(snapshot["ranks"].as_array().map(Vec::len), Some(4), "{snapshot:#}");
}

#[test]
fn nobody_and_strangers_are_errors_in_words() {
    let (code, text) = finished(&mut kvgate(&format!("top --once --json --url http://127.0.0.1:{}", free_ports(1))));
    assert!(code == 1 && text.contains("refused"), "{code}: {text}");
    let (code, text) = finished(&mut kvgate("top --once"));
    assert!(code == 64 && text.contains("--json"), "{code}: {text}");
    let (code, text) = finished(&mut kvgate("top"));
    assert!(code == 1 && text.contains("--once --json"), "{code}: {text}");
    if nixl_is_here() {
        let base = free_ports(1);
        let engine = Running::start(&format!(
            "sim --role decode --listen 127.0.0.1:0 --side-channel 127.0.0.1:{base} --num-blocks 8"
        ));
        let (code, text) = finished(&mut kvgate(&format!("top --once --json --url http://127.0.0.1:{}", engine.http)));
        assert!(code == 1 && text.contains("neither like a kvgate sidecar"), "{code}: {text}");
    }
}

/// `kvgate top` on a terminal of its own.
struct OnTerminal {
    child: Child,
    /// Our end: what is written here is typed, what is read here was shown.
    ours: File,
    /// The program's end, kept open so that its modes can be asked after the program has gone.
    theirs: File,
    shown: String,
}

impl OnTerminal {
    fn start() -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&ours).expect("granted");
        unlockpt(&ours).expect("unlocked");
        let name = ptsname(&ours, Vec::new()).expect("its name").into_string().expect("text");
        rustix::io::ioctl_fionbio(&ours, true).expect("reads that do not wait");
        let theirs = File::options().read(true).write(true).open(name).expect("its other end");
        tcsetwinsize(&theirs, Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).expect("a size");
        let stream = || Stdio::from(theirs.try_clone().expect("another handle"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvgate"));
        // Nobody is there: the screen says so, and stays.
        command.args(["top", "--url", &format!("http://127.0.0.1:{}", free_ports(1))]);
        let child = command.stdin(stream()).stdout(stream()).stderr(Stdio::null()).spawn().expect("the binary starts");
        Self { child, ours: File::from(ours), theirs, shown: String::new() }
    }

    /// Whether what is typed is gathered into lines and shown: a terminal's ordinary state.
    fn is_ordinary(&self) -> bool {
        let modes = tcgetattr(&self.theirs).expect("its modes").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }

    fn wait_to_show(&mut self, what: &str) {
        wait_for(what, || {
            let mut bytes = [0_u8; 4096];
            while let Ok(count @ 1..) = self.ours.read(&mut bytes) {
                self.shown.push_str(&String::from_utf8_lossy(bytes.get(..count).unwrap_or_default()));
            }
            self.shown.contains(what).then_some(())
        });
    }

    /// Up, with its screen drawn.
    fn up(&mut self) {
        assert!(self.is_ordinary());
        self.wait_to_show(ALTERNATE_SCREEN);
        // One word of the keys' line: spaces are not written, the cursor jumps over them.
        self.wait_to_show("quit");
        assert!(!self.is_ordinary());
    }

    fn ends_clean(mut self) {
        let status = wait_for("its end", || self.child.try_wait().expect("it can be asked"));
        assert!(status.success(), "{status}");
        self.wait_to_show(MAIN_SCREEN);
        assert!(self.is_ordinary(), "the terminal was left raw");
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_key_and_a_signal_both_put_the_terminal_back() {
    use std::io::Write as _;
    let mut typed = OnTerminal::start();
    typed.up();
    typed.ours.write_all(b"q").expect("typed");
    typed.ends_clean();

    let mut control_c = OnTerminal::start();
    control_c.up();
    control_c.ours.write_all(b"\x03").expect("typed");
    control_c.ends_clean();

    let mut signalled = OnTerminal::start();
    signalled.up();
    kill_process(Pid::from_child(&signalled.child), Signal::TERM).expect("it runs");
    signalled.ends_clean();
}
