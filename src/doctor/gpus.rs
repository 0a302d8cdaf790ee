//! GPUs: whether this container has them and the driver, whether staging fits, and by which ways their memory goes to another process and
//! another machine (docs/gpu.md).

use std::path::Path;
use std::time::Duration;

use sidecar::config::StagingArg;

use super::child::{self, Ended};
use super::host::{entries, has_rdma};
use super::line::Line;
use super::nixl::Settings;
use super::probe::{Gpus, Plugin, Probed};
use super::tls;

/// A context on each of eight GPUs, and the kernels compiled for the first time.
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// What the sidecar is told, as far as GPUs go.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) staging: StagingArg,
    /// Bytes of staging per rank; none in a prefill pod.
    pub(super) bytes: Option<u64>,
    /// `--gpus`.
    pub(super) gpus: Vec<u32>,
    pub(super) ranks: u16,
}

/// Opens every GPU as a sidecar does, in a process of its own.
pub(super) async fn probe() -> Ended<Gpus> {
    match child::command(&["--probe".to_owned(), "gpus".to_owned()]) {
        Ok(command) => child::finish(command, &[], PATIENCE).await,
        Err(error) => Ended { told: None, words: Vec::new(), trouble: Some(error.to_string()) },
    }
}

/// All lines about them.
pub(super) fn lines(
    root: &Path,
    probed: &Ended<Probed>,
    opened: &Ended<Gpus>,
    wanted: &Wanted,
    settings: &Settings,
) -> Vec<Line> {
    let nothing = Probed::default();
    let told = probed.told.as_ref().unwrap_or(&nothing);
    let files = gpu_files(root);
    let gpus = told.cuda.as_ref().map(|cuda| cuda.gpus.clone()).unwrap_or_default();
    let mut lines = vec![files_line(&files), driver_line(told, !files.is_empty()).with("gpus", gpus.clone())];
    lines.push(staging_line(opened, wanted));
    if gpus.is_empty() {
        const WHY: &str = "no GPU to move memory of";
        lines.extend(["gpu-modules", "cuda-ipc", "gpudirect"].map(|check| Line::skip(check, WHY)));
        return lines;
    }
    lines.push(modules_line(&told.cuda_modules));
    lines.push(ipc_line(told, root));
    lines.extend(settings.tls.as_deref().map(|set| tls_line(set, wanted.staging == StagingArg::Vram)));
    lines.push(direct_line(root, opened));
    lines
}

