//! What clients sent and got, and what engines got and sent: invariant B. And that nobody is given what was decoded from another's KV
//! (invariant I), which is known only once the decode has ended.

use std::collections::BTreeMap;

use super::Evidence;
use super::handoff::VirtualRequest;
use crate::edits;
use crate::hosts::Host;

/// Which part of a split request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// At a prefill engine.
    Prefill,
    /// At a decode engine.
    Decode,
}

/// An answer of a decode engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerId {
    tag: String,
    index: usize,
}

#[derive(Debug, Default)]
pub(super) struct Bodies {
    /// Path and body, by the client's tag.
    asked: BTreeMap<String, (&'static str, Vec<u8>)>,
    answers: BTreeMap<String, Vec<Answer>>,
}

/// What a decode engine said.
#[derive(Debug)]
struct Answer {
    of: VirtualRequest,
    bytes: Vec<u8>,
    /// Bytes of KV that it was decoded from and that were not the request's.
    foreign: u64,
    /// The client has got some of it.
    given: bool,
}

impl Evidence {
    /// A client sends a request.
    pub fn asked(&self, tag: &str, path: &'static str, body: &[u8]) {
        let mut record = self.0.lock();
        record.write(&format!("request {tag} is sent"));
        record.bodies.asked.insert(tag.to_owned(), (path, body.to_vec()));
    }

    /// It reaches an engine, with the edits of its leg and no others.
    pub fn reached(&self, host: Host, leg: Leg, tag: &str, got: &[u8]) {
        let mut record = self.0.lock();
        let found = match (record.bodies.asked.get(tag), leg) {
            (None, _) => Err("nobody has sent it".to_owned()),
            (Some((path, sent)), Leg::Prefill) => edits::at_p(path, sent, got),
            (Some((_, sent)), Leg::Decode) => edits::at_d(sent, got),
        };
        if let Err(why) = found {
            record.broken("B", &format!("{tag} at {host}: {why}: {}", String::from_utf8_lossy(got)));
        }
    }

    /// A decode engine begins to answer.
    pub fn answer(&self, tag: &str, of: VirtualRequest) -> AnswerId {
        let mut record = self.0.lock();
        let answers = record.bodies.answers.entry(tag.to_owned()).or_default();
        answers.push(Answer { of, bytes: Vec::new(), foreign: 0, given: false });
        AnswerId { tag: tag.to_owned(), index: answers.len() - 1 }
    }

    /// It says this.
    pub fn said(&self, answer: &AnswerId, bytes: &[u8]) {
        let mut record = self.0.lock();
        let answers = record.bodies.answers.get_mut(&answer.tag);
        if let Some(answer) = answers.and_then(|answers| answers.get_mut(answer.index)) {
            answer.bytes.extend_from_slice(bytes);
        }
    }

    /// A decode was made of bytes that were not the request's.
    pub fn foreign(&self, of: &VirtualRequest, bytes: u64) {
        let mut record = self.0.lock();
        record.write(&format!("{} was decoded from {bytes} bytes that are not its own", of.1));
        for answer in record.bodies.answers.values_mut().flatten().filter(|answer| answer.of == *of) {
            answer.foreign = bytes;
        }
    }

    /// A client has got these bytes of a good answer, `whole` to its end: they are one engine's, as it said them.
    pub fn received(&self, tag: &str, bytes: &[u8], whole: bool) {
        if bytes.is_empty() && !whole {
            return;
        }
        let mut record = self.0.lock();
        let mut known = false;
        for answer in record.bodies.answers.get_mut(tag).into_iter().flatten() {
            let is = if whole { answer.bytes == bytes } else { answer.bytes.starts_with(bytes) };
            answer.given |= is;
            known |= is;
        }
        if !known {
            let shown = String::from_utf8_lossy(bytes).into_owned();
            record.broken("B", &format!("{tag} has got what no engine said (whole: {whole}): {shown}"));
        }
    }

    /// Everything has ended.
    pub fn settle(&self) {
        let mut record = self.0.lock();
        let bad = record.bodies.answers.iter().flat_map(|(tag, answers)| answers.iter().map(move |it| (tag, it)));
        let bad: Vec<String> = bad
            .filter(|(_, answer)| answer.given && answer.foreign > 0)
            .map(|(tag, answer)| format!("{tag} was answered from {} bytes of another's KV", answer.foreign))
            .collect();
        for how in bad {
            record.broken("I", &how);
        }
    }
}
