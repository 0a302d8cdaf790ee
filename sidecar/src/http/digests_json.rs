//! Digests as JSON: the question and the answer, for both of their ends.

use kv::digest::{ALGORITHM, pages_per_block};
use kv::ids::{BlockId, EngineId, EngineRequestId};
use kv::layout::KvLayout;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::digest::source::SourceError;
use crate::digest::{DigestAsk, Digests};
use crate::http::input;
use crate::problem::Problem;

/// Hexadecimal digits of a digest.
const DIGITS: usize = 16;

/// Whose blocks are to be digested. Members that are not named here are ignored.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(super) struct AskBody {
    /// The engine that holds the blocks (`remote_engine_id`)
    #[schema(min_length = 1, max_length = 256, pattern = "^[!-~]+$")]
    engine_id: String,
    /// Its request (`remote_request_id`); a label
    #[schema(min_length = 1, max_length = 256, pattern = "^[!-~]+$")]
    request_id: String,
    /// Blocks of the request, all or some, per KV-cache group
    block_ids: Vec<Vec<u32>>,
    /// How long the client waits
    #[schema(minimum = 1, maximum = 86_400_000)]
    deadline_ms: u64,
}

impl AskBody {
    /// A question, asked at `now`.
    pub(super) fn new(ask: &DigestAsk, now: Instant) -> Self {
        let ids = |group: &Vec<BlockId>| group.iter().map(|block| block.0).collect();
        let left = ask.deadline.saturating_duration_since(now);
        Self {
            engine_id: ask.engine.as_str().to_owned(),
            request_id: ask.request.as_str().to_owned(),
            block_ids: ask.blocks.iter().map(ids).collect(),
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1),
        }
    }

    /// Checks every member; the deadline counts from `now`.
    pub(super) fn into_ask(self, now: Instant) -> Result<DigestAsk, Problem> {
        Ok(DigestAsk {
            engine: EngineId::new(input::id("engine_id", &self.engine_id)?.to_owned()),
            request: EngineRequestId::new(input::id("request_id", &self.request_id)?.to_owned()),
            blocks: self.block_ids.into_iter().map(|ids| ids.into_iter().map(BlockId).collect()).collect(),
            deadline: now + input::some_milliseconds("deadline_ms", self.deadline_ms)?,
            trace: None,
        })
    }
}

/// Per TP shard one text per block, in the order of the question; in it 16 hexadecimal digits for each region of the block's group, in wire
/// order.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(super) struct DigestsJson {
    engine_id: String,
    /// `xxh64-4k`
    algorithm: String,
    /// Bytes that were read and digested, all TP shards
    bytes: u64,
    shards: Vec<Vec<String>>,
}

impl DigestsJson {
    /// What was taken for a question.
    pub(super) fn new(ask: &DigestAsk, layout: Option<&KvLayout>, digests: &Digests) -> Self {
        Self {
            engine_id: ask.engine.as_str().to_owned(),
            algorithm: ALGORITHM.to_owned(),
            bytes: digests.bytes,
            shards: digests.shards.iter().map(|shard| texts(ask, layout, shard)).collect(),
        }
    }

    /// The digests of an answer; whether they are as many as were asked for is for the reader to say.
    pub(super) fn read(self, ask: &DigestAsk) -> Result<Digests, SourceError> {
        if self.algorithm != ALGORITHM {
            return Err(SourceError::Answer(
                "it digests in another way than xxh64-4k: both sidecars must be of one version",
            ));
        }
        if self.engine_id != ask.engine.as_str() {
            return Err(SourceError::Answer("it tells of another engine"));
        }
        let mut shards = Vec::with_capacity(self.shards.len());
        for texts in &self.shards {
            let mut shard = Vec::new();
            for text in texts {
                numbers(text, &mut shard).ok_or(SourceError::Answer("a digest is not 16 hexadecimal digits"))?;
            }
            shards.push(shard);
        }
        Ok(Digests { shards, bytes: self.bytes })
    }
}

fn texts(ask: &DigestAsk, layout: Option<&KvLayout>, digests: &[u64]) -> Vec<String> {
    let mut left = digests.iter();
    let mut texts = Vec::with_capacity(ask.count());
    for (group, blocks) in (0_u16..).zip(&ask.blocks) {
        let pages = layout.map_or(1, |layout| pages_per_block(layout, group));
        for _ in blocks {
            texts.push(left.by_ref().take(pages).map(|digest| format!("{digest:016x}")).collect());
        }
    }
    texts
}

fn numbers(text: &str, into: &mut Vec<u64>) -> Option<()> {
    for digits in text.as_bytes().chunks(DIGITS) {
        let whole = digits.len() == DIGITS && digits.iter().all(u8::is_ascii_hexdigit);
        let digits = std::str::from_utf8(digits).ok().filter(|_| whole)?;
        into.push(u64::from_str_radix(digits, 16).ok()?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn ask() -> DigestAsk {
        DigestAsk {
            engine: EngineId::new("engine-p0"),
            request: EngineRequestId::new("cmpl-1"),
            blocks: vec![vec![BlockId(7), BlockId(1)], vec![BlockId(9)]],
            deadline: Instant::now() + Duration::from_millis(1500),
            trace: None,
        }
    }

    #[test]
    fn a_question_is_what_was_asked() {
        let asked = ask();
        let now = asked.deadline.checked_sub(Duration::from_millis(1500)).unwrap();
        let text = serde_json::to_string(&AskBody::new(&asked, now)).unwrap();
        assert_eq!(
            text,
            r#"{"engine_id":"engine-p0","request_id":"cmpl-1","block_ids":[[7,1],[9]],"deadline_ms":1500}"#
        );
        let read: AskBody = serde_json::from_str(&text).unwrap();
        assert_eq!(read.into_ask(now).unwrap(), asked);
    }

    #[test]
    fn an_answer_has_one_text_per_block() {
        let digests = Digests { shards: vec![vec![0, u64::MAX, 0xabc]], bytes: 12 };
        let json = DigestsJson::new(&ask(), None, &digests);
        let text = serde_json::to_string(&json).unwrap();
        assert!(text.contains(r#"[["0000000000000000","ffffffffffffffff","0000000000000abc"]]"#), "{text}");
        assert_eq!(json.read(&ask()).unwrap(), digests);
    }

    #[test]
    fn answers_that_say_something_else_are_of_no_use() {
        let read =
            |text: &str| serde_json::from_str::<DigestsJson>(text).unwrap().read(&ask()).unwrap_err().to_string();
        let of = |engine: &str, algorithm: &str, digest: &str| {
            read(&format!(r#"{{"engine_id":"{engine}","algorithm":"{algorithm}","bytes":1,"shards":[["{digest}"]]}}"#))
        };
        assert!(of("engine-p0", "md5", "").contains("another way"));
        assert!(of("engine-p1", "xxh64-4k", "").contains("another engine"));
        for digest in ["1", "+000000000000001", "000000000000000g", "00000000000000001"] {
            assert!(of("engine-p0", "xxh64-4k", digest).contains("16 hexadecimal"), "{digest}");
        }
    }
}
