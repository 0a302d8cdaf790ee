//! The OpenAI-compatible prefill/decode router that waits for receipts.
//!
//! ```text
//! request ─► admission ─► choice of ranks ─► prefill ─► transfer ─► receipt ─► ticket ─► decode ─► relay ─► client
//!                              ▲                └───── failure ladder ─────┘
//!                         targets ◄─ watch (sidecars' events, or engines' health)
//! ```
//!
//! | module | is |
//! |---|---|
//! | [`config`] | the command line, checked |
//! | [`run`](mod@run) | one process from start to end |
//! | [`router`] | the router as a library: listener and upstream are given |
//! | [`upstream`] | how engines and sidecars are reached |
//! | [`faults`] | injected faults of controls and tests |
//! | `front`, `guard`, [`keys`] | what requests meet first; who may ask what; clients' API keys |
//! | `http` | routes |
//! | `models` | one list of the engines' models |
//! | `request` | one client request: read, admitted, split or whole |
//! | `admission` | how many at once |
//! | `targets`, `watch`, `workers` | pods, ranks, and what is known of them; how they come and go |
//! | `discover` | pods that are found in Kubernetes or by DNS, kept on the board |
//! | `pod_local` | in a decode pod: what a gateway's headers say, as far as it is allowed |
//! | `choice`, `breaker`, `ladder` | which ranks; which not for a while; what after a failure |
//! | `engine` | the legs to vLLM |
//! | `sidecar`, `handoff` | the sidecars' API; what is owed to them |
//! | `ticket` | invariant G: no decode without a receipt, as a type |
//! | `relay`, `sse` | answers on their way to the client |
//! | `headers`, `error`, `metrics` | what clients and operators are told |
//! | `trail`, `records`, `spans` | one request's timeline; the last ones, for `/v1/requests`; as spans |
//! | `log_level` | what is logged, changed at run time |
//! | `fuzzed` | what fuzz targets reach |
#![forbid(unsafe_code)]

mod admission;
mod breaker;
mod choice;
pub mod config;
mod discover;
mod engine;
mod error;
pub mod faults;
mod front;
#[doc(hidden)]
pub mod fuzzed;
mod guard;
mod handoff;
mod headers;
mod http;
pub mod keys;
mod ladder;
mod log_level;
mod metrics;
mod models;
mod pod_local;
mod records;
mod relay;
mod request;
pub mod router;
pub mod run;
mod sidecar;
mod spans;
mod sse;
mod sync;
mod targets;
mod ticket;
mod trail;
pub mod upstream;
mod watch;
mod workers;

pub use run::{RunError, run};
