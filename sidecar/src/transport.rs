//! What UCX may move bytes by, as far as it can be known.
//!
//! NIXL keeps UCX's endpoints to itself, so nobody can ask what one connection uses. What is left is elimination: of the transports that
//! UCX finds here, those that `UCX_TLS` allows and that NIXL's reads can go by (`docs/nixl-ffi.md` §3.2). When one remains, that is it.

use std::collections::BTreeSet;
use std::fmt;

/// What this process's UCX has and is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// UCX's version.
    pub ucx_version: String,
    /// `UCX_TLS` as it is in effect (`all` when it is not set).
    pub ucx_tls: String,
    /// `UCX_NET_DEVICES` as it is in effect.
    pub ucx_net_devices: String,
    /// Every transport with its device, as in `tcp/eth0`, whatever `UCX_TLS` says.
    pub available: Vec<String>,
    /// What a read from another process may go by.
    pub candidates: Vec<String>,
}

/// Transports that move bytes within a process only, or that NIXL's connections with peer error handling leave unused.
const NOT_BETWEEN: [&str; 7] = ["self", "cuda_copy", "gdr_copy", "rocm_copy", "ze_copy", "posix", "sysv"];

impl Transport {
    /// Asks the UCX that NIXL has loaded. Takes milliseconds, so not on an async thread. None before NIXL has made a UCX backend.
    pub(crate) fn ask() -> Option<Self> {
        let ucx = nixl_sys::ucx::Ucx::of_nixl().ok()?;
        let found = ucx.transports().ok()?;
        let config = ucx.config().unwrap_or_default();
        let setting = |name: &str| {
            let line = config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or("all").trim().to_owned()
        };
        let ucx_tls = setting("UCX_TLS");
        let names: BTreeSet<&str> = found.iter().map(|transport| transport.name.as_str()).collect();
        let candidates = candidates(&names, &ucx_tls);
        let available = found.iter().map(|transport| format!("{}/{}", transport.name, transport.device)).collect();
        let ucx_net_devices = setting("UCX_NET_DEVICES");
        Some(Self { ucx_version: ucx.version(), ucx_tls, ucx_net_devices, available, candidates })
    }

    /// Why GPU memory cannot be moved, where that is certain.
    pub(crate) fn no_gpu_memory(&self) -> Option<String> {
        if !self.available.iter().any(|transport| transport.starts_with("cuda_copy/")) {
            return Some(format!(
                "UCX {} finds no CUDA transport here: use the NIXL wheel for the driver's CUDA (nixl-cu12 or nixl-cu13), and see that the \
                 container has NVIDIA_DRIVER_CAPABILITIES=compute,utility",
                self.ucx_version
            ));
        }
        let left_out = !allows(&self.ucx_tls, "cuda_copy");
        left_out.then(|| {
            format!("UCX_TLS={} leaves out cuda_copy: add cuda to it, as in UCX_TLS=rc,cuda,cma,tcp", self.ucx_tls)
        })
    }

    /// The transport in use, if there is only one that it can be.
    pub fn used(&self) -> Option<&str> {
        match self.candidates.as_slice() {
            [only] => Some(only),
            [] | [_, ..] => None,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.used(), self.candidates.is_empty()) {
            (Some(used), _) => write!(f, "UCX used {used}"),
            (None, true) => write!(f, "UCX has no known transport (UCX_TLS={})", self.ucx_tls),
            (None, false) => write!(f, "UCX used one of {} (UCX_TLS={})", self.candidates.join(", "), self.ucx_tls),
        }
    }
}

/// Of the transports that are there, those that a read from another process may go by.
fn candidates(available: &BTreeSet<&str>, tls: &str) -> Vec<String> {
    let wanted = available.iter().filter(|name| allows(tls, name) && !NOT_BETWEEN.contains(name));
    wanted.map(|name| (*name).to_owned()).collect()
}

/// Whether a value of `UCX_TLS` lets UCX use a transport.
fn allows(tls: &str, name: &str) -> bool {
    let (without, list) = tls.strip_prefix('^').map_or((false, tls), |list| (true, list));
    let mut listed = list.split(',').map(str::trim).filter(|word| !word.is_empty());
    listed.any(|word| word == "all" || stands_for(word, name)) != without
}

