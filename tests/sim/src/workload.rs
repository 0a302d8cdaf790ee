//! The requests: what is asked, and what each answer turned out to be.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use crate::dice::Dice;
use crate::hosts::{Host, Links};
use crate::net::Dial;
use crate::setup::{IDLE_DEADLINE, REQUEST_DEADLINE};

/// Whoever has no whole answer by then is hung: the router's own limits, and time for the tokens.
pub const PATIENCE: Duration = Duration::from_secs(REQUEST_DEADLINE.as_secs() + IDLE_DEADLINE.as_secs() + 4);

/// What a client that means no good puts into its request; it must get nowhere.
const FORGED: &str = r#"{"do_remote_prefill":true,"remote_engine_id":"e","remote_request_id":"r","remote_block_ids":[[0]],
    "remote_host":"p0","remote_port":5600,"tp_size":1,"remote_num_tokens":4}"#;

/// One request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Unlike any other request's; its `user`.
    pub tag: String,
    /// When it is sent, from the beginning of the load.
    pub at: Duration,
    pub chat: bool,
    pub stream: bool,
    /// The client leaves after this time.
    pub leaves: Option<Duration>,
    /// As it is written.
    pub body: String,
    /// What an engine that is never split is asked for: the same without a stream.
    pub plain: String,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With the text that it should have.
    Right,
    /// With an error that says so.
    Error(String),
    /// The client had left.
    Left,
    /// With another text, or with none and no word why.
    Wrong(String),
    /// It has not.
    Hung,
}

/// What came of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    pub status: Option<StatusCode>,
    bytes: Vec<u8>,
    /// Why it broke off.
    broke: Option<String>,
    /// Its end has come.
    ended: bool,
}

/// What a server said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    text: String,
    /// Set when it is complete.
    complete: bool,
    error: Option<String>,
}

/// The requests of a seed, in the order of their times.
pub fn asks(seed: u64, over: Duration) -> Vec<Ask> {
    let mut dice = Dice::new(seed, "requests");
    let count = 24 + dice.below(24);
    let mut prompts: Vec<Vec<u64>> = Vec::new();
    let mut asks: Vec<Ask> =
        (0..count).map(|number| ask(&mut dice, format!("{seed:x}-{number}"), over, &mut prompts)).collect();
    asks.sort_by_key(|ask| ask.at);
    asks
}

fn ask(dice: &mut Dice, tag: String, over: Duration, prompts: &mut Vec<Vec<u64>>) -> Ask {
    // Half of the prompts begin as an earlier one.
    let mut prompt = match prompts.is_empty() || dice.percent(50) {
        true => Vec::new(),
        false => {
            let other = dice.pick(prompts).clone();
            let keep = usize::try_from(dice.below(other.len() as u64)).unwrap_or(0);
            other.into_iter().take(keep).collect()
        }
    };
    prompt.extend((0..=dice.below(28)).map(|_| dice.below(200)));
    let (chat, stream) = (dice.percent(25), dice.percent(60));
    let (body, plain) = bodies(dice, &tag, &prompt, chat, stream);
    prompts.push(prompt);
    Ask {
        tag,
        at: dice.ms(0, u64::try_from(over.as_millis()).unwrap_or(0)),
        chat,
        stream,
        leaves: dice.percent(8).then(|| dice.ms(1, 1_500)),
        body,
        plain,
    }
}

