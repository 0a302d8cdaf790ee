//! The edge over streams without sockets, in paused time: every deadline is met to the millisecond.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse as _;
use axum::routing::get;
use axum::serve::Listener;
use http::{Request, Response, StatusCode};
use serving::{Answer, Port, Terms, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const TERMS: Terms = Terms {
    connections: 2,
    refused: 1,
    head: Duration::from_secs(15),
    idle: Duration::from_secs(120),
    stall: Duration::from_secs(60),
    head_bytes: 8192,
    headers: 20,
};

/// Connections as they are made, for as long as anybody can make one.
struct Door(mpsc::Receiver<DuplexStream>);

impl Listener for Door {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.recv().await {
            Some(stream) => (stream, ()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// `/` answers at once, `/slow` after a minute, `/large` with a megabyte.
#[derive(Clone)]
struct Front(Router);

impl Answer for Front {
    async fn answer(self, request: Request<Body>) -> Response<Body> {
        self.0.answer(request).await
    }

    async fn refuse(self, _: Request<Body>) -> Response<Body> {
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }
}

struct World {
    door: mpsc::Sender<DuplexStream>,
    close: CancellationToken,
    served: JoinHandle<()>,
}

impl World {
    fn new(terms: Terms) -> Self {
        let slow = || async {
            sleep(Duration::from_secs(60)).await;
            "slow"
        };
        let routes = Router::new()
            .route("/", get(|| async { "here" }))
            .route("/slow", get(slow))
            .route("/large", get(|| async { vec![b'x'; 1 << 20] }));
        let ((door, connections), close) = (mpsc::channel(8), CancellationToken::new());
        let serving = serve(Port::plain(Door(connections)), Front(routes), terms, close.clone());
        Self { door, close, served: TaskTracker::new().spawn(serving) }
    }

    async fn connect(&self) -> DuplexStream {
        let (ours, theirs) = duplex(4096);
        self.door.send(theirs).await.unwrap();
        ours
    }

    async fn asked(&self, request: &[u8]) -> DuplexStream {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        stream
    }
}

/// Reads until the answer has ended with `end`, and no further.
async fn answer(stream: &mut DuplexStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        text.push(char::from(stream.read_u8().await.unwrap()));
    }
    text
}

async fn to_the_end(stream: &mut DuplexStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// How long it is until the server closes.
async fn closed_after(stream: &mut DuplexStream) -> Duration {
    let since = Instant::now();
    assert_eq!(to_the_end(stream).await, "");
    since.elapsed()
}

/// Timers have milliseconds.
fn about(time: Duration, expected: Duration) {
    assert!(time >= expected && time <= expected + Duration::from_millis(5), "{time:?} is not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_head_has_a_deadline_from_its_first_byte() {
    let world = World::new(TERMS);
    about(closed_after(&mut world.connect().await).await, TERMS.head);
    let mut first = world.asked(b"GET / HTTP/1.1\r\nx-slow").await;
    about(closed_after(&mut first).await, TERMS.head);
    let mut second = world.asked(GET).await;
    answer(&mut second, "here").await;
    sleep(Duration::from_secs(50)).await;
    second.write_all(b"GET / HT").await.unwrap();
    about(closed_after(&mut second).await, TERMS.head);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_dribbles_in_gets_no_more_time_for_each_byte() {
    let world = World::new(TERMS);
    let mut stream = world.connect().await;
    let since = Instant::now();
    for byte in GET {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_secs(2)).await;
    }
    assert!(since.elapsed() < TERMS.head + Duration::from_secs(3), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_and_one_that_is_answered_is_not() {
    let world = World::new(Terms { idle: Duration::from_secs(20), ..TERMS });
    let mut idle = world.asked(GET).await;
    answer(&mut idle, "here").await;
    about(closed_after(&mut idle).await, Duration::from_secs(20));
    let mut slow = world.asked(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let since = Instant::now();
    answer(&mut slow, "slow").await;
    about(since.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_no_bytes_is_let_go() {
    let world = World::new(Terms { connections: 1, refused: 0, ..TERMS });
    let stalled = world.asked(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut next = world.asked(GET).await;
    let since = Instant::now();
    answer(&mut next, "here").await;
    about(since.elapsed(), TERMS.stall);
    drop(stalled);
}

#[tokio::test(start_paused = true)]
async fn a_connection_too_many_is_told_so_and_the_next_waits() {
    let world = World::new(TERMS);
    let mut one = world.asked(GET).await;
    let mut two = world.asked(GET).await;
    answer(&mut one, "here").await;
    answer(&mut two, "here").await;
    let mut refused = world.connect().await;
    let mut waits = world.asked(GET).await;
    assert!(timeout(Duration::from_secs(5), waits.read_u8()).await.is_err(), "nobody answers it");
    refused.write_all(&[GET, GET].concat()).await.unwrap();
    let said = to_the_end(&mut refused).await;
    assert!(said.starts_with("HTTP/1.1 503") && said.contains("connection: close"), "{said}");
    assert_eq!(said.matches("HTTP/1.1").count(), 1, "one answer, then it is closed: {said}");
    let said = to_the_end(&mut waits).await;
    assert!(said.starts_with("HTTP/1.1 503"), "{said}");
    drop(one);
    let mut next = world.asked(GET).await;
    answer(&mut next, "here").await;
}

#[tokio::test(start_paused = true)]
async fn a_place_that_came_free_while_waiting_is_taken() {
    let world = World::new(Terms { connections: 1, ..TERMS });
    let mut one = world.asked(GET).await;
    answer(&mut one, "here").await;
    // By now the server waits for the next connection with the last place, the one for refusals.
    sleep(Duration::from_secs(1)).await;
    drop(one);
    sleep(Duration::from_secs(1)).await;
    let mut next = world.asked(GET).await;
    answer(&mut next, "here").await;
}

#[tokio::test(start_paused = true)]
async fn heads_are_bounded_in_bytes_and_in_number() {
    let world = World::new(TERMS);
    let long = format!("x-long: {}\r\n", "x".repeat(9000));
    let many: String = (0..30).map(|n| format!("x-{n}: 1\r\n")).collect();
    for headers in [long, many] {
        let mut stream = world.connect().await;
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
        let (reading, mut writing) = tokio::io::split(&mut stream);
        let mut reading = reading;
        let mut said = String::new();
        let sent = async {
            // The server may close before it has read all of it.
            let _sent = writing.write_all(request.as_bytes()).await;
        };
        tokio::join!(sent, async { reading.read_to_string(&mut said).await.unwrap() });
        assert!(said.starts_with("HTTP/1.1 431"), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_lets_requests_under_way_end_and_idle_connections_go() {
    let world = World::new(TERMS);
    let mut slow = world.asked(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut idle = world.asked(GET).await;
    answer(&mut idle, "here").await;
    world.close.cancel();
    assert_eq!(to_the_end(&mut idle).await, "");
    let said = to_the_end(&mut slow).await;
    assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("slow"), "{said}");
    world.served.await.unwrap();
}
