//! ZeroMQ's wire protocol, and vLLM's messages in it.

use std::future::Future;
use std::task::{Context, Poll, Waker};

use side_channel::fuzzed;
use vllm_wire::handshake::{AgentMetadata, Reply, parse_reply, parse_request, reply, request};
use vllm_wire::kv_events::read_events;
use vllm_wire::versions::{SUPPORTED, V0_32_0};

use crate::memory::Bound;

/// msgpack is read into a tree first, of nodes many times as large as the byte that one may take.
const TREE: Bound = Bound { base: 64 << 10, each: 200 };

/// What a peer sends a server of ours: the virtual prefill engine.
pub fn side_channel_request(data: &[u8]) {
    let (messages, _) = TREE.holds_for(data.len(), || now(fuzzed::as_server(data)));
    for frame in messages.iter().flatten() {
        question(frame);
    }
    question(data);
}

fn question(bytes: &[u8]) {
    for version in SUPPORTED {
        if let Ok(read) = TREE.holds_for(bytes.len(), || parse_request(version, bytes)) {
            let again = parse_request(version, &request(version, read.pp, read.tp));
            assert_eq!(again.expect("it is a question"), read);
        }
    }
}

/// What an engine answers to us, as bytes of a connection and as the frames of a message.
pub fn side_channel_reply(data: &[u8]) {
    let (messages, _) = TREE.holds_for(data.len(), || now(fuzzed::as_asker(data)));
    for message in &messages {
        answer(message.get(1..).unwrap_or_default());
    }
    let middle = data.first().map_or(0, |first| usize::from(*first) * data.len() / 256);
    let (payload, clock) = data.split_at(middle);
    answer(&[payload.get(1..).unwrap_or_default(), clock]);
}

fn answer<F: AsRef<[u8]>>(frames: &[F]) {
    let bytes = frames.iter().map(|frame| frame.as_ref().len()).sum();
    let read = TREE.holds_for(bytes, || parse_reply(&V0_32_0, frames));
    let Ok(Reply { payload, timestamp }) = read else { return };
    let again = parse_reply(&V0_32_0, &reply(&payload, timestamp)).expect("it is an answer");
    assert_eq!(again.payload, payload);
    assert_eq!(again.timestamp.to_bits(), timestamp.to_bits());
    agent_metadata(&payload.agent_metadata);
}

/// What an engine says of its agent and its cache.
pub fn agent_metadata(data: &[u8]) {
    let Ok(read) = TREE.holds_for(data.len(), || AgentMetadata::decode(data)) else { return };
    let again = AgentMetadata::decode(&read.encode(&V0_32_0)).expect("it is metadata");
    assert_eq!(again, read);
    for version in SUPPORTED {
        // What a release has no key for is left out, and has its default then.
        let told = AgentMetadata::decode(&read.encode(version)).expect("it is metadata");
        assert_eq!((told.engine_id, told.block_lens), (read.engine_id.clone(), read.block_lens.clone()));
    }
    if let Ok(layout) = read.layout() {
        assert!(layout.compatible_with(&layout).is_ok(), "{layout:?}");
    }
}

/// What an engine publishes of its prefix cache.
pub fn kv_events(data: &[u8]) {
    let (messages, _) = TREE.holds_for(data.len(), || now(fuzzed::as_subscriber(data)));
    for frame in messages.iter().flatten() {
        drop(read_events(frame));
    }
    drop(TREE.holds_for(data.len(), || read_events(data)));
}

/// All bytes are there, so nothing is waited for.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    // tokio gives way now and then, whatever there is.
    for _ in 0..100_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
    unreachable!("it waits although all bytes are there")
}
