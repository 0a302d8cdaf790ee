//! `/v1/peers`: the remote engines that the ranks have read from, and what bytes move by.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::http::Api;
use crate::http::openapi::{answers, schemas};
use crate::http::transfer_json::whole_ms;
use crate::latency::micros;
use crate::peer_book::KnownPeer;
use crate::transport::Transport;

/// Everything that is known of remote engines.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PeersJson {
    peers: Vec<PeerJson>,
    /// Null before NIXL has made a UCX backend
    transport: Option<TransportJson>,
}

/// One remote engine as one rank knows it.
#[derive(Debug, Serialize, ToSchema)]
struct PeerJson {
    dp_rank: u16,
    engine_id: String,
    address: Option<String>,
    agents: Vec<String>,
    handshake_age_ms: Option<u64>,
    handshake_took_us: Option<u64>,
    handshakes: u64,
    handshakes_failed: u64,
    transfers: u64,
    transfers_failed: u64,
    bytes: u64,
    last_used_age_ms: u64,
    last_error: Option<PeerErrorJson>,
}

#[derive(Debug, Serialize, ToSchema)]
struct PeerErrorJson {
    #[schema(schema_with = schemas::code)]
    code: &'static str,
    detail: String,
    age_ms: u64,
}

/// What UCX may move bytes by.
#[derive(Debug, Serialize, ToSchema)]
struct TransportJson {
    /// Only where it can be known
    used: Option<String>,
    candidates: Vec<String>,
    available: Vec<String>,
    ucx_tls: String,
    ucx_net_devices: String,
    ucx_version: String,
    text: String,
}

/// The remote engines that the ranks have read from
#[utoipa::path(
    get,
    path = "/v1/peers",
    operation_id = "list_peers",
    tag = "debugging",
    responses((status = 200, description = "Per rank and engine", body = PeersJson), answers::Always),
)]
pub(super) async fn list(State(api): State<Api>) -> Json<PeersJson> {
    let (peers, now) = (api.pod().peers(), Instant::now());
    let transport = api.pod().transport().await;
    let peers = peers.iter().map(|peer| PeerJson::new(peer, now)).collect();
    Json(PeersJson { peers, transport: transport.as_deref().map(TransportJson::from) })
}

impl PeerJson {
    fn new(peer: &KnownPeer, now: Instant) -> Self {
        let age = |at: Instant| whole_ms(now.saturating_duration_since(at));
        Self {
            dp_rank: peer.dp_rank.0,
            engine_id: peer.engine.as_str().to_owned(),
            address: peer.address.as_ref().map(ToString::to_string),
            agents: peer.agents.iter().map(|agent| agent.as_str().to_owned()).collect(),
            handshake_age_ms: peer.shaken.map(age),
            handshake_took_us: peer.handshake_took.map(micros),
            handshakes: peer.handshakes,
            handshakes_failed: peer.handshakes_failed,
            transfers: peer.transfers,
            transfers_failed: peer.transfers_failed,
            bytes: peer.bytes,
            last_used_age_ms: age(peer.used),
            last_error: peer.last_error.as_ref().map(|error| PeerErrorJson {
                code: error.code.as_str(),
                detail: error.detail.clone(),
                age_ms: age(error.at),
            }),
        }
    }
}

impl From<&Transport> for TransportJson {
    fn from(transport: &Transport) -> Self {
        Self {
            used: transport.used().map(ToOwned::to_owned),
            candidates: transport.candidates.clone(),
            available: transport.available.clone(),
            ucx_tls: transport.ucx_tls.clone(),
            ucx_net_devices: transport.ucx_net_devices.clone(),
            ucx_version: transport.ucx_version.clone(),
            text: transport.to_string(),
        }
    }
}
