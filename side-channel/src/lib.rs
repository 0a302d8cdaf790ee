//! vLLM's NIXL side channel as a transport: ask and serve over ZeroMQ. What the frames mean is `vllm-wire`'s business.
//!
//! | module | is |
//! |---|---|
//! | [`addresses`] | networks and ports of peers, as flags write them |
//! | [`channel`] | the trait [`SideChannel`], the [`Answer`] of a server, endpoints and errors |
//! | [`zmq`] | the real one: ZMTP 3.0 over TCP, `REQ` asks and `ROUTER` answers |
//! | [`network`] | what carries its bytes |
//! | [`subscribe`] | numbered messages of a publisher, live (`SUB`) or repeated (`REQ`), as vLLM's KV events come |
//! | [`in_process`] | the same without sockets, for tests and simulations |
//!
//! ZMTP is spoken by this crate itself (`zmtp.rs`). The `zeromq` crate 0.7.0 reserves memory for whatever frame length a
//! peer announces, so one frame header from anybody ends the process; it serves here as the foreign peer of the tests.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod channel;
#[doc(hidden)]
pub mod fuzzed;
pub mod in_process;
pub mod network;
pub mod subscribe;
pub mod zmq;
mod zmtp;

pub use channel::{Answer, Answered, AskError, Endpoint, EndpointError, ServeError, Server, SideChannel, Step};
pub use in_process::InProcess;
pub use network::{Network, Tcp};
pub use subscribe::{Numbered, Replay, Subscription};
pub use zmq::{Limits, Zmq};
pub use zmtp::WireError;
