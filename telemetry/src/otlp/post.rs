//! One post to the collector.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tokio::time::timeout;

use super::Settings;

/// Longest answer that is read.
const MAX_ANSWER: usize = 64 << 10;

/// Why a post came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostError {
    #[error("write the request")]
    Request(#[from] http::Error),
    #[error("reach the collector")]
    Unreachable(#[from] hyper_util::client::legacy::Error),
    #[error("get the collector's answer within {0:?}")]
    Late(Duration),
    #[error("the collector answers {0}")]
    Status(StatusCode),
    #[error("understand the collector's answer")]
    Answer,
}

/// The collector.
#[derive(Debug)]
pub(super) struct Collector {
    client: Client<HttpConnector, Full<Bytes>>,
    endpoint: Uri,
    headers: HeaderMap,
    timeout: Duration,
}

impl Collector {
    pub(super) fn new(settings: &Settings) -> Self {
        let Settings { endpoint, headers, timeout, .. } = settings;
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Self { client, endpoint: endpoint.clone(), headers: headers.clone(), timeout: *timeout }
    }

    /// Posts one message. Says how many spans the collector refused.
    pub(super) async fn post(&self, message: Bytes) -> Result<i64, PostError> {
        let mut request = Request::post(&self.endpoint).body(Full::new(message))?;
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let exchange = async {
            let answer = self.client.request(request).await?;
            if !answer.status().is_success() {
                return Err(PostError::Status(answer.status()));
            }
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|_| PostError::Answer)?;
            let answer = ExportTraceServiceResponse::decode(body.to_bytes()).map_err(|_| PostError::Answer)?;
            Ok(answer.partial_success.map_or(0, |partial| partial.rejected_spans))
        };
        timeout(self.timeout, exchange).await.unwrap_or(Err(PostError::Late(self.timeout)))
    }
}
