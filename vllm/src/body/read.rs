//! A client's body, read once: what it says, and where everything is in it.

use std::ops::Range;

use bytes::Bytes;

use super::edit::{self, Edit, Pieces, decode_edits, edited};
use super::inspect::{Inspected, inspected};
use super::scan::{Layout, scan};
use super::{BodyError, Endpoint};
use crate::params::RawParams;

/// A body that has been checked. Clones are cheap: they share the bytes.
#[derive(Clone, Debug)]
pub struct RequestBody {
    bytes: Bytes,
    layout: Layout,
    inspected: Inspected,
    /// Where each prompt is, when there are several.
    prompts: Vec<Range<usize>>,
}

impl RequestBody {
    /// Reads a body.
    ///
    /// # Errors
    /// [`BodyError`]: answer 400.
    pub fn read(endpoint: Endpoint, bytes: Bytes) -> Result<Self, BodyError> {
        let scanned = scan(&bytes)?;
        let (inspected, prompts) = inspected(endpoint, &scanned)?;
        let layout = scanned.layout;
        Ok(Self { layout, inspected, prompts, bytes })
    }

    /// What it says.
    pub fn inspected(&self) -> &Inspected {
        &self.inspected
    }

    /// Its bytes as they came.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The body for the prefill engine: one token, not streamed, KV to be kept for a reader. For a text-only chat the answer
    /// will name its prompt's tokens.
    pub fn for_prefill(&self) -> Pieces {
        let Inspected { endpoint, text_only_chat, .. } = self.inspected;
        edit::for_prefill(endpoint, &self.bytes, &self.layout, text_only_chat)
    }

    /// The body for the decode engine, or for an engine that does all by itself: the client's transfer parameters are replaced
    /// by `params`, or removed.
    pub fn for_decode(&self, params: Option<&RawParams>) -> Pieces {
        edited(&self.bytes, &self.layout, &[&decode_edits(params)])
    }

    /// The model asked for.
    pub fn model(&self) -> Option<String> {
        serde_json::from_slice(self.bytes.get(self.inspected.sketch.model()?)?).ok()
    }

    /// How many prompts a completion has.
    pub fn prompts(&self) -> usize {
        self.prompts.len().max(1)
    }

    /// Bytes of all that is not a prompt: what each body of [`Self::each_prompt`] repeats.
    pub fn bytes_beside_prompts(&self) -> usize {
        let prompts: usize = self.prompts.iter().map(Range::len).sum();
        self.bytes.len().saturating_sub(prompts)
    }

    /// One body for each of several prompts, the same but for the prompt.
    ///
    /// # Errors
    /// [`BodyError`] for a prompt that is none.
    pub fn each_prompt(&self) -> Result<Vec<Self>, BodyError> {
        let each = self.prompts.iter().map(|prompt| {
            let prompt = String::from_utf8_lossy(self.bytes.get(prompt.clone()).unwrap_or_default());
            let edits = [("prompt", Edit::Replace(prompt))];
            Self::read(self.inspected.endpoint, edited(&self.bytes, &self.layout, &[&edits]).concat())
        });
        each.collect()
    }

    /// About how many tokens the prompt has: the ids when it is given as ids, else a quarter of its bytes.
    pub fn estimated_prompt_tokens(&self) -> usize {
        let value = |key: &str| {
            let last = self.layout.members.iter().rev().find(|member| member.is(&self.bytes, key));
            last.and_then(|member| self.bytes.get(member.value_start..member.span.end)).unwrap_or_default()
        };
        let prompt = value("prompt");
        if prompt.first() == Some(&b'[') && !prompt.contains(&b'"') {
            return prompt.iter().filter(|byte| **byte == b',').count() + 1;
        }
        let fields = ["prompt", "messages", "input", "system", "instructions", "tools"];
        fields.iter().map(|field| value(field).len()).sum::<usize>() / 4
    }
}
