//! A driver that refuses; and a machine without one, for processes of their own.

use std::process::Command;

use cuda::{CudaError, DeviceMemory, Gpu, Page};
use cuda_host::driver::Count;

use crate::Rig;

const PAGE: Page = Page { offset: 0, block_len: 4096, stride: 4096, blocks: 1 };

#[test]
fn a_refused_call_is_an_error_and_the_next_one_goes_well() {
    let rig = Rig::take();
    let Some(host) = rig.host else { return };
    let memory = DeviceMemory::new(&rig.gpu, 1 << 20).unwrap();
    let expected = memory.digests(&[PAGE]).unwrap();
    for call in [
        "cuMemcpyHtoDAsync_v2",
        "cuLaunchKernel",
        "cuMemcpyDtoHAsync_v2",
        "cuStreamSynchronize",
        "cuFlushGPUDirectRDMAWrites",
    ] {
        host.refuse(call, 0, 700).unwrap();
        let error = memory.digests(&[PAGE]).unwrap_err();
        assert!(matches!(error, CudaError::Call { code: 700, .. }), "{call}: {error:?}");
        assert!(
            error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS (700): this process has lost its GPU context"),
            "{error}"
        );
        host.refuse(call, 0, 0).unwrap();
        assert_eq!(memory.digests(&[PAGE]).unwrap(), expected, "{call}");
    }
    for call in ["cuMemsetD8_v2", "cuStreamSynchronize"] {
        let bytes = rig.count(Count::Bytes);
        host.refuse(call, 0, 1).unwrap();
        assert!(DeviceMemory::new(&rig.gpu, 1 << 20).is_err(), "memory that cannot be zeroed is not given out: {call}");
        host.refuse(call, 0, 0).unwrap();
        assert_eq!(rig.count(Count::Bytes), bytes, "{call}");
    }
    // Another process was faster.
    host.refuse("cuMemAlloc_v2", 0, 2).unwrap();
    let error = DeviceMemory::new(&rig.gpu, 4096).unwrap_err();
    assert!(matches!(error, CudaError::OutOfMemory { asked: 4096, .. }), "{error:?}");
    host.refuse("cuMemAlloc_v2", 0, 0).unwrap();
}

/// What `Gpu::open(0)` says in a process whose driver is set up like this.
fn opened(library_path: &str, settings: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "trouble::in_a_process_of_its_own", "--nocapture"]);
    command.env("KVGATE_TEST_OPEN", "1").env("LD_LIBRARY_PATH", library_path).env("KVGATE_HOST_CUDA", settings);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.split_once("opened: ")).unwrap_or_else(|| panic!("{text}")).1;
    line.to_owned()
}

/// No test: what [`opened`] runs.
#[test]
fn in_a_process_of_its_own() {
    if std::env::var_os("KVGATE_TEST_OPEN").is_some() {
        let opened = Gpu::open(0);
        println!("opened: {}", opened.as_ref().map_or_else(ToString::to_string, |gpu| gpu.name().to_owned()));
    }
}

#[test]
fn every_way_to_have_no_gpu_is_said_in_words() {
    if Rig::take().host.is_none() {
        println!("a driver is here: what its absence is called is not seen");
        return;
    }
    let said = opened("", "");
    assert!(
        said.starts_with("no CUDA driver: libcuda.so.1 cannot be loaded (") && said.contains("nvidia.com/gpu"),
        "{said}"
    );
    let folder = cuda_host::driver::folder().to_str().unwrap().to_owned();
    assert_eq!(opened(&folder, ""), "kvgate host device 0");
    for (settings, part) in [
        ("init=100", "the CUDA driver sees no GPU (CUDA_ERROR_NO_DEVICE)"),
        ("devices=0", "the CUDA driver sees no GPU (it counts none)"),
        ("init=34", "the toolkit's stub"),
        ("init=803", "is an old libcuda.so in the image?"),
        ("version=11080", "the CUDA driver is of CUDA 11.8: 12.0 (driver 525) or newer is needed"),
        ("capability=75", "GPU 0 (kvgate host device 0) is of compute capability 7.5: 8.0 or newer is needed"),
    ] {
        let said = opened(&folder, settings);
        assert!(said.contains(part), "{settings}: {said}");
    }
    // A library that is no driver.
    let folder = tempfile::tempdir().unwrap();
    let libc = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libc = libc
        .lines()
        .find_map(|line| line.find('/').map(|at| &line[at..]).filter(|path| path.contains("/libc.so")))
        .unwrap()
        .to_owned();
    std::os::unix::fs::symlink(libc, folder.path().join("libcuda.so.1")).unwrap();
    let said = opened(folder.path().to_str().unwrap(), "");
    assert!(said.contains("has no cuInit: CUDA 12.0 (driver 525) or newer is needed"), "{said}");
}
