//! The demo's controls: each breaks one thing on purpose and says what must follow, so that a green demo means something.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::client::Client;
use super::report::Report;
use super::slow_wire;
use super::topology::{MODEL, Plan, Topology};
use super::workload::{self, Ask};

/// What to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Fault {
    /// Bytes in staging are flipped after landing: texts must differ (with --verify full: none)
    CorruptStaging,
    /// One prefill rank overwrites its blocks before they are read: texts must differ (with --verify full: none)
    OverwrittenBlocks,
    /// The router dispatches decodes before any receipt: they must be counted
    SkipGate,
    /// Decodes go to another rank than the receipt's: the router must refuse, the sidecar must notice
    WrongRank,
    /// One prefill rank's bytes move late: the decode sidecar must name it, and its wire
    SlowWire,
    /// P's lease is over before the pull: no receipt, no wrong text (with --gate direct: wrong texts)
    ExpiredLease,
}

/// How late the slow peer's bytes are: far more than what the machine's own moods make of a small read.
const SLOW_WIRE: Duration = Duration::from_millis(400);

/// Short enough to be over before the held pull or the delayed decode.
const SHORT_LEASE: Duration = Duration::from_secs(1);

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::CorruptStaging => "corrupt-staging",
            Self::OverwrittenBlocks => "overwritten-blocks",
            Self::SkipGate => "skip-gate",
            Self::WrongRank => "wrong-rank",
            Self::ExpiredLease => "expired-lease",
            Self::SlowWire => "slow-wire",
        }
    }

    /// The deployment with the fault in it.
    pub(super) fn prepare(self, plan: Plan) -> Plan {
        match self {
            Self::CorruptStaging => Plan { sidecar_faults: &["corrupt-staging"], ..plan },
            // Digests are taken at once, the pull is held until the blocks are overwritten. Without a prefix cache the next prefill is sound.
            Self::OverwrittenBlocks => Plan {
                dp: plan.dp.max(2),
                prefill_flags: &["--fault", "overwrite-pinned=500@0", "--prefix-caching", "off"],
                sidecar_faults: &["hold-pull=1000"],
                ..plan
            },
            Self::SkipGate => Plan { router_faults: &["skip-gate"], ..plan },
            Self::WrongRank => Plan { dp: plan.dp.max(2), router_faults: &["wrong-rank"], ..plan },
            // Another peer must be there to compare with.
            Self::SlowWire => Plan { dp: plan.dp.max(2), slow_wire: Some(SLOW_WIRE), ..plan },
            // Few blocks, so that the next prompts reuse what the lease has let go.
            Self::ExpiredLease => Plan {
                prefill_lease: SHORT_LEASE,
                blocks: 32,
                sidecar_faults: &["hold-pull=1600", "no-heartbeat"],
                router_faults: &["delay-decode=2500"],
                ..plan
            },
        }
    }

    /// A few requests are enough for a control.
    pub(super) fn asks(self) -> Vec<Ask> {
        let few = match self {
            Self::CorruptStaging | Self::OverwrittenBlocks | Self::SkipGate | Self::WrongRank => 8,
            Self::ExpiredLease => 4,
            // Enough of both ranks for medians.
            Self::SlowWire => 16,
        };
        let more = if self == Self::SlowWire { 8 } else { 0 };
        workload::asks(more).into_iter().filter(|ask| ask.prompt_tokens() <= 333).take(few).collect()
    }

    /// What happens beside request number `round`: for an expired lease, other prompts that will reuse P's blocks.
    pub(super) async fn disturb(self, topology: &Topology, client: &Client, round: usize) -> Result<()> {
        match self {
            Self::CorruptStaging | Self::OverwrittenBlocks | Self::SkipGate | Self::WrongRank | Self::SlowWire => {
                Ok(())
            }
            Self::ExpiredLease => {
                sleep(SHORT_LEASE + Duration::from_millis(300)).await;
                overwrite(client, &topology.prefill, round).await
            }
        }
    }

    /// Whether what followed is what must follow; the exit code says it.
    pub(super) async fn judge(self, report: &mut Report, topology: &Topology, client: &Client) -> Result<ExitCode> {
        report.fault = Some(self.name());
        match self {
            Self::CorruptStaging | Self::OverwrittenBlocks if report.verify != "off" => {
                report.notes.push(format!(
                    "control {} (verify {}): {} right, {} clear errors, {} wrong texts, {} receipts: {}",
                    self.name(),
                    report.verify,
                    report.correct,
                    report.clear_errors,
                    report.wrong_texts,
                    report.receipts,
                    mismatches(topology, client).await?
                ));
                Ok(ExitCode::from(u8::from(report.wrong_texts > 0 || report.decodes_without_receipt > 0)))
            }
            Self::OverwrittenBlocks => {
                report.notes.push(format!(
                    "control overwritten-blocks: {} of {} texts differ: nothing was compared (see --verify)",
                    report.wrong_texts, report.requests
                ));
                Ok(ExitCode::FAILURE)
            }
            Self::CorruptStaging => {
                let all = report.wrong_texts == report.requests;
                report.notes.push(format!(
                    "control corrupt-staging: {} of {} texts differ, {}",
                    report.wrong_texts,
                    report.requests,
                    if all {
                        "as they must: the bytes in staging are what is decoded"
                    } else {
                        "which must be all of them"
                    }
                ));
                Ok(ExitCode::FAILURE)
            }
            Self::SkipGate => {
                report.notes.push(format!(
                    "control skip-gate: {} of {} decodes had no receipt: the evidence sees what the router skipped",
                    report.decodes_without_receipt, report.decodes
                ));
                Ok(ExitCode::FAILURE)
            }
            Self::WrongRank => {
                let refused = report.clear_errors == report.requests && report.decodes == 0;
                report.notes.push(format!(
                    "control wrong-rank: the router refused {} of {}, {} decodes reached an engine",
                    report.clear_errors, report.requests, report.decodes
                ));
                let (sent, collected) = bypass(topology, client).await?;
                report.notes.push(format!(
                    "control wrong-rank: staged for rank 0, sent to rank {sent} past the router; the sidecar says collected_by {collected}"
                ));
                Ok(ExitCode::from(u8::from(!refused || u64::from(sent) != collected)))
            }
            Self::SlowWire => {
                let named = slow_wire::judge(report, topology, client).await?;
                let right = report.correct == report.requests && report.decodes_without_receipt == 0;
                Ok(ExitCode::from(u8::from(!named || !right)))
            }
            Self::ExpiredLease => {
                report.notes.push(format!(
                    "control expired-lease (gate {}): {} right, {} clear errors, {} wrong texts, {} receipts",
                    report.gate, report.correct, report.clear_errors, report.wrong_texts, report.receipts
                ));
                Ok(ExitCode::from(u8::from(
                    report.wrong_texts > 0 || (report.gate == "stage" && report.decodes_without_receipt > 0),
                )))
            }
        }
    }
}