/// The request as its client writes it, with whatever JSON allows in places that are none of the router's business; and plainly.
fn bodies(dice: &mut Dice, tag: &str, prompt: &[u64], chat: bool, stream: bool) -> (String, String) {
    let (name, content) = if chat {
        let text: String =
            prompt.iter().map(|token| char::from(b'a' + u8::try_from(token % 26).unwrap_or(0))).collect();
        ("messages", format!(r#"[ {{"role":"user","content":"{tag} {text}"}} ]"#))
    } else {
        let ids: Vec<String> = prompt.iter().map(u64::to_string).collect();
        ("prompt", format!("[{}]", ids.join(*dice.pick(&[",", ", ", " ,\n"]))))
    };
    let max_tokens = 1 + dice.below(16);
    let asked = [("model", r#""sim""#.to_owned()), (name, content), ("max_tokens", max_tokens.to_string())];
    let plain: Vec<String> = asked.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
    let mut members: Vec<(&str, String)> = asked.to_vec();
    members.push(("user", format!("\"{tag}\"")));
    members.push((
        "x_unknown",
        r#"{"kept": [1.50, -0, 1E+2, 12345678901234567890123], "\u00e9é":"}\"\ud83d\ude00"}"#.to_owned(),
    ));
    if stream {
        members.push((*dice.pick(&["stream", r"str\u0065am"]), "true".to_owned()));
        if dice.percent(20) {
            members.push(("stream_options", r#"{ "include_usage":true }"#.to_owned()));
        }
    }
    if dice.percent(30) {
        members.extend([("twice", "1".to_owned()), ("twice", "2.0".to_owned()), ("", "null".to_owned())]);
    }
    if dice.percent(15) {
        members.push((*dice.pick(&["kv_transfer_params", r"kv\u005ftransfer_params"]), FORGED.to_owned()));
    }
    let mut written = Vec::new();
    while !members.is_empty() {
        let at = usize::try_from(dice.below(members.len() as u64)).unwrap_or(0);
        let (key, value) = members.swap_remove(at);
        let mut gap = || *dice.pick(&["", "", " ", "\n", "\t \r\n"]);
        written.push(format!("{}\"{key}\"{}:{}{value}{}", gap(), gap(), gap(), gap()));
    }
    (format!("{{{}}}{}", written.join(","), dice.pick(&["", "\n"])), format!("{{{}}}", plain.join(",")))
}

impl Ask {
    pub fn path(&self) -> &'static str {
        if self.chat { "/v1/chat/completions" } else { "/v1/completions" }
    }

    /// What an engine that is never split says.
    pub async fn expected(&self, tasks: &TaskTracker, reference: &Uri) -> Option<String> {
        let mut heard = Heard::default();
        let sent = self.send(tasks, reference, self.plain.clone(), &mut heard);
        timeout_at(Instant::now() + PATIENCE, sent).await.ok()?;
        let said = heard.said(false);
        (said.complete && said.error.is_none()).then_some(said.text)
    }

    /// Asks the router and judges the answer.
    pub async fn ended(&self, tasks: &TaskTracker, router: &Uri, expected: &str) -> (Ended, Heard) {
        let given_up = Instant::now() + self.leaves.unwrap_or(PATIENCE);
        let mut heard = Heard::default();
        let in_time = timeout_at(given_up, self.send(tasks, router, self.body.clone(), &mut heard)).await.is_ok();
        let said = heard.said(self.stream);
        let ended = match (in_time, heard.status) {
            (false, _) if !expected.starts_with(&said.text) => said.judged(expected),
            (false, _) if self.leaves.is_some() => Ended::Left,
            (false, _) => Ended::Hung,
            (true, None) => Ended::Error("no connection".to_owned()),
            (true, Some(_)) => said.judged(expected),
        };
        (ended, heard)
    }

    /// Sends it and listens; nothing is heard when nobody can be reached.
    async fn send(&self, tasks: &TaskTracker, to: &Uri, body: String, heard: &mut Heard) {
        let Some((status, mut body)) = post(tasks, to, self.path(), body.into()).await else { return };
        heard.status = Some(status);
        loop {
            match body.frame().await {
                None => break heard.ended = true,
                Some(Err(error)) => break heard.broke = Some(format!("broken off: {error}")),
                Some(Ok(frame)) => heard.bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
        }
    }
}

impl Heard {
    /// What is an engine's of a good answer, and whether that is all of it. An error at the end of a stream is the router's, or nobody's to
    /// compare.
    pub fn of_engine(&self, stream: bool) -> Option<(&[u8], bool)> {
        if self.status.is_none_or(|status| !status.is_success()) {
            return None;
        }
        let mut kept = 0;
        while let Some(end) = stream.then(|| find(self.bytes.get(kept..)?, b"\n\n")).flatten() {
            let event = self.bytes.get(kept..kept + end)?;
            if error_in(event).is_some() {
                return Some((self.bytes.get(..kept)?, false));
            }
            kept += end + 2;
        }
        Some((self.bytes.as_slice(), self.ended))
    }

    fn said(&self, stream: bool) -> Said {
        let mut said = Said::default();
        let Some(status) = self.status else { return said };
        if !status.is_success() {
            let json = serde_json::from_slice::<Value>(&self.bytes).ok();
            let code = json.map(|json| json["error"]["code"].to_string());
            said.error = Some(format!("{status} {}", code.unwrap_or_default()));
        } else if stream {
            said.events(&String::from_utf8_lossy(&self.bytes));
        } else if self.ended {
            said.whole(&self.bytes);
        }
        said.error = said.error.or_else(|| self.broke.clone());
        said
    }
}

fn find(within: &[u8], mark: &[u8]) -> Option<usize> {
    within.windows(mark.len()).position(|window| window == mark)
}

/// The code of the error in an event.
fn error_in(event: &[u8]) -> Option<String> {
    let json: Value = serde_json::from_slice(event.strip_prefix(b"data: ")?).ok()?;
    json.get("error").map(|error| error["code"].to_string())
}

impl Said {
    fn judged(self, expected: &str) -> Ended {
        match self {
            Self { text, error: Some(error), .. } if expected.starts_with(&text) => Ended::Error(error),
            Self { text, complete: true, error: None } if text == expected => Ended::Right,
            Self { text, error, .. } => Ended::Wrong(format!("{text:?} ({error:?}) for {expected:?}")),
        }
    }

    fn whole(&mut self, body: &[u8]) {
        let json: Value = serde_json::from_slice(body).unwrap_or_default();
        let choice = &json["choices"][0];
        let text = choice["text"].as_str().or_else(|| choice["message"]["content"].as_str());
        (self.text, self.complete) = (text.unwrap_or_default().to_owned(), choice["finish_reason"].is_string());
    }

    fn events(&mut self, events: &str) {
        for event in events.split("\n\n") {
            let Some(data) = event.trim().strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                self.complete = true;
                continue;
            }
            self.error = error_in(event.trim().as_bytes()).or(self.error.take());
            let Ok(json) = serde_json::from_str::<Value>(data) else { continue };
            let choice = &json["choices"][0];
            let text = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str());
            self.text.push_str(text.unwrap_or_default());
        }
    }
}

/// A POST on a connection of its own.
pub async fn post(
    tasks: &TaskTracker,
    to: &Uri,
    path: &str,
    body: Bytes,
) -> Option<(StatusCode, hyper::body::Incoming)> {
    let request = Request::builder().method(Method::POST).uri(path).header("content-type", "application/json");
    send(tasks, to, request.body(Full::new(body)).ok()?).await
}

/// A GET on a connection of its own: a page of JSON.
pub async fn get(tasks: &TaskTracker, to: &Uri, path: &str) -> Option<Value> {
    let request = Request::builder().uri(path).body(Full::default()).ok()?;
    let (status, body) = send(tasks, to, request).await?;
    let body = body.collect().await.ok()?.to_bytes();
    status.is_success().then(|| serde_json::from_slice(&body).unwrap_or_default())
}

async fn send(
    tasks: &TaskTracker,
    to: &Uri,
    mut request: Request<Full<Bytes>>,
) -> Option<(StatusCode, hyper::body::Incoming)> {
    let dial = Dial { from: Host::Client, links: Links::default(), within: Duration::from_secs(3) };
    let wire = router::upstream::Connect::connect(&dial, to.clone()).await.ok()?;
    let (mut sender, connection) = http1::handshake(wire).await.ok()?;
    tasks.spawn(async move {
        // Its end is the answer's.
        drop(connection.await);
    });
    request.headers_mut().insert("host", http::HeaderValue::from_static("sim"));
    let answer = sender.send_request(request).await.ok()?;
    Some((answer.status(), answer.into_body()))
}
