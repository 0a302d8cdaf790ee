//! `/openapi.json`: what this API takes and answers, collected from the handlers themselves.
//!
//! A route without a description cannot be added: the routes of the API take both from the same attribute.

pub(super) mod answers;
pub(super) mod schemas;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use tracing::error;
use utoipa::PartialSchema as _;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{InfoBuilder, LicenseBuilder, OpenApi, Ref, RefOr, Required};

use crate::http::{Api, edge, routes};
use crate::problem::{Document, Problem};

/// The media type of JSON.
const JSON: &str = "application/json";
const TOKEN: &str = "token";
const REQUEST_ID: &str = "X-Request-Id";
const TRACE_PARENT: &str = "traceparent";

const ABOUT: &str = "\
The daemon beside one vLLM pod: it pulls prefilled KV over NIXL into staging and answers with a receipt once it has landed. \
Errors are RFC 9457 problem documents with a stable `code` and with `retry`, what a router may do about it. \
Times ending in `_us` are microseconds, in `_ms` milliseconds; both are monotonic. Members that this description does not name may \
be sent and are ignored.";

/// What this sidecar's API takes and answers, as OpenAPI 3.1.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    tag = "process",
    responses((status = 200, description = "This document", body = serde_json::Value), answers::Always),
)]
pub(super) async fn document(State(api): State<Api>) -> Result<Response, Problem> {
    // Asked for once in a while, by people and tests: not worth keeping.
    match serde_json::to_vec(&described(api.0.token.is_some())) {
        Ok(text) => Ok(([(header::CONTENT_TYPE, JSON)], text).into_response()),
        Err(broken) => {
            error!(error = %broken, "the API's description cannot be written");
            Err(Problem::internal())
        }
    }
}

/// The whole description, for a server that asks for a token or does not.
pub(super) fn described(with_token: bool) -> OpenApi {
    let mut described = routes().into_openapi();
    described.info = InfoBuilder::new()
        .title("kvgate sidecar")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    let components = described.components.get_or_insert_default();
    components.schemas.insert("Problem".to_owned(), Document::schema());
    if with_token {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The token of --token-file"));
        components.add_security_scheme(TOKEN, SecurityScheme::Http(scheme.build()));
        described.security = Some(vec![SecurityRequirement::new::<_, [String; 0], String>(TOKEN, [])]);
    }
    for (path, item) in &mut described.paths.paths {
        let open = edge::is_open(path);
        operations(item).for_each(|operation| complete(operation, with_token, open));
    }
    described
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().filter_map(Option::as_mut)
}

/// What every operation takes and answers besides its own.
fn complete(operation: &mut Operation, with_token: bool, open: bool) {
    let header = |name: &str, about: &str| {
        let header = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Header).required(Required::False);
        RefOr::T(header.description(Some(about)).schema(Some(String::schema())).build())
    };
    operation.parameters.get_or_insert_default().extend([
        header(REQUEST_ID, "Names the request in logs; 1 to 128 visible ASCII characters, anything else is replaced"),
        header(TRACE_PARENT, "W3C trace context; comes back in the answer unless it is malformed"),
    ]);
    if !with_token {
        operation.responses.responses.remove("401");
    }
    if open && with_token {
        operation.security = Some(Vec::new());
    }
    let header =
        |about: &str| RefOr::T(HeaderBuilder::new().schema(Some(String::schema())).description(Some(about)).build());
    for answer in operation.responses.responses.values_mut() {
        if let RefOr::T(answer) = answer {
            answer.headers.insert(REQUEST_ID.to_owned(), header("The client's, or one of the sidecar's"));
        }
    }
}

/// A reference to a schema by its name.
fn named(schema: &str) -> Ref {
    Ref::from_schema_name(schema)
}

#[cfg(test)]
mod tests;
