//! TLS at the edge, over real sockets, with certificates made here.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use secrets::follow;
use secrets::tls::{ClientArgs, Dial, DialError, Server, ServerArgs};
use serving::{Port, Terms, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[path = "../../tests/support/authority.rs"]
mod authority;

use authority::Authority;

/// A pass never waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

const TERMS: Terms = Terms {
    connections: 16,
    refused: 0,
    head: Duration::from_secs(30),
    idle: Duration::from_secs(120),
    stall: Duration::from_secs(60),
    head_bytes: 8192,
    headers: 20,
};

/// A server, served until it is dropped.
struct Served {
    address: SocketAddr,
    close: CancellationToken,
}

impl Served {
    async fn new(tls: Arc<Server>, terms: Terms) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let close = CancellationToken::new();
        let routes = Router::new().route("/", get(|| async { "here" }));
        let tasks = TaskTracker::new();
        tasks.spawn(follow(Arc::clone(&tls), close.clone()));
        tasks.spawn(serve(Port { listener, tls: Some(tls) }, routes, terms, close.clone()));
        Self { address, close }
    }

    /// Opens a connection and asks once.
    async fn ask(&self, dial: &Dial) -> Result<String, String> {
        let mut connection = self.connect(dial).await.map_err(|error| causes(&error))?;
        once(&mut connection, self.address).await.map_err(|error| causes(&error))
    }

    async fn connect(&self, dial: &Dial) -> Result<SendRequest<Empty<Bytes>>, DialError> {
        let wire = dial.open(format!("https://{}/", self.address).parse().unwrap()).await?;
        let (sender, connection) = handshake(wire).await.unwrap();
        TaskTracker::new().spawn(connection);
        Ok(sender)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.close.cancel();
    }
}

async fn once(connection: &mut SendRequest<Empty<Bytes>>, to: SocketAddr) -> hyper::Result<String> {
    let request = Request::get("/").header("host", to.to_string()).body(Empty::new()).unwrap();
    let answer = connection.send_request(request).await?.into_body().collect().await?;
    Ok(String::from_utf8(answer.to_bytes().to_vec()).unwrap())
}

fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn whoever_trusts_the_authority_is_served_and_a_plain_client_is_not() {
    let authority = Authority::new();
    let served = Served::new(authority.server(None), TERMS).await;
    assert_eq!(served.ask(&authority.client(None)).await.unwrap(), "here");
    let mut plain = TcpStream::connect(served.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // Nothing but TLS's word that this is none.
    timeout(PATIENCE, plain.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.len() < 16 && !answer.starts_with(b"HTTP"), "{answer:?}");
    assert_eq!(served.ask(&authority.client(None)).await.unwrap(), "here", "others are served as before");
}

#[tokio::test]
async fn a_server_of_another_authority_or_of_another_name_is_not_spoken_to() {
    let (authority, other) = (Authority::new(), Authority::new());
    let served = Served::new(authority.server(None), TERMS).await;
    let refused = served.ask(&other.client(None)).await.unwrap_err();
    assert!(refused.contains("agree on TLS") && refused.contains("UnknownIssuer"), "{refused}");
    let renamed = |name: &str| {
        let upstream_server_name = Some(name.to_owned());
        let args = ClientArgs { upstream_ca: Some(authority.ca()), upstream_server_name, ..ClientArgs::default() };
        Dial::new(PATIENCE, args.check().unwrap())
    };
    let refused = served.ask(&renamed("engines.example")).await.unwrap_err();
    assert!(refused.contains("not valid for name"), "{refused}");
    // A pod's certificate bears a name, its address is what it is reached by.
    let [certificate, key] = authority.sign("named", "engines.example");
    let args = ServerArgs { tls_cert: Some(certificate), tls_key: Some(key), tls_client_ca: None };
    let named = Served::new(args.check().unwrap().unwrap(), TERMS).await;
    assert_eq!(named.ask(&renamed("engines.example")).await.unwrap(), "here");
    let without = served.ask(&Dial::new(PATIENCE, None)).await.unwrap_err();
    assert_eq!(without, "https needs --upstream-ca");
}

#[tokio::test]
async fn with_mutual_tls_a_client_without_a_certificate_or_with_a_foreign_one_is_refused() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let server = servers.server(Some(&clients.ca()));
    assert!(server.is_mutual());
    let served = Served::new(server, TERMS).await;
    assert_eq!(served.ask(&servers.client(Some(clients.sign("router", "router")))).await.unwrap(), "here");
    // In TLS 1.3 a client learns of its refusal with the first answer.
    let refused = served.ask(&servers.client(None)).await.unwrap_err();
    assert!(refused.contains("CertificateRequired"), "{refused}");
    let refused = served.ask(&servers.client(Some(strangers.sign("router", "router")))).await.unwrap_err();
    assert!(refused.contains("UnknownCA"), "{refused}");
    assert_eq!(served.ask(&servers.client(Some(clients.sign("router", "router")))).await.unwrap(), "here");
}

