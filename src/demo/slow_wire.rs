//! Whether the decode sidecar names the peer whose wire is slow: in `/v1/latency`, and in the reason of the slowest transfer.

use anyhow::{Context, Result};
use serde_json::Value;

use super::client::Client;
use super::report::Report;
use super::topology::Topology;

/// Notes what the sidecar says; whether it is right.
pub(super) async fn judge(report: &mut Report, topology: &Topology, client: &Client) -> Result<bool> {
    let rank = client.get(&format!("{}/v1/ranks/0", topology.prefill_sidecar)).await?;
    let slow = rank.body.get("engine_id").and_then(Value::as_str).context("the slow rank has no engine id")?;
    let latency = client.get(&format!("{}/v1/latency?by=peer,stage", topology.decode_sidecar)).await?;
    let cause = latency.body.pointer("/causes/0").cloned().unwrap_or_default();
    let slowest = client.get(&format!("{}/v1/transfers?slowest=1", topology.decode_sidecar)).await?;
    let transfer = slowest.body.pointer("/transfers/0").cloned().unwrap_or_default();
    let word = |value: &Value, at: &str| value.pointer(at).and_then(Value::as_str).unwrap_or("nothing").to_owned();

    let named = word(&cause, "/peer") == slow && word(&cause, "/stage") == "wire";
    let told = word(&transfer, "/source/engine_id") == slow && word(&transfer, "/why/text").starts_with("wire: ");
    let right = |right: bool| if right { "as it must" } else { "which is wrong" };
    report.notes.push(format!("control slow-wire: the slow peer is {slow}"));
    report.notes.push(format!("control slow-wire: /v1/latency says, {}: {}", right(named), word(&cause, "/text")));
    report.notes.push(format!(
        "control slow-wire: the slowest transfer says, {}: {}",
        right(told),
        word(&transfer, "/why/text")
    ));
    Ok(named && told)
}
