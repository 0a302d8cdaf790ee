//! GPU memory on the command line: on this machine's driver where it has one, else with none, and with the one that stands in for it.

use std::process::Command;

use crate::process::{Running, finished, free_ports, kvgate, wait_for};

#[test]
fn the_script_for_gpus_says_skipped_without_one_and_fails_where_it_is_required() {
    if a_driver_is_here() {
        println!("SKIPPED: a driver is here: make test-gpu runs it");
        return;
    }
    let run = |required: &str| {
        finished(Command::new("scripts/test-gpu").current_dir(env!("CARGO_MANIFEST_DIR")).env("REQUIRE", required))
    };
    let (code, text) = run("");
    assert!(code == 0 && text.starts_with("SKIPPED: gpu: libcuda.so.1"), "{code}: {text}");
    let (code, text) = run("nixl,gpu");
    assert!(code == 1 && text.starts_with("SKIPPED: gpu: libcuda.so.1"), "{code}: {text}");
}

/// The demo, as it would run on a GPU: real NIXL, told that the stand-in's device memory is a GPU's.
#[test]
fn the_demo_is_right_with_caches_and_staging_in_gpu_memory() {
    if !crate::process::nixl_is_here() {
        return;
    }
    for (memory, staging) in [("vram", "vram"), ("vram", "pinned"), ("vram", "dram")] {
        let folder = tempfile::tempdir().expect("a folder");
        let args = format!(
            "demo --memory {memory} --staging {staging} --verify full --dp 1 --out {}",
            folder.path().display()
        );
        let mut demo = if a_driver_is_here() {
            kvgate(&args)
        } else {
            let mut demo = with_driver(&args, "guarded=0,bytes=8589934592");
            demo.env("LD_PRELOAD", cuda_host::driver::preload());
            demo
        };
        let (code, text) = finished(&mut demo);
        assert_eq!(code, 0, "{args}: {text}");
        assert!(text.contains("20/20 correct, 0 decodes without receipt"), "{args}: {text}");
        let file = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("what the demo leaves");
        let report: serde_json::Value = serde_json::from_str(&file("report.json")).expect("the report is JSON");
        assert_eq!((&report["memory"], &report["staging"]), (&memory.into(), &staging.into()));
        assert!(
            file("decode-sidecar.log").contains(&format!("staging=\"{staging}\"")),
            "{}",
            file("decode-sidecar.log")
        );
        assert!(report["stages"]["verify"]["p50"].as_f64().is_some_and(|ms| ms > 0.0), "{report:#}");
    }
}

