//! A client of one running sidecar that holds every answer against the server's own description.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Builder;
use axum::http::response::Parts;
use axum::http::{Method, Request};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::contract::{Answer, Contract};

const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    pool: Pool<HttpConnector, Body>,
    base: String,
    token: Option<&'static str>,
    pub(crate) contract: Contract,
    driven: Mutex<BTreeSet<String>>,
}

impl Client {
    pub(crate) async fn new(port: u16, token: Option<&'static str>) -> Self {
        let pool = Pool::builder(TokioExecutor::new()).build_http();
        let (base, nothing) =
            (format!("http://127.0.0.1:{port}"), Contract::new(serde_json::json!({"openapi": "3.1.0"})));
        let mut client = Self { pool, base, token, contract: nothing, driven: Mutex::default() };
        let described = client.send(client.request(Method::GET, "/openapi.json").body(Body::empty()).unwrap()).await;
        assert_eq!(described.status, 200, "{}", described.text);
        client.contract = Contract::new(described.json());
        client
    }

    /// A request of this client, to be completed.
    pub(crate) fn request(&self, method: Method, path: &str) -> Builder {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        match self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// Sends it and checks the answer.
    pub(crate) async fn call(&self, request: Request<Body>) -> Answer {
        let method = request.method().clone();
        let path = request.uri().path_and_query().unwrap().to_string();
        let answer = self.send(request).await;
        if let Some(operation) = self.contract.check(&method, &path, &answer)
            && answer.status.is_success()
        {
            self.driven.lock().insert(operation.to_owned());
        }
        answer
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let answer = timeout(SOON, self.pool.request(request)).await.unwrap().unwrap();
        let (head, body) = answer.into_parts();
        let body = timeout(SOON, body.collect()).await.unwrap().unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, text: String::from_utf8(body.to_vec()).unwrap() }
    }

    /// Whatever comes of a body that does not end within half a second: its first bytes.
    pub(crate) async fn first_bytes(&self, path: &str) -> (Parts, String) {
        let request = self.request(Method::GET, path).body(Body::empty()).unwrap();
        let (head, mut body) = timeout(SOON, self.pool.request(request)).await.unwrap().unwrap().into_parts();
        let frame = timeout(SOON, body.frame()).await.unwrap().unwrap().unwrap();
        let bytes = frame.into_data().unwrap_or_default();
        self.driven.lock().extend((head.status == 200).then(|| "rank_events".to_owned()));
        (head, String::from_utf8(bytes.to_vec()).unwrap())
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(self.request(Method::GET, path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call(self.request(Method::DELETE, path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send_json(Method::POST, path, body.to_string()).await
    }

    pub(crate) async fn send_json(&self, method: Method, path: &str, body: impl Into<Body>) -> Answer {
        let request = self.request(method, path).header("content-type", "application/json");
        self.call(request.body(body.into()).unwrap()).await
    }

    /// Asks again until the answer is as wished.
    pub(crate) async fn until(&self, path: &str, wished: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = Instant::now() + SOON;
        loop {
            let answer = self.get(path).await;
            if wished(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path} still answers {}", answer.text);
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Operations that have answered with success so far.
    pub(crate) fn driven(&self) -> BTreeSet<String> {
        self.driven.lock().clone()
    }
}
