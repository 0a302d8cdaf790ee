//! `/v1/probe`: memory for a test transfer, one at a time, bounded, and gone again.

use std::sync::Arc;
use std::time::Duration;

use nixl::faulty::{FaultPlan, Faulty};
use nixl::loopback::LoopbackNet;
use nixl::{AgentName, Fabric, HugePages, LocalDescs, MemKind, Memory, PeerMemory, Read, RemoteDescs};
use serde_json::{Value, json};
use sidecar::fabrics::{Fabrics, MadeAgent};
use sidecar::lifecycle::Lifecycle;
use sidecar::model::Role;
use sidecar::pod::Parts;

use crate::rig::{self, Rig, json_request};

fn bytes_of(hex: &str) -> Vec<u8> {
    hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[tokio::test]
async fn another_agent_reads_the_pattern_and_a_second_probe_has_to_wait() {
    let (rig, net) = Rig::on_loopback(Role::Prefill).await;
    let opened = rig.post("/v1/probe", &json!({ "bytes": 2 << 20 })).await;
    assert_eq!(opened.status, 201, "{}", opened.text);
    let opened: Value = opened.json();
    let second = rig.post("/v1/probe", &json!({})).await.problem();
    assert_eq!((second.0, second.1.as_str()), (409, "attempt_conflict"));

    let reader = net.agent(AgentName::new("reader").unwrap());
    let here = reader.register(Memory::host(2 << 20, HugePages::Off).unwrap()).await.unwrap();
    let metadata = bytes_of(opened["metadata_hex"].as_str().unwrap());
    let peer = reader.load_peer(metadata.into()).await.unwrap();
    assert_eq!(peer.as_str(), opened["agent"].as_str().unwrap());
    let (base, len) = (opened["address"].as_u64().unwrap(), opened["bytes"].as_u64().unwrap());
    let memory = PeerMemory { kind: MemKind::Dram, device: 0, ranges: std::iter::once(base..base + len).collect() };
    let read = Read {
        peer,
        local: LocalDescs::new(&here, [(0, len)]).unwrap(),
        remote: RemoteDescs::new(&memory, [(base, len)]).unwrap(),
        notify: None,
    };
    reader.read(read).done.await.unwrap();
    let mut block = [0_u8; 4096];
    for offset in [0_u64, 4096, (2 << 20) - 4096] {
        here.read_at(offset, &mut block).unwrap();
        assert_eq!(block[..8], offset.to_le_bytes());
        assert!(block[8..].iter().all(|byte| *byte == 0x5a));
    }

    assert_eq!(rig.delete("/v1/probe").await.status, 204);
    assert_eq!(rig.delete("/v1/probe").await.status, 204);
    again(&rig).await;
}

/// Opens one as soon as the one before has gone.
async fn again(rig: &Rig) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let opened = rig.post("/v1/probe", &json!({ "bytes": 1 << 20, "keep_ms": 1 })).await;
        if opened.status == 201 {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{}", opened.text);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn it_goes_by_itself_and_with_the_process() {
    let (rig, _net) = Rig::on_loopback(Role::Decode).await;
    again(&rig).await;
    again(&rig).await;
    rig.lifecycle.gate().cancel();
    let refused = rig.post("/v1/probe", &json!({})).await.problem();
    assert_eq!((refused.0, refused.1.as_str()), (503, "shutting_down"));
}

#[tokio::test]
async fn what_is_too_much_is_refused_by_name() {
    let (rig, _net) = Rig::on_loopback(Role::Decode).await;
    for (body, field) in [
        (json!({ "bytes": 0 }), "bytes"),
        (json!({ "bytes": (1 << 20) + 1 }), "bytes"),
        (json!({ "bytes": 1_u64 << 40 }), "bytes"),
        (json!({ "keep_ms": 0 }), "keep_ms"),
        (json!({ "keep_ms": 3_600_000 }), "keep_ms"),
    ] {
        let answer = rig.post("/v1/probe", &body).await;
        assert_eq!(answer.problem().0, 400, "{body}");
        assert!(answer.detail().starts_with(field), "{}", answer.text);
    }
    assert_eq!(rig.call(json_request("/v1/probe", "{")).await.problem().0, 400);
}

/// Agents that cannot be destroyed.
#[derive(Debug)]
struct Stubborn(LoopbackNet);

impl Fabrics for Stubborn {
    fn pull(&self, name: AgentName, _: Option<cuda::Gpu>) -> MadeAgent {
        let agent: Arc<dyn Fabric> = self.0.agent(name);
        Box::pin(async { Ok(agent) })
    }

    fn serve(&self, name: AgentName, _: Option<cuda::Gpu>) -> MadeAgent {
        let plan = FaultPlan::new();
        plan.stuck(true);
        let agent: Arc<dyn Fabric> = Faulty::wrap(self.0.agent(name), plan);
        Box::pin(async { Ok(agent) })
    }
}

#[tokio::test]
async fn an_agent_that_cannot_be_destroyed_keeps_the_place() {
    let parts = Parts { fabrics: Arc::new(Stubborn(LoopbackNet::new())), ..rig::parts() };
    let rig = Rig::with(rig::config(Role::Decode, 1, 0), parts, Lifecycle::default()).await;
    assert_eq!(rig.post("/v1/probe", &json!({ "bytes": 1 << 20 })).await.status, 201);
    assert_eq!(rig.delete("/v1/probe").await.status, 204);
    let refused = loop {
        let refused = rig.post("/v1/probe", &json!({ "bytes": 1 << 20 })).await;
        if refused.problem().1 != "attempt_conflict" {
            break refused;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    assert_eq!((refused.problem().0, refused.problem().1.as_str()), (502, "transfer_failed"));
    assert!(refused.detail().contains("restart the sidecar"), "{}", refused.text);
}
