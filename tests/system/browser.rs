//! A headless Chromium, driven over its debugging pipe: messages in Chrome's `DevTools` protocol, each ended by a zero byte.

#![expect(clippy::print_stdout, reason = "how a test says that it was skipped and where its pictures are")]

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{PATIENCE, wait_for};

/// What `scripts/fetch-chromium` makes, and what else would do where it is on the PATH.
const FETCHED: &str = "target/chromium/chromium";
const ON_PATH: [&str; 4] = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];

/// Messages read and not yet looked at.
const UNREAD: usize = 4096;

/// One browser with one page; dropped = ended.
pub(crate) struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    asked: u64,
    session: Option<String>,
    events: Vec<Value>,
    folder: TempDir,
}

/// A browser, or `None` with `SKIPPED: why` printed; with `browser` in `REQUIRE` its absence fails the test.
pub(crate) fn require_browser() -> Option<Browser> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = ON_PATH.iter().flat_map(|name| std::env::split_paths(&path).map(move |folder| folder.join(name)));
    let Some(program) = std::iter::once(root.join(FETCHED)).chain(on_path).find(|program| program.is_file()) else {
        let why = format!("no {FETCHED} (make setup-browser) and no Chromium on the PATH");
        let required = std::env::var_os("REQUIRE").unwrap_or_default();
        let required = required.to_string_lossy().split(',').any(|what| what.trim() == "browser");
        assert!(!required, "REQUIRE=browser: {why}");
        println!("SKIPPED: {why}");
        return None;
    };
    Some(Browser::start(&program))
}

impl Browser {
    fn start(program: &Path) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let log = File::create(folder.path().join("log")).expect("a log file");
        // Chromium reads from 3 and writes to 4. It gets no sandbox: tests run as root in containers, and it opens only our page.
        let mut child = Command::new("/bin/sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>&2"])
            .arg(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
            .args(["--remote-debugging-pipe", "about:blank"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("a shell");
        let to = child.stdin.take().expect("its commands");
        let mut answers = child.stdout.take().expect("its answers");
        let (tell, from) = sync_channel(UNREAD);
        std::thread::spawn(move || {
            let (mut text, mut piece) = (Vec::new(), [0; 65_536]);
            while let Ok(count @ 1..) = answers.read(&mut piece) {
                text.extend_from_slice(piece.get(..count).unwrap_or_default());
                while let Some(end) = text.iter().position(|byte| *byte == 0) {
                    let rest = text.split_off(end + 1);
                    let message = serde_json::from_slice(text.get(..end).unwrap_or_default());
                    text = rest;
                    if message.map(|message: Value| tell.send(message)).is_err() {
                        return;
                    }
                }
            }
        });
        let mut browser = Self { child, to, from, asked: 0, session: None, events: Vec::new(), folder };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let session = browser.call("Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }));
        browser.session = Some(session["sessionId"].as_str().expect("a session").to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// One command and its answer.
    #[expect(clippy::needless_pass_by_value, reason = "a call with what `json!` makes")]
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let id = self.asked;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = serde_json::to_vec(&message).expect("JSON");
        bytes.push(0);
        if self.to.write_all(&bytes).is_err() {
            panic!("Chromium has gone:\n{}", self.log());
        }
        loop {
            let answer = match self.from.recv_timeout(PATIENCE) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => panic!("no answer to {method} within {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("Chromium has gone:\n{}", self.log()),
            };
            if answer["id"] == id {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            if answer["method"].is_string() {
                self.events.push(answer);
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Opens an address as if typed: an address that differs in what follows `#` only is loaded anew too.
    pub(crate) fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": "about:blank" }));
        let opened = self.call("Page.navigate", json!({ "url": url }));
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
    }

    /// The value of an expression in the page.
    pub(crate) fn js(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer:#}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub(crate) fn until(&mut self, expression: &str) {
        wait_for(expression, || {
            let now = self.call("Runtime.evaluate", json!({ "expression": expression, "returnByValue": true }));
            (now["result"]["value"] == true).then_some(())
        });
    }

    /// Presses the mouse in the middle of an element.
    pub(crate) fn click(&mut self, selector: &str) {
        let middle = self.js(&format!(
            "(() => {{ const node = document.querySelector({}); node.scrollIntoView({{ block: 'center' }}); \
             const box = node.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; }})()",
            json!(selector)
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let params = json!({ "type": kind, "x": middle[0], "y": middle[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", params);
        }
    }

    /// Presses a key: `Enter`, `Tab`, `Escape`.
    pub(crate) fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Enter" => (13, "\r"),
            "Tab" => (9, ""),
            "Escape" => (27, ""),
            other => panic!("no key {other}"),
        };
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let params = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    /// Types into what has the focus.
    pub(crate) fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// The size of the window, in CSS pixels.
    pub(crate) fn resize(&mut self, width: u32, height: u32) {
        let params = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", params);
    }

    /// `light` or `dark`.
    pub(crate) fn scheme(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// A picture of what is in the window, at `target/tests/<name>`.
    pub(crate) fn picture(&mut self, name: &str) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tests");
        std::fs::create_dir_all(&folder).expect("target/tests");
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let bytes = base64(picture["data"].as_str().expect("a picture"));
        assert!(bytes.starts_with(b"\x89PNG"), "no PNG");
        let path: PathBuf = folder.join(name);
        std::fs::write(&path, bytes).expect("the picture is written");
        println!("picture: {}", path.display());
    }

    /// Errors and warnings of the page, of its console and of its security policy.
    pub(crate) fn complaints(&self) -> Vec<&Value> {
        let bad = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => {
                matches!(event["params"]["type"].as_str(), Some("error" | "warning" | "assert"))
            }
            Some("Log.entryAdded") => matches!(event["params"]["entry"]["level"].as_str(), Some("error" | "warning")),
            _ => false,
        };
        self.events.iter().filter(bad).collect()
    }

    /// What has happened so far, by the name of the event.
    pub(crate) fn happened(&self, method: &str) -> impl Iterator<Item = &Value> {
        self.events.iter().filter(move |event| event["method"] == method).map(|event| &event["params"])
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The end of its pipe ends it; a test that fails does not wait for that.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Decodes the standard alphabet; what is outside it ends the text.
fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.bytes().map_while(|byte| ALPHABET.iter().position(|known| *known == byte));
    let (mut bits, mut held, mut bytes) = (0_usize, 0_u32, Vec::with_capacity(text.len()));
    for digit in digits {
        bits = (bits << 6 | digit) & 0xFFFF;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.extend(u8::try_from(bits >> held & 0xFF));
        }
    }
    bytes
}
