//! The text that an engine "generates": words chosen by the digest of the KV bytes that it really has in memory.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Token ids below this are bytes of the prompt; the words of the vocabulary follow.
pub const FIRST_WORD_TOKEN: u32 = 256;

/// One generated token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its text, with the space that precedes it.
    pub text: &'static str,
}

/// What a request's text is a function of: the tokens of its prompt and the digest of their KV bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voice(u64);

impl Voice {
    /// Made once per request, after the KV is in place.
    pub fn new(prompt: &[u32], kv_digest: u64) -> Self {
        let bytes: Vec<u8> = prompt.iter().flat_map(|token| token.to_le_bytes()).collect();
        Self(xxh3_64_with_seed(&bytes, kv_digest))
    }

    /// The token at `step` of choice `choice`.
    pub fn token(self, choice: u32, step: u32) -> Token {
        let place = (u64::from(choice) << 32) | u64::from(step);
        let draw = xxh3_64_with_seed(&place.to_le_bytes(), self.0) % 64;
        let mut words = WORDS.split(',').zip(FIRST_WORD_TOKEN..);
        let chosen = usize::try_from(draw).ok().and_then(|index| words.nth(index));
        let (text, id) = chosen.unwrap_or((" end", FIRST_WORD_TOKEN));
        Token { id, text }
    }

    /// After how many tokens the text ends by itself when the client sets no limit; 16 to 64.
    pub fn natural_length(self) -> u32 {
        let draw = xxh3_64_with_seed(b"length", self.0) % 49;
        16 + u32::try_from(draw).unwrap_or(0)
    }
}

/// The longest text that ends by itself, in tokens.
pub const LONGEST_NATURAL: u32 = 64;

/// 64 words.
const WORDS: &str = " amber, anchor, apple, arrow, autumn, basket, beacon, birch, bridge, candle, canyon, cedar, circle, \
cloud, copper, coral, cotton, delta, ember, falcon, feather, field, flint, forest, garden, glacier, granite, harbor, \
hazel, heron, hollow, island, ivory, jasper, juniper, kettle, lantern, linen, maple, marble, meadow, mirror, moss, \
needle, north, ocean, olive, orchard, pebble, pepper, pine, prairie, quartz, raven, river, saddle, silver, slate, \
sparrow, stone, thistle, timber, violet, willow";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_is_64_distinct_words() {
        let mut words: Vec<&str> = WORDS.split(',').collect();
        assert!(words.iter().all(|word| word.starts_with(' ') && !word[1..].contains(' ')), "{words:?}");
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 64);
    }

    #[test]
    fn text_follows_from_the_tokens_and_from_the_bytes() {
        let text = |voice: Voice| (0..12).map(|step| voice.token(0, step).text).collect::<String>();
        assert_eq!(text(Voice::new(&[1, 2], 5)), text(Voice::new(&[1, 2], 5)));
        assert_ne!(text(Voice::new(&[1, 2], 5)), text(Voice::new(&[1, 2], 6)));
        assert_ne!(text(Voice::new(&[1, 2], 5)), text(Voice::new(&[1, 3], 5)));
        assert!((16..=LONGEST_NATURAL).contains(&Voice::new(&[1], 1).natural_length()));
    }
}
