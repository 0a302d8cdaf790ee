//! The contract between the sidecar's core ([`crate::pod`]) and its edge (HTTP, metrics, command line): plain data, no serde.
//!
//! Durations and instants are tokio's clock; ranks are global unless a name says `local`.
//!
//! | module | is |
//! |---|---|
//! | `config` | what a pod is told at start |
//! | `transfer`, `timeline` | transfers as they stand, stage by stage |
//! | `receipts` | receipts, and where they are put on record |
//! | `rank`, `handles` | ranks and the blocks that are held on them |
//! | `codes`, `errors` | the stable codes, and everything that can end badly |
//! | `counters` | totals since start |

mod codes;
mod config;
pub(crate) mod counters;
mod errors;
mod handles;
mod rank;
mod receipts;
mod timeline;
mod transfer;

pub use codes::{Code, Retry};
pub use config::{Faults, PodConfig, Role, SlowWire, Spoil, StagingKind};
pub use counters::{Counters, DurationHistogram, Ended, RankStages, StageHistograms};
pub use errors::{HandleError, HandshakeRefusal, ParamsProblem, StartError, TransferError};
pub use handles::{HandleSnapshot, HandleState, LetGo, RankHandles, ReportHandle};
pub use kv::readiness::RankState;
pub use rank::{AllRanks, RankSnapshot, ShutDown, StagingFigures};
pub use receipts::{Landed, NoReceiptSink, Receipt, ReceiptDigest, ReceiptSink, Recorded, Stages};
pub use timeline::{Contact, DigestFacts, QueuedBehind, ReadFacts, ShardRead, Span};
pub use transfer::{Freed, StartTransfer, TransferFailure, TransferFilter, TransferPhase, TransferSnapshot};
pub use vllm_wire::metrics::RankLoad;
