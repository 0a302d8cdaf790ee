//! What a policy needs to know of a request, read once per request.

use std::ops::Range;

use http::{HeaderMap, HeaderName};
use vllm_wire::body::Sketch;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::learned::Text;
use super::policy::Policies;
use crate::targets::Side;

/// Bytes of a prompt that make one block: about as many tokens as an engine's block or four have.
pub(super) const BLOCK: usize = 256;
/// Blocks of a prompt that are looked at: a million bytes.
const MAX_BLOCKS: usize = 4096;
/// Bytes of a prompt that stand for a session which has no other name.
const PROMPT_NAMES: usize = 256;

/// A request, for policies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    prompt_tokens: u32,
    answer_tokens: u32,
    /// Whose it is, where a side hashes.
    pub(super) session: u64,
    /// The hashes of the prompt's beginnings, block by block, where a side remembers prompts.
    pub(super) blocks: Vec<u64>,
    /// The hash of the whole prompt, and its length.
    whole: u64,
    bytes: usize,
    /// The prompt's blocks of tokens, as far as they are known, where a side follows KV events.
    pub(super) token_blocks: Vec<u64>,
}

/// Tokens that an answer is taken to have when the client sets no limit.
const USUAL_ANSWER: u32 = 256;

impl Ask {
    /// Reads what the policies need.
    pub(crate) fn new(policies: &Policies, headers: &HeaderMap, body: &[u8], sketch: &Sketch) -> Self {
        let part = |range: &Option<Range<usize>>| range.clone().and_then(|range| body.get(range)).unwrap_or_default();
        let prompt = body.get(sketch.prompt.clone()).unwrap_or_default();
        let mut ask = Self {
            prompt_tokens: sketch.prompt_tokens(),
            answer_tokens: sketch.max_tokens.unwrap_or(USUAL_ANSWER),
            ..Self::default()
        };
        if policies.hash_sessions() {
            ask.session = session(policies.session_headers(), headers, part(&sketch.session), prompt);
        }
        if policies.remember_prompts() {
            let scope = sketch.scope.iter().fold(0, |seed, value| xxh3_64_with_seed(part(value), seed));
            ask.blocks = chain(prompt, scope);
            let rest = prompt.get(ask.blocks.len() * BLOCK..).unwrap_or_default();
            ask.whole = xxh3_64_with_seed(rest, ask.blocks.last().copied().unwrap_or(scope));
            ask.bytes = prompt.len();
        }
        if policies.follow_events() {
            let ids = sketch.token_ids.is_some().then(|| serde_json::from_slice::<Vec<u32>>(prompt).ok()).flatten();
            ask.token_blocks = match ids {
                Some(ids) => policies.token_blocks(&ids),
                None => policies.known_blocks(&ask.text()),
            };
        }
        ask
    }

    /// The prompt as a text.
    pub(super) fn text(&self) -> Text<'_> {
        Text { beginnings: &self.blocks, whole: self.whole, block: BLOCK, bytes: self.bytes }
    }

    /// A request of another path, of which only its length is known: in no cache worth finding, and without a session unless a
    /// header names one.
    pub(crate) fn of_other_path(policies: &Policies, headers: &HeaderMap, bytes: usize) -> Self {
        let sketch = Sketch { prompt: 0..bytes, max_tokens: Some(0), ..Sketch::default() };
        let anybody = fastrand::u64(..).to_le_bytes();
        Self {
            prompt_tokens: sketch.prompt_tokens(),
            ..Self::new(policies, headers, &anybody, &Sketch { prompt: 0..8, ..sketch })
        }
    }

    /// Tokens that it may cost a rank of this side.
    pub(crate) fn tokens(&self, side: Side) -> u32 {
        match side {
            Side::Prefill => self.prompt_tokens,
            Side::Decode => self.prompt_tokens.saturating_add(self.answer_tokens),
        }
    }
}

fn session(names: &[HeaderName], headers: &HeaderMap, in_body: &[u8], prompt: &[u8]) -> u64 {
    let header = names.iter().find_map(|name| headers.get(name)).map(http::HeaderValue::as_bytes);
    let body = (!in_body.is_empty()).then_some(in_body);
    xxh3_64(header.or(body).unwrap_or_else(|| prompt.get(..PROMPT_NAMES).unwrap_or(prompt)))
}

/// The hash of every beginning that is whole blocks long.
fn chain(prompt: &[u8], scope: u64) -> Vec<u64> {
    let mut last = scope;
    let next = |block: &[u8]| {
        last = xxh3_64_with_seed(block, last);
        last
    };
    prompt.chunks_exact(BLOCK).take(MAX_BLOCKS).map(next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_the_hashes_of_their_common_beginning_only() {
        let mut text = vec![b'a'; 5 * BLOCK + 17];
        let whole = chain(&text, 1);
        assert_eq!(whole.len(), 5);
        text[3 * BLOCK] = b'b';
        let other = chain(&text, 1);
        assert_eq!(whole[..3], other[..3]);
        assert_ne!(whole[3], other[3]);
        assert_ne!(whole[4], other[4], "what follows a difference differs");
        assert_ne!(chain(&text, 2)[0], other[0], "another model's");
    }

    #[test]
    fn a_session_is_its_header_else_its_body_else_its_prompt() {
        let names = [HeaderName::from_static("x-a"), HeaderName::from_static("x-b")];
        let mut headers = HeaderMap::new();
        assert_eq!(session(&names, &headers, b"", b"prompt"), xxh3_64(b"prompt"));
        assert_eq!(session(&names, &headers, b"u", b"prompt"), xxh3_64(b"u"));
        headers.insert("x-b", "s".parse().unwrap());
        assert_eq!(session(&names, &headers, b"u", b"prompt"), xxh3_64(b"s"));
        let long = vec![b'x'; 2 * PROMPT_NAMES];
        assert_eq!(session(&[], &headers, b"", &long), xxh3_64(&long[..PROMPT_NAMES]));
    }
}
