//! A small deployment of real processes over real NIXL, and streams through it whose right text is known.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};

use serde_json::{Value, json};

use crate::process::{PATIENCE, Running, request, wait_for};

/// What is started; one rank in each pod, one prefill pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Decode pods.
    pub(crate) decode: usize,
    /// Milliseconds for each token of a decode engine.
    pub(crate) tpot_ms: u64,
    /// P's lease.
    pub(crate) lease_ms: u64,
    /// More flags of the prefill engine, of decode sidecars and of the router.
    pub(crate) prefill: &'static str,
    pub(crate) sidecar: &'static str,
    pub(crate) router: &'static str,
}

impl Default for Plan {
    fn default() -> Self {
        Self { decode: 1, tpot_ms: 0, lease_ms: 30_000, prefill: "", sidecar: "", router: "" }
    }
}

/// An engine and its sidecar, which come back at the same addresses.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) engine: Running,
    pub(crate) sidecar: Running,
    pub(crate) engine_line: String,
    pub(crate) sidecar_line: String,
}

/// The whole of it.
#[derive(Debug)]
pub(crate) struct Deployment {
    pub(crate) router: Running,
    pub(crate) prefill: Pod,
    pub(crate) decode: Vec<Pod>,
}

impl Pod {
    fn start(role: &str, plan: &Plan) -> Self {
        let engine_flags = if role == "prefill" { plan.prefill } else { "" };
        let tpot_ms = if role == "decode" { plan.tpot_ms } else { 0 };
        // Ports are the system's choice at first, and kept from then on.
        let engine_line = |http: u16, side_channel: u16| {
            format!(
                "sim --role {role} --listen 127.0.0.1:{http} --side-channel 127.0.0.1:{side_channel} --layers 4 --kv-heads 2 \
                 --head-size 64 --num-blocks 1024 --max-num-seqs 128 --kv-lease-ms {} --tpot-ms {tpot_ms} {engine_flags}",
                plan.lease_ms,
            )
        };
        let engine = Running::start(&engine_line(0, 0));
        let engine_line = engine_line(engine.http, engine.side_channel[0]);
        let sidecar_flags = if role == "decode" { plan.sidecar } else { "" };
        let sidecar_line = |http: u16| {
            format!(
                "sidecar --role {role} --engine http://127.0.0.1:{} --engine-side-channel 127.0.0.1:{} \
                 --listen 127.0.0.1:{http} --side-channel-listen 127.0.0.1:0 --staging-bytes 64MiB --kv-lease {}ms {sidecar_flags}",
                engine.http, engine.side_channel[0], plan.lease_ms,
            )
        };
        let sidecar = Running::start(&sidecar_line(0));
        let sidecar_line = sidecar_line(sidecar.http);
        Self { engine, sidecar, engine_line, sidecar_line }
    }

    fn flag(&self, role: &str) -> String {
        format!("--{role} http://127.0.0.1:{},sidecar=http://127.0.0.1:{}", self.engine.http, self.sidecar.http)
    }

    /// The engine's process dies, another one comes up at its address, and the sidecar knows that it is another.
    pub(crate) fn restart_engine(&mut self) {
        let before = self.rank()["engine_id"].clone();
        self.engine.kill();
        self.engine = Running::start(&self.engine_line);
        wait_for("the new engine", || {
            let rank = self.rank();
            (rank["state"] == "ready" && rank["engine_id"] != before).then_some(())
        });
    }

    /// Figures of its one rank, as the sidecar shows them.
    pub(crate) fn rank(&self) -> Value {
        self.sidecar.request("GET", "/v1/ranks", "").1["ranks"][0].clone()
    }

    /// Slots, pulls and handles that are in use.
    pub(crate) fn held(&self) -> u64 {
        let rank = self.rank();
        let number = |path| rank.pointer(path).and_then(Value::as_u64).unwrap_or(1);
        number("/staging/used_blocks") + number("/in_flight") + number("/handles")
    }

    /// Prefills whose blocks the engine keeps for a reader.
    pub(crate) fn pinned(&self) -> u64 {
        self.gauge("sim:pinned_requests")
    }

    /// A figure of the engine.
    pub(crate) fn gauge(&self, name: &str) -> u64 {
        let page = page(self.engine.http, "/metrics");
        let line = page.lines().find(|line| line.starts_with(&format!("{name}{{")));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("no {name} in {page}")).round().abs().to_string().parse().expect("a count")
    }
}

impl Deployment {
    pub(crate) fn start(plan: &Plan) -> Self {
        let prefill = Pod::start("prefill", plan);
        let decode: Vec<Pod> = (0..plan.decode).map(|_| Pod::start("decode", plan)).collect();
        let mut router_line = format!(
            "router --pd-disaggregation --host 127.0.0.1 --port 0 --debug-headers --kv-lease {}ms --connect-deadline-ms 1000 {} {}",
            plan.lease_ms,
            prefill.flag("prefill"),
            plan.router,
        );
        for pod in &decode {
            router_line = format!("{router_line} {}", pod.flag("decode"));
        }
        let router = Running::start(&router_line);
        let deployment = Self { router, prefill, decode };
        deployment.wait_until_ready();
        deployment
    }

