//! Which DP rank serves a request: the one that `X-data-parallel-rank` names, else the one with the least to do.
//!
//! Source: `docs/vllm-nixl-protocol.md` §5. The header counts the ranks of this pod from 0; what is no integer is ignored.

use std::sync::Arc;

use http::HeaderMap;
use vllm_wire::headers::DP_RANK;

use super::error::ApiError;
use crate::engine::Engine;

/// The engine for a request.
///
/// # Errors
/// 400 for an integer out of range.
pub(super) fn choose(engines: &[Arc<Engine>], headers: &HeaderMap) -> Result<Arc<Engine>, ApiError> {
    let asked = headers.get(DP_RANK).and_then(|value| value.to_str().ok()).and_then(python_int);
    let chosen = match asked {
        Some(rank) => usize::try_from(rank).ok().and_then(|rank| engines.get(rank)),
        // vLLM's internal load balancer: a waiting request weighs four running ones.
        None => engines.iter().min_by_key(|engine| engine.stats.waiting.get() * 4 + engine.stats.running.get()),
    };
    chosen.map(Arc::clone).ok_or_else(|| {
        let rank = asked.unwrap_or(0);
        let message = format!("data_parallel_rank {rank} is out of range [0, {}).", engines.len());
        ApiError::bad_request(message, Some("data_parallel_rank"))
    })
}

/// What Python's `int()` makes of a text: white space around it and single underscores between digits are fine.
fn python_int(text: &str) -> Option<i128> {
    let text = text.trim();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let well_formed = digits.split('_').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    if !well_formed {
        return None;
    }
    // A number that long is out of every range.
    let value = digits.replace('_', "").parse::<i128>().unwrap_or(i128::MAX);
    Some(if text.starts_with('-') { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_pythons() {
        for (text, value) in [("1", 1), (" 1 ", 1), ("+1", 1), ("-1", -1), ("1_0", 10), ("007", 7)] {
            assert_eq!(python_int(text), Some(value), "{text}");
        }
        for text in ["", "x", "1.0", "1__0", "_1", "1_", "0x1", "--1", "+"] {
            assert_eq!(python_int(text), None, "{text}");
        }
    }
}
