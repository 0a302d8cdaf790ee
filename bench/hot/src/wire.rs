//! vLLM's formats: what is read and written for each request, and for each peer.

use std::hint::black_box;

use anyhow::Result;
use bytes::Bytes;
use kv::ids::{EngineId, EngineRequestId};
use serde_json::{Value, json};
use vllm_wire::body::{Endpoint, RequestBody, prefill_answer};
use vllm_wire::handshake::{AgentMetadata, Payload, parse_reply, reply};
use vllm_wire::notif;
use vllm_wire::versions::V0_32_0;

/// Attention layers of the seed's model.
const LAYERS: u32 = 32;

/// A chat of 20 messages, 9 KB.
pub(crate) fn chat(stream: bool) -> Bytes {
    let turn = |number: u32| {
        let role = if number.is_multiple_of(2) { "user" } else { "assistant" };
        json!({"role": role, "content": "what was said ".repeat(32)})
    };
    let messages: Vec<_> = (0..20).map(turn).collect();
    let body = json!({
        "model": "m", "messages": messages, "stream": stream, "max_tokens": 512, "temperature": 0.7, "top_p": 0.95,
        "stop": ["\n\n"], "user": "somebody", "seed": 7,
    });
    Bytes::from(body.to_string())
}

/// What P, or the sidecar in its place, hands over for 128 blocks.
pub(crate) fn params(engine: &str, request: &str) -> Value {
    json!({
        "do_remote_prefill": true, "do_remote_decode": false,
        "remote_block_ids": [(0..128).map(|id| id * 7).collect::<Vec<u32>>()], "remote_engine_id": engine,
        "remote_request_id": request, "remote_host": "127.0.0.1", "remote_port": 5600, "tp_size": 1,
        "dcp_size": 1, "pp_size": 1, "remote_num_tokens": 2048,
    })
}

/// P's answer as vLLM writes it to a chat.
pub(crate) fn answer() -> Bytes {
    let body = json!({
        "id": "cmpl-bench", "object": "text_completion", "created": 1_700_000_000, "model": "m",
        "choices": [{"index": 0, "text": "x", "logprobs": null, "finish_reason": "length", "stop_reason": null}],
        "prompt_token_ids": (0..2048).map(|token| token * 13 % 32_000).collect::<Vec<u32>>(),
        "usage": {"prompt_tokens": 2048, "completion_tokens": 1, "total_tokens": 2049, "prompt_tokens_details": null},
        "kv_transfer_params": params("3b6f0a52-6f1e-4f0e-8f0a-2f6f1d1b3c11_dp0", "cmpl-bench-0-1a2b3c4d"),
    });
    Bytes::from(body.to_string())
}

pub(crate) fn body(times: u32) -> Result<u64> {
    let (bytes, answer) = (chat(true), prefill_answer(&answer())?);
    let mut sum = 0;
    for _ in 0..times {
        let body = RequestBody::read(Endpoint::Chat, black_box(bytes.clone()))?;
        black_box(body.for_prefill());
        black_box(body.for_decode(Some(&answer.raw_params)));
        sum += u64::from(body.inspected().stream);
    }
    Ok(sum)
}

pub(crate) fn answer_of_p(times: u32) -> Result<u64> {
    let bytes = answer();
    let mut sum = 0;
    for _ in 0..times {
        sum += prefill_answer(black_box(&bytes))?.prompt_tokens.unwrap_or(0);
    }
    Ok(sum)
}

/// The reply of an engine with one region per layer, to its geometry.
pub(crate) fn handshake(times: u32) -> Result<u64> {
    let every = |value: u64| vec![value; LAYERS as usize];
    let metadata = AgentMetadata {
        engine_id: EngineId::new("bench_dp0"),
        agent_metadata: Bytes::from(vec![0x7f; 600]),
        kv_caches_base_addr: every(0x7f00_0000_0000),
        device_id: 0,
        num_blocks: 4096,
        block_lens: every(65_536),
        block_strides: every(65_536),
        kv_cache_layout: "LBHNC".to_owned(),
        block_size: 16,
        ssm_sizes: (0, 0),
        attn_backend_name: "CPU_ATTN".to_owned(),
        physical_blocks_per_logical_kv_block: 1,
        region_num_blocks: Some(vec![4096; LAYERS as usize]),
        region_group_ids: Some(vec![0; LAYERS as usize]),
        region_names: Some((0..LAYERS).map(|layer| format!("model.layers.{layer}.self_attn.attn")).collect()),
        region_mem_types: Some(vec!["DRAM".to_owned(); LAYERS as usize]),
        dcp_size: 1,
        pcp_size: 1,
        ple_block_len: None,
        region_members: Vec::new(),
        packed_member_layouts: Vec::new(),
    };
    let payload = Payload { compatibility_hash: "0".repeat(64), agent_metadata: metadata.encode(&V0_32_0) };
    let frames = reply(&payload, 1.0);
    let mut sum = 0;
    for _ in 0..times {
        let told = parse_reply(&V0_32_0, black_box(&frames))?;
        sum += AgentMetadata::decode(&told.payload.agent_metadata)?.layout()?.slot_bytes();
    }
    Ok(sum)
}

pub(crate) fn notification(times: u32) -> Result<u64> {
    let bytes = notif::done(&EngineRequestId::new("cmpl-4f0e8f0a2f6f1d1b3c11-0-1a2b3c4d"), 1);
    let mut sum = 0;
    for _ in 0..times {
        if let notif::Notif::Done { readers, .. } = notif::parse(black_box(&bytes))? {
            sum += u64::from(readers);
        }
    }
    Ok(sum)
}
