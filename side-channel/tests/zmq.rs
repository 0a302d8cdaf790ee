//! The side channel over real sockets: against itself, against a foreign ZeroMQ, and against peers that misbehave.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use side_channel::{
    Answer, Answered, AskError, Endpoint, InProcess, Limits, ServeError, Server, SideChannel, Step, WireError, Zmq,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

/// Far more than a busy machine needs; nothing here waits for it to pass.
const LONG: Duration = Duration::from_secs(20);
/// For answers that must not come; a busy machine has greeted by then.
const DEADLINE: Duration = Duration::from_secs(1);
/// A limit that a peer shall run into.
const SHORT: Duration = Duration::from_millis(150);

struct Echo;

impl Answer for Echo {
    fn answer(&self, request: &[u8]) -> Answered {
        match request {
            b"silence" => Answered::Ignore,
            b"die" => Answered::Die,
            b"big" => Answered::Reply(vec![vec![7; 1_000_000].into(), vec![8; 300].into()]),
            _ => Answered::Reply(vec![Bytes::copy_from_slice(request), Bytes::from_static(b"clock")]),
        }
    }
}

/// As fragile as vLLM's listener.
struct Fragile;

impl Answer for Fragile {
    fn answer(&self, _: &[u8]) -> Answered {
        Answered::Reply(vec![Bytes::from_static(b"ok")])
    }

    fn ill_framed(&self) -> Answered {
        Answered::Die
    }
}

fn any_port() -> Endpoint {
    Endpoint::new("127.0.0.1", 0)
}

async fn serve(answer: impl Answer) -> Server {
    serve_with(Zmq::new(), answer).await
}

async fn serve_with(zmq: Zmq, answer: impl Answer) -> Server {
    zmq.serve(&any_port(), Arc::new(answer)).await.unwrap()
}

async fn ask(to: &Endpoint, request: &'static str) -> Result<Vec<Bytes>, AskError> {
    Zmq::new().ask(to, Bytes::from_static(request.as_bytes()), LONG).await
}

async fn connect(to: &Endpoint) -> TcpStream {
    TcpStream::connect((to.host.as_str(), to.port)).await.unwrap()
}

/// Waits until the other side has closed the connection.
async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // A reset is a close, too.
    timeout(LONG, stream.read_to_end(&mut rest)).await.unwrap().ok();
}

const GREETING: &[u8; 64] = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const READY_REQ: &[u8] = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03REQ";

/// A hand-made `REQ` that has been greeted.
async fn raw_peer(to: &Endpoint) -> TcpStream {
    let mut stream = connect(to).await;
    stream.write_all(GREETING).await.unwrap();
    stream.write_all(READY_REQ).await.unwrap();
    let mut theirs = [0; 64];
    stream.read_exact(&mut theirs).await.unwrap();
    assert_eq!(theirs[..12], GREETING[..12]);
    let mut header = [0; 2];
    stream.read_exact(&mut header).await.unwrap();
    let mut ready = vec![0; usize::from(header[1])];
    stream.read_exact(&mut ready).await.unwrap();
    assert!(ready.starts_with(b"\x05READY"));
    stream
}

#[tokio::test]
async fn a_question_is_answered_with_all_frames() {
    let server = serve(Echo).await;
    assert_ne!(server.local_endpoint().port, 0);
    assert_eq!(ask(server.local_endpoint(), "hello").await.unwrap(), ["hello", "clock"]);
    assert_eq!(ask(server.local_endpoint(), "").await.unwrap(), ["", "clock"]);
    let big = ask(server.local_endpoint(), "big").await.unwrap();
    assert_eq!((big[0].len(), big[1].len()), (1_000_000, 300));
    server.stop().await;
}

#[tokio::test]
async fn two_questions_share_a_connection() {
    let server = serve_with(Zmq::with_limits(Limits { connections: 1, ..Limits::default() }), Echo).await;
    let questions = vec![Bytes::from_static(b"0"), Bytes::from(vec![b'x'; 5000])];
    let answers = Zmq::new().ask_all(server.local_endpoint(), questions.clone(), LONG).await.unwrap();
    assert_eq!(answers[0][0], questions[0]);
    assert_eq!(answers[1][0], questions[1]);
    server.stop().await;
}

#[tokio::test]
async fn a_hundred_ask_at_once() {
    let server = serve(Echo).await;
    let asks = (0..100).map(|_| ask(server.local_endpoint(), "hello"));
    for answer in futures_util::future::join_all(asks).await {
        assert_eq!(answer.unwrap().len(), 2);
    }
    server.stop().await;
}

