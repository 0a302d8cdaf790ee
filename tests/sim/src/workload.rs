//! The requests: what is asked, and what each answer turned out to be.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use crate::dice::Dice;
use crate::hosts::{Host, Links};
use crate::net::Dial;
use crate::setup::{IDLE_DEADLINE, REQUEST_DEADLINE};

/// Whoever has no whole answer by then is hung: the router's own limits, and time for the tokens.
pub const PATIENCE: Duration = Duration::from_secs(REQUEST_DEADLINE.as_secs() + IDLE_DEADLINE.as_secs() + 4);

/// One request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Its number.
    pub number: usize,
    /// When it is sent, from the beginning of the load.
    pub at: Duration,
    pub chat: bool,
    pub stream: bool,
    /// The client leaves after this time.
    pub leaves: Option<Duration>,
    /// The body without `stream`.
    pub body: Value,
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
    let mut asks: Vec<Ask> = (0..count)
        .map(|number| {
            let number = usize::try_from(number).unwrap_or(0);
            ask(&mut dice, number, over, &mut prompts)
        })
        .collect();
    asks.sort_by_key(|ask| ask.at);
    asks
}

fn ask(dice: &mut Dice, number: usize, over: Duration, prompts: &mut Vec<Vec<u64>>) -> Ask {
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
    let chat = dice.percent(25);
    let max_tokens = 1 + dice.below(16);
    let body = if chat {
        let text: String =
            prompt.iter().map(|token| char::from(b'a' + u8::try_from(token % 26).unwrap_or(0))).collect();
        json!({"model": "sim", "messages": [{"role": "user", "content": format!("{number} {text}")}],
               "max_tokens": max_tokens, "x_unknown": {"kept": [number, 1.50]}})
    } else {
        json!({"model": "sim", "prompt": prompt, "max_tokens": max_tokens, "x_unknown": {"kept": [number, 1.50]}})
    };
    prompts.push(prompt);
    Ask {
        number,
        at: dice.ms(0, u64::try_from(over.as_millis()).unwrap_or(0)),
        chat,
        stream: dice.percent(60),
        leaves: dice.percent(8).then(|| dice.ms(1, 1_500)),
        body,
    }
}

impl Ask {
    fn path(&self) -> &'static str {
        if self.chat { "/v1/chat/completions" } else { "/v1/completions" }
    }

    fn body(&self) -> Value {
        let mut body = self.body.clone();
        if self.stream {
            body["stream"] = true.into();
        }
        body
    }

    /// What an engine that is never split says.
    pub async fn expected(&self, tasks: &TaskTracker, reference: &Uri) -> Option<String> {
        let whole = Self { stream: false, ..self.clone() };
        let said = timeout(PATIENCE, whole.send(tasks, reference)).await.ok()??;
        (said.complete && said.error.is_none()).then_some(said.text)
    }

    /// Asks the router and judges the answer.
    pub async fn ended(&self, tasks: &TaskTracker, router: &Uri, expected: &str) -> Ended {
        let given_up = Instant::now() + self.leaves.unwrap_or(PATIENCE);
        match timeout_at(given_up, self.send(tasks, router)).await {
            Err(_) if self.leaves.is_some() => Ended::Left,
            Err(_) => Ended::Hung,
            Ok(None) => Ended::Error("no connection".to_owned()),
            Ok(Some(said)) => said.judged(expected),
        }
    }

    /// Sends it; nothing when nobody can be reached.
    async fn send(&self, tasks: &TaskTracker, to: &Uri) -> Option<Said> {
        let bytes = Bytes::from(self.body().to_string());
        let (status, mut body) = post(tasks, to, self.path(), bytes).await?;
        let mut said = Said::default();
        let mut all = Vec::new();
        let ended = loop {
            match body.frame().await {
                None => break None,
                Some(Err(error)) => break Some(format!("broken off: {error}")),
                Some(Ok(frame)) => all.extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
        };
        if !status.is_success() {
            let code = serde_json::from_slice::<Value>(&all).ok().map(|json| json["error"]["code"].to_string());
            said.error = Some(format!("{status} {}", code.unwrap_or_default()));
        } else if self.stream {
            said.events(&String::from_utf8_lossy(&all));
        } else if ended.is_none() {
            said.whole(&all);
        }
        said.error = said.error.or(ended);
        Some(said)
    }
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
        for data in events.split("\n\n").filter_map(|event| event.trim().strip_prefix("data: ")) {
            if data == "[DONE]" {
                self.complete = true;
                continue;
            }
            let Ok(json) = serde_json::from_str::<Value>(data) else { continue };
            if json.get("error").is_some() {
                self.error = Some(json["error"]["code"].to_string());
            }
            let choice = &json["choices"][0];
            let text = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str());
            self.text.push_str(text.unwrap_or_default());
        }
    }
}

/// A POST on a connection of its own.
async fn post(tasks: &TaskTracker, to: &Uri, path: &str, body: Bytes) -> Option<(StatusCode, hyper::body::Incoming)> {
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
