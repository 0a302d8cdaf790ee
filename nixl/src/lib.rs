//! Safe, owning use of NIXL: agents, regions, transfers, notifications.
//!
//! Everything above this crate talks to a [`Fabric`]; what stands behind it is a choice made at start.
//!
//! | module | is |
//! |---|---|
//! | [`fabric`] | the trait, and the values that go in and out of it |
//! | [`pending`] | an answer that is still to come |
//! | [`name`] | agent names |
//! | [`memory`] | host and GPU memory that hardware may write |
//! | [`region`] | memory registered with one agent |
//! | [`descs`] | range-checked descriptor lists of both sides |
//! | [`error`] | what can go wrong, and whether memory is quiet after it |
//! | [`agent`] | the real fabric: a NIXL agent on its own thread |
//! | [`lanes`] | a fabric over two agents, for reads that a thread copies |
//! | [`loopback`] | a fabric inside one process, by `memcpy` |
//! | [`faulty`] | a fabric around another one that goes wrong on purpose |
//! | [`bulk`] | work over bytes, where it disturbs nobody |
//!
//! # What the crate promises
//!
//! * No future owns memory that hardware writes: dropping a [`Pending`] cancels nothing, the agent keeps the memory.
//! * Memory of a transfer is let go only after a *successful* terminal status was seen, or after its agent is destroyed.
//! * Nobody gets a reference into registered memory, only copies in and out.

pub mod agent;
pub mod bulk;
pub mod descs;
pub mod error;
pub mod fabric;
pub mod faulty;
pub mod lanes;
pub mod loopback;
pub mod memory;
pub mod name;
pub mod pending;
pub mod region;
mod spin;
mod sync;

pub use agent::{Agent, AgentConfig, AgentError, Progress, ProgressInterval};
pub use descs::{LocalDescs, MemKind, PeerMemory, RemoteDescs};
pub use error::{DescError, FabricError, NixlError};
pub use fabric::{Attention, Closed, Fabric, FabricStats, Notification, Read, ReadDone, Reading};
pub use lanes::{Cores, Lanes};
pub use memory::{AccessError, HugePages, Memory, MemoryError};
pub use name::AgentName;
pub use pending::{Answer, Pending};
pub use region::{OutOfRange, Region};
