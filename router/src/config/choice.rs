//! Which ranks serve a request, and what stands between its prefill and its decode.

use clap::{ArgAction, Args, ValueEnum};
use http::HeaderName;

use super::{ConfigError, range};
pub use crate::choice::PolicyKind;
use crate::choice::{Ports, Tuning};

/// What stands between a prefill and its decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GateKind {
    /// Decode waits for the receipt of D's sidecar.
    Stage,
    /// P's parameters go straight to D, as other routers do: the baseline.
    Direct,
}

/// Which decode rank may follow a prefill rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pairing {
    /// The rank of the same global number.
    Same,
    /// Any rank.
    Any,
}

/// Proof that the operator chose the direct gate; made in this module only.
#[derive(Clone, Copy, Debug)]
pub struct Direct(());

/// The gate with the proof that P's own parameters may go to D, if so configured.
#[derive(Clone, Copy, Debug)]
pub enum Gate {
    /// Decode waits for a receipt.
    Stage,
    /// Decode goes ahead.
    Direct(Direct),
}

/// Flags of the choice of ranks.
#[derive(Clone, Debug, Args)]
pub struct ChoiceArgs {
    /// Wait for the receipt (stage) or send P's parameters straight to D (direct, the baseline).
    #[arg(long, env = "KVGATE_GATE", value_enum, default_value_t = GateKind::Stage)]
    pub gate: GateKind,

    /// Which decode rank may follow a prefill rank.
    #[arg(long, env = "KVGATE_RANK_PAIRING", value_enum, default_value_t = Pairing::Same)]
    pub rank_pairing: Pairing,

    /// Let clients choose ranks with X-data-parallel-rank (decode) and X-KVGate-Prefill-Rank.
    #[arg(long, env = "KVGATE_ALLOW_RANK_HEADERS", action = ArgAction::SetTrue)]
    pub allow_rank_headers: bool,

    /// How ranks are chosen on both sides. Under --rank-pairing same the prefill side's policy leads.
    #[arg(long, env = "KVGATE_POLICY", value_enum, default_value_t)]
    pub policy: PolicyKind,

    /// How prefill ranks are chosen, if not by --policy.
    #[arg(long, env = "KVGATE_PREFILL_POLICY", value_enum)]
    pub prefill_policy: Option<PolicyKind>,

    /// How decode ranks are chosen, if not by --policy.
    #[arg(long, env = "KVGATE_DECODE_POLICY", value_enum)]
    pub decode_policy: Option<PolicyKind>,

    /// For consistent-hash: the request header that names a session, repeatable; else the body's session_id or user does, else the
    /// beginning of the prompt.
    #[arg(
        long,
        env = "KVGATE_SESSION_HEADER",
        value_name = "NAME",
        value_delimiter = ' ',
        default_value = "x-session-id"
    )]
    pub session_header: Vec<HeaderName>,

    /// For cache-aware and kv-events: the share of a prompt, 0 to 1, that a rank must have (or have got) to be preferred.
    #[arg(long, env = "KVGATE_CACHE_THRESHOLD", value_name = "SHARE", default_value_t = 0.3)]
    pub cache_threshold: f64,

    /// For cache-aware and kv-events: a rank is passed over when it has so many requests more than the least loaded one …
    #[arg(long, env = "KVGATE_BALANCE_ABS_THRESHOLD", value_name = "REQUESTS", default_value_t = 64)]
    pub balance_abs_threshold: u32,

    /// … and more than so many times as many.
    #[arg(long, env = "KVGATE_BALANCE_REL_THRESHOLD", value_name = "FACTOR", default_value_t = 1.5)]
    pub balance_rel_threshold: f64,

    /// For cache-aware and kv-events: bytes of prompts that are remembered on each side; a 256-byte block of them takes about 80 bytes.
    #[arg(long, env = "KVGATE_MAX_TREE_SIZE", value_name = "BYTES", default_value_t = 1 << 26)]
    pub max_tree_size: u64,

    /// For kv-events: the port of engine hosts at which rank 0 publishes its KV events; each further rank has the next.
    #[arg(long, env = "KVGATE_KV_EVENTS_PORT", value_name = "PORT", default_value_t = 5557)]
    pub kv_events_port: u16,

    /// For kv-events: the port at which rank 0 repeats KV events that were missed, if engines do; each further rank has the next.
    #[arg(long, env = "KVGATE_KV_EVENTS_REPLAY_PORT", value_name = "PORT")]
    pub kv_events_replay_port: Option<u16>,
}

/// [`ChoiceArgs`], checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name")]
pub struct Choice {
    pub gate: Gate,
    pub pairing: Pairing,
    pub allow_rank_headers: bool,
    pub(crate) policies: Tuning,
}

impl ChoiceArgs {
    pub(super) fn check(&self) -> Result<Choice, ConfigError> {
        range((0.0..=1.0).contains(&self.cache_threshold), "--cache-threshold", "between 0 and 1")?;
        range((1.0..=1e6).contains(&self.balance_rel_threshold), "--balance-rel-threshold", "between 1 and 1000000")?;
        range((1 << 16..=1 << 32).contains(&self.max_tree_size), "--max-tree-size", "between 64 KiB and 4 GiB")?;
        Ok(Choice {
            gate: match self.gate {
                GateKind::Stage => Gate::Stage,
                GateKind::Direct => Gate::Direct(Direct(())),
            },
            pairing: self.rank_pairing,
            allow_rank_headers: self.allow_rank_headers,
            policies: Tuning {
                prefill: self.prefill_policy.unwrap_or(self.policy),
                decode: self.decode_policy.unwrap_or(self.policy),
                session_headers: self.session_header.clone(),
                cache_percent: percent(self.cache_threshold),
                slack_requests: self.balance_abs_threshold,
                slack_percent: percent(self.balance_rel_threshold),
                tree_bytes: self.max_tree_size,
                ports: Ports { events: self.kv_events_port, replay: self.kv_events_replay_port },
            },
        })
    }
}

/// A checked, positive factor in per cent.
fn percent(factor: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range was checked, and `as` saturates"
    )]
    let percent = (factor * 100.0).round() as u32;
    percent
}
