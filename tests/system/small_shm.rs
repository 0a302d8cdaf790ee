//! A `/dev/shm` in which there is room for one of UCX's segments and not for the next.

use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{nixl_is_here, wait_for};

/// Mounts a small `/dev/shm` that only what follows sees, leaves so many KiB free, and starts what it is given.
const IN_SMALL_SHM: &str = r#"
mount -t tmpfs -o size=64m none /dev/shm && truncate -s 0 /dev/shm/full && fallocate -l $((65536 - $1))KiB /dev/shm/full || exit 77
shift
exec "$@"
"#;

#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
fn may_mount() -> bool {
    let unshare = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/dev/shm"]).output();
    let may = unshare.is_ok_and(|output| output.status.success());
    if !may {
        println!("SKIPPED: a small /dev/shm needs the right to mount one");
    }
    may
}

#[test]
fn agents_start_in_a_dev_shm_that_is_nearly_full() {
    if !nixl_is_here() || !may_mount() {
        return;
    }
    // UCX looks for 16 MiB before each segment.
    for free in [16_384, 17_000, 18_000, 20_000] {
        let folder = TempDir::new().expect("a temporary folder");
        let ports = folder.path().join("ports.json");
        let mut engine = Command::new("unshare")
            .args(["--mount", "sh", "-c", IN_SMALL_SHM, "sh", &free.to_string(), env!("CARGO_BIN_EXE_kvgate")])
            .args(
                "sim --listen 127.0.0.1:0 --side-channel 127.0.0.1:0 --data-parallel-size 3 --layers 1 --num-blocks 8"
                    .split(' '),
            )
            .arg("--ports-file")
            .arg(&ports)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare starts");
        let up = wait_for("an engine that is ready or gone", || {
            let ready = std::fs::read(&ports).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
            ready.map(|_| None).or_else(|| engine.try_wait().expect("it can be asked").map(Some))
        });
        drop(engine.kill());
        drop(engine.wait());
        assert_eq!(up, None, "with {free} KiB free, three agents of one process end it");
    }
}
