//! Lines from made-up findings.

use super::*;
use crate::doctor::line::Status;
use crate::doctor::machine::machine;
use crate::doctor::probe::{Cuda, GpuSays, Transport, UcxSays};

fn ended<T>(told: T) -> Ended<T> {
    Ended { told: Some(told), words: Vec::new(), trouble: None }
}

fn transport(name: &str) -> Transport {
    Transport { name: name.to_owned(), device: "cuda".to_owned(), network: false }
}

fn module(name: &str, refused: Option<&str>) -> Plugin {
    Plugin { name: name.to_owned(), refused: refused.map(str::to_owned) }
}

fn with_gpu() -> Probed {
    Probed {
        cuda: Some(Cuda { supports: "13.0".to_owned(), gpus: vec!["H100".to_owned()] }),
        cuda_modules: vec![module("libucm_cuda", None), module("libuct_cuda", None)],
        ucx: Some(UcxSays { transports: vec![transport("cuda_copy"), transport("cuda_ipc")], ..UcxSays::default() }),
        ..Probed::default()
    }
}

fn gpu(free: u64) -> GpuSays {
    GpuSays { name: "H100".to_owned(), error: None, free, total: 80 << 30, dma_buf: false }
}

fn opened(free: &[u64]) -> Ended<Gpus> {
    ended(Gpus { error: None, gpus: free.iter().map(|free| gpu(*free)).collect() })
}

fn wanted(staging: StagingArg, bytes: u64, gpus: &[u32], ranks: u16) -> Wanted {
    Wanted { staging, bytes: Some(bytes), gpus: gpus.to_vec(), ranks }
}

fn dram() -> Wanted {
    wanted(StagingArg::Dram, 2 << 30, &[], 1)
}

fn all(root: &Path, probed: Probed, wanted: &Wanted, tls: Option<&str>) -> Vec<Line> {
    let settings = Settings { tls: tls.map(str::to_owned), ..Settings::default() };
    lines(root, &ended(probed), &opened(&[40 << 30]), wanted, &settings)
}

fn find<'a>(lines: &'a [Line], check: &str) -> &'a Line {
    lines.iter().find(|line| line.check == check).unwrap_or_else(|| panic!("no {check} in {lines:?}"))
}

#[test]
fn gpus_are_numbered_files() {
    let none = machine(&[("dev/nvidiactl", ""), ("dev/nvidia-uvm", "")]);
    assert_eq!(files_line(&gpu_files(none.path())).status, Status::Skip);
    let two = machine(&[("dev/nvidiactl", ""), ("dev/nvidia0", ""), ("dev/nvidia1", "")]);
    assert_eq!(files_line(&gpu_files(two.path())).facts["files"], serde_json::json!(["nvidia0", "nvidia1"]));
}

#[test]
fn without_a_gpu_nothing_fails_unless_it_is_asked_for() {
    let root = machine(&[("proc/x", "")]);
    let none = || Probed { cuda_error: Some("no driver".to_owned()), ..Probed::default() };
    let lines = all(root.path(), none(), &dram(), None);
    assert!(lines.len() == 6 && lines.iter().all(|line| line.status == Status::Skip), "{lines:?}");
    let error = || ended(Gpus { error: Some("no CUDA driver: …".to_owned()), gpus: vec![] });
    let line = staging_line(&error(), &wanted(StagingArg::Pinned, 1, &[], 1));
    assert!(line.status == Status::Fail && line.says.contains("no CUDA driver"), "{line:?}");
    let files = machine(&[("dev/nvidia0", "")]);
    assert_eq!(find(&all(files.path(), none(), &dram(), None), "gpu").status, Status::Fail);
}

#[test]
fn a_gpu_with_all_that_it_takes_is_well() {
    let root = machine(&[("dev/nvidia0", ""), ("proc/1/comm", "pause\n")]);
    let lines = all(root.path(), with_gpu(), &wanted(StagingArg::Vram, 2 << 30, &[], 8), Some("rc,cuda,tcp"));
    for check in ["gpu-devices", "gpu", "gpu-staging", "gpu-modules", "cuda-ipc", "gpu-tls"] {
        assert_eq!(find(&lines, check).status, Status::Ok, "{lines:#?}");
    }
    assert_eq!(find(&lines, "gpudirect").status, Status::Skip);
}

