//! Connections of the API over real sockets: slow heads, one connection too many, the end.

use std::time::Duration;

use serde_json::Value;
use serving::{Port, Terms};
use sidecar::http::{Api, serve, terms};
use sidecar::lifecycle::Lifecycle;
use sidecar::model::Role;
use sidecar::pod::Pod;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::rig;

const LONG: Duration = Duration::from_secs(20);

struct Served {
    lifecycle: Lifecycle,
    address: std::net::SocketAddr,
    ended: JoinHandle<()>,
}

impl Served {
    async fn new(terms: Terms) -> Self {
        let lifecycle = Lifecycle::default();
        let config = rig::config(Role::Decode, 1, 0);
        let pod = Pod::start(config, rig::parts(), lifecycle.tasks(), lifecycle.core().clone()).await.unwrap();
        let api = Api::new(pod, None, rig::build(), rig::log_filter(), &lifecycle);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ended = lifecycle.tasks().spawn(serve(Port::plain(listener), api, terms));
        Self { lifecycle, address, ended }
    }

    async fn asked(&self, request: &str) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        socket
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.lifecycle.stop().cancel();
        self.lifecycle.core().cancel();
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-request-id: r-7\r\n\r\n")
}

/// Reads to the end of a connection.
async fn to_the_end(socket: &mut TcpStream) -> String {
    let mut all = String::new();
    timeout(LONG, socket.read_to_string(&mut all)).await.unwrap().unwrap();
    all
}

/// Reads the first bytes of an answer.
async fn status(socket: &mut TcpStream) -> String {
    let mut first = [0; 12];
    timeout(LONG, socket.read_exact(&mut first)).await.unwrap().unwrap();
    String::from_utf8(first.to_vec()).unwrap()
}

#[tokio::test]
async fn a_head_that_dribbles_in_is_not_waited_for() {
    let served = Served::new(Terms { head: Duration::from_millis(200), ..terms(16) }).await;
    let mut socket = served.asked("GET /v1/ranks HTTP/1.1\r\nhost: a\r\nx-slow").await;
    assert_eq!(to_the_end(&mut socket).await, "");
    let mut next = served.asked(&get("/v1/ranks")).await;
    assert_eq!(status(&mut next).await, "HTTP/1.1 200");
}

#[tokio::test]
async fn a_connection_too_many_is_refused_in_words_and_a_supervisor_is_answered() {
    let served = Served::new(terms(1)).await;
    let mut first = served.asked(&get("/v1/ranks")).await;
    assert_eq!(status(&mut first).await, "HTTP/1.1 200");
    let refused = to_the_end(&mut served.asked(&get("/v1/ranks")).await).await;
    let (head, body) = refused.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    for header in ["connection: close", "retry-after: 1", "x-request-id: r-7", "application/problem+json"] {
        assert!(head.contains(header), "{header}: {head}");
    }
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["code"], &body["retry"]), (&"too_many_connections".into(), &"other_target".into()));
    let alive = to_the_end(&mut served.asked(&get("/livez")).await).await;
    assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
    drop(first);
    // The server learns of the end a moment later.
    let again = async {
        while status(&mut served.asked(&get("/v1/ranks")).await).await != "HTTP/1.1 200" {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, again).await.unwrap();
}

#[tokio::test]
async fn the_stop_lets_a_request_under_way_end_and_closes_idle_connections() {
    let mut served = Served::new(terms(16)).await;
    let mut idle = served.asked(&get("/livez")).await;
    assert_eq!(status(&mut idle).await, "HTTP/1.1 200");
    let body = r#"{"transfer_ids":["t-1"]}"#;
    let head = format!(
        "POST /v1/finished-transfers HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let mut under_way = served.asked(&head).await;
    // The server asks for the body once the handler does.
    assert_eq!(status(&mut under_way).await, "HTTP/1.1 100");
    served.lifecycle.stop().cancel();
    to_the_end(&mut idle).await;
    assert!(!served.ended.is_finished());
    under_way.write_all(body.as_bytes()).await.unwrap();
    let said = to_the_end(&mut under_way).await;
    assert!(said.contains("HTTP/1.1 200"), "{said}");
    timeout(LONG, &mut served.ended).await.unwrap().unwrap();
}