fn gpu_files(root: &Path) -> Vec<String> {
    let numbered = |name: &String| {
        name.strip_prefix("nvidia").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut files: Vec<String> = entries(&root.join("dev")).into_iter().filter(numbered).collect();
    files.sort();
    files
}

fn files_line(files: &[String]) -> Line {
    const CHECK: &str = "gpu-devices";
    let line = if files.is_empty() {
        let says = "no /dev/nvidia* here: fine for staging in host memory; the engine's container needs them";
        Line::skip(CHECK, says)
    } else {
        Line::ok(CHECK, format!("{} GPU device files: {}", files.len(), files.join(", ")))
    };
    line.with("files", files)
}

fn driver_line(told: &Probed, files: bool) -> Line {
    const CHECK: &str = "gpu";
    match (&told.cuda, &told.cuda_error) {
        (Some(cuda), _) if !cuda.gpus.is_empty() => Line::ok(
            CHECK,
            format!("the driver (CUDA {}) shows {}: {}", cuda.supports, cuda.gpus.len(), cuda.gpus.join(", ")),
        ),
        (Some(_), _) => Line::warn(
            CHECK,
            "the CUDA driver is here and shows no GPU",
            "check CUDA_VISIBLE_DEVICES and the pod's nvidia.com/gpu",
        ),
        (None, error) => {
            let error = error.as_deref().unwrap_or("the probe told nothing");
            if files {
                let fix = "run the container with NVIDIA's runtime (runtimeClassName: nvidia), which brings the driver's libraries";
                Line::fail(CHECK, format!("there are GPU device files, but the driver cannot be used: {error}"), fix)
            } else {
                Line::skip(CHECK, format!("no GPU: {error}"))
            }
        }
    }
}

/// Whether `--staging pinned|vram` would start here, and have room.
fn staging_line(opened: &Ended<Gpus>, wanted: &Wanted) -> Line {
    const CHECK: &str = "gpu-staging";
    const GIVE: &str =
        "give the sidecar's container the pod's GPUs (docs/gpu.md), or stage in host memory (--staging dram)";
    if wanted.staging == StagingArg::Dram {
        return Line::skip(CHECK, "staging is in host memory (--staging dram)");
    }
    let Some(told) = &opened.told else {
        let how = opened.trouble.as_deref().unwrap_or("told nothing");
        return Line::fail(CHECK, format!("the process that opened the GPUs {how}"), GIVE);
    };
    if let Some(error) = &told.error {
        return Line::fail(CHECK, error, GIVE);
    }
    let named: Vec<u32> = if wanted.gpus.is_empty() {
        (0..u32::try_from(told.gpus.len()).unwrap_or(0)).collect()
    } else {
        wanted.gpus.clone()
    };
    let mut says = Vec::new();
    for ordinal in &named {
        let Some(gpu) = usize::try_from(*ordinal).ok().and_then(|ordinal| told.gpus.get(ordinal)) else {
            let says = format!("--gpus names GPU {ordinal}, this container sees {}", told.gpus.len());
            return Line::fail(CHECK, says, "number them from 0, as this container sees them (CUDA_VISIBLE_DEVICES)");
        };
        if let Some(error) = &gpu.error {
            return Line::fail(CHECK, error, GIVE);
        }
        says.push(format!("GPU {ordinal} ({}): {} of {} MiB free", gpu.name, gpu.free / MIB, gpu.total / MIB));
    }
    let free =
        |ordinal: &u32| usize::try_from(*ordinal).ok().and_then(|ordinal| told.gpus.get(ordinal)).map(|gpu| gpu.free);
    // A rank that runs already has its share: what is said is what another start would find.
    let room = match (wanted.staging, wanted.bytes) {
        (StagingArg::Vram, Some(bytes)) => {
            let ranks = u64::from(wanted.ranks);
            let each = ranks.div_ceil(u64::try_from(named.len()).unwrap_or(1).max(1)).saturating_mul(bytes);
            let short = named.iter().filter_map(free).any(|free| free < each);
            short.then(|| format!("; --staging-bytes of the ranks on a GPU are up to {} MiB", each / MIB))
        }
        (StagingArg::Dram | StagingArg::Pinned | StagingArg::Vram, _) => None,
    };
    let says = says.join("\n");
    match room {
        None => Line::ok(CHECK, says),
        Some(short) => Line::warn(
            CHECK,
            format!("{says}{short}"),
            "where the sidecar does not run yet: less --staging-bytes, or leave more beside the engine (vLLM: --gpu-memory-utilization)",
        ),
    }
}

fn modules_line(modules: &[Plugin]) -> Line {
    const CHECK: &str = "gpu-modules";
    let refused =
        |name: &str| modules.iter().find(|module| module.name == name).map(|module| module.refused.as_deref());
    match (refused("libuct_cuda"), refused("libucm_cuda")) {
        (None, _) => Line::fail(
            CHECK,
            "NIXL's UCX has no module for GPU memory",
            "install the NIXL wheel for the driver's CUDA (nixl-cu12 or nixl-cu13)",
        ),
        (Some(Some(words)), _) => Line::fail(
            CHECK,
            format!("UCX's module for GPU memory does not load: {words}"),
            "libcuda.so.1 and libnvidia-ml.so.1 come with NVIDIA_DRIVER_CAPABILITIES=compute,utility in this container; a libcudart is \
             the NIXL wheel's CUDA (nixl-cu12 or nixl-cu13)",
        ),
        (Some(None), Some(Some(words))) => Line::warn(
            CHECK,
            format!(
                "UCX moves GPU memory, but cannot follow allocations and asks the driver about each address: {words}"
            ),
            "have the CUDA runtime's folder (pip: nvidia-cuda-runtime) in LD_LIBRARY_PATH; it costs microseconds where it is missing",
        ),
        (Some(None), Some(None) | None) => Line::ok(CHECK, "UCX's modules for GPU memory load"),
    }
}

fn ipc_line(told: &Probed, root: &Path) -> Line {
    const CHECK: &str = "cuda-ipc";
    match told.ucx.as_ref().map(|ucx| ucx.transports.iter().any(|transport| transport.name == "cuda_ipc")) {
        None => Line::skip(CHECK, "UCX cannot be asked"),
        Some(false) => Line::warn(
            CHECK,
            "UCX offers no cuda_ipc: GPUs of one node would exchange KV through the network",
            "see gpu-modules, and check UCX_TLS",
        ),
        Some(true) if is_alone(root) => Line::warn(
            CHECK,
            "UCX offers cuda_ipc, but this container sees no other one's processes: handles to GPU memory may not be opened across",
            "set shareProcessNamespace: true in the pod (the chart: transport.shareProcesses)",
        ),
        Some(true) => {
            Line::ok(CHECK, "UCX offers cuda_ipc; that the engine's container sees the same GPU is not looked at")
        }
    }
}

/// Whether this container has a process namespace of its own: its first process is kvgate.
fn is_alone(root: &Path) -> bool {
    std::fs::read_to_string(root.join("proc/1/comm")).is_ok_and(|comm| comm.trim() == "kvgate")
}

fn tls_line(set: &str, staged: bool) -> Line {
    const CHECK: &str = "gpu-tls";
    const FIX: &str = "add cuda to UCX_TLS in both containers, as in UCX_TLS=rc,cuda,cma,tcp";
    let missing: Vec<&str> = ["cuda_copy", "cuda_ipc"].into_iter().filter(|name| !tls::allows(set, name)).collect();
    let says = format!("UCX_TLS={set} leaves out {}", missing.join(" and "));
    if missing.is_empty() {
        Line::ok(CHECK, format!("UCX_TLS={set} allows cuda_copy and cuda_ipc"))
    } else if staged && missing.contains(&"cuda_copy") {
        Line::fail(CHECK, format!("{says}: NIXL registers no GPU memory"), FIX)
    } else {
        Line::warn(CHECK, format!("{says}: GPU memory goes by way of the host, or not at all"), FIX)
    }
}

/// Whether a NIC may reach GPU memory.
fn direct_line(root: &Path, opened: &Ended<Gpus>) -> Line {
    const CHECK: &str = "gpudirect";
    if !has_rdma(root) {
        return Line::skip(CHECK, "no RDMA device: KV of a GPU goes to other nodes through the host");
    }
    let peermem = root.join("sys/module/nvidia_peermem").exists();
    let version = std::fs::read_to_string(root.join("proc/driver/nvidia/version")).unwrap_or_default();
    let exports = opened.told.as_ref().is_some_and(|told| told.gpus.iter().any(|gpu| gpu.dma_buf));
    let dma_buf = exports && version.contains("Open Kernel Module");
    let line = match (peermem, dma_buf) {
        (true, _) => Line::ok(CHECK, "nvidia_peermem is loaded: NICs reach GPU memory"),
        (false, true) => Line::ok(CHECK, "the driver's open kernel module gives GPU memory to NICs as dma-buf"),
        (false, false) => Line::warn(
            CHECK,
            "neither nvidia_peermem nor the driver's open kernel module with dma-buf: between nodes GPU memory goes through the host",
            "on the node: modprobe nvidia-peermem (GPU operator: driver.rdma.enabled=true), or NVIDIA's open kernel modules on Linux 5.12 or newer",
        ),
    };
    line.with("nvidia_peermem", peermem).with("dma_buf", dma_buf)
}

#[cfg(test)]
mod tests;
