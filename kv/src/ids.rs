//! Identities: every number or string that names something has its own type.

use std::fmt;
use std::sync::Arc;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps the text as it stands; limits are checked where it enters the process.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

number_id! {
    /// A data-parallel replica, in the deployment's *global* numbering. A pod of a multi-node deployment owns a range of these.
    DpRank(u16)
}

number_id! {
    /// A data-parallel replica, counted from 0 within its own pod. Ports are `base + local rank` on one pod.
    LocalRank(u16)
}

number_id! {
    /// A tensor-parallel shard inside one DP rank.
    TpRank(u16)
}

number_id! {
    /// A *logical* KV-cache block of one engine (vLLM's scheduler block); meaningless without the engine and the DP rank.
    BlockId(u32)
}

number_id! {
    /// One logical block of a staging arena; the same geometry as an engine block, another owner.
    SlotId(u32)
}

text_id! {
    /// The identity of one engine *process* (and DP rank): new after every restart, from the side-channel handshake.
    EngineId
}

text_id! {
    /// The request id by which an engine knows a request and its pinned blocks (`remote_request_id` on the wire).
    EngineRequestId
}

text_id! {
    /// The router's key of one attempt to move one prefill's KV: the same key is the same transfer.
    AttemptId
}

text_id! {
    /// A transfer as the sidecar names it in its API.
    TransferId
}

impl DpRank {
    /// The rank's number within a pod whose first global rank is `offset`; `None` when the pod does not own it.
    pub fn local(self, offset: u16, size: u16) -> Option<LocalRank> {
        let local = self.0.checked_sub(offset)?;
        (local < size).then_some(LocalRank(local))
    }
}

impl LocalRank {
    /// The global rank of a pod whose first global rank is `offset`.
    pub fn global(self, offset: u16) -> DpRank {
        DpRank(self.0.saturating_add(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_global_rank_is_local_only_to_the_pod_that_owns_it() {
        assert_eq!(DpRank(9).local(8, 8), Some(LocalRank(1)));
        assert_eq!(DpRank(7).local(8, 8), None);
        assert_eq!(DpRank(16).local(8, 8), None);
        assert_eq!(LocalRank(1).global(8), DpRank(9));
    }
}
