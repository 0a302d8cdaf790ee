//! `kv_transfer_params`, and the notifications between engines.

use vllm_wire::notif::{self, Notif};
use vllm_wire::params::KvTransferParams;

use crate::memory::Bound;

const JSON: Bound = Bound { base: 64 << 10, each: 200 };

/// What a prefill hands over, as an engine or a client wrote it.
pub fn kv_transfer_params(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(read) = JSON.holds_for(data.len(), || KvTransferParams::read(text)) else { return };
    drop(read.check_supported());
    let again = KvTransferParams::parse(&read.to_value()).expect("they are parameters");
    assert_eq!(again, read);
}

/// What a reader tells the engine that it read from.
pub fn notifications(data: &[u8]) {
    let Ok(read) = JSON.holds_for(data.len(), || notif::parse(data)) else { return };
    let written = match &read {
        Notif::Done { request, readers } => notif::done(request, *readers),
        Notif::Heartbeat { requests } => notif::heartbeat(requests),
    };
    assert_eq!(notif::parse(&written).expect("it is a notification"), read);
}
