//! `/debug`: a page for people, with the same answers as the API. It is embedded, asks nothing of any other host, and holds no data
//! itself: it may be had without the token, which it then asks its reader for.

use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderName, Uri, header};
use utoipa::openapi::path::{HttpMethod, OperationBuilder};
use utoipa::openapi::{ContentBuilder, ResponseBuilder};
use utoipa::{PartialSchema as _, openapi};
use utoipa_axum::router::OpenApiRouter;

use crate::http::{Api, edge};

/// The page itself; its parts lie below.
const PAGE: &str = "/debug";

/// Nothing inline, nothing from elsewhere, no framing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path, media type, text.
const FILES: [(&str, &str, &str); 11] = [
    (PAGE, HTML, include_str!("debug/page.html")),
    ("/debug/page.css", CSS, include_str!("debug/page.css")),
    ("/debug/icon.svg", SVG, include_str!("debug/icon.svg")),
    ("/debug/page.js", JAVASCRIPT, include_str!("debug/page.js")),
    ("/debug/draw.js", JAVASCRIPT, include_str!("debug/draw.js")),
    ("/debug/source.js", JAVASCRIPT, include_str!("debug/source.js")),
    ("/debug/ranks.js", JAVASCRIPT, include_str!("debug/ranks.js")),
    ("/debug/transfers.js", JAVASCRIPT, include_str!("debug/transfers.js")),
    ("/debug/detail.js", JAVASCRIPT, include_str!("debug/detail.js")),
    ("/debug/latency.js", JAVASCRIPT, include_str!("debug/latency.js")),
    ("/debug/others.js", JAVASCRIPT, include_str!("debug/others.js")),
];

/// The page and its parts, with their descriptions.
pub(super) fn routes() -> OpenApiRouter<Api> {
    FILES.iter().fold(OpenApiRouter::new(), |routes, (path, media_type, _)| {
        let mut routes = routes.route(path, get(file));
        routes.get_openapi_mut().paths.add_path_operation(path, vec![HttpMethod::Get], described(path, media_type));
        routes
    })
}

fn described(path: &str, media_type: &str) -> openapi::path::Operation {
    let text = ContentBuilder::new().schema(Some(String::schema())).build();
    let found = ResponseBuilder::new().description("The file").content(media_type, text).build();
    OperationBuilder::new()
        .operation_id(Some(path.trim_start_matches('/').replace(['/', '.'], "_")))
        .tag("debugging")
        .summary(Some(if path == PAGE { "A page for people" } else { "A part of the page" }))
        .response("200", found)
        .build()
}

/// Whether a path is one of the page's: they say nothing about this sidecar.
pub(super) fn is_page(path: &str) -> bool {
    FILES.iter().any(|(known, _, _)| *known == path)
}

async fn file(uri: Uri) -> Response {
    let found = FILES.iter().find(|(path, _, _)| *path == uri.path());
    let Some((_, media_type, text)) = found else { return edge::not_found(uri).await.into_response() };
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // After an upgrade the old page would not fit the new answers.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, *text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_turns_text_into_markup_or_leaves_this_host() {
        for (path, _, text) in FILES {
            for bad in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "//cdn"]
            {
                assert!(!text.contains(bad), "{path} has {bad}");
            }
            let mut hosts =
                text.split("http").skip(1).filter(|rest| rest.starts_with("://") || rest.starts_with("s://"));
            assert!(hosts.all(|host| host.starts_with("://www.w3.org/2000/svg")), "{path} names another host");
        }
    }

    #[test]
    fn the_page_has_nothing_inline_and_asks_only_for_what_is_served() {
        let (_, _, page) = FILES[0];
        for inline in ["<style", "style=", "onclick", "onload", "javascript:", "<script>"] {
            assert!(!page.contains(inline), "{inline}");
        }
        let parts = page.split("debug/").skip(1).filter_map(|rest| rest.split('"').next());
        let imports = FILES.iter().flat_map(|(_, _, text)| text.split("from \"./").skip(1));
        for part in parts.chain(imports.filter_map(|rest| rest.split('"').next())) {
            assert!(is_page(&format!("/debug/{part}")), "{part} is not served");
        }
    }
}
