//! What requests of both listeners meet: the guard first, then the routes.

use std::sync::Arc;

use axum::Router as Routes;
use axum::body::Body;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serving::{Answer, Terms};
use vllm_wire::body::Endpoint;

use crate::config::RouterConfig;
use crate::error::Dialect;
use crate::guard::Guard;
use crate::request;
use crate::router::Shared;

/// One listener's guard and routes.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    pub(crate) guard: Arc<Guard>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) routes: Routes,
}

impl Front {
    /// What is asked for most is found without the table of routes, which asks for memory eight times before it is there. Whoever may not
    /// ask for it at this door has been turned away by the guard.
    async fn find(self, request: Request<Body>) -> Response<Body> {
        match Endpoint::of(request.uri().path()).filter(|_| request.method() == Method::POST) {
            // The routes' futures are boxed too: a connection holds one of them for as long as it lives.
            Some(endpoint) => Box::pin(request::serve(self.shared, endpoint, request)).await,
            None => self.routes.answer(request).await,
        }
    }
}

impl Answer for Front {
    async fn answer(self, mut request: Request<Body>) -> Response<Body> {
        match self.guard.admit(&mut request) {
            Ok(()) => self.find(request).await,
            Err(refused) => {
                let unauthorized = refused.status == StatusCode::UNAUTHORIZED;
                let mut response = refused.response_in(Dialect::of(request.uri().path()));
                if unauthorized {
                    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                }
                response
            }
        }
    }
}

/// What connections are held to. With as many as there may be, further ones wait in the system's backlog.
pub(crate) fn terms(config: &RouterConfig) -> Terms {
    let listen = &config.listen;
    Terms {
        connections: listen.max_connections,
        refused: 0,
        head: listen.header_deadline,
        idle: listen.idle_timeout,
        stall: config.deadlines.client,
        head_bytes: listen.max_header_bytes,
        headers: listen.max_headers,
    }
}
