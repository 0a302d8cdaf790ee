//! Which paths of an engine clients may reach.
//!
//! vLLM serves its administration on the port of its API, some of it always and some of it with a development switch. A router
//! that passes every path on opens all of that to clients, so these words close a path wherever they stand in it.

/// What may happen to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Inference that vLLM 0.30–0.32 serves: always passed on.
    Known,
    /// Something else.
    Unknown,
    /// Administration of engines: never passed on.
    Closed,
}

/// Inference beside what the router splits.
const KNOWN: [&str; 27] = [
    "tokenize",
    "detokenize",
    "pooling",
    "classify",
    "score",
    "rerank",
    "generative_scoring",
    "v1/embeddings",
    "v1/score",
    "v1/rerank",
    "v2/rerank",
    "v2/embed",
    "v1/audio/transcriptions",
    "v1/audio/translations",
    "v1/messages/count_tokens",
    "v1/chat/completions/batch",
    "v1/chat/completions/render",
    "v1/chat/completions/derender",
    "v1/completions/render",
    "v1/completions/derender",
    "v1/messages/render",
    "v1/responses/render",
    "cohere/v2/chat",
    "inference/v1/generate",
    "v1/systemone",
    "v1/images/generations",
    "v1/moderations",
];

/// Whole segments that close a path: vLLM 0.32's administration, the router's own names on an engine, and pages about both.
const CLOSED: [&str; 26] = [
    "sleep",
    "pause",
    "resume",
    "load",
    "metrics",
    "health",
    "ready",
    "ping",
    "invocations",
    "collective_rpc",
    "fault_tolerance",
    "server_info",
    "kv_event_sources",
    "get_world_size",
    "tokenizer_info",
    "docs",
    "redoc",
    "openapi.json",
    "static",
    "debug",
    "admin",
    "shutdown",
    "restart",
    "profile",
    "flush_cache",
    "save_sharded_state",
];

/// Beginnings of segments that close a path: vLLM names what changes an engine after what it does.
const CLOSED_BEGINNINGS: [&str; 20] = [
    "abort_",
    "finish_",
    "init_",
    "is_",
    "load_",
    "pause_",
    "release_",
    "reset_",
    "resume_",
    "save_",
    "scale_",
    "set_",
    "shutdown_",
    "sleep_",
    "start_",
    "stop_",
    "unload_",
    "update_",
    "wake_",
    "weight_",
];

/// Judges a path as the engine will read it, that is without its percent signs; `None` for one that could be read in two ways.
pub(super) fn judge(path: &str) -> Option<Verdict> {
    let path = percent_encoding::percent_decode_str(path).decode_utf8().ok()?.to_ascii_lowercase();
    if path.contains(['%', '\\', ';', '?', '#']) || path.contains("//") || path.chars().any(char::is_control) {
        return None;
    }
    let path = path.trim_matches('/');
    let segments = || path.split('/');
    if segments().any(|segment| matches!(segment, "." | "..")) {
        return None;
    }
    let closed = |segment: &str| {
        let word = segment.replace('-', "_");
        CLOSED.contains(&&*word) || CLOSED_BEGINNINGS.iter().any(|beginning| word.starts_with(beginning))
    };
    Some(if KNOWN.contains(&path) || is_stored_response(path) {
        Verdict::Known
    } else if segments().any(closed) {
        Verdict::Closed
    } else {
        Verdict::Unknown
    })
}

/// `/v1/responses/ID` and `/v1/responses/ID/cancel`.
fn is_stored_response(path: &str) -> bool {
    let id = path.strip_prefix("v1/responses/").map(|id| id.strip_suffix("/cancel").unwrap_or(id));
    id.is_some_and(|id| !id.is_empty() && !id.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn administration_is_closed_however_it_is_spelt() {
        for path in [
            "/sleep",
            "/sleep/",
            "/Sleep",
            "/%73leep",
            "/wake_up",
            "/v1/load_lora_adapter",
            "/v1/unload_lora_adapter",
            "/reset_prefix_cache",
            "/reset_mm_cache",
            "/collective_rpc",
            "/scale_elastic_ep",
            "/is_scaling_elastic_ep",
            "/fault_tolerance/apply",
            "/pause",
            "/resume",
            "/abort_requests",
            "/inference/v1/abort_requests",
            "/init_weight_transfer_engine",
            "/update_weights",
            "/start_profile",
            "/stop_profile",
            "/server_info",
            "/get_world_size",
            "/invocations",
            "/metrics/x",
            "/docs",
            "/openapi.json",
        ] {
            assert_eq!(judge(path), Some(Verdict::Closed), "{path}");
        }
        for path in ["/x//sleep", "/../sleep", "/a/%2e%2e/b", "/a%00", "/%2573leep", "/a%ff", "/a;b"] {
            assert_eq!(judge(path), None, "{path}");
        }
    }

    #[test]
    fn inference_is_open() {
        for path in ["/tokenize", "/v1/embeddings", "/rerank", "/v1/responses/resp_1", "/v1/responses/start_1/cancel"] {
            assert_eq!(judge(path), Some(Verdict::Known), "{path}");
        }
        for path in ["/v1/models/org%2Fname", "/", "/v9/new"] {
            assert_eq!(judge(path), Some(Verdict::Unknown), "{path}");
        }
    }
}
