//! One span that has ended.

use std::borrow::Cow;

use tokio::time::Instant;

use super::Context;

/// Whose work it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Asked for over the network.
    Server,
    /// Asked of another process.
    Client,
    /// Neither.
    Internal,
}

/// What an attribute says. Never prompts, tokens, keys or block contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Words.
    Text(Cow<'static, str>),
    /// A number; its unit is in the attribute's name.
    Number(u64),
    /// Yes or no.
    Flag(bool),
}

/// One span.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its own ids.
    pub context: Context,
    /// The span that it is part of.
    pub parent: Option<u64>,
    /// A word from a short list.
    pub name: &'static str,
    /// Whose work it is.
    pub kind: Kind,
    /// When it began.
    pub start: Instant,
    /// When it ended.
    pub end: Instant,
    /// What is known about it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it failed, as a stable code.
    pub error: Option<Cow<'static, str>>,
}

impl Span {
    /// A span without attributes.
    pub fn new(context: Context, parent: Option<u64>, name: &'static str, start: Instant, end: Instant) -> Self {
        Self { context, parent, name, kind: Kind::Internal, start, end, attributes: Vec::new(), error: None }
    }

    /// Of another kind.
    #[must_use]
    pub fn kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// With words.
    #[must_use]
    pub fn text(mut self, name: &'static str, words: impl Into<Cow<'static, str>>) -> Self {
        self.attributes.push((name, Value::Text(words.into())));
        self
    }

    /// With words, where there are some.
    #[must_use]
    pub fn maybe(self, name: &'static str, words: Option<impl Into<Cow<'static, str>>>) -> Self {
        match words {
            Some(words) => self.text(name, words),
            None => self,
        }
    }

    /// With a number.
    #[must_use]
    pub fn number(mut self, name: &'static str, number: impl Into<u64>) -> Self {
        self.attributes.push((name, Value::Number(number.into())));
        self
    }

    /// With a yes or no.
    #[must_use]
    pub fn flag(mut self, name: &'static str, flag: bool) -> Self {
        self.attributes.push((name, Value::Flag(flag)));
        self
    }

    /// Failed, by a stable code, if there is one.
    #[must_use]
    pub fn failed(self, code: Option<impl Into<Cow<'static, str>>>) -> Self {
        Self { error: code.map(Into::into), ..self }
    }
}
