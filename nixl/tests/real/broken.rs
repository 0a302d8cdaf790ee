//! Connections that are lost while nobody uses them, and peers that stand still.

use bytes::Bytes;
use nixl::{AgentConfig, Closed, Fabric, HugePages, Memory};

use crate::peer::{DEADLINE, Peer, agent, in_child};
use crate::sockets::cut_tcp_connections;

#[test]
fn a_connection_lost_while_idle_costs_one_read_at_most_once_the_peer_is_loaded_anew() {
    let name = "broken::a_connection_lost_while_idle_costs_one_read_at_most_once_the_peer_is_loaded_anew";
    if in_child(name, &[("UCX_TLS", "tcp")]).is_some() {
        return;
    }
    let Some(agent) = agent(AgentConfig::pull, "lonely") else { return };
    let served = Peer::start("lonely-served", 1 << 20);
    let blob = Bytes::from(served.metadata.clone());
    let peer = agent.load_peer(blob.clone()).wait().unwrap();
    let region = agent.register(Memory::host(1 << 20, HugePages::Off).unwrap()).wait().unwrap();
    let read = || agent.read(served.read(&peer, &region, &[(0, 0, 1 << 20)])).done.wait();
    for round in 0..5 {
        assert_eq!(read().map(|done| done.bytes), Ok(1 << 20), "round {round}");
        let cut = cut_tcp_connections();
        assert!(cut > 0, "there was a connection");
        let first = read();
        println!("round {round}: {cut} connections cut, the next read: {first:?}");
        if first.is_err() {
            agent.forget_peer(peer.clone()).wait().unwrap();
            agent.load_peer(blob.clone()).wait().unwrap();
        }
    }
    drop(region);
    assert!(agent.close(DEADLINE).wait().is_ok_and(|closed| closed != Closed::Stuck));
}
