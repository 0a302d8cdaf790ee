//! The whole path with every leg of it under TLS: engines behind https://, sidecars and router that let nobody in without a certificate.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use secrets::tls::{Dial, Server};
use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

use crate::authority::Authority;
use crate::process::{Running, finished, free_ports, kvgate, nixl_is_here, wait_for};

/// Everybody is 127.0.0.1, everybody trusts one authority.
struct World {
    runtime: Runtime,
    tasks: TaskTracker,
    authority: Authority,
    /// Flags that make a server of a command.
    serves: String,
    /// Flags that let a command ask the others.
    asks: String,
    dial: Dial,
}

impl World {
    fn new() -> Self {
        let authority = Authority::new();
        let [certificate, key] = authority.sign("everybody", "127.0.0.1");
        let (ca, certificate, key) = (authority.ca(), certificate, key);
        let [ca, pem, secret] = [&ca, &certificate, &key].map(|path| path.display().to_string());
        Self {
            runtime: Runtime::new().expect("a runtime"),
            tasks: TaskTracker::new(),
            serves: format!("--tls-cert {pem} --tls-key {secret} --tls-client-ca {ca}"),
            asks: format!("--upstream-ca {ca} --upstream-cert {pem} --upstream-key {secret}"),
            dial: authority.client(Some([certificate, key])),
            authority,
        }
    }

    /// TLS before an engine, which speaks none: its new port.
    fn before(&self, engine: &Running) -> u16 {
        let (tls, inner) = (self.authority.server(None), engine.http);
        self.runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let port = listener.local_addr().expect("its address").port();
            self.tasks.spawn(terminate(listener, tls, inner, self.tasks.clone()));
            port
        })
    }

    /// Status and body of an answer to one request over a fresh connection.
    fn ask(&self, port: u16, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.runtime.block_on(async {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let wire =
                self.dial.open(format!("https://{address}/").parse().expect("a URL")).await.expect("it is let in");
            let (mut sender, connection) = handshake(wire).await.expect("HTTP");
            self.tasks.spawn(connection);
            let request = Request::builder().method(method).uri(path).header("host", address.to_string());
            let request =
                request.header("content-type", "application/json").body(Full::new(Bytes::from(body.to_owned())));
            let answer = sender.send_request(request.expect("a request")).await.expect("an answer");
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await.expect("its body").to_bytes();
            (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
        })
    }
}

async fn terminate(listener: TcpListener, tls: Arc<Server>, inner: u16, tasks: TaskTracker) {
    while let Ok((outside, _)) = listener.accept().await {
        let tls = Arc::clone(&tls);
        tasks.spawn(async move {
            let mut outside = tls.accept(outside).await?;
            let mut inside = TcpStream::connect(("127.0.0.1", inner)).await?;
            copy_bidirectional(&mut outside, &mut inside).await
        });
    }
}

#[test]
fn the_stage_gate_works_with_mutual_tls_on_every_leg() {
    if !nixl_is_here() {
        return;
    }
    let world = World::new();
    let (serves, asks) = (&world.serves, &world.asks);
    let pod = |role: &str| {
        let side = free_ports(1);
        let engine = Running::start(&format!(
            "sim --role {role} --listen 127.0.0.1:0 --side-channel 127.0.0.1:{side} --model m --num-blocks 64"
        ));
        let secured = world.before(&engine);
        let sidecar = Running::start(&format!(
            "sidecar --role {role} --engine https://127.0.0.1:{secured} --engine-side-channel 127.0.0.1:{side} --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 --staging-bytes 64MiB --verify full {serves} {asks}"
        ));
        (engine, secured, sidecar)
    };
    let (_prefill, p, p_sidecar) = pod("prefill");
    let (_decode, d, d_sidecar) = pod("decode");
    let router = |asks: &str| {
        Running::start(&format!(
            "router --prefill https://127.0.0.1:{p},sidecar=https://127.0.0.1:{} --decode https://127.0.0.1:{d},sidecar=https://127.0.0.1:{} --host 127.0.0.1 --port 0 --debug-headers {serves} {asks}",
            p_sidecar.http, d_sidecar.http
        ))
    };
    let known = router(asks);
    wait_for("both ranks", || (world.ask(known.http, "GET", "/readyz", "").0 == 200).then_some(()));
    let body = r#"{"model":"m","prompt":"as many words as fill a block or two of the cache, and then some more of them","max_tokens":8}"#;
    let (status, answer) = world.ask(known.http, "POST", "/v1/completions", body);
    assert_eq!(status, 200, "{answer}");
    // The decode had its receipt, and has read what it is for.
    wait_for("a collected transfer", || {
        let (_, transfers) = world.ask(d_sidecar.http, "GET", "/v1/transfers?state=done", "");
        (!transfers["transfers"].as_array().expect("transfers").is_empty()).then_some(())
    });

    // A router without a certificate is let in by no sidecar, and so has no rank to send anything to.
    let stranger = router(&format!("--upstream-ca {}", world.authority.ca().display()));
    wait_for("a refusal", || stranger.log().contains("CertificateRequired").then_some(()));
    assert_eq!(world.ask(stranger.http, "GET", "/readyz", "").0, 503);
    assert_eq!(world.ask(stranger.http, "POST", "/v1/completions", body).0, 503);

    // As a supervisor in the pod asks.
    for (what, running) in [("router", &known), ("sidecar", &d_sidecar)] {
        let url = |scheme: &str| format!("health --url {scheme}://127.0.0.1:{}/livez", running.http);
        let (code, says) = in_time(&format!("{} {asks}", url("https")));
        assert_eq!(code, 0, "{what}: {says}");
        assert_eq!(in_time(&url("http")).0, 1, "{what} speaks no plain HTTP");
        let (code, says) = in_time(&format!("{} --upstream-ca {}", url("https"), world.authority.ca().display()));
        assert!(code == 1 && says.contains("CertificateRequired"), "{what}: {says}");
    }
}

