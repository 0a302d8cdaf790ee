//! What no honest client and no honest peer sends: to the router, to a decode pod's sidecar and to its side channel. Whoever gets it refuses it
//! or hangs up, in time, and nobody dies of it (invariant S).

use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::dice::Dice;
use crate::hosts::{Host, Links};
use crate::net::Dial;
use crate::pods::{ROUTER, SIDE_CHANNEL, SIDECAR, at};
use crate::setup::{MAX_BODY_BYTES, RANKS};
use crate::workload::post;

/// Longer than any deadline for a client that does not go on.
const WITHIN: Duration = Duration::from_secs(40);

/// How much of it is shown.
const SHOWN: usize = 100;

/// A greeting of ZMTP 3.0 (NULL, as a client) and the READY that follows it: what comes after these is taken for messages.
fn greeted(rest: &[u8]) -> Vec<u8> {
    let mut greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL".to_vec();
    greeting.resize(64, 0);
    [greeting.as_slice(), b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03REQ", rest].concat()
}

/// Something that nobody should take.
#[derive(Clone, Debug)]
pub struct Junk {
    /// When, from the beginning of the load.
    pub at: Duration,
    to: Uri,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    /// A request that must be refused.
    Request(&'static str, Bytes),
    /// Bytes on a connection, and whether that is closed behind them.
    Bytes(Vec<u8>, bool),
}

/// A seed's.
pub fn all(seed: u64, over: Duration) -> Vec<Junk> {
    let mut dice = Dice::new(seed, "junk");
    (0..4 + dice.below(8)).map(|_| one(&mut dice, over)).collect()
}

fn one(dice: &mut Dice, over: Duration) -> Junk {
    let at_ms = dice.ms(0, u64::try_from(over.as_millis()).unwrap_or(0));
    let sidecar = *dice.pick(&[Host::DecodeSidecar(0), Host::DecodeSidecar(1)]);
    let (to, what) = match dice.below(4) {
        0 => {
            let path = *dice.pick(&["/v1/completions", "/v1/chat/completions"]);
            (at(Host::Router, ROUTER, "/"), What::Request(path, completion(dice)))
        }
        1 => {
            let path = *dice.pick(&["/v1/transfers", "/v1/handles", "/v1/digests"]);
            (at(sidecar, SIDECAR, "/"), What::Request(path, transfer(dice)))
        }
        2 => {
            // A peer that says no more and stays is none that must go: it has one of the places that there are for peers.
            let port = SIDE_CHANNEL + u16::try_from(dice.below(u64::from(RANKS))).unwrap_or(0);
            (at(sidecar, port, "/"), What::Bytes(message(dice), true))
        }
        _ => {
            let to = *dice.pick(&[(Host::Router, ROUTER), (sidecar, SIDECAR)]);
            (at(to.0, to.1, "/"), What::Bytes(http(dice), dice.percent(50)))
        }
    };
    Junk { at: at_ms, to, what }
}

/// A body that is no request.
fn completion(dice: &mut Dice) -> Bytes {
    let long = "a".repeat(usize::try_from(MAX_BODY_BYTES).unwrap_or(0) + 1);
    let bodies = [
        Vec::new(),
        br#"{"model":"sim","prompt":"#.to_vec(),
        b"null".to_vec(),
        br#"[{"model":"sim","prompt":[1]}]"#.to_vec(),
        b"{\"prompt\":\"\xff\xfe\"}".to_vec(),
        format!(r#"{{"prompt":{}"#, "[".repeat(500)).into_bytes(),
        format!(r#"{{"prompt":[1],"x":{}{}}}"#, "[".repeat(500), "]".repeat(500)).into_bytes(),
        format!(r#"{{"model":"sim","prompt":"{long}"}}"#).into_bytes(),
        br#"{"model":"sim","prompt":7,"messages":7}"#.to_vec(),
        br#"{"model":"sim","prompt":[-1],"messages":[{"role":7}]}"#.to_vec(),
        br#"{"model":"another","prompt":[1],"messages":[{"role":"user","content":"x"}]}"#.to_vec(),
        br#"{"model":"sim","prompt":[1],"messages":[],"max_tokens":-1}"#.to_vec(),
    ];
    dice.pick(&bodies).clone().into()
}

/// A body that names nothing that could be moved.
fn transfer(dice: &mut Dice) -> Bytes {
    let params = |blocks: &str, more: &str| {
        format!(
            r#"{{"attempt_id":"junk","request_id":"junk","dp_rank":0,"deadline_ms":1000,"lease_ms":1000,"prefill_done_age_ms":0,
                "kv_transfer_params":{{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":{blocks},
                "remote_engine_id":"nobody","remote_request_id":"r","remote_host":"p0","remote_port":5600,"tp_size":1{more}}}}}"#
        )
    };
    let bodies = [
        String::new(),
        "{".to_owned(),
        "[]".to_owned(),
        params("[[4294967295]]", r#","remote_num_tokens":4"#),
        params("[[-1]]", r#","remote_num_tokens":4"#),
        params("[[0,0,0,0]]", r#","remote_num_tokens":18446744073709551615"#),
        params("[[1,2],[3]]", r#","remote_num_tokens":8"#),
        params("[[1,2]]", r#","remote_num_tokens":8,"pp_size":7"#),
        params("null", ""),
    ];
    dice.pick(&bodies).clone().into()
}

/// What no engine says on a side channel.
fn message(dice: &mut Dice) -> Vec<u8> {
    let messages = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 200],
        greeted(b"").into_iter().take(30).collect(),
        // 8 EiB announced; then 16 EiB, more to follow; a command of 256 MiB.
        greeted(b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff"),
        greeted(b"\x03\xff\xff\xff\xff\xff\xff\xff\xff"),
        greeted(b"\x06\0\0\0\0\x10\0\0\0"),
        greeted(&[1, 0].repeat(400)),
        greeted(b"\x01\0\x00\x05ab"),
        greeted(b"\x01\0\x00\x06\xff\xff\xff\xff\xff\xff"),
    ];
    dice.pick(&messages).clone()
}

/// What is no HTTP, or only its beginning.
fn http(dice: &mut Dice) -> Vec<u8> {
    let requests = [
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(),
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{\"prompt\":".to_vec(),
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /v1/transfers HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_vec(),
        b"GET /v1/ranks HTTP/1.1\r\nhost: x\r\nx: ".to_vec(),
        format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(2000)).into_bytes(),
    ];
    dice.pick(&requests).clone()
}

impl std::fmt::Display for Junk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, bytes): (_, &[u8]) = match &self.what {
            What::Request(path, body) => (*path, body),
            What::Bytes(bytes, _) => ("", bytes),
        };
        let shown = bytes.get(..SHOWN).unwrap_or(bytes).escape_ascii();
        write!(f, "{}{path} {} bytes: {shown}", self.to, bytes.len())
    }
}

impl Junk {
    /// Sends it.
    ///
    /// # Errors
    /// How it was not refused.
    pub async fn send(&self, tasks: &TaskTracker) -> Result<(), String> {
        match timeout(WITHIN, self.sent(tasks)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(how)) => Err(format!("{self}: {how}")),
            Err(_) => Err(format!("{self}: it has no end")),
        }
    }

    async fn sent(&self, tasks: &TaskTracker) -> Result<(), String> {
        match &self.what {
            What::Request(path, body) => match post(tasks, &self.to, path, body.clone()).await {
                // Whoever is not there, or not ready, refuses it too.
                None => Ok(()),
                Some((status, _)) if status.is_client_error() || matches!(status.as_u16(), 502..=504) => Ok(()),
                Some((status, _)) => Err(format!("it is answered {status}")),
            },
            What::Bytes(bytes, closed) => {
                let dial = Dial { from: Host::Client, links: Links::default(), within: Duration::from_secs(3) };
                let Ok(wire) = router::upstream::Connect::connect(&dial, self.to.clone()).await else { return Ok(()) };
                let mut wire = wire.into_inner();
                // It may be cut off at any point; so it should.
                if wire.write_all(bytes).await.is_ok() && *closed {
                    drop(wire.shutdown().await);
                }
                drop(wire.read_to_end(&mut Vec::new()).await);
                Ok(())
            }
        }
    }
}
