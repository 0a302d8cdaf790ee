//! Two pods of one rank with their sidecars and a router, as processes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use crate::process::{PATIENCE, Running, free_ports, wait_for};

/// The processes; dropped = killed.
#[derive(Debug)]
pub(crate) struct Deployment {
    pub(crate) decode: Running,
    pub(crate) prefill_sidecar: Running,
    pub(crate) decode_sidecar: Running,
    pub(crate) router: Running,
    _prefill: Running,
}

impl Deployment {
    /// Starts all of it with more flags for the sidecars and for the router, and waits until both ranks are ready.
    pub(crate) fn start(for_sidecars: &str, for_router: &str) -> Self {
        let engine = |role: &str| {
            let side = free_ports(1);
            let args = format!(
                "sim --role {role} --listen 127.0.0.1:0 --side-channel 127.0.0.1:{side} --model m --num-blocks 64"
            );
            (Running::start(&args), side)
        };
        let ((prefill, p_side), (decode, d_side)) = (engine("prefill"), engine("decode"));
        let sidecar = |role: &str, engine: &Running, side: u16| {
            Running::start(&format!(
                "sidecar --role {role} --engine http://127.0.0.1:{} --engine-side-channel 127.0.0.1:{side} --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 --staging-bytes 64MiB {for_sidecars}",
                engine.http
            ))
        };
        let prefill_sidecar = sidecar("prefill", &prefill, p_side);
        let decode_sidecar = sidecar("decode", &decode, d_side);
        let router = Running::start(&format!(
            "router --pd-disaggregation --prefill http://127.0.0.1:{},sidecar=http://127.0.0.1:{} --decode http://127.0.0.1:{},sidecar=http://127.0.0.1:{} --host 127.0.0.1 --port 0 {for_router}",
            prefill.http, prefill_sidecar.http, decode.http, decode_sidecar.http
        ));
        let all = Self { decode, prefill_sidecar, decode_sidecar, router, _prefill: prefill };
        wait_for("both ranks", || (all.router.request("GET", "/readyz", "").0 == 200).then_some(()));
        all
    }

    /// One request to the router with headers: status and whole answer.
    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        post(self.router.http, path, headers, body)
    }
}

/// One request with headers: status and whole answer.
pub(crate) fn post(port: u16, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the process listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n{more}content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("the request is sent");
    // A server may answer before it has read a body that it refuses.
    drop(stream.write_all(body.as_bytes()));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    (status, text)
}

/// What the choices of a completion say.
pub(crate) fn text_of(answer: &str) -> String {
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    let json = serde_json::from_str::<Value>(body).unwrap_or(Value::Null);
    json["choices"][0]["text"].as_str().unwrap_or_default().to_owned()
}