#[tokio::test]
async fn nobody_there_is_told_at_once() {
    let server = serve(Echo).await;
    let endpoint = server.local_endpoint().clone();
    server.stop().await;
    let error = ask(&endpoint, "hello").await.unwrap_err();
    assert!(matches!(&error, AskError::Connect { endpoint: named, .. } if *named == endpoint), "{error}");
}

#[tokio::test]
async fn silent_peers_cost_no_more_than_the_deadline() {
    // One accepts and says nothing, one greets and does not answer.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute_at = Endpoint::new("127.0.0.1", mute.local_addr().unwrap().port());
    let server = serve(Echo).await;
    for (endpoint, step) in [(&mute_at, Step::Greet), (server.local_endpoint(), Step::Answer)] {
        let began = Instant::now();
        let error = Zmq::new().ask(endpoint, Bytes::from_static(b"silence"), DEADLINE).await.unwrap_err();
        assert!(matches!(error, AskError::Deadline { step: at, .. } if at == step), "{error}");
        assert!(began.elapsed() >= DEADLINE && began.elapsed() < LONG);
        assert!(error.to_string().contains(&endpoint.to_string()), "{error}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_peer_of_another_protocol_is_told_apart() {
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = Endpoint::new("127.0.0.1", http.local_addr().unwrap().port());
    let speak = async {
        let (mut stream, _) = http.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        closed(&mut stream).await;
    };
    let (error, ()) = tokio::join!(ask(&at, "hello"), speak);
    assert!(matches!(error, Err(AskError::Wire { source: WireError::NotZmtp, .. })), "{error:?}");
}

#[tokio::test]
async fn an_answer_over_the_limit_is_refused() {
    let server = serve(Echo).await;
    let small = Zmq::with_limits(Limits { answer_bytes: 1000, ..Limits::default() });
    let error = small.ask(server.local_endpoint(), Bytes::from_static(b"big"), LONG).await.unwrap_err();
    let AskError::Wire { source: WireError::TooLarge { announced, limit }, .. } = error else { panic!("{error}") };
    assert_eq!((announced, limit), (1_000_000, 1000));
    server.stop().await;
}

#[tokio::test]
async fn a_server_outlives_peers_that_send_junk() {
    let server = serve(Echo).await;
    let at = server.local_endpoint();
    let mut null_mechanism_no_more = GREETING.to_vec();
    null_mechanism_no_more[12] = b'P';
    let mut old = GREETING.to_vec();
    old[10] = 1;
    for junk in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 200], &null_mechanism_no_more, &old] {
        let mut stream = connect(at).await;
        stream.write_all(junk).await.unwrap();
        closed(&mut stream).await;
    }
    let greeted: [&[u8]; 6] = [
        b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff", // 8 EiB announced
        b"\x03\xff\xff\xff\xff\xff\xff\xff\xff", // 16 EiB, more to follow
        b"\x06\x00\x00\x00\x00\x10\x00\x00\x00", // a command of 256 MiB
        b"\xff\x00",                             // reserved flags
        b"\x00\x05ab",                           // half a frame, then the end
        &[b'\x01', 0].repeat(40),                // frames without end
    ];
    for junk in greeted {
        let mut stream = raw_peer(at).await;
        stream.write_all(junk).await.unwrap();
        stream.shutdown().await.unwrap();
        closed(&mut stream).await;
    }
    assert_eq!(ask(at, "still there").await.unwrap()[0], "still there");
    server.stop().await;
}

#[tokio::test]
async fn ill_framed_messages_are_ignored_or_kill_as_the_server_says() {
    // No delimiter; then a proper question on the same connection.
    let server = serve(Echo).await;
    let mut stream = raw_peer(server.local_endpoint()).await;
    stream.write_all(b"\x00\x02hi\x01\x00\x01\x01a\x00\x01b\x01\x00\x00\x02hi").await.unwrap();
    let mut answer = [0; 13];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"\x01\x00\x01\x02hi\x00\x05clock");
    server.stop().await;

    let server = serve(Fragile).await;
    let at = server.local_endpoint().clone();
    assert_eq!(ask(&at, "x").await.unwrap(), ["ok"]);
    let mut stream = raw_peer(&at).await;
    stream.write_all(b"\x00\x02hi").await.unwrap();
    closed(&mut stream).await;
    timeout(LONG, server.ended()).await.unwrap();
    assert!(!server.is_listening());
    server.stop().await;
    assert!(ask(&at, "x").await.is_err());
}

#[tokio::test]
async fn a_ping_is_answered_and_other_commands_are_skipped() {
    let server = serve(Echo).await;
    let mut stream = raw_peer(server.local_endpoint()).await;
    stream.write_all(b"\x04\x03\x02XY\x04\x0a\x04PING\x00\x0aabc\x01\x00\x00\x01q").await.unwrap();
    let mut answer = [0; 10 + 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer[..10], b"\x04\x08\x04PONGabc");
    assert_eq!(&answer[10..], b"\x01\x00\x01\x01q\x00\x05clock");
    server.stop().await;
}

