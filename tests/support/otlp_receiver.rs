//! An OTLP collector in a test: real HTTP on a free port of 127.0.0.1, what it was sent in memory.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use prost::Message as _;

/// One span with the service that sent it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) trace: Vec<u8>,
    pub(crate) id: Vec<u8>,
    pub(crate) parent: Vec<u8>,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) failed: bool,
    pub(crate) attributes: Vec<(String, String)>,
}

impl Sent {
    /// What an attribute says; empty without it.
    pub(crate) fn said(&self, attribute: &str) -> &str {
        let found = self.attributes.iter().find(|(name, _)| name == attribute);
        found.map_or("", |(_, value)| value)
    }
}

/// The collector. Its threads end with the process.
#[derive(Debug)]
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    posts: Receiver<Vec<Sent>>,
}

impl Collector {
    /// One that answers each post with this status.
    pub(crate) fn start(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (keep, posts) = channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let keep = keep.clone();
                thread::spawn(move || serve(stream, status, &keep));
            }
        });
        Self { address, posts }
    }

    /// The spans of the next post.
    pub(crate) fn next(&self, within: Duration) -> Option<Vec<Sent>> {
        self.posts.recv_timeout(within).ok()
    }
}

fn serve(stream: TcpStream, status: &str, keep: &Sender<Vec<Sent>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("the socket"));
    let mut answers = stream;
    loop {
        let (mut first, mut length) = (true, 0_usize);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if std::mem::take(&mut first) {
                assert!(line.starts_with("post /v1/traces http/1.1"), "{line}");
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        let message = ExportTraceServiceRequest::decode(body.as_slice()).expect("OTLP");
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        let told = keep.send(spans(message)).is_ok() && answers.write_all(answer.as_bytes()).is_ok();
        if !told {
            return;
        }
    }
}

fn spans(message: ExportTraceServiceRequest) -> Vec<Sent> {
    let mut all = Vec::new();
    for resource in message.resource_spans {
        let of = resource.resource.map(|resource| said(&resource.attributes)).unwrap_or_default();
        let service = of.into_iter().find(|(name, _)| name == "service.name").map(|(_, name)| name).unwrap_or_default();
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            all.push(Sent {
                service: service.clone(),
                name: span.name,
                trace: span.trace_id,
                id: span.span_id,
                parent: span.parent_span_id,
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                failed: span.status.is_some_and(|status| status.code == 2),
                attributes: said(&span.attributes),
            });
        }
    }
    all
}

fn said(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let word = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(words)) => words.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(flag)) => flag.to_string(),
        _ => String::new(),
    };
    attributes.iter().map(|pair| (pair.key.clone(), word(pair))).collect()
}
