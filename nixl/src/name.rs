//! Agent names: what NIXL calls one agent towards its peers.

use std::{fmt, sync::Arc};

/// Name of one agent: not empty, no NUL (NIXL takes C strings), unique among agents that talk to one another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentName(Arc<str>);

/// Why a text is no agent name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentNameError {
    /// NIXL refuses an agent without a name.
    #[error("an agent name must not be empty")]
    Empty,
    /// The C API could not carry it.
    #[error("an agent name must not contain NUL, found at byte {at}")]
    Nul {
        /// Byte offset of the first NUL.
        at: usize,
    },
}

impl AgentName {
    /// Checks and keeps a name.
    ///
    /// # Errors
    /// When it is empty or contains NUL.
    pub fn new(name: impl AsRef<str>) -> Result<Self, AgentNameError> {
        let name = name.as_ref();
        if name.is_empty() {
            return Err(AgentNameError::Empty);
        }
        match name.bytes().position(|byte| byte == 0) {
            Some(at) => Err(AgentNameError::Nul { at }),
            None => Ok(Self(Arc::from(name))),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_and_nul_names_are_refused() {
        assert_eq!(AgentName::new(""), Err(AgentNameError::Empty));
        assert_eq!(AgentName::new("a\0b"), Err(AgentNameError::Nul { at: 1 }));
        assert_eq!(AgentName::new("ä").expect("a name").as_str(), "ä");
    }
}
