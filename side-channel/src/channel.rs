//! The contract: who asks, who answers, and how either can fail.

use std::fmt::{self, Debug};
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::zmtp::WireError;

/// Where a side channel listens. An IPv6 host is kept without its brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Name or address.
    pub host: String,
    /// TCP port; 0 asks the system for a free one where something is served.
    pub port: u16,
}

/// Why a text is not an [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not HOST:PORT")]
pub struct EndpointError {
    /// What was given.
    pub text: String,
}

impl Endpoint {
    /// An endpoint of these parts.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// The same host at another port.
    #[must_use]
    pub fn with_port(&self, port: u16) -> Self {
        Self { host: self.host.clone(), port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || EndpointError { text: text.to_owned() };
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        let bare_ipv6 = bracketed.is_none() && host.contains(':');
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        if host.is_empty() || bare_ipv6 || !digits || host.chars().any(|c| c.is_whitespace() || "/[]".contains(c)) {
            return Err(error());
        }
        let port = port.parse().map_err(|_| error())?;
        Ok(Self::new(host, port))
    }
}

/// What a server does with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Send these payload frames.
    Reply(Vec<Bytes>),
    /// Send nothing; the asker runs into its deadline.
    Ignore,
    /// Close the port and every connection for good, as vLLM's listener does after a question that it does not expect.
    Die,
}

/// Answers the requests of one server. It is called on an I/O task: it must be quick and must not block.
pub trait Answer: Send + Sync + 'static {
    /// Answers one well-framed request: an empty delimiter and one payload frame.
    fn answer(&self, request: &[u8]) -> Answered;

    /// Decides about a message with another number of frames or without delimiter. [`Answered::Reply`] counts as `Ignore`.
    fn ill_framed(&self) -> Answered {
        Answered::Ignore
    }
}

/// A transport of questions and answers.
pub trait SideChannel: Debug + Send + Sync + 'static {
    /// Asks one question on a connection of its own; all frames of the answer. Takes at most `deadline`, connecting included.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    fn ask<'a>(
        &'a self,
        to: &'a Endpoint,
        request: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Vec<Bytes>, AskError>> {
        let all = self.ask_all(to, vec![request], deadline);
        Box::pin(async move { all.await.map(|answers| answers.into_iter().next().unwrap_or_default()) })
    }

    /// Asks several questions one after another on one connection; one answer each, in order. At most `deadline` for all of it.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    fn ask_all<'a>(
        &'a self,
        to: &'a Endpoint,
        requests: Vec<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Vec<Vec<Bytes>>, AskError>>;

    /// Listens on `on` and answers until the [`Server`] is stopped or dropped, or the answer is [`Answered::Die`].
    fn serve<'a>(&'a self, on: &'a Endpoint, answer: Arc<dyn Answer>) -> BoxFuture<'a, Result<Server, ServeError>>;
}

/// How far a question had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Resolving the name and opening the connection.
    Connect,
    /// Greeting one another.
    Greet,
    /// Waiting for the answer.
    Answer,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Greet => "greeting",
            Self::Answer => "waiting for the answer",
        })
    }
}

/// Why a question got no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody could be reached there.
    #[error("connect to side channel {endpoint}")]
    Connect {
        /// Where.
        endpoint: Endpoint,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The time was over.
    #[error("ask side channel {endpoint}: no answer within {after:?} (while {step})")]
    Deadline {
        /// Where.
        endpoint: Endpoint,
        /// What was being done.
        step: Step,
        /// The whole time that was given.
        after: Duration,
    },
    /// The peer broke off or spoke something else.
    #[error("talk to side channel {endpoint}")]
    Wire {
        /// Where.
        endpoint: Endpoint,
        /// What happened.
        #[source]
        source: WireError,
    },
}

impl AskError {
    /// Who was asked.
    pub fn endpoint(&self) -> &Endpoint {
        match self {
            Self::Connect { endpoint, .. } | Self::Deadline { endpoint, .. } | Self::Wire { endpoint, .. } => endpoint,
        }
    }
}

/// Why a side channel cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another process (or another rank) has the port.
    #[error("listen for side-channel requests on {endpoint}: the port is in use, stop its owner or choose another")]
    InUse {
        /// Where.
        endpoint: Endpoint,
    },
    /// Anything else.
    #[error("listen for side-channel requests on {endpoint}")]
    Bind {
        /// Where.
        endpoint: Endpoint,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// A listening side channel. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Server {
    local: Endpoint,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    pub(crate) fn new(local: Endpoint, stop: CancellationToken, tasks: TaskTracker) -> Self {
        Self { local, stop, tasks }
    }

    /// Where it listens, a requested port 0 resolved.
    pub fn local_endpoint(&self) -> &Endpoint {
        &self.local
    }

    /// False once it has been stopped or has died.
    pub fn is_listening(&self) -> bool {
        !self.stop.is_cancelled()
    }

    /// Resolves when it no longer listens: after a stop or after [`Answered::Die`].
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn ended(&self) {
        self.stop.cancelled().await;
    }

    /// Stops listening, closes every connection and waits until its tasks have ended: the port is free afterwards.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_round_trip_and_refuse_what_is_none() {
        for text in ["127.0.0.1:5600", "pod-0.svc:1", "[::1]:7800"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!("[::1]:7800".parse::<Endpoint>().unwrap().host, "::1");
        for text in [
            "",
            "host",
            ":1",
            "host:",
            "host:65536",
            "host:-1",
            "host:+1",
            "::1:7800",
            "a b:1",
            "tcp://a:1",
            "[[a]]:1",
            "a]:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
