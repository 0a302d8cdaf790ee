//! The description names every route of the server, and no other.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::http::Method;

use crate::rig::Rig;
use crate::world::World;

/// Paths of a router, from what it prints of itself: axum has no other way to ask for them.
fn routed(router: &axum::Router) -> BTreeSet<String> {
    let text = format!("{router:?}");
    let (_, paths) = text.split_once("paths: {").unwrap_or_else(|| panic!("axum prints its routes otherwise: {text}"));
    let quoted = paths.split_once('}').map(|_| paths.split('"').skip(1).step_by(2)).unwrap();
    // The fallback is two routes of its own.
    let paths = quoted.take_while(|path| path.starts_with('/')).filter(|path| *path != "/" && !path.contains("{*"));
    paths.map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn the_description_has_every_path_and_method_of_the_server() {
    let world = World::new();
    let sidecar = world.lonely("decode", "").await;
    let documented = sidecar.client.contract.methods();

    let paths: BTreeSet<String> = documented.keys().cloned().collect();
    assert!(paths.len() > 15, "{paths:?}");
    assert_eq!(routed(&Rig::decode().await.router), paths);

    let mut real = BTreeMap::new();
    for path in documented.keys() {
        let concrete = path.replace("{rank}", "0").replace("{id}", "x").replace("{remote_request_id}", "x");
        let request = sidecar.client.request(Method::from_bytes(b"ASK").unwrap(), &concrete);
        let answer = sidecar.client.call(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, 405, "{path}: {}", answer.text);
        let allowed = answer.headers["allow"].to_str().unwrap();
        // Whoever may GET may HEAD: that goes without saying.
        let mut methods: Vec<String> =
            allowed.split(',').map(|method| method.trim().to_owned()).filter(|method| method != "HEAD").collect();
        methods.sort();
        real.insert(path.clone(), methods);
    }
    assert_eq!(real, documented);
}
