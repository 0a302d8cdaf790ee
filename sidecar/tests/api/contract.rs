//! An answer beside the description that the same server gives: is the status documented, the media type, and every member?

use std::collections::BTreeMap;

use axum::http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value};

use crate::schema::Schemas;

const METHODS: [&str; 4] = ["get", "put", "post", "delete"];

/// The server's `/openapi.json`.
#[derive(Debug)]
pub(crate) struct Contract {
    description: Value,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Status, code, retry: what a client decides on.
    pub(crate) fn problem(&self) -> (u16, String, String) {
        let json = self.json();
        let word = |member: &str| json[member].as_str().unwrap_or_else(|| panic!("{json}")).to_owned();
        (self.status.as_u16(), word("code"), word("retry"))
    }

    fn media_type(&self) -> Option<&str> {
        self.headers.get("content-type").map(|value| value.to_str().unwrap())
    }
}

impl Contract {
    pub(crate) fn new(description: Value) -> Self {
        assert!(description["openapi"].as_str().unwrap().starts_with("3.1."), "{}", description["openapi"]);
        Self { description }
    }

    pub(crate) fn paths(&self) -> &Map<String, Value> {
        self.description["paths"].as_object().unwrap()
    }

    /// The documented methods of each path, in upper case and sorted.
    pub(crate) fn methods(&self) -> BTreeMap<String, Vec<String>> {
        let methods = |item: &Value| {
            let mut methods: Vec<String> = item.as_object().unwrap().keys().map(|key| key.to_uppercase()).collect();
            methods.sort();
            methods
        };
        self.paths().iter().map(|(path, item)| (path.clone(), methods(item))).collect()
    }

    /// Names of all operations.
    pub(crate) fn operations(&self) -> Vec<&str> {
        let items = self.paths().values();
        let operations = items.flat_map(|item| METHODS.into_iter().filter_map(|method| item.get(method)));
        operations.map(|operation| operation["operationId"].as_str().unwrap()).collect()
    }

    /// Holds an answer against the description; the name of the operation, if there is one for this request.
    pub(crate) fn check(&self, method: &Method, path: &str, answer: &Answer) -> Option<&str> {
        assert!(answer.headers.contains_key("x-request-id"), "{method} {path}: {answer:?}");
        let item = self.find(path);
        let operation = item.and_then(|item| item.get(method.as_str().to_lowercase()));
        let Some(operation) = operation else {
            self.check_undocumented(item.is_some(), answer);
            return None;
        };
        let name = operation["operationId"].as_str().unwrap();
        let documented = operation["responses"].as_object().unwrap();
        let Some(expected) = documented.get(answer.status.as_str()) else {
            panic!("{name}: status {} is not documented: {}", answer.status, answer.text);
        };
        match (expected.get("content"), answer.media_type()) {
            (None, None) => assert_eq!(answer.text, "", "{name}"),
            (Some(content), Some(media_type)) => {
                let Some(expected) = content.get(media_type) else {
                    panic!("{name}: {media_type} is not documented for {}, but {content}", answer.status)
                };
                if media_type.ends_with("json") {
                    self.hold(&expected["schema"], &answer.json(), name);
                }
            }
            (documented, sent) => panic!("{name}: media type {sent:?}, documented {documented:?}"),
        }
        for header in expected["headers"].as_object().into_iter().flat_map(Map::keys) {
            assert!(answer.headers.contains_key(header.to_lowercase()), "{name} {}: no {header}", answer.status);
        }
        Some(name)
    }

    /// A path or a method that the description does not know.
    fn check_undocumented(&self, path_is_known: bool, answer: &Answer) {
        let (status, code, retry) = answer.problem();
        assert_eq!(answer.media_type(), Some("application/problem+json"), "{answer:?}");
        let expected = if path_is_known { (405, "method_not_allowed") } else { (404, "not_found") };
        let unauthorized = (status, code.as_str()) == (401, "unauthorized");
        assert!((status, code.as_str()) == expected || unauthorized, "{answer:?}");
        assert_eq!(retry, "never");
        self.hold(&serde_json::json!({ "$ref": "#/components/schemas/Problem" }), &answer.json(), "a problem");
        assert_eq!(answer.headers.contains_key("allow"), status == 405, "{answer:?}");
    }

    /// The path item whose template fits; a literal segment goes before a variable one.
    fn find(&self, path: &str) -> Option<&Value> {
        let asked: Vec<&str> = path.split('?').next().unwrap().split('/').collect();
        let variables = |template: &str| template.matches('{').count();
        let fits = |template: &&String| {
            let parts: Vec<&str> = template.split('/').collect();
            parts.len() == asked.len()
                && parts
                    .iter()
                    .zip(&asked)
                    .all(|(part, asked)| part == asked || part.starts_with('{') && !asked.is_empty())
        };
        let found = self.paths().keys().filter(fits).min_by_key(|template| variables(template))?;
        self.paths().get(found)
    }

    fn hold(&self, schema: &Value, value: &Value, what: &str) {
        let schemas = Schemas(self.description["components"]["schemas"].as_object().unwrap());
        if let Err(wrong) = schemas.closed(schema, value, "") {
            panic!("{what}: {wrong} in {value}");
        }
    }
}
