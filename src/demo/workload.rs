//! What the demo asks: completions and chats, streaming and not, around block boundaries and far beyond them.

use serde_json::{Value, json};

/// Tokens of one KV block in the demo's engines.
pub(super) const BLOCK_TOKENS: usize = 16;

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// Names it in the table.
    pub(super) name: String,
    chat: bool,
    stream: bool,
    prompt: String,
}

impl Ask {
    /// Tokens of its prompt, without the chat template's.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt.len()
    }

    /// The path of its endpoint.
    pub(super) fn path(&self) -> &'static str {
        if self.chat { "/v1/chat/completions" } else { "/v1/completions" }
    }

    /// The body a client sends.
    pub(super) fn body(&self, model: &str) -> Value {
        let mut body = json!({ "model": model, "max_tokens": 16, "temperature": 0, "stream": self.stream });
        if let Some(fields) = body.as_object_mut() {
            if self.chat {
                fields.insert("messages".to_owned(), json!([{ "role": "user", "content": self.prompt }]));
            } else {
                fields.insert("prompt".to_owned(), json!(self.prompt));
            }
        }
        body
    }
}

/// The demo's requests; `rounds` more of medium size follow, so that every rank gets some.
pub(super) fn asks(rounds: usize) -> Vec<Ask> {
    // (prompt tokens, chat, stream); the sim's tokens are bytes.
    let fixed = [
        (1, false, false),
        (BLOCK_TOKENS - 1, false, true),
        (BLOCK_TOKENS, true, false),
        (BLOCK_TOKENS + 1, true, true),
        (64, false, false),
        (100, false, true),
        (200, true, true),
        (333, true, false),
        (500, false, true),
        (1_000, false, false),
        (2_048, false, true),
        (2_000, true, true),
    ];
    let medium = (0..rounds).map(|round| (150 + 7 * round, round % 2 == 1, round % 3 == 0));
    fixed
        .into_iter()
        .chain(medium)
        .zip(1..)
        .map(|((tokens, chat, stream), number)| ask(number, tokens, chat, stream))
        .collect()
}

fn ask(number: usize, tokens: usize, chat: bool, stream: bool) -> Ask {
    let kind = if chat { "chat" } else { "completion" };
    let mode = if stream { ", stream" } else { "" };
    Ask { name: format!("{kind} {tokens}{mode}"), chat, stream, prompt: prompt(number, tokens) }
}

/// `tokens` bytes that no two requests share from the first byte on, so that no prefix is cached by accident.
pub(super) fn prompt(number: usize, tokens: usize) -> String {
    let alphabet = b"abcdefghijklmnopqrstuvwxyz";
    (0..tokens)
        .scan(number.wrapping_mul(0x9E37_79B9).wrapping_add(17), |seed, _| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            alphabet.get((*seed >> 33) % alphabet.len()).map(|letter| char::from(*letter))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_workload_covers_what_the_demo_promises() {
        let asks = asks(4);
        assert!(asks.len() >= 12);
        for (chat, stream) in [(false, false), (false, true), (true, false), (true, true)] {
            assert!(asks.iter().any(|ask| ask.chat == chat && ask.stream == stream));
        }
        assert!(asks.iter().any(|ask| ask.prompt.len() >= 2_000));
        let distinct: BTreeSet<_> = asks.iter().map(|ask| &ask.prompt).collect();
        assert_eq!(distinct.len(), asks.len());
    }
}
