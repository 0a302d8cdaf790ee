//! One line of the doctor's report.

use serde::Serialize;
use serde_json::{Map, Value};

/// How bad it is, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// Not looked at, and why.
    Skip,
    /// Works, and something is worse than it could be.
    Warn,
    /// Prefill/decode cannot work like this.
    Fail,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skip => "skip",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Line {
    /// The check's name: stable, for scripts.
    pub(crate) check: &'static str,
    pub(crate) status: Status,
    /// What was found.
    pub(crate) says: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<String>,
    /// The facts that it rests on.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub(crate) facts: Map<String, Value>,
}

impl Line {
    pub(crate) fn ok(check: &'static str, says: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, says: says.into(), fix: None, facts: Map::new() }
    }

    pub(crate) fn skip(check: &'static str, why: impl Into<String>) -> Self {
        Self { status: Status::Skip, ..Self::ok(check, why) }
    }

    pub(crate) fn warn(check: &'static str, says: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Warn, fix: Some(fix.into()), ..Self::ok(check, says) }
    }

    pub(crate) fn fail(check: &'static str, says: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Fail, fix: Some(fix.into()), ..Self::ok(check, says) }
    }

    /// Adds a fact.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }
}

/// The worst of them; `Ok` when there are none.
pub(crate) fn worst(lines: &[Line]) -> Status {
    lines.iter().map(|line| line.status).max().unwrap_or(Status::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_worse_than_anything() {
        let lines = [Line::ok("a", ""), Line::fail("b", "", ""), Line::warn("c", "", ""), Line::skip("d", "")];
        assert_eq!(worst(&lines), Status::Fail);
        assert_eq!(worst(&[Line::ok("a", ""), Line::skip("d", "")]), Status::Skip);
        assert_eq!(worst(&[]), Status::Ok);
    }
}
