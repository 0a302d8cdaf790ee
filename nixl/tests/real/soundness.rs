//! The unsound cases of nixl-ffi.md §2.3 that have safe code here: what crashed there must work, or be refused, here. What
//! must not even compile is in `tests/no_compile`.

use std::time::Duration;

use bytes::Bytes;
use nixl::{Agent, AgentConfig, AgentError, AgentName, Closed, Fabric, FabricError, HugePages, Memory};

use crate::peer::{DEADLINE, Peer, agent};

/// Cases `iter`, `iter2`: strings of an iterator outlive it, and their agent.
#[test]
fn plugin_names_and_parameters_are_owned() {
    let Some(agent) = agent(AgentConfig::pull, "curious") else { return };
    let plugins = agent.plugins().wait().unwrap();
    let info = agent.plugin_info("UCX").wait().unwrap();
    assert!(matches!(agent.plugin_info("no such plugin").wait(), Err(FabricError::Nixl(_))));
    assert!(matches!(agent.plugin_info("UCX\0").wait(), Err(FabricError::Nixl(_))));
    assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
    drop(agent);
    assert!(plugins.iter().any(|name| name == "UCX"), "{plugins:?}");
    assert!(info.dram && info.params.contains_key("num_workers"), "{info:?}");
    assert!(info.params.keys().all(|key| key.is_ascii()));
    println!("plugins {plugins:?}; UCX {:?}", info.params);
}

/// Cases `dlist` and `backend`: handles outlive their agent.
#[test]
fn handles_that_outlive_their_agent_do_nothing() {
    let Some(agent) = agent(AgentConfig::pull, "short-lived") else { return };
    let served = Peer::start("short-lived-served", 8192);
    let peer = agent.load_peer(Bytes::from(served.metadata.clone())).wait().unwrap();
    let region = agent.register(Memory::host(8192, HugePages::Off).unwrap()).wait().unwrap();
    let read = served.read(&peer, &region, &[(0, 0, 4096)]);
    let local = agent.prepare_local(read.local.clone()).wait().unwrap();
    let remote = agent.prepare_remote(peer, read.remote.clone()).wait().unwrap();
    assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
    assert_eq!(agent.read(read).done.wait(), Err(FabricError::Closed));
    drop(agent);
    drop((local, remote));
    region.write_at(0, b"still memory").unwrap();
    drop(region);
}

/// An agent that is only dropped ends too, in the background.
#[test]
fn dropping_the_agent_first_is_fine() {
    let Some(agent) = agent(AgentConfig::serve, "dropped") else { return };
    let region = agent.register(Memory::host(8192, HugePages::Off).unwrap()).wait().unwrap();
    drop(agent);
    drop(region);
}

/// Case `nul`: a NUL is refused, not a panic.
#[test]
fn nul_and_wrong_parameters_are_errors() {
    let Some(api) = nixl_sys::testing::require_nixl() else { return };
    let config = || AgentConfig::pull(AgentName::new("strict").unwrap());
    let mut with_nul = config();
    with_nul.backend_params.push(("num_workers".to_owned(), "1\0".to_owned()));
    assert!(matches!(Agent::start(api, with_nul), Err(AgentError::Parameter { key }) if key == "num_workers"));
    let mut unknown = config();
    unknown.backend = "UCX2".to_owned();
    match Agent::start(api, unknown).map(drop) {
        Err(AgentError::NoPlugin { wanted, available }) => {
            assert!(wanted == "UCX2" && available.iter().any(|name| name == "UCX"), "{available:?}");
        }
        other => unreachable!("{other:?}"),
    }
    let mut no_peer_errors = config();
    no_peer_errors.backend_params.push(("ucx_error_handling_mode".to_owned(), "none".to_owned()));
    let agent = Agent::start(api, no_peer_errors).unwrap();
    assert_eq!(agent.close(Duration::from_secs(5)).wait(), Ok(Closed::Quiet));
}