    /// Waits until the router sees every rank ready.
    pub(crate) fn wait_until_ready(&self) {
        let wanted = 1 + self.decode.len();
        wait_for("ready ranks", || {
            let (_, page) = self.router.request("GET", "/readyz", "");
            let targets = page["targets"].as_array()?.clone();
            (targets.iter().filter(|target| target["ready"] == true).count() == wanted).then_some(())
        });
    }

    /// The text that an engine which does not split has for a prompt.
    pub(crate) fn expected(&self, prompt: &str, tokens: u64) -> String {
        let body = body(prompt, tokens, false).to_string();
        let (status, answer) = self.prefill.engine.request("POST", "/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["text"].as_str().expect("a text").to_owned()
    }

    /// One request through the router, without a stream.
    pub(crate) fn ask(&self, prompt: &str, tokens: u64) -> (u16, Value) {
        self.router.request("POST", "/v1/completions", &body(prompt, tokens, false).to_string())
    }

    /// One stream through the router.
    pub(crate) fn stream(&self, prompt: &str, tokens: u64) -> Stream {
        Stream::start(self.router.http, prompt, tokens)
    }

    /// Waits until nothing is held on any side.
    pub(crate) fn wait_until_nothing_is_held(&self) {
        wait_for("slots, pulls, handles and pins to be given back", || {
            let held: u64 = self.decode.iter().map(Pod::held).sum();
            (held + self.prefill.pinned() == 0).then_some(())
        });
    }
}

fn body(prompt: &str, tokens: u64, stream: bool) -> Value {
    json!({ "model": "sim", "prompt": prompt, "max_tokens": tokens, "stream": stream })
}

/// A page that is no JSON.
pub(crate) fn page(port: u16, path: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("the process listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    write!(socket, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").expect("it is sent");
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("a page");
    text
}

/// One request to an engine that leaves its blocks pinned for a reader; its transfer parameters.
pub(crate) fn prefilled(engine: &Running, prompt: &str) -> Value {
    let mut ask = body(prompt, 1, false);
    ask["kv_transfer_params"] = json!({ "do_remote_decode": true, "do_remote_prefill": false });
    let (status, answer) = request(engine.http, "POST", "/v1/completions", &ask.to_string());
    assert_eq!(status, 200, "{answer}");
    answer["kv_transfer_params"].clone()
}

/// What D's sidecar is asked to pull.
pub(crate) fn transfer(attempt: &str, params: &Value) -> String {
    let body = json!({
        "attempt_id": attempt, "request_id": "label", "dp_rank": 0, "deadline_ms": 20_000, "lease_ms": 30_000,
        "prefill_done_age_ms": 0, "kv_transfer_params": params,
    });
    body.to_string()
}

/// A stream that is read on a thread of its own.
#[derive(Debug)]
pub(crate) struct Stream {
    began: Arc<AtomicBool>,
    reading: JoinHandle<Ended>,
}

/// How a stream ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) text: String,
    /// It had its last event.
    pub(crate) whole: bool,
    /// The code of the error in it or instead of it.
    pub(crate) error: Option<String>,
}

impl Stream {
    fn start(port: u16, prompt: &str, tokens: u64) -> Self {
        Self::named(port, prompt, tokens, "")
    }

    /// One whose client has a name for it.
    pub(crate) fn named(port: u16, prompt: &str, tokens: u64, name: &str) -> Self {
        let began = Arc::new(AtomicBool::new(false));
        let (body, seen) = (body(prompt, tokens, true).to_string(), Arc::clone(&began));
        let name = if name.is_empty() { String::new() } else { format!("x-request-id: {name}\r\n") };
        Self { began, reading: spawn(move || read(port, &body, &name, &seen)) }
    }

    /// Whether its first token is here, or its end.
    pub(crate) fn has_begun(&self) -> bool {
        self.began.load(Ordering::Relaxed) || self.reading.is_finished()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.reading.is_finished()
    }

    pub(crate) fn end(self) -> Ended {
        self.reading.join().expect("the reader ends")
    }
}

fn read(port: u16, body: &str, name: &str, began: &AtomicBool) -> Ended {
    let mut ended = Ended::default();
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) else {
        ended.error = Some("no connection".to_owned());
        return ended;
    };
    socket.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    let head = "POST /v1/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n";
    write!(socket, "{head}{name}content-length: {}\r\n\r\n{body}", body.len()).expect("it is sent");
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = socket.read(&mut piece) {
        all.extend_from_slice(&piece[..count]);
        if String::from_utf8_lossy(&all).contains("\ndata: ") {
            began.store(true, Ordering::Relaxed);
        }
    }
    let all = String::from_utf8_lossy(&all);
    // The lines between are the sizes of chunks.
    for line in all.lines() {
        if line == "data: [DONE]" {
            ended.whole = true;
        }
        let json = line.strip_prefix("data: ").unwrap_or(line);
        let Ok(event) = serde_json::from_str::<Value>(json) else { continue };
        if let Some(code) = event.pointer("/error/code") {
            ended.error = Some(code.as_str().unwrap_or_default().to_owned());
        }
        ended.text.push_str(event.pointer("/choices/0/text").and_then(Value::as_str).unwrap_or_default());
    }
    ended
}

/// A prompt that shares no beginning with any other.
pub(crate) fn prompt(number: usize, length: usize) -> String {
    let mut text = format!("{number} ");
    text.extend((0..length).map(|at| char::from(b'a' + u8::try_from((number * 7 + at * at) % 26).unwrap_or(0))));
    text
}
