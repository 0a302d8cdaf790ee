//! `/v1/peers`: the remote engines that the ranks have read from, and what bytes move by.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::http::Api;
use crate::http::latency::micros_or_null;
use crate::http::transfer_json::whole_ms;
use crate::peer_book::KnownPeer;
use crate::transport::Transport;

/// `GET /v1/peers`.
pub(super) async fn list(State(api): State<Api>) -> Json<Value> {
    let (peers, now) = (api.pod().peers(), Instant::now());
    let transport = api.pod().transport().await;
    let peers: Vec<Value> = peers.iter().map(|peer| shown(peer, now)).collect();
    Json(json!({ "peers": peers, "transport": transport.as_deref().map(transport_json) }))
}

fn shown(peer: &KnownPeer, now: Instant) -> Value {
    let age = |at: Instant| whole_ms(now.saturating_duration_since(at));
    json!({
        "dp_rank": peer.dp_rank.0,
        "engine_id": peer.engine.as_str(),
        "address": peer.address.as_ref().map(ToString::to_string),
        "agents": peer.agents.iter().map(nixl::AgentName::as_str).collect::<Vec<_>>(),
        "handshake_age_ms": peer.shaken.map(age),
        "handshake_took_us": micros_or_null(peer.handshake_took),
        "handshakes": peer.handshakes,
        "handshakes_failed": peer.handshakes_failed,
        "transfers": peer.transfers,
        "transfers_failed": peer.transfers_failed,
        "bytes": peer.bytes,
        "last_used_age_ms": age(peer.used),
        "last_error": peer.last_error.as_ref().map(|error| json!({
            "code": error.code.as_str(),
            "detail": error.detail,
            "age_ms": age(error.at),
        })),
    })
}

/// `used` is told only where it can be known, see [`crate::transport`].
fn transport_json(transport: &Transport) -> Value {
    json!({
        "used": transport.used(),
        "candidates": transport.candidates,
        "available": transport.available,
        "ucx_tls": transport.ucx_tls,
        "ucx_net_devices": transport.ucx_net_devices,
        "ucx_version": transport.ucx_version,
        "text": transport.to_string(),
    })
}