#[tokio::test]
async fn slow_peers_are_let_go_and_do_not_take_the_places_of_others() {
    let strict = Limits { connections: 1, peer: SHORT, ..Limits::default() };
    let server = serve_with(Zmq::with_limits(strict), Echo).await;
    let mut never_greets = connect(server.local_endpoint()).await;
    let mut one_too_many = connect(server.local_endpoint()).await;
    closed(&mut one_too_many).await;
    closed(&mut never_greets).await;
    server.stop().await;

    let server = serve_with(Zmq::with_limits(Limits { idle: SHORT, ..Limits::default() }), Echo).await;
    let mut never_asks = raw_peer(server.local_endpoint()).await;
    closed(&mut never_asks).await;
    server.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let server = serve(Echo).await;
    let error = Zmq::new().serve(server.local_endpoint(), Arc::new(Echo)).await.unwrap_err();
    assert!(matches!(&error, ServeError::InUse { endpoint } if endpoint == server.local_endpoint()));
    assert!(error.to_string().contains(&server.local_endpoint().to_string()), "{error}");
    let nowhere = Endpoint::new("203.0.113.1", 0);
    let error = Zmq::new().serve(&nowhere, Arc::new(Echo)).await.unwrap_err();
    assert!(matches!(error, ServeError::Bind { .. }), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn a_stopped_server_frees_its_port_and_closes_its_connections() {
    let server = serve(Echo).await;
    let at = server.local_endpoint().clone();
    let mut idle = raw_peer(&at).await;
    server.stop().await;
    closed(&mut idle).await;
    let again = Zmq::new().serve(&at, Arc::new(Echo)).await.unwrap();
    assert_eq!(ask(&at, "hello").await.unwrap()[0], "hello");
    // Dropping does the same, only nobody waits for it.
    let mut idle = raw_peer(&at).await;
    drop(again);
    closed(&mut idle).await;
}

#[tokio::test]
async fn a_foreign_zeromq_understands_us() {
    use zeromq::{Socket as _, SocketRecv as _, SocketSend as _};
    let server = serve(Echo).await;
    let mut req = zeromq::ReqSocket::new();
    req.connect(&format!("tcp://{}", server.local_endpoint())).await.unwrap();
    for question in ["one", "two"] {
        req.send(question.into()).await.unwrap();
        let answer = timeout(LONG, req.recv()).await.unwrap().unwrap();
        assert_eq!(answer.into_vec(), [question, "clock"]);
    }
    server.stop().await;

    let mut router = zeromq::RouterSocket::new();
    let bound = router.bind("tcp://127.0.0.1:0").await.unwrap();
    let at: Endpoint = bound.to_string().trim_start_matches("tcp://").parse().unwrap();
    let answering = async {
        for _ in 0..2 {
            let mut frames = router.recv().await.unwrap().into_vec();
            assert_eq!((frames.len(), frames[1].len()), (3, 0));
            frames.push(Bytes::from_static(b"second"));
            router.send(frames.try_into().unwrap()).await.unwrap();
        }
    };
    let questions = vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")];
    let zmq = Zmq::new();
    let (answers, ()) = tokio::join!(zmq.ask_all(&at, questions, LONG), answering);
    assert_eq!(answers.unwrap(), [["a", "second"], ["b", "second"]]);
}

#[tokio::test(start_paused = true)]
async fn in_process_behaves_alike() {
    let net = InProcess::new();
    let server = net.serve(&Endpoint::new("d", 0), Arc::new(Echo)).await.unwrap();
    let at = server.local_endpoint().clone();
    assert_eq!(net.ask(&at, Bytes::from_static(b"hello"), LONG).await.unwrap(), ["hello", "clock"]);
    assert!(matches!(net.serve(&at, Arc::new(Echo)).await, Err(ServeError::InUse { .. })));
    let began = Instant::now();
    let error = net.ask(&at, Bytes::from_static(b"silence"), LONG).await.unwrap_err();
    assert!(matches!(error, AskError::Deadline { step: Step::Answer, .. }));
    assert_eq!(began.elapsed(), LONG);
    let error = net.ask(&at, Bytes::from_static(b"die"), LONG).await.unwrap_err();
    assert!(matches!(error, AskError::Wire { source: WireError::Closed, .. }));
    assert!(matches!(net.ask(&at, Bytes::new(), LONG).await, Err(AskError::Connect { .. })));
    let again = net.serve(&at, Arc::new(Echo)).await.unwrap();
    again.stop().await;
    assert!(matches!(net.ask(&at, Bytes::new(), LONG).await, Err(AskError::Connect { .. })));
}
