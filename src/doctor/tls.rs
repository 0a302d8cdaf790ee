//! `UCX_TLS` and `UCX_NET_DEVICES`: a wrong one leaves NIXL without a way to another pod.
//!
//! NIXL needs a transport that carries active messages and notices a dead peer: tcp or RDMA. With shared memory alone its UCX backend does
//! not even start.

use super::line::Line;
use super::nixl::Settings;
use super::probe::{Transport, UcxSays};

const TLS: &str = "ucx-tls";
const DEVICES: &str = "ucx-net-devices";

pub(super) fn lines(ucx: Option<&UcxSays>, settings: &Settings) -> Vec<Line> {
    let mut lines = vec![tls(ucx, settings.tls.as_deref())];
    if let Some(devices) = &settings.net_devices {
        lines.push(net_devices(ucx, devices));
    }
    lines
}

fn tls(ucx: Option<&UcxSays>, set: Option<&str>) -> Line {
    let Some(set) = set else { return Line::ok(TLS, "UCX_TLS is not set: UCX chooses among all transports") };
    const FIX: &str = "unset UCX_TLS, or add tcp to it (RDMA: rc), for example UCX_TLS=tcp,cma,cuda";
    let network: Vec<&str> = match ucx {
        Some(ucx) => ucx.transports.iter().filter(|t| t.network).map(|t| t.name.as_str()).collect(),
        // Without UCX's word: those that there can be.
        None => vec!["tcp", "rc_verbs", "rc_mlx5", "dc_mlx5", "ud_verbs", "ud_mlx5", "srd"],
    };
    let mut reaching: Vec<&str> = network.iter().copied().filter(|name| allows(set, name)).collect();
    reaching.dedup();
    let line = if reaching.is_empty() {
        let says = format!(
            "UCX_TLS={set} allows none of the transports that reach another pod ({}): NIXL's agents cannot talk",
            if network.is_empty() { "this machine has none" } else { "tcp, or RDMA where there is a device" }
        );
        Line::fail(TLS, says, FIX)
    } else {
        Line::ok(TLS, format!("UCX_TLS={set} allows {} between pods", reaching.join(", ")))
    };
    line.with("ucx_tls", set).with("reaching", reaching)
}

/// Whether a value of `UCX_TLS` lets this transport be used.
pub(super) fn allows(set: &str, transport: &str) -> bool {
    let (negated, list) = set.strip_prefix('^').map_or((false, set), |list| (true, list));
    let named = list.split(',').map(|word| word.trim().trim_start_matches('\\')).any(|word| covers(word, transport));
    named != negated
}

/// UCX's words for groups of transports.
fn covers(word: &str, transport: &str) -> bool {
    let any = |names: &[&str]| names.iter().any(|name| transport.starts_with(name));
    match word {
        "all" => true,
        "ib" => any(&["rc_", "ud_", "dc_", "srd"]),
        "rc" => any(&["rc_"]),
        "rc_x" => transport == "rc_mlx5",
        "rc_v" => transport == "rc_verbs",
        "ud" => any(&["ud_"]),
        "ud_x" => transport == "ud_mlx5",
        "ud_v" => transport == "ud_verbs",
        "dc" | "dc_x" => any(&["dc_"]),
        "sm" | "shm" => ["posix", "sysv", "cma", "knem", "xpmem"].contains(&transport),
        "mm" => ["posix", "sysv", "xpmem"].contains(&transport),
        "cuda" => any(&["cuda_", "gdr_copy"]),
        name => name == transport,
    }
}

fn net_devices(ucx: Option<&UcxSays>, set: &str) -> Line {
    let Some(ucx) = ucx else { return Line::skip(DEVICES, format!("UCX_NET_DEVICES={set}; UCX cannot be asked")) };
    let there = |name: &str| ucx.transports.iter().any(|Transport { device, network, .. }| *network && device == name);
    let words: Vec<&str> = set.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    let missing: Vec<&str> = words.iter().copied().filter(|word| *word != "all" && !there(word)).collect();
    let devices: Vec<&str> = ucx.transports.iter().filter(|t| t.network).map(|t| t.device.as_str()).collect();
    let fix = format!("name devices that are here: {}", devices.join(", "));
    let line = if missing.is_empty() {
        Line::ok(DEVICES, format!("UCX_NET_DEVICES={set}: all are here"))
    } else if missing.len() == words.len() {
        Line::fail(DEVICES, format!("UCX_NET_DEVICES={set}: none of them is here"), fix)
    } else {
        Line::warn(DEVICES, format!("UCX_NET_DEVICES={set}: {} is not here", missing.join(", ")), fix)
    };
    line.with("missing", missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::line::Status;

    fn here(names: &[(&str, &str)]) -> UcxSays {
        let transport = |(name, device): &(&str, &str)| Transport {
            name: (*name).to_owned(),
            device: (*device).to_owned(),
            network: true,
        };
        UcxSays { transports: names.iter().map(transport).collect(), ..UcxSays::default() }
    }

    #[test]
    fn only_tcp_and_rdma_reach_another_pod() {
        let tcp = here(&[("tcp", "eth0")]);
        for (set, status) in [
            ("shm", Status::Fail),
            ("shm,cma,self", Status::Fail),
            ("rc,cuda", Status::Fail),
            ("^tcp", Status::Fail),
            ("tcp", Status::Ok),
            ("shm, tcp", Status::Ok),
            ("all", Status::Ok),
            ("^cuda", Status::Ok),
        ] {
            assert_eq!(tls(Some(&tcp), Some(set)).status, status, "{set}");
        }
        let rdma = here(&[("rc_mlx5", "mlx5_0:1"), ("tcp", "eth0")]);
        for set in ["rc", "rc_x,cuda_copy", "ib", "^tcp", "\\rc_mlx5"] {
            assert_eq!(tls(Some(&rdma), Some(set)).status, Status::Ok, "{set}");
        }
        // Without UCX's word the names alone decide.
        assert_eq!(tls(None, Some("shm")).status, Status::Fail);
        assert_eq!(tls(None, Some("rc")).status, Status::Ok);
        assert_eq!(tls(None, None).status, Status::Ok);
    }

    #[test]
    fn devices_must_be_here() {
        let ucx = here(&[("tcp", "eth0"), ("rc_mlx5", "mlx5_0:1")]);
        for (set, status) in [
            ("eth0", Status::Ok),
            ("all", Status::Ok),
            ("mlx5_0:1,eth0", Status::Ok),
            ("mlx5_0:1,mlx5_1:1", Status::Warn),
            ("mlx5_7:1", Status::Fail),
        ] {
            assert_eq!(net_devices(Some(&ucx), set).status, status, "{set}");
        }
        assert_eq!(net_devices(None, "eth0").status, Status::Skip);
    }
}
