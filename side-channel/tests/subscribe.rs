//! The subscriber against a foreign publisher (`zeromq`), and the replay against a foreign router.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use side_channel::{AskError, Endpoint, Numbered, Replay, Subscription, WireError};
use tokio::time::timeout;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

const DEADLINE: Duration = Duration::from_secs(5);

fn endpoint(bound: &zeromq::Endpoint) -> Endpoint {
    bound.to_string().strip_prefix("tcp://").unwrap().parse().unwrap()
}

fn message(frames: &[&[u8]]) -> ZmqMessage {
    ZmqMessage::try_from(frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect::<Vec<_>>()).unwrap()
}

/// Publishes until the subscriber gets something: a subscription takes a moment to be known, and until then messages are lost.
async fn until_heard(
    publisher: &mut PubSocket,
    subscription: &mut Subscription,
    frames: &[&[u8]],
) -> Result<Numbered, AskError> {
    let mut next = std::pin::pin!(subscription.next());
    for _ in 0..500 {
        publisher.send(message(frames)).await.unwrap();
        if let Ok(heard) = timeout(Duration::from_millis(10), &mut next).await {
            return heard;
        }
    }
    unreachable!("nothing is heard")
}

#[tokio::test]
async fn live_messages_come_with_their_numbers() {
    let mut publisher = PubSocket::new();
    let to = endpoint(&publisher.bind("tcp://127.0.0.1:0").await.unwrap());
    let mut subscription = Subscription::open(&to, 1000, DEADLINE).await.unwrap();
    let frames: [&[u8]; 3] = [b"topic", &7_u64.to_be_bytes(), b"hello"];
    let first = until_heard(&mut publisher, &mut subscription, &frames).await.unwrap();
    assert_eq!((first.number, first.payload.as_ref()), (7, b"hello".as_slice()));
    publisher.send(message(&[b"", b"short", b""])).await.unwrap();
    let error = loop {
        if let Err(error) = timeout(DEADLINE, subscription.next()).await.unwrap() {
            break error;
        }
    };
    assert!(matches!(error, AskError::Wire { source: WireError::NotNumbered, .. }), "{error}");
}

#[tokio::test]
async fn a_message_over_the_limit_ends_the_subscription() {
    let mut publisher = PubSocket::new();
    let to = endpoint(&publisher.bind("tcp://127.0.0.1:0").await.unwrap());
    let mut subscription = Subscription::open(&to, 100, DEADLINE).await.unwrap();
    let frames: [&[u8]; 3] = [b"", &[0; 8], &[0; 1000]];
    let error = until_heard(&mut publisher, &mut subscription, &frames).await.unwrap_err();
    assert!(matches!(error, AskError::Wire { source: WireError::TooLarge { .. }, .. }), "{error}");
}

#[tokio::test]
async fn a_replay_ends_with_minus_one() {
    let mut router = RouterSocket::new();
    let to = endpoint(&router.bind("tcp://127.0.0.1:0").await.unwrap());
    let asking = Replay::open(&to, 3, 1000, DEADLINE);
    let answering = async {
        let asked: Vec<Bytes> = router.recv().await.unwrap().into_vec();
        let [id, empty, from] = asked.as_slice() else { unreachable!("{asked:?}") };
        assert_eq!((empty.len(), from.as_ref()), (0, 3_u64.to_be_bytes().as_slice()));
        for number in 3_u64..5 {
            router.send(message(&[id, b"", b"kv", &number.to_be_bytes(), b"x"])).await.unwrap();
        }
        router.send(message(&[id, b"", b"", &[0xff; 8], b""])).await.unwrap();
    };
    let (replay, ()) = tokio::join!(asking, answering);
    let mut replay = replay.unwrap();
    let mut numbers = Vec::new();
    while let Some(next) = replay.next().await.unwrap() {
        numbers.push(next.number);
    }
    assert_eq!(numbers, [3, 4]);
}

#[tokio::test]
async fn nobody_there_is_an_error() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let to = Endpoint::new("127.0.0.1", free);
    assert!(matches!(Subscription::open(&to, 10, DEADLINE).await, Err(AskError::Connect { .. })));
    assert!(matches!(Replay::open(&to, 0, 10, DEADLINE).await, Err(AskError::Connect { .. })));
}
