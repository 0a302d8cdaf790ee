//! A small HTTP client: JSON in and out, and server-sent events as they come.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::{Instant, timeout};

/// Longer than any deadline of the processes under test.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);

/// The client.
#[derive(Clone, Debug)]
pub(super) struct Client(HyperClient<HttpConnector, Full<Bytes>>);

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// The JSON body; for a stream the list of its events.
    pub(super) body: Value,
    /// From the request to the first byte of the body.
    pub(super) first_byte: Duration,
}

impl Client {
    pub(super) fn new() -> Self {
        Self(HyperClient::builder(TokioExecutor::new()).build_http())
    }

    pub(super) async fn get(&self, url: &str) -> Result<Answer> {
        self.send(Method::GET, url, None, &[]).await
    }

    pub(super) async fn post(&self, url: &str, body: &Value, headers: &[(&str, &str)]) -> Result<Answer> {
        self.send(Method::POST, url, Some(body), headers).await
    }

    pub(super) async fn delete(&self, url: &str) -> Result<Answer> {
        self.send(Method::DELETE, url, None, &[]).await
    }

    async fn send(&self, method: Method, url: &str, body: Option<&Value>, headers: &[(&str, &str)]) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Bytes::from(serde_json::to_vec(body)?)
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(bytes))?;
        timeout(GIVE_UP_AFTER, self.exchange(request)).await.with_context(|| format!("no answer from {url} in time"))?
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let url = request.uri().clone();
        let started = Instant::now();
        let response = self.0.request(request).await.with_context(|| format!("ask {url}"))?;
        let (parts, body) = response.into_parts();
        let (bytes, first_byte) = read(body, started).await.with_context(|| format!("read the answer of {url}"))?;
        let event_stream =
            parts.headers.get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let body = if event_stream { events(&bytes)? } else { serde_json::from_slice(&bytes).unwrap_or(Value::Null) };
        Ok(Answer { status: parts.status, headers: parts.headers, body, first_byte })
    }
}

impl Answer {
    /// A header as text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The generated text of a completion or chat, streamed or not; `None` when the answer is an error.
    pub(super) fn text(&self) -> Option<String> {
        if !self.status.is_success() {
            return None;
        }
        let chunks = match &self.body {
            Value::Array(events) => events.as_slice(),
            whole @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
                std::slice::from_ref(whole)
            }
        };
        let mut text = String::new();
        for chunk in chunks {
            if chunk.get("error").is_some() {
                return None;
            }
            let choice = chunk.pointer("/choices/0");
            let piece = ["/text", "/message/content", "/delta/content"]
                .iter()
                .find_map(|path| choice.and_then(|choice| choice.pointer(path)).and_then(Value::as_str));
            text.push_str(piece.unwrap_or_default());
        }
        Some(text)
    }

    /// What an error answer says, in one line.
    pub(super) fn error(&self) -> String {
        let from_body = |path| self.body.pointer(path).and_then(Value::as_str);
        let words =
            from_body("/error/message").or_else(|| from_body("/detail")).or_else(|| from_body("/0/error/message"));
        let code = from_body("/error/code").or_else(|| from_body("/code")).unwrap_or("-");
        format!("{} {code}: {}", self.status.as_u16(), words.unwrap_or("no message"))
    }
}

async fn read(mut body: Incoming, started: Instant) -> Result<(Vec<u8>, Duration)> {
    let (mut bytes, mut first_byte) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            first_byte.get_or_insert_with(|| started.elapsed());
            bytes.extend_from_slice(&data);
        }
    }
    Ok((bytes, first_byte.unwrap_or_else(|| started.elapsed())))
}

/// The `data:` lines of a server-sent event stream as a JSON array, `[DONE]` left out.
fn events(bytes: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(bytes)?;
    let mut events = Vec::new();
    for data in text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim) {
        if data != "[DONE]" {
            events.push(serde_json::from_str(data).with_context(|| format!("an event is not JSON: {data}"))?);
        }
    }
    if !text.contains("[DONE]") {
        bail!("the stream ended without [DONE]");
    }
    Ok(Value::Array(events))
}