/// Whether a word of `UCX_TLS` means this transport. UCX's aliases, from the help of `UCX_TLS` in `ucx_info -f`.
fn stands_for(word: &str, name: &str) -> bool {
    let word = word.trim_start_matches('\\');
    let verbs = |kind: &str| name == format!("{kind}_verbs") || name == format!("{kind}_mlx5");
    if word == name {
        return true;
    }
    match word {
        "sm" | "shm" => matches!(name, "posix" | "sysv" | "xpmem" | "cma" | "knem"),
        "mm" => matches!(name, "posix" | "sysv" | "xpmem"),
        "ib" => ["rc", "ud", "dc"].into_iter().any(verbs) || name == "gga_mlx5",
        "rc" | "ud" => verbs(word),
        "rc_v" => name == "rc_verbs",
        "rc_x" => name == "rc_mlx5",
        "ud_v" => name == "ud_verbs",
        "ud_x" => name == "ud_mlx5",
        "dc" | "dc_x" => name == "dc_mlx5",
        "gga" | "gga_x" => name == "gga_mlx5",
        "cuda" => matches!(name, "cuda_copy" | "cuda_ipc" | "gdr_copy"),
        "rocm" => matches!(name, "rocm_copy" | "rocm_ipc"),
        "ze" => matches!(name, "ze_copy" | "ze_ipc"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(available: &[&str], tls: &str) -> String {
        candidates(&available.iter().copied().collect(), tls).join(",")
    }

    #[test]
    fn what_remains_is_what_ucx_has_and_is_allowed() {
        let host = ["self", "tcp", "sysv", "posix", "cma"];
        assert_eq!(of(&host, "all"), "cma,tcp");
        assert_eq!(of(&host, "tcp"), "tcp");
        assert_eq!(of(&host, "tcp,posix"), "tcp");
        assert_eq!(of(&host, "^tcp"), "cma");
        assert_eq!(of(&host, "sm,self"), "cma");
        let rdma = ["self", "tcp", "rc_mlx5", "rc_verbs", "dc_mlx5", "ud_mlx5", "cuda_copy", "cuda_ipc", "cma"];
        assert_eq!(of(&rdma, "rc,cuda"), "cuda_ipc,rc_mlx5,rc_verbs");
        assert_eq!(of(&rdma, "rc_x"), "rc_mlx5");
        assert_eq!(of(&rdma, "^ib,cuda"), "cma,tcp");
        assert_eq!(of(&host, "ib"), "");
    }

    #[test]
    fn gpu_memory_takes_a_transport_that_is_there_and_allowed() {
        let transport = |available: &[&str], tls: &str| Transport {
            ucx_version: "1.23.0".to_owned(),
            ucx_tls: tls.to_owned(),
            ucx_net_devices: "all".to_owned(),
            available: available.iter().map(|name| (*name).to_owned()).collect(),
            candidates: Vec::new(),
        };
        let without = transport(&["tcp/lo", "cma/memory"], "all").no_gpu_memory().unwrap();
        assert!(without.contains("nixl-cu13") && without.contains("NVIDIA_DRIVER_CAPABILITIES"), "{without}");
        let with = ["tcp/lo", "cuda_copy/cuda", "cuda_ipc/cuda"];
        for tls in ["all", "rc,cuda,tcp", "cuda_copy,tcp", "^ib"] {
            assert_eq!(transport(&with, tls).no_gpu_memory(), None, "{tls}");
        }
        for tls in ["tcp", "rc,tcp,cma", "^cuda"] {
            assert!(transport(&with, tls).no_gpu_memory().unwrap().contains("add cuda to it"), "{tls}");
        }
    }

    #[test]
    fn one_that_remains_is_known_and_several_are_told_with_the_setting() {
        let transport = |tls: &str| Transport {
            ucx_version: "1.23.0".to_owned(),
            ucx_tls: tls.to_owned(),
            ucx_net_devices: "all".to_owned(),
            available: vec!["tcp/lo".to_owned(), "cma/memory".to_owned()],
            candidates: candidates(&["tcp", "cma"].into_iter().collect(), tls),
        };
        assert_eq!(transport("tcp").to_string(), "UCX used tcp");
        assert_eq!(transport("all").to_string(), "UCX used one of cma, tcp (UCX_TLS=all)");
        assert_eq!(transport("ib").to_string(), "UCX has no known transport (UCX_TLS=ib)");
    }
}
