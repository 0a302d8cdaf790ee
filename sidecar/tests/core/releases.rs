//! Each supported vLLM release is spoken to in its own way.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kv::ids::TpRank;
use kv::readiness::RankState;
use side_channel::Endpoint;
use vllm_wire::handshake::{self, AgentMetadata};
use vllm_wire::versions::SUPPORTED;

use crate::world::{Setup, World};

#[tokio::test(start_paused = true)]
async fn the_virtual_engine_answers_as_its_engines_release_does() {
    for version in SUPPORTED {
        let world = World::new(Setup::default()).await;
        world.pages.version(version.release);
        world.all_ready().await;
        let landed = world.land("cmpl-1", &[3, 4]).await;
        assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-1").await, "{}", version.release);

        let at = Endpoint::new(landed.params.remote_host.clone(), landed.params.remote_port);
        let question = handshake::request(version, 0, TpRank(0));
        let frames = world.net.ask(&at, question, Duration::from_secs(5)).await.unwrap();
        let payload = handshake::parse_reply(version, &frames).unwrap().payload;
        let metadata = AgentMetadata::decode(&payload.agent_metadata).unwrap();
        assert_eq!(metadata.encode(version), payload.agent_metadata, "{}: exactly its keys", version.release);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_engine_is_asked_in_its_new_way_and_one_that_becomes_unknown_not_at_all() {
    let world = World::new(Setup::default()).await;
    world.pages.version("0.30.0");
    world.all_ready().await;
    world.pages.version("0.32.0");
    world.pages.restarted();
    let newer = |rank: &sidecar::model::RankSnapshot| rank.engine_version.as_deref() == Some("0.32.0");
    world.rank_until("of the newer release", newer).await;
    world.all_ready().await;

    let asked = world.d[0].desk.asked.load(Ordering::Relaxed);
    world.pages.version("0.33.0");
    world.pages.restarted();
    let ranks = world.rank_until("refused", |rank| rank.state == RankState::Degraded).await;
    let reasons = ranks[0].reasons.join("; ");
    assert!(reasons.contains("\"0.33.0\" is not supported; supported: 0.30.0"), "{reasons}");
    world.settle().await;
    assert_eq!(world.d[0].desk.asked.load(Ordering::Relaxed), asked, "an unknown release is not asked");
}