#[tokio::test]
async fn certificates_are_exchanged_on_disk_without_cutting_what_is_open() {
    let (old, new) = (Authority::new(), Authority::new());
    let served = Served::new(old.server(None), TERMS).await;
    let mut open = served.connect(&old.client(None)).await.unwrap();
    assert_eq!(once(&mut open, served.address).await.unwrap(), "here");
    // A pair that does not fit is no pair: what was read before stays.
    let [certificate, key] = new.sign("server", "127.0.0.1");
    let at = |end: &str| old.ca().with_file_name(format!("server.{end}"));
    std::fs::copy(&certificate, at("pem")).unwrap();
    sleep(secrets::IN_FORCE).await;
    assert_eq!(served.ask(&old.client(None)).await.unwrap(), "here");
    std::fs::copy(&key, at("key")).unwrap();
    let until = Instant::now() + PATIENCE;
    while let Err(refused) = served.ask(&new.client(None)).await {
        assert!(Instant::now() < until, "the new certificate is not shown: {refused}");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(served.ask(&old.client(None)).await.unwrap_err().contains("UnknownIssuer"));
    assert_eq!(once(&mut open, served.address).await.unwrap(), "here", "what was open goes on");
}

#[tokio::test]
async fn a_client_s_certificate_is_exchanged_on_disk_too() {
    let (servers, old, new) = (Authority::new(), Authority::new(), Authority::new());
    let served = Served::new(servers.server(Some(&new.ca())), TERMS).await;
    let [certificate, key] = old.sign("router", "router");
    let args = ClientArgs {
        upstream_ca: Some(servers.ca()),
        upstream_cert: Some(certificate.clone()),
        upstream_key: Some(key.clone()),
        ..ClientArgs::default()
    };
    let client = args.check().unwrap().unwrap();
    TaskTracker::new().spawn(follow(Arc::clone(&client), served.close.clone()));
    let dial = Dial::new(PATIENCE, Some(client));
    served.ask(&dial).await.unwrap_err();
    let [newer, newer_key] = new.sign("router", "router");
    std::fs::copy(newer, certificate).unwrap();
    std::fs::copy(newer_key, key).unwrap();
    let until = Instant::now() + PATIENCE;
    while let Err(refused) = served.ask(&dial).await {
        assert!(Instant::now() < until, "the new certificate is not shown: {refused}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_handshake_takes_a_place_and_has_a_deadline() {
    let authority = Authority::new();
    let terms = Terms { connections: 1, head: Duration::from_millis(500), ..TERMS };
    let served = Served::new(authority.server(None), terms).await;
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    let since = Instant::now();
    // The only place is taken, so this one waits until the silent one has been closed.
    let asked = timeout(PATIENCE, served.ask(&authority.client(None))).await.unwrap();
    assert_eq!(asked.unwrap(), "here");
    assert!(since.elapsed() >= terms.head, "it was served after {:?}", since.elapsed());
    let mut nothing = Vec::new();
    assert_eq!(timeout(PATIENCE, silent.read_to_end(&mut nothing)).await.unwrap().unwrap(), 0);
}
