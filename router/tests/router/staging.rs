//! A decode that begins to answer after its staging may have been freed: claims can lapse when a machine stalls.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::engines::{Decodes, EVENTS};
use crate::journal::Event;
use crate::world::{Answer, Setup, World};

const STREAM: &str = r#"{"prompt":"p","stream":true}"#;
const FIRST: &str = "data: {\"text\":\"of the first transfer\"}\n\n";

/// One request whose first transfer is freed as `how` says, before D's first event.
async fn freed_before_the_first_event(how: Option<&'static str>, args: &'static str) -> (Answer, World) {
    freed_after("", "/v1/completions", how, args).await
}

/// The same on any path; what D says `before` comes while its staging is still there.
async fn freed_after(
    before: &'static str,
    path: &str,
    how: Option<&'static str>,
    args: &'static str,
) -> (Answer, World) {
    // Claims that last no time: the router cannot know by itself that the slots were held.
    let world = World::new(Setup { collect_by_ms: 0, args, ..Setup::default() }).await;
    let (tx, rx) = mpsc::channel(1);
    world.decode().next(Decodes::Fed(rx));
    let client = world.start_on(path, STREAM);
    world.journal.wait_for("the decode", 1, |event| matches!(event, Event::Decode { .. })).await;
    if !before.is_empty() {
        tx.send(Bytes::from(before)).await.unwrap();
        // The second one is taken only when the first has gone out.
        tx.send(Bytes::from(": more\n\n")).await.unwrap();
    }
    world.journal.wait_for("a claim", 1, |event| matches!(event, Event::Claimed { .. })).await;
    let transfer = world
        .journal
        .events()
        .into_iter()
        .find_map(|event| if let Event::Claimed { transfer } = event { Some(transfer) } else { None });
    if let (Some(how), Some(transfer)) = (how, transfer) {
        world.decode_sidecar().freed.lock().insert(transfer, how);
    }
    tx.send(Bytes::from(FIRST)).await.unwrap();
    drop(tx);
    (client.await.unwrap(), world)
}

#[tokio::test]
async fn a_response_that_is_only_announced_has_not_been_decoded_yet() {
    let announced = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{}}\n\n";
    let (answer, _world) = freed_after(announced, "/v1/responses", Some("lapsed"), "").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-attempts")), (200, "2"));
    assert_eq!(answer.body, EVENTS.concat(), "the second transfer's events only");
}

#[tokio::test]
async fn a_decode_whose_staging_was_freed_unread_is_not_passed_on() {
    for how in ["lapsed", "finished", "engine_gone", "forgotten"] {
        let (answer, world) = freed_before_the_first_event(Some(how), "").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-attempts")), (200, "2"), "{how}");
        assert_eq!(answer.body, EVENTS.concat(), "{how}: the text of the second transfer only");
        assert_eq!(world.journal.count(|event| matches!(event, Event::Prefill { .. })), 2, "{how}");
    }
}

#[tokio::test]
async fn without_another_try_it_is_a_clear_error() {
    let (answer, _world) = freed_before_the_first_event(Some("lapsed"), "--max-attempts 1").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "staging_freed"));
}

#[tokio::test]
async fn a_decode_that_collected_in_time_or_whose_staging_is_still_there_is_passed_on() {
    for how in [Some("collected"), None] {
        let (answer, _world) = freed_before_the_first_event(how, "").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-attempts")), (200, "1"), "{how:?}");
        assert_eq!(&*answer.body, FIRST.as_bytes(), "{how:?}");
    }
}

#[tokio::test]
async fn the_claim_is_renewed_until_d_begins_to_answer_and_not_while_it_streams() {
    // Renewed every 20 ms.
    let world = World::new(Setup { collect_by_ms: 60, ..Setup::default() }).await;
    let (tx, rx) = mpsc::channel(1);
    world.decode().next(Decodes::Fed(rx));
    let client = world.start(STREAM);
    let claimed = |event: &Event| matches!(event, Event::Claimed { .. });
    world.journal.wait_for("claims while D has not begun", 3, claimed).await;
    tx.send(Bytes::from(FIRST)).await.unwrap();
    // The second one is taken only when the first has gone out.
    tx.send(Bytes::from(": more\n\n")).await.unwrap();
    let before = world.journal.count(claimed);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(world.journal.count(claimed) <= before + 1, "one may have been on its way");
    assert_eq!(world.journal.count(|event| matches!(event, Event::Finished { .. })), 0, "the decode leg is open");
    drop(tx);
    assert_eq!(client.await.unwrap().status.as_u16(), 200);
    world.journal.wait_for("its end", 1, |event| matches!(event, Event::Finished { .. })).await;
}

#[tokio::test]
async fn a_claim_that_is_refused_because_d_has_collected_is_not_renewed_again() {
    let world = World::new(Setup { collect_by_ms: 60, ..Setup::default() }).await;
    let (tx, rx) = mpsc::channel(1);
    world.decode().next(Decodes::Fed(rx));
    let client = world.start(STREAM);
    let claimed = |event: &Event| matches!(event, Event::Claimed { .. });
    world.journal.wait_for("a claim", 1, claimed).await;
    for event in world.journal.events() {
        if let Event::Claimed { transfer } = event {
            world.decode_sidecar().freed.lock().insert(transfer, "collected");
        }
    }
    // D has collected and takes long to begin: the next claim is refused, and that is the last of them.
    let known = world.journal.count(claimed);
    world.journal.wait_for("the claim that is refused", known + 1, claimed).await;
    let refused = world.journal.count(claimed);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(world.journal.count(claimed) <= refused + 1, "{} more", world.journal.count(claimed) - refused);
    tx.send(Bytes::from(FIRST)).await.unwrap();
    drop(tx);
    let answer = client.await.unwrap();
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, FIRST.as_bytes()));
}