/// What `kvgate health` says once it is not too late for it: a machine with too much to do may need longer than it has patience.
fn in_time(health: &str) -> (i32, String) {
    wait_for("an answer in time", || {
        let (code, says) = finished(&mut kvgate(health));
        let late = ["has not answered within", "no connection within"].iter().any(|words| says.contains(words));
        (!late).then_some((code, says))
    })
}

#[test]
fn each_cause_for_which_a_sidecar_is_not_followed_is_logged() {
    let sidecar = free_ports(1);
    let router = Running::start(&format!(
        "router --prefill http://127.0.0.1:1,sidecar=http://127.0.0.1:{sidecar} --decode http://127.0.0.1:2,sidecar=http://127.0.0.1:2 --host 127.0.0.1 --port 0"
    ));
    let address = format!("http://127.0.0.1:{sidecar}");
    let logged = |cause: &str| router.log().lines().any(|line| line.contains(&address) && line.contains(cause));
    wait_for("nobody there", || logged("efused").then_some(()));
    // Somebody who says something else than HTTP.
    let listener = std::net::TcpListener::bind(("127.0.0.1", sidecar)).expect("the port is free still");
    std::thread::spawn(move || {
        while let Ok((mut wire, _)) = listener.accept() {
            drop(wire.write_all(b"220 mail.example\r\n"));
        }
    });
    wait_for("the other cause", || logged("get an answer from").then_some(()));
}

#[test]
fn tls_that_cannot_be_is_a_usage_error_in_words() {
    let authority = Authority::new();
    let ([one, _], [_, other]) = (authority.sign("one", "127.0.0.1"), authority.sign("other", "127.0.0.1"));
    let router = "router --prefill http://127.0.0.1:1 --decode http://127.0.0.1:2 --port 0";
    let sidecar = "sidecar --role decode --engine http://127.0.0.1:1";
    let pair = format!("--tls-cert {} --tls-key {}", one.display(), other.display());
    for (command, says) in [
        (format!("{router} {pair}"), "use the certificate in"),
        (format!("{sidecar} {pair}"), "use the certificate in"),
        (format!("{router} --tls-client-ca {}", authority.ca().display()), "--tls-client-ca needs --tls-cert"),
        (format!("{router} --tls-cert /dev/null --tls-key /dev/null"), "/dev/null holds no private key"),
        (format!("{router} --upstream-ca {}", other.display()), "holds no certificate"),
        (format!("{router} --decode https://127.0.0.1:3"), "https://127.0.0.1:3/ is https: give --upstream-ca"),
        (format!("{router} --sidecar-scheme https"), "https://127.0.0.1:7700/ is https: give --upstream-ca"),
        ("sidecar --role decode --engine https://127.0.0.1:1".to_owned(), "--engine is https: give --upstream-ca"),
        (format!("{sidecar} --listen 0.0.0.0:0"), "--tls-client-ca FILE"),
    ] {
        let (code, text) = finished(&mut kvgate(&command));
        assert!(code == 64 && text.contains(says), "{command} ended with {code}:\n{text}");
    }
}
