//! The deployment that a seed stands for: two prefill pods, two decode pods, four ranks each.

use std::time::Duration;

use crate::dice::Dice;
use crate::hosts::Host;
use crate::pods::{ENGINE, SIDE_CHANNEL, SIDECAR};

/// Ranks of each pod.
pub const RANKS: u16 = 4;
/// The router's largest body.
pub const MAX_BODY_BYTES: u64 = 4096;
/// The router's limit for the first byte of an answer.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(20);
/// The router's limit for a silence in an answer.
pub const IDLE_DEADLINE: Duration = Duration::from_secs(4);

/// What the command lines say beyond what is always so.
#[derive(Clone, Debug)]
pub struct Setup {
    lease_ms: u64,
    tensor_parallel: u16,
    blocks: u64,
    slots: u64,
    verify: &'static str,
    zero: bool,
    pairing: &'static str,
    policy: &'static str,
    router_fault: &'static str,
    sidecar_fault: &'static str,
    /// A control: engines panic.
    pub panics: bool,
}

/// Bytes of one block: 2 layers, keys and values, 4 tokens, 2 heads of 8 elements of 2 bytes.
const BLOCK_BYTES: u64 = 2 * 2 * 4 * 2 * 8 * 2;
/// Tokens of one block.
pub const BLOCK_TOKENS: u64 = 4;

impl Setup {
    /// The seed's.
    pub fn of(seed: u64, control: Option<&str>) -> Self {
        let mut dice = Dice::new(seed, "setup");
        Self {
            lease_ms: 2_000 + dice.below(6_000),
            tensor_parallel: if dice.percent(30) { 2 } else { 1 },
            blocks: 40 + dice.below(60),
            slots: 12 + dice.below(40),
            router_fault: if control == Some("skip-gate") { "--fault skip-gate" } else { "" },
            sidecar_fault: if control == Some("corrupt-staging") { "--fault corrupt-staging" } else { "" },
            panics: control == Some("panic"),
            // A comparison would find what a control spoils.
            verify: if control.is_some() { "off" } else { dice.pick::<&str>(&["off", "off", "sample:2", "full"]) },
            zero: dice.percent(40),
            pairing: dice.pick::<&str>(&["same", "any"]),
            policy: dice.pick::<&str>(&["cache_aware", "round_robin", "random", "power_of_two"]),
        }
    }

    /// P's lease.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// Bytes of staging that a sidecar is to hold at most.
    pub fn staging(&self) -> u64 {
        self.slots * BLOCK_BYTES * u64::from(RANKS)
    }

    /// An engine's command line.
    pub fn engine(&self, host: Host) -> String {
        let (ranks, blocks, pace) = if host == Host::Reference {
            (1, 400, "")
        } else {
            (RANKS, self.blocks, "--prefill-tokens-per-s 2000 --tpot-ms 10")
        };
        format!(
            "sim --side-channel {host}:5600 --data-parallel-size {ranks} --tensor-parallel-size {} --layers 2 --kv-heads 2 \
             --head-size 8 --block-size {BLOCK_TOKENS} --num-blocks {blocks} --kv-lease-ms {} --max-num-seqs 8 \
             --fragile-listener {pace}",
            self.tensor_parallel, self.lease_ms
        )
    }

    /// A sidecar's.
    pub fn sidecar(&self, host: Host, role: &str, engine: Host) -> String {
        let zero = if self.zero { "--zero-on-release" } else { "" };
        format!(
            "sidecar --role {role} --engine http://{engine}:{ENGINE} --engine-side-channel {engine}:5600 \
             --data-parallel-size {RANKS} --tensor-parallel-size {} --listen 0.0.0.0:{SIDECAR} --insecure \
             --side-channel-listen {host}:{SIDE_CHANNEL} --advertise-host {host} --staging-bytes {} --staging-wait-ms 1500 \
             --kv-lease {}ms --verify {} {zero} {}",
            self.tensor_parallel,
            self.slots * BLOCK_BYTES,
            self.lease_ms,
            self.verify,
            if role == "decode" { self.sidecar_fault } else { "" }
        )
    }

    /// The router's.
    pub fn router(&self) -> String {
        let pod = |flag: &str, engine: Host, sidecar: Host| {
            format!("--{flag} http://{engine}:{ENGINE},sidecar=http://{sidecar}:{SIDECAR}")
        };
        let pods: Vec<String> = [0, 1]
            .into_iter()
            .flat_map(|n| {
                [
                    pod("prefill", Host::PrefillEngine(n), Host::PrefillSidecar(n)),
                    pod("decode", Host::DecodeEngine(n), Host::DecodeSidecar(n)),
                ]
            })
            .collect();
        format!(
            "router --pd-disaggregation {} --intra-node-data-parallel-size {RANKS} --rank-pairing {} --policy {} \
             --prefill-deadline-ms 5000 --transfer-deadline-ms 4000 --decode-deadline-ms 8000 --connect-deadline-ms 1000 \
             --idle-deadline-ms {} --request-deadline-ms {} --queue-deadline-ms 5000 --client-deadline-ms 10000 \
             --max-body-bytes {MAX_BODY_BYTES} --max-bodies-bytes 65536 \
             --kv-lease {}ms --cb-timeout-duration-secs 4 --drain-timeout 3s --host 0.0.0.0 {}",
            pods.join(" "),
            self.pairing,
            self.policy,
            IDLE_DEADLINE.as_millis(),
            REQUEST_DEADLINE.as_millis(),
            self.lease_ms,
            self.router_fault
        )
    }
}
