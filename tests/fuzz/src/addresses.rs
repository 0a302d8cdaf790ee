//! Addresses, ranks and peers as command lines, requests and operators write them.

use router::config::PodUrl;
use router::config::pod_local::Allowed;
use router::fuzzed;
use side_channel::Endpoint;
use sidecar::peer_allow::{Entry, PeerAllow};

use crate::memory::Bound;

const TEXT: Bound = Bound { base: 64 << 10, each: 64 };

/// One word, read as each of them.
pub fn addresses(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    TEXT.holds_for(text.len(), || {
        if let Ok(pod) = text.parse::<PodUrl>() {
            let written = format!("{},sidecar={}", pod.engine, pod.sidecar);
            let again: PodUrl = written.parse().expect("it is a pod's URL");
            assert_eq!((again.engine, again.sidecar), (pod.engine, pod.sidecar));
        }
        drop(text.parse::<Allowed>());
        if let Some(named) = fuzzed::prefillers(text) {
            assert!(named.len() <= 8, "{} are looked at", named.len());
            assert_eq!(fuzzed::prefillers(&named.join(",")), Some(named));
        }
        let endpoint = text.parse::<Endpoint>();
        if let Ok(endpoint) = &endpoint {
            assert_eq!(endpoint.to_string().parse::<Endpoint>().as_ref(), Ok(endpoint));
        }
        if let Ok(entry) = text.parse::<Entry>() {
            assert_eq!(entry.to_string().parse::<Entry>().as_ref(), Ok(&entry));
            if let Ok(endpoint) = &endpoint {
                drop(PeerAllow::Only(vec![entry]).certainly(endpoint));
            }
        }
        if let Ok(endpoint) = &endpoint {
            drop(PeerAllow::Usual { loopback: false }.certainly(endpoint));
        }
    });
}