/// How many transfers the decode pod's sidecar has refused for what landed.
async fn mismatches(topology: &Topology, client: &Client) -> Result<String> {
    let answer = client.get(&format!("{}/v1/transfers?state=failed", topology.decode_sidecar)).await?;
    let failed = answer.body.get("transfers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let code = |transfer: &&Value| transfer.pointer("/failure/code").and_then(Value::as_str) == Some("digest_mismatch");
    Ok(format!("{} transfers ended as digest_mismatch", failed.iter().filter(code).count()))
}

/// Prefills prompts that nobody decodes until P has reused every block once.
async fn overwrite(client: &Client, prefill: &str, round: usize) -> Result<()> {
    for rank in ["0", "1"] {
        for filler in 0..4 {
            let body = json!({ "model": MODEL, "prompt": workload::prompt(10_000 + 10 * round + filler, 240), "max_tokens": 1 });
            client.post(&format!("{prefill}/v1/completions"), &body, &[("x-data-parallel-rank", rank)]).await?;
        }
    }
    Ok(())
}

/// Does by hand what the router refuses: stages for rank 0, decodes on rank 1. Returns the rank it was sent to and the one
/// that the sidecar saw.
async fn bypass(topology: &Topology, client: &Client) -> Result<(u16, u64)> {
    const SENT_TO: u16 = 1;
    let prompt = workload::prompt(99, 100);
    let prefill = json!({ "model": MODEL, "prompt": prompt, "max_tokens": 1, "kv_transfer_params": { "do_remote_decode": true } });
    let answer = client
        .post(&format!("{}/v1/completions", topology.prefill), &prefill, &[("x-data-parallel-rank", "0")])
        .await?;
    let params = answer.body.get("kv_transfer_params").context("P gave no kv_transfer_params")?;
    let transfer = json!({
        "attempt_id": "demo-wrong-rank", "request_id": "demo-wrong-rank", "dp_rank": 0, "kv_transfer_params": params,
        "deadline_ms": 10_000, "lease_ms": 30_000, "prefill_done_age_ms": 100
    });
    let landed = client.post(&format!("{}/v1/transfers", topology.decode_sidecar), &transfer, &[]).await?;
    let params = landed.body.get("kv_transfer_params").with_context(|| format!("no receipt: {}", landed.error()))?;
    let id = landed.body.get("transfer_id").and_then(Value::as_str).context("no transfer id")?;
    let decode = json!({ "model": MODEL, "prompt": prompt, "max_tokens": 4, "kv_transfer_params": params });
    let rank = SENT_TO.to_string();
    client.post(&format!("{}/v1/completions", topology.decode), &decode, &[("x-data-parallel-rank", &rank)]).await?;
    let collected = collected_by(&format!("{}/v1/transfers/{id}", topology.decode_sidecar), client).await;
    // The decode leg has ended; rank 0 will not collect what rank 1 has read.
    client.delete(&format!("{}/v1/transfers/{id}", topology.decode_sidecar)).await?;
    Ok((SENT_TO, collected?))
}

/// The rank that collected a transfer, as the sidecar has learnt from its notification.
async fn collected_by(url: &str, client: &Client) -> Result<u64> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = client.get(url).await?;
        if let Some(rank) = answer.body.get("collected_by").and_then(Value::as_u64) {
            return Ok(rank);
        }
        if Instant::now() >= until {
            bail!("the sidecar has not noticed who collected: {}", answer.body);
        }
        sleep(Duration::from_millis(20)).await;
    }
}
