//! Which ranks serve a request, and what stands between its prefill and its decode.

use clap::{ArgAction, Args, ValueEnum};

use super::ConfigError;

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
}

/// [`ChoiceArgs`], checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name")]
pub struct Choice {
    pub gate: Gate,
    pub pairing: Pairing,
    pub allow_rank_headers: bool,
}

impl ChoiceArgs {
    pub(super) fn check(&self) -> Result<Choice, ConfigError> {
        Ok(Choice {
            gate: match self.gate {
                GateKind::Stage => Gate::Stage,
                GateKind::Direct => Gate::Direct(Direct(())),
            },
            pairing: self.rank_pairing,
            allow_rank_headers: self.allow_rank_headers,
        })
    }
}
