//! What a body says about the work it makes and whose it is: for choosing ranks, never for deciding what is sent.

use std::ops::Range;

use super::scan::Scanned;

/// Where the interesting values lie in the body, and how much work they mean. Nothing is refused here: what is not understood is
/// left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sketch {
    /// The bytes of the prompt as JSON: the value of `prompt`, `messages` or `input`.
    pub prompt: Range<usize>,
    /// How many tokens the prompt has, when it is given as token ids.
    pub token_ids: Option<u32>,
    /// The most tokens that the answer may have, when the client says so.
    pub max_tokens: Option<u32>,
    /// Whoever asks: the value of `session_id`, else of `user`.
    pub session: Option<Range<usize>>,
    /// What else decides about the prompt's tokens or keeps equal ones apart in the engine's cache: the values of `model`,
    /// `cache_salt`, `tools` and `chat_template_kwargs`.
    pub scope: [Option<Range<usize>>; 4],
}

impl Sketch {
    /// Where the name of the model is.
    pub(super) fn model(&self) -> Option<Range<usize>> {
        let [model, ..] = &self.scope;
        model.clone()
    }

    /// The prompt's tokens: counted, or guessed at four bytes each.
    pub fn prompt_tokens(&self) -> u32 {
        let guess = || u32::try_from(self.prompt.len().div_ceil(4)).unwrap_or(u32::MAX);
        self.token_ids.unwrap_or_else(guess)
    }
}

pub(super) fn sketch(scanned: &Scanned<'_>) -> Sketch {
    let place = |value: &str| {
        let start = value.as_ptr().addr().saturating_sub(scanned.text.as_ptr().addr());
        start..start + value.len()
    };
    let get = |keys: &[&str]| keys.iter().find_map(|key| scanned.get(key));
    let prompt = get(&["messages", "prompt", "input"]);
    let max_tokens = get(&["max_completion_tokens", "max_tokens", "max_output_tokens"]);
    Sketch {
        prompt: prompt.map(place).unwrap_or_default(),
        token_ids: prompt.and_then(count_ids),
        max_tokens: max_tokens.and_then(|value| value.parse().ok()),
        session: get(&["session_id", "user"]).map(place),
        scope: ["model", "cache_salt", "tools", "chat_template_kwargs"].map(|key| get(&[key]).map(place)),
    }
}

/// The entries of a list of numbers, if the value is one.
fn count_ids(value: &str) -> Option<u32> {
    let list = value.strip_prefix('[')?.trim_start();
    list.starts_with(|first: char| first.is_ascii_digit()).then(|| {
        let commas = value.bytes().filter(|byte| *byte == b',').count();
        u32::try_from(commas).unwrap_or(u32::MAX).saturating_add(1)
    })
}

#[cfg(test)]
mod tests {
    use super::super::scan::scan;
    use super::*;

    fn of(body: &str) -> Sketch {
        sketch(&scan(body.as_bytes()).unwrap())
    }

    #[test]
    fn token_ids_are_counted_and_text_is_guessed() {
        assert_eq!(of(r#"{"prompt":[1, 22,333]}"#).prompt_tokens(), 3);
        assert_eq!(of(r#"{"prompt":"abcdefgh12"}"#).prompt_tokens(), 3, "12 bytes with the quotes");
        assert_eq!(of(r#"{"prompt":["a,b"]}"#).token_ids, None);
        assert_eq!(of("{}").prompt_tokens(), 0);
        assert_eq!(of(r#"{"max_tokens":7}"#).max_tokens, Some(7));
        assert_eq!(of(r#"{"max_tokens":7,"max_completion_tokens":9}"#).max_tokens, Some(9));
        assert_eq!(of(r#"{"max_tokens":"many"}"#).max_tokens, None);
    }

    #[test]
    fn values_are_found_where_they_stand() {
        let body = r#"{"model":"m", "user":"u","messages":[{"content":"é"}],"cache_salt":"s"}"#;
        let found = of(body);
        assert_eq!(&body[found.prompt.clone()], r#"[{"content":"é"}]"#);
        assert_eq!(&body[found.session.unwrap()], r#""u""#);
        let [model, salt, tools, kwargs] = found.scope;
        assert_eq!((&body[model.unwrap()], &body[salt.unwrap()]), (r#""m""#, r#""s""#));
        assert_eq!((tools, kwargs), (None, None));
        assert_eq!(of(r#"{"user":"u","session_id":"s"}"#).session, Some(25..28));
    }
}
