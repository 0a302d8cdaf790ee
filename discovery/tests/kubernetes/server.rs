//! Kubernetes' API, as far as pods are followed: lists in pages and watches that continue them.

use std::collections::BTreeMap;
use std::sync::Arc;

use discovery::kubernetes::api::Api;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::tls::Authority;

/// What goes to every open watch.
#[derive(Clone, Debug)]
enum Told {
    /// An event, with the version that it made.
    Line(u64, String),
    Close,
}

#[derive(Debug, Default)]
struct World {
    pods: BTreeMap<String, Value>,
    version: u64,
    /// What watches that begin at an older version are told first.
    history: Vec<(u64, String)>,
    lose_events: bool,
    refuse: Option<u16>,
    page: usize,
    token: Option<&'static str>,
    asked: Vec<String>,
}

/// The server; it ends with the test's runtime.
pub(crate) struct Server {
    world: Arc<Mutex<World>>,
    told: broadcast::Sender<Told>,
    base: String,
}

pub(crate) fn pod(uid: &str, phase: &str, address: Option<&str>) -> Value {
    json!({ "metadata": { "name": format!("pod-{uid}"), "uid": uid }, "status": { "phase": phase, "podIP": address } })
}

pub(crate) fn leaving(uid: &str, address: &str) -> Value {
    let mut pod = pod(uid, "Running", Some(address));
    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    pod
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::listen(None).await
    }

    pub(crate) async fn start_tls(authority: &Authority) -> Self {
        Self::listen(Some(TlsAcceptor::from(authority.server()))).await
    }

    async fn listen(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{}", listener.local_addr().expect("an address"));
        let world = Arc::new(Mutex::new(World { page: usize::MAX, version: 1, ..World::default() }));
        let (told, _) = broadcast::channel(64);
        let server = Self { world: Arc::clone(&world), told: told.clone(), base };
        TaskTracker::new().spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (world, told, tls) = (Arc::clone(&world), told.clone(), tls.clone());
                TaskTracker::new().spawn(async move {
                    match tls {
                        None => serve(socket, &world, &told).await,
                        Some(tls) => match tls.accept(socket).await {
                            Ok(stream) => serve(stream, &world, &told).await,
                            // A client that does not trust us.
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        server
    }

    pub(crate) fn api(&self) -> Api {
        Api { base: self.base.parse().expect("a URL"), token: None, authority: None }
    }

    /// Adds or changes a pod.
    pub(crate) fn set(&self, pod: Value) {
        let uid = pod["metadata"]["uid"].as_str().expect("a uid").to_owned();
        let mut world = self.world.lock();
        let kind = if world.pods.contains_key(&uid) { "MODIFIED" } else { "ADDED" };
        self.tell(&mut world, kind, &pod);
        world.pods.insert(uid, pod);
    }

    pub(crate) fn delete(&self, uid: &str) {
        let mut world = self.world.lock();
        let pod = world.pods.remove(uid).expect("a pod to delete");
        self.tell(&mut world, "DELETED", &pod);
    }

    /// Under the lock: a list must hold what its version says.
    fn tell(&self, world: &mut World, kind: &str, pod: &Value) {
        world.version += 1;
        if !world.lose_events {
            let (version, line) = (world.version, json!({ "type": kind, "object": pod }).to_string());
            world.history.push((version, line.clone()));
            // Nobody may be watching.
            drop(self.told.send(Told::Line(version, line)));
        }
    }

    pub(crate) fn lose_events(&self, lose: bool) {
        self.world.lock().lose_events = lose;
    }

    pub(crate) fn close_watches(&self) {
        drop(self.told.send(Told::Close));
    }

    /// What a watch hears when its version has been forgotten.
    pub(crate) fn tell_gone(&self) {
        let status = json!({ "type": "ERROR", "object": { "kind": "Status", "code": 410, "reason": "Expired" } });
        drop(self.told.send(Told::Line(u64::MAX, status.to_string())));
    }

    pub(crate) fn refuse(&self, status: Option<u16>) {
        self.world.lock().refuse = status;
    }

    pub(crate) fn pages_of(&self, pods: usize) {
        self.world.lock().page = pods;
    }

    pub(crate) fn want_token(&self, token: &'static str) {
        self.world.lock().token = Some(token);
    }

    /// Waits until so many watches have been opened in all.
    pub(crate) async fn watched(&self, times: usize) {
        let watches = || self.asked().iter().filter(|path| path.contains("watch=true")).count();
        while watches() < times {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.world.lock().asked.clone()
    }

    pub(crate) fn lists(&self) -> usize {
        self.asked().iter().filter(|path| !path.contains("watch=true")).count()
    }
}

/// One connection: requests until it closes. `None` when it does.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    world: &Mutex<World>,
    told: &broadcast::Sender<Told>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (path, authorization) = request(&mut stream).await?;
        // Before the answer is made: what happens from here on must reach the watch.
        let mut hear = told.subscribe();
        let (status, body) = answer(&mut world.lock(), &path, authorization.as_deref());
        if status != 200 || !path.contains("watch=true") {
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(format!("{head}{body}").as_bytes()).await.ok()?;
            stream.flush().await.ok()?;
            continue;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.ok()?;
        stream.flush().await.ok()?;
        let mut sent: u64 = parameter(&path, "resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        let history = world.lock().history.clone();
        let mut missed = history.into_iter().map(|(version, line)| Told::Line(version, line));
        loop {
            let told = match missed.next() {
                Some(told) => told,
                None => hear.recv().await.ok()?,
            };
            match told {
                Told::Line(version, line) if version > sent => {
                    sent = version;
                    event(&mut stream, &line).await?;
                }
                Told::Line(..) => {}
                Told::Close => return None,
            }
        }
    }
}

/// One event, in two pieces: lines need not come whole.
async fn event(stream: &mut (impl AsyncWrite + Unpin), line: &str) -> Option<()> {
    let (first, second) = line.split_at(line.len() / 2);
    for piece in [first.to_owned(), format!("{second}\n")] {
        stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await.ok()?;
        stream.flush().await.ok()?;
    }
    Some(())
}

fn parameter<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    path.split(['?', '&']).find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// The path and the Authorization of the next request.
async fn request(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<(String, Option<String>)> {
    let (mut path, mut authorization) = (None, None);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim();
        if line.is_empty() {
            return Some((path?, authorization));
        }
        if path.is_none() {
            path = Some(line.split(' ').nth(1)?.to_owned());
        } else if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("authorization")
        {
            authorization = Some(value.to_owned());
        }
    }
}

fn answer(world: &mut World, path: &str, authorization: Option<&str>) -> (u16, String) {
    world.asked.push(path.to_owned());
    if let Some(token) = world.token
        && authorization != Some(format!("Bearer {token}").as_str())
    {
        return (401, json!({ "kind": "Status", "message": "Unauthorized" }).to_string());
    }
    if let Some(status) = world.refuse {
        return (status, json!({ "kind": "Status", "message": "pods is forbidden: for the test" }).to_string());
    }
    let start: usize = parameter(path, "continue").and_then(|at| at.parse().ok()).unwrap_or(0);
    let end = start.saturating_add(world.page);
    let items: Vec<&Value> = world.pods.values().skip(start).take(world.page).collect();
    let next = if end < world.pods.len() { end.to_string() } else { String::new() };
    let metadata = json!({ "resourceVersion": world.version.to_string(), "continue": next });
    (200, json!({ "kind": "PodList", "metadata": metadata, "items": items }).to_string())
}
