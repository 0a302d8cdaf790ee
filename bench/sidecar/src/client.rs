//! One kept HTTP connection.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// Opened when it is needed.
#[derive(Debug)]
pub(crate) struct Client {
    to: SocketAddr,
    open: Option<SendRequest<Full<Bytes>>>,
    tasks: TaskTracker,
}

impl Client {
    pub(crate) fn new(to: SocketAddr) -> Self {
        Self { to, open: None, tasks: TaskTracker::new() }
    }

    /// One exchange: the answer's body, which must be a success's; null when it is empty.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        id: &str,
        body: &Value,
        within: Duration,
    ) -> Result<Value> {
        let bytes = if body.is_null() { Bytes::new() } else { serde_json::to_vec(body)?.into() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "bench")
            .header(header::CONTENT_TYPE, "application/json")
            .header("x-request-id", id)
            .body(Full::new(bytes))?;
        timeout(within, self.exchange(request)).await.context("no answer in time")?
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Value> {
        let mut open = match self.open.take().filter(|open| !open.is_closed()) {
            Some(open) => open,
            None => {
                let stream = TcpStream::connect(self.to).await.context("connect")?;
                stream.set_nodelay(true)?;
                let (open, connection) = handshake(TokioIo::new(stream)).await?;
                self.tasks.spawn(connection);
                open
            }
        };
        open.ready().await?;
        let answer = open.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        self.open = Some(open);
        if !status.is_success() {
            bail!("{status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? })
    }
}