/// The stand-in is a driver without NVIDIA's other libraries: what UCX's modules lack is named.
#[test]
fn doctor_says_what_gpu_staging_lacks() {
    if a_driver_is_here() || !crate::process::nixl_is_here() {
        return;
    }
    let report = |args: &str, settings: &str| -> serde_json::Value {
        let args = format!("doctor --json --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 {args}");
        let (_, text) = finished(with_driver(&args, settings).env_remove("UCX_TLS"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("no JSON ({error}) but:\n{text}"))
    };
    let find = |report: &serde_json::Value, check: &str| {
        let line = report["lines"].as_array().expect("lines").iter().find(|line| line["check"] == check);
        line.unwrap_or_else(|| panic!("no {check} in {report:#}")).clone()
    };
    let two = report("--staging vram --staging-bytes 64MiB --data-parallel-size 2", "devices=2");
    assert_eq!(find(&two, "gpu")["status"], "ok", "{two:#}");
    let staging = find(&two, "gpu-staging");
    assert!(
        staging["status"] == "ok" && staging["says"].as_str().is_some_and(|says| says.contains("GPU 1")),
        "{staging}"
    );
    let modules = find(&two, "gpu-modules");
    assert_eq!(modules["status"], "fail", "{modules}");
    assert!(modules["says"].as_str().is_some_and(|says| says.contains("libnvidia-ml.so.1")), "{modules}");
    assert!(modules["fix"].as_str().is_some_and(|fix| fix.contains("compute,utility")), "{modules}");
    assert_eq!(find(&two, "cuda-ipc")["status"], "warn", "no transport without its module: {two:#}");
    let short = find(&report("--staging vram --staging-bytes 4GiB", ""), "gpu-staging");
    assert!(short["status"] == "warn" && short["fix"].is_string(), "{short}");
    let none = find(&report("--staging vram", "init=100"), "gpu-staging");
    assert!(
        none["status"] == "fail" && none["says"].as_str().is_some_and(|says| says.contains("sees no GPU")),
        "{none}"
    );
}

/// Without a CUDA transport in UCX, which is so where there is no GPU, NIXL takes no GPU memory, and the rank says why.
#[test]
fn a_ucx_that_knows_no_gpu_is_named_as_the_reason() {
    if a_driver_is_here() || !crate::process::nixl_is_here() {
        return;
    }
    // The engine is told that its memory is a GPU's; the sidecar is not.
    let (unguarded, ports) = ("guarded=0", free_ports(1));
    let mut engine = with_driver("", unguarded);
    engine.env("LD_PRELOAD", cuda_host::driver::preload());
    let args = format!(
        "sim --role decode --listen 127.0.0.1:0 --side-channel 127.0.0.1:{ports} --num-blocks 32 --memory vram"
    );
    let engine = Running::start_as(engine, &args);
    let args = format!(
        "sidecar --role decode --engine http://127.0.0.1:{} --engine-side-channel 127.0.0.1:{ports} --listen 127.0.0.1:0 \
         --side-channel-listen 127.0.0.1:0 --staging vram --staging-bytes 64MiB",
        engine.http
    );
    let sidecar = Running::start_as(with_driver("", unguarded), &args);
    let reasons = wait_for("a reason", || {
        let (_, ranks) = sidecar.request("GET", "/v1/ranks", "");
        let reasons = ranks["ranks"][0]["reasons"].to_string();
        reasons.contains("register staging on a GPU").then_some(reasons)
    });
    for words in ["finds no CUDA transport here", "nixl-cu13", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"] {
        assert!(reasons.contains(words), "{reasons}");
    }
    assert_eq!(sidecar.terminate(), 0);
}

/// The process finds the stand-in's `libcuda.so.1`.
fn with_driver(args: &str, settings: &str) -> Command {
    let mut command = kvgate(args);
    command.env("LD_LIBRARY_PATH", cuda_host::driver::folder()).env("KVGATE_HOST_CUDA", settings);
    command
}

fn a_driver_is_here() -> bool {
    cuda_host::driver::HostDriver::unless_gpu().is_none()
}

#[test]
fn a_missing_driver_is_said_before_anything_else_about_the_command_line() {
    if a_driver_is_here() {
        println!("SKIPPED: a driver is here, so it is not missing");
        return;
    }
    for args in [
        "sidecar --staging vram",
        "sidecar --staging=pinned --no-such-flag",
        "sidecar --role both --staging vram --engine ftp://nowhere",
        "sim --memory vram --num-blocks 0",
        "demo --staging vram --dp 99",
        "demo --memory vram --fault no-such-fault",
    ] {
        let (code, text) = finished(&mut kvgate(args));
        assert_eq!(code, 64, "kvgate {args} said:\n{text}");
        for words in [
            "needs a GPU: no CUDA driver: libcuda.so.1 cannot be loaded (libcuda.so.1: cannot open",
            "nvidia.com/gpu",
            "docs/gpu.md",
        ] {
            assert!(text.contains(words), "kvgate {args} does not say {words:?}:\n{text}");
        }
        assert!(!text.contains("no-such") && !text.contains("ftp"), "nothing else is said:\n{text}");
    }
    let (code, text) = finished(kvgate("sidecar --role decode").env("KVGATE_STAGING", "vram"));
    assert_eq!(code, 64, "{text}");
    assert!(text.contains("KVGATE_STAGING=vram needs a GPU"), "{text}");
    assert_eq!(finished(&mut kvgate("sidecar --staging vram --help")).0, 0);
}

#[test]
fn a_driver_without_a_gpu_or_of_the_wrong_kind_is_said_with_what_to_do() {
    if a_driver_is_here() {
        println!("SKIPPED: a driver is here, and it is well");
        return;
    }
    for (settings, words) in [
        ("init=100", "the CUDA driver sees no GPU"),
        ("devices=0", "CUDA_VISIBLE_DEVICES"),
        ("version=11080", "12.0 (driver 525) or newer is needed"),
        ("init=803", "is an old libcuda.so in the image?"),
        ("init=34", "take its folder out of LD_LIBRARY_PATH"),
    ] {
        let (code, text) = finished(&mut with_driver("sidecar --staging vram", settings));
        assert_eq!(code, 64, "{settings}: {text}");
        assert!(text.contains(words), "{settings}: {text}");
    }
    // With a driver the rest of the command line is looked at.
    let (code, text) = finished(&mut with_driver("sidecar --staging vram", ""));
    assert_eq!(code, 64, "{text}");
    assert!(text.contains("--role") && !text.contains("needs a GPU"), "{text}");
}

#[test]
fn a_gpu_that_is_not_there_or_has_no_room_ends_the_sidecar_before_it_listens() {
    if a_driver_is_here() || !crate::process::nixl_is_here() {
        return;
    }
    let sidecar = "sidecar --role decode --engine http://127.0.0.1:1 --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 --staging vram";
    for (args, settings, code, words) in [
        ("--gpus 3", "devices=2", 64, &["there is no GPU 3", "CUDA_VISIBLE_DEVICES"][..]),
        ("", "capability=75", 64, &["compute capability 7.5: 8.0 or newer"]),
        ("--staging-bytes 2GiB", "bytes=1073741824", 1, &["bytes free", "--staging-bytes", "--gpu-memory-utilization"]),
    ] {
        let (got, text) = finished(&mut with_driver(&format!("{sidecar} {args}"), settings));
        assert_eq!(got, code, "{args}, {settings}: {text}");
        for word in words {
            assert!(text.contains(word), "{args}, {settings}: {text}");
        }
    }
    let sim = "sim --role both --listen 127.0.0.1:0 --side-channel 127.0.0.1:0 --memory vram";
    for (args, settings, words) in
        [("--gpus 3", "devices=2", "there is no GPU 3"), ("--num-blocks 4096", "bytes=1073741824", "bytes free")]
    {
        let (code, text) = finished(&mut with_driver(&format!("{sim} {args}"), settings));
        assert_ne!(code, 0, "{text}");
        assert!(text.contains(words), "{args}, {settings}: {text}");
    }
}