#[test]
fn staging_must_have_its_gpus_and_room_on_them() {
    let line = |free: &[u64], wanted: &Wanted| staging_line(&opened(free), wanted);
    let vram = |gib: u64, gpus: &[u32], ranks| wanted(StagingArg::Vram, gib << 30, gpus, ranks);
    assert_eq!(line(&[40 << 30], &vram(5, &[], 8)).status, Status::Ok);
    let short = line(&[40 << 30], &vram(6, &[], 8));
    assert!(short.status == Status::Warn && short.says.contains("up to 49152 MiB"), "{short:?}");
    assert_eq!(line(&[40 << 30; 8], &vram(40, &[], 8)).status, Status::Ok, "one rank on each");
    assert_eq!(line(&[40 << 30, 1 << 30], &vram(2, &[1], 1)).status, Status::Warn, "the named one counts");
    let unknown = line(&[40 << 30], &vram(1, &[3], 1));
    assert!(unknown.status == Status::Fail && unknown.says.contains("GPU 3, this container sees 1"), "{unknown:?}");
    assert_eq!(line(&[0], &wanted(StagingArg::Pinned, 2 << 30, &[], 1)).status, Status::Ok, "that is host memory");
    assert_eq!(
        line(&[0], &Wanted { bytes: None, ..vram(2, &[], 1) }).status,
        Status::Ok,
        "a prefill pod stages nothing"
    );
    let broken = ended(Gpus { error: None, gpus: vec![GpuSays { error: Some("too old".to_owned()), ..gpu(0) }] });
    assert_eq!(staging_line(&broken, &vram(1, &[], 1)).says, "too old");
    let crashed = Ended { told: None, words: Vec::new(), trouble: Some("ended with signal: 11".to_owned()) };
    assert!(staging_line(&crashed, &vram(1, &[], 1)).says.contains("signal: 11"));
}

#[test]
fn modules_that_do_not_load_are_named_with_what_they_lack() {
    let line = |uct: Option<&str>, ucm| modules_line(&[module("libucm_cuda", ucm), module("libuct_cuda", uct)]);
    let uct = line(Some("libnvidia-ml.so.1: cannot open"), None);
    assert!(uct.status == Status::Fail && uct.says.contains("libnvidia-ml.so.1"), "{uct:?}");
    assert_eq!(line(None, Some("libcudart.so.13: cannot open")).status, Status::Warn);
    assert_eq!(line(None, None).status, Status::Ok);
    assert_eq!(modules_line(&[]).status, Status::Fail);
}

#[test]
fn ipc_takes_a_transport_and_a_shared_process_namespace() {
    let line = |told: &Probed, comm: &str| ipc_line(told, machine(&[("proc/1/comm", comm)]).path()).status;
    assert_eq!(line(&with_gpu(), "pause\n"), Status::Ok);
    assert_eq!(line(&with_gpu(), "kvgate\n"), Status::Warn);
    let without = Probed { ucx: Some(UcxSays::default()), ..with_gpu() };
    assert_eq!(line(&without, "pause\n"), Status::Warn);
    assert_eq!(line(&Probed { ucx: None, ..with_gpu() }, "pause\n"), Status::Skip);
}

#[test]
fn ucx_tls_must_let_gpu_memory_through() {
    for (set, staged, status) in [
        ("all", true, Status::Ok),
        ("rc,cuda", true, Status::Ok),
        ("rc,cuda_copy", true, Status::Warn),
        ("rc,tcp", true, Status::Fail),
        ("rc,tcp", false, Status::Warn),
    ] {
        assert_eq!(tls_line(set, staged).status, status, "{set}");
    }
}

#[test]
fn a_nic_reaches_gpu_memory_by_peermem_or_dma_buf() {
    let rdma = ("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n");
    let line = |files: &[(&str, &str)], dma_buf| {
        let gpus = ended(Gpus { error: None, gpus: vec![GpuSays { dma_buf, ..gpu(0) }] });
        direct_line(machine(files).path(), &gpus).status
    };
    let open = ("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.1\n");
    let closed = ("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.1\n");
    assert_eq!(line(&[("proc/x", "")], true), Status::Skip);
    assert_eq!(line(&[rdma, ("sys/module/nvidia_peermem/refcnt", "0")], false), Status::Ok);
    assert_eq!(line(&[rdma, open], true), Status::Ok);
    assert_eq!(line(&[rdma, open], false), Status::Warn);
    assert_eq!(line(&[rdma, closed], true), Status::Warn);
}
