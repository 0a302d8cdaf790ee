//! What the description is, checked on itself; `tests/api.rs` checks it beside a running sidecar.

use std::collections::BTreeSet;

use super::*;

fn all(described: &OpenApi) -> impl Iterator<Item = (&String, &Operation)> {
    described.paths.paths.iter().flat_map(|(path, item)| {
        let all = [&item.get, &item.put, &item.post, &item.delete];
        all.into_iter().filter_map(Option::as_ref).map(move |operation| (path, operation))
    })
}

#[test]
fn every_operation_has_its_own_name_words_and_tag() {
    let described = described(true);
    let mut names = BTreeSet::new();
    for (path, operation) in all(&described) {
        let name = operation.operation_id.clone().unwrap();
        assert!(names.insert(name.clone()), "{name} is the name of two operations");
        assert!(operation.summary.as_ref().is_some_and(|words| !words.is_empty()), "{path} {name} has no summary");
        assert_eq!(operation.tags.as_ref().map(Vec::len), Some(1), "{path} {name}");
    }
}

/// A reference to a schema that is not there makes generators fail.
#[test]
fn every_reference_leads_somewhere() {
    let json = serde_json::to_value(described(true)).unwrap();
    let text = json.to_string();
    let mut count = 0;
    for reference in text.split(r##""$ref":"#"##).skip(1) {
        let path = reference.split('"').next().unwrap();
        assert!(json.pointer(path).is_some(), "{path} is not there");
        count += 1;
    }
    assert!(count > 50, "{count}");
}

#[test]
fn the_token_is_asked_for_where_there_is_one() {
    let (with, without) = (described(true), described(false));
    for (path, operation) in all(&with) {
        let open = edge::is_open(path);
        assert_eq!(operation.responses.responses.contains_key("401"), !open, "{path}");
        assert_eq!(operation.security.as_ref().map(Vec::len), open.then_some(0), "{path}");
    }
    assert!(with.security.is_some() && without.security.is_none());
    for (path, operation) in all(&without) {
        assert!(!operation.responses.responses.contains_key("401") && operation.security.is_none(), "{path}");
    }
}
