//! The policy that follows what engines say about their caches, with a foreign publisher in the engines' place.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use rmpv::Value as Packed;
use tokio::time::Instant;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::world::{Setup, World};

/// Publishers of two ranks, at a port and the next.
struct Engines {
    port: u16,
    publishers: [PubSocket; 2],
    numbers: [u64; 2],
}

impl Engines {
    async fn new() -> Self {
        for _ in 0..100 {
            let (mut first, mut second) = (PubSocket::new(), PubSocket::new());
            let zeromq::Endpoint::Tcp(_, port) = first.bind("tcp://127.0.0.1:0").await.unwrap() else { continue };
            if second.bind(&format!("tcp://127.0.0.1:{}", port.saturating_add(1))).await.is_ok() {
                return Self { port, publishers: [first, second], numbers: [0; 2] };
            }
        }
        unreachable!("no two ports in a row are free")
    }

    async fn publish(&mut self, rank: usize, event: Packed) {
        let number = self.numbers[rank];
        self.numbers[rank] += 1;
        self.publishers[rank].send(message(&[b"kv", &number.to_be_bytes(), &payload(event)])).await.unwrap();
    }

    /// Publishes until the router knows of so many blocks: a subscription takes a moment.
    async fn publish_until(&mut self, world: &World, rank: usize, event: Packed, blocks: u64) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while known(world, rank).await != blocks {
            assert!(Instant::now() < deadline, "{} blocks of rank {rank} are known", known(world, rank).await);
            self.publish(rank, event.clone()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn message(frames: &[&[u8]]) -> ZmqMessage {
    let frames: Vec<bytes::Bytes> = frames.iter().map(|frame| bytes::Bytes::copy_from_slice(frame)).collect();
    ZmqMessage::try_from(frames).unwrap()
}

fn payload(event: Packed) -> Vec<u8> {
    let mut out = Vec::new();
    let batch = Packed::Array(vec![Packed::F64(0.0), Packed::Array(vec![event]), Packed::from(0)]);
    rmpv::encode::write_value(&mut out, &batch).unwrap();
    out
}

fn stored(names: &[u64], parent: Option<u64>, tokens: &[u32], block_size: u32) -> Packed {
    let ids = |ids: Vec<Packed>| Packed::Array(ids);
    let fields = [
        ("type", Packed::from("BlockStored")),
        ("block_hashes", ids(names.iter().map(|name| Packed::from(*name)).collect())),
        ("parent_block_hash", parent.map_or(Packed::Nil, Packed::from)),
        ("token_ids", ids(tokens.iter().map(|token| Packed::from(*token)).collect())),
        ("block_size", Packed::from(block_size)),
        ("lora_id", Packed::Nil),
        ("medium", Packed::from("GPU")),
        ("lora_name", Packed::Nil),
    ];
    Packed::Map(fields.into_iter().map(|(name, value)| (Packed::from(name), value)).collect())
}

fn cleared() -> Packed {
    Packed::Map(vec![(Packed::from("type"), Packed::from("AllBlocksCleared"))])
}

/// Blocks that the router knows of one prefill rank.
async fn known(world: &World, rank: usize) -> u64 {
    let list = world.get("/v1/workers").await.json();
    let id = format!("prefill-0@{rank}");
    let found = list["workers"].as_array().unwrap().iter().find(|worker| worker["id"] == *id).cloned().unwrap();
    found["load"]["cached_blocks"].as_u64().unwrap()
}

async fn ranks_of(world: &World, path: &str, body: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for _ in 0..4 {
        let answer = world.post(path, body.to_owned(), &[]).await;
        assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
        seen.insert(answer.header("x-kvgate-prefill-rank").to_owned());
    }
    seen
}

async fn world(args: String) -> World {
    World::new(Setup { args: Box::leak(args.into_boxed_str()), ..Setup::default() }).await
}

fn only(rank: &str) -> BTreeSet<String> {
    BTreeSet::from([rank.to_owned()])
}

#[tokio::test]
async fn prompts_of_tokens_go_to_whoever_has_them_cached() {
    let mut engines = Engines::new().await;
    let world = world(format!("--prefill-policy kv_events --kv-events-port {}", engines.port)).await;
    let body = |tokens: &[u32]| serde_json::json!({ "prompt": tokens }).to_string();
    let prompt = body(&[1, 2, 3, 4, 5]);
    assert_eq!(ranks_of(&world, "/v1/completions", &prompt).await.len(), 2, "nobody has it");
    engines.publish_until(&world, 1, stored(&[11, 12], None, &[1, 2, 3, 4], 2), 2).await;
    assert_eq!(ranks_of(&world, "/v1/completions", &prompt).await, only("1"));
    engines.publish_until(&world, 0, stored(&[7], None, &[1, 2], 2), 1).await;
    assert_eq!(ranks_of(&world, "/v1/completions", &prompt).await, only("1"), "two blocks are more than one");
    assert_eq!(ranks_of(&world, "/v1/completions", &body(&[9, 9, 9, 9])).await.len(), 2, "another prompt");
    engines.publish_until(&world, 1, cleared(), 0).await;
    assert_eq!(ranks_of(&world, "/v1/completions", &prompt).await, only("0"));
}

#[tokio::test]
async fn missed_events_make_a_cache_unknown() {
    let mut engines = Engines::new().await;
    let world = world(format!("--prefill-policy kv-events --kv-events-port {}", engines.port)).await;
    engines.publish_until(&world, 0, stored(&[11, 12], None, &[1, 2, 3, 4], 2), 2).await;
    engines.numbers[0] += 1;
    engines.publish(0, stored(&[13], Some(12), &[5, 6], 2)).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while known(&world, 0).await != 0 {
        assert!(Instant::now() < deadline, "what was missed is believed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    engines.publish_until(&world, 0, stored(&[11], None, &[1, 2], 2), 1).await;
}

/// The engine was there before the router: it repeats what it has said.
#[tokio::test]
async fn what_was_before_is_asked_for() {
    let mut engines = Engines::new().await;
    let mut repeats = RouterSocket::new();
    let zeromq::Endpoint::Tcp(_, port) = repeats.bind("tcp://127.0.0.1:0").await.unwrap() else { unreachable!() };
    let args = format!(
        "--prefill-policy kv-events --kv-events-port {} --kv-events-replay-port {port} --prefill-data-parallel-size 1",
        engines.port
    );
    let world = world_of_one(args).await;
    for from in [0_u64, 3] {
        let asked = tokio::time::timeout(Duration::from_secs(10), repeats.recv()).await.unwrap().unwrap().into_vec();
        assert_eq!(asked[2].as_ref(), from.to_be_bytes());
        let events = [stored(&[11], None, &[1, 2], 2), stored(&[12], Some(11), &[3, 4], 2), cleared()];
        let later = [stored(&[21], None, &[1, 2], 2), stored(&[22, 23], Some(21), &[3, 4, 5, 6], 2)];
        let repeated: Vec<Packed> = if from == 0 { events.to_vec() } else { later.to_vec() };
        for (number, event) in (from..).zip(repeated) {
            let frames: [&[u8]; 5] = [&asked[0], b"", b"kv", &number.to_be_bytes(), &payload(event)];
            repeats.send(message(&frames)).await.unwrap();
        }
        repeats.send(message(&[&asked[0], b"", b"", &[0xff; 8], b""])).await.unwrap();
        if from == 0 {
            // Number 4 comes while 3 was missed. It is repeated, too, and not taken twice.
            let live = message(&[b"kv", &4_u64.to_be_bytes(), &payload(stored(&[22, 23], Some(21), &[3, 4, 5, 6], 2))]);
            for _ in 0..50 {
                engines.publishers[0].send(live.clone()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    engines.numbers[0] = 5;
    engines.publish_until(&world, 0, stored(&[24], Some(23), &[7, 8], 2), 4).await;
}

async fn world_of_one(args: String) -> World {
    World::new(Setup { args: Box::leak(args.into_boxed_str()), ranks: 1, ..Setup::default() }).await
}

#[tokio::test]
async fn texts_go_by_the_tokens_that_a_prefill_has_named() {
    let mut engines = Engines::new().await;
    let world = world(format!("--prefill-policy kv-events --kv-events-port {}", engines.port)).await;
    // The fake engine makes 7, 8, 9 of every text.
    engines.publish_until(&world, 1, stored(&[1, 2, 3], None, &[7, 8, 9], 1), 3).await;
    let chat = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
    let answer = world.post("/v1/chat/completions", chat, &[]).await;
    assert_eq!(answer.status.as_u16(), 200);
    assert_eq!(ranks_of(&world, "/v1/chat/completions", chat).await, only("1"));
    let mut ranks = BTreeSet::new();
    for n in 0..4 {
        let other =
            format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],"tools":[{{"type":"function","n":{n}}}]}}"#);
        let answer = world.post("/v1/chat/completions", other, &[]).await;
        ranks.insert(answer.header("x-kvgate-prefill-rank").to_owned());
    }
    assert_eq!(ranks.len(), 2, "with tools they are other prompts, of which nothing is known: ranks take turns");
}
