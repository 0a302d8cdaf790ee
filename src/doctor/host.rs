//! What the kernel tells of this machine: memory, locks, RDMA devices, clocks. Facts are read below a root folder, so that a test can
//! bring its own `/proc` and `/sys`.

use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::line::Line;

const MIB: u64 = 1 << 20;
/// Containers get 64 MiB by default, and vLLM's worker processes alone may use more.
const ENOUGH_SHM: u64 = 256 * MIB;
const YAMA: &str = "proc/sys/kernel/yama/ptrace_scope";

/// All of them.
pub(super) fn lines(root: &Path) -> Vec<Line> {
    let devices = rdma_devices(root);
    let shm = rustix::fs::statvfs(root.join("dev/shm")).ok().map(|shm| shm.f_blocks.saturating_mul(shm.f_frsize));
    let memlock = getrlimit(Resource::Memlock).current;
    vec![
        shm_line(shm),
        memlock_line(memlock, !devices.is_empty()),
        huge_pages_line(
            read(root, "sys/kernel/mm/transparent_hugepage/enabled").as_deref(),
            read(root, "proc/meminfo").as_deref().unwrap_or_default(),
        ),
        rdma_line(&devices),
        clocksource_line(read(root, "sys/devices/system/clocksource/clocksource0/current_clocksource").as_deref()),
    ]
}

/// Yama's word on who may trace whom; none where the kernel has no Yama.
pub(super) fn ptrace_scope(root: &Path) -> Option<u8> {
    read(root, YAMA)?.trim().parse().ok()
}

fn read(root: &Path, path: &str) -> Option<String> {
    std::fs::read_to_string(root.join(path)).ok()
}

fn shm_line(size: Option<u64>) -> Line {
    const CHECK: &str = "shm";
    let Some(size) = size else {
        return Line::fail(CHECK, "there is no /dev/shm", "mount a tmpfs there: vLLM's processes need it");
    };
    let line = if size < ENOUGH_SHM {
        Line::warn(
            CHECK,
            format!("/dev/shm has {} MiB; UCX's shared-memory transports and vLLM's workers use it", size / MIB),
            "give the pod an emptyDir with medium: Memory at /dev/shm (docker: --shm-size=1g)",
        )
    } else {
        Line::ok(CHECK, format!("/dev/shm has {} MiB", size / MIB))
    };
    line.with("bytes", size)
}

fn memlock_line(limit: Option<u64>, rdma: bool) -> Line {
    const CHECK: &str = "memlock";
    let line = match limit {
        None => Line::ok(CHECK, "locked memory is not limited"),
        Some(bytes) if rdma => Line::fail(
            CHECK,
            format!("only {} KiB may be locked, and RDMA locks all memory that it moves", bytes / 1024),
            "raise it: containerd's LimitMEMLOCK=infinity, docker's --ulimit memlock=-1, or the capability IPC_LOCK",
        ),
        Some(bytes) => {
            Line::ok(CHECK, format!("{} KiB may be locked, which is enough without an RDMA device", bytes / 1024))
        }
    };
    line.with("bytes", limit.map_or(Value::Null, Value::from))
}

/// Staging asks for transparent huge pages (`madvise`); a pool of reserved ones is not used.
fn huge_pages_line(transparent: Option<&str>, meminfo: &str) -> Line {
    const CHECK: &str = "huge-pages";
    const FIX: &str =
        "on the node: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (staging reads about 2 times faster)";
    // The chosen word stands in brackets.
    let chosen = transparent.and_then(|text| Some(text.split_once('[')?.1.split_once(']')?.0.to_owned()));
    let reserved = meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Total:")?.trim().parse::<u64>().ok());
    let line = match chosen.as_deref() {
        Some(word @ ("always" | "madvise")) => {
            Line::ok(CHECK, format!("transparent huge pages are on ({word}): staging uses them"))
        }
        Some(word) => Line::warn(CHECK, format!("transparent huge pages are off ({word})"), FIX),
        None => Line::warn(CHECK, "this kernel tells of no transparent huge pages", FIX),
    };
    line.with("transparent", chosen.map_or(Value::Null, Value::from))
        .with("reserved", reserved.map_or(Value::Null, Value::from))
}

/// One device of `/sys/class/infiniband`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RdmaDevice {
    name: String,
    /// At least one port says ACTIVE.
    active: bool,
    /// The container has the file that programs open.
    openable: bool,
}

/// Whether there is an RDMA device, of whatever state.
pub(super) fn has_rdma(root: &Path) -> bool {
    !rdma_devices(root).is_empty()
}

fn rdma_devices(root: &Path) -> Vec<RdmaDevice> {
    let class = root.join("sys/class/infiniband");
    let mut devices: Vec<RdmaDevice> = entries(&class)
        .into_iter()
        .map(|name| {
            let ports = class.join(&name).join("ports");
            let active = entries(&ports).iter().any(|port| {
                std::fs::read_to_string(ports.join(port).join("state")).is_ok_and(|state| state.contains("ACTIVE"))
            });
            let verbs = entries(&class.join(&name).join("device/infiniband_verbs"));
            let openable = verbs.iter().any(|verb| root.join("dev/infiniband").join(verb).exists());
            RdmaDevice { name, active, openable }
        })
        .collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    devices
}

/// The names in a folder; none when it is not there.
pub(super) fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn rdma_line(devices: &[RdmaDevice]) -> Line {
    const CHECK: &str = "rdma";
    let listed: Vec<Value> =
        devices.iter().map(|d| json!({ "name": d.name, "active": d.active, "openable": d.openable })).collect();
    let named = |wanted: fn(&RdmaDevice) -> bool| -> Vec<&str> {
        devices.iter().filter(|device| wanted(device)).map(|device| device.name.as_str()).collect()
    };
    let usable = named(|device| device.active && device.openable);
    let line = if devices.is_empty() {
        Line::warn(
            CHECK,
            "no RDMA device: KV between nodes goes over TCP",
            "fine on one node and for tests; else give the pod one (RDMA device plugin, SR-IOV or hostNetwork)",
        )
    } else if !usable.is_empty() {
        Line::ok(CHECK, format!("{} active and openable: {}", usable.len(), usable.join(", ")))
    } else if named(|device| device.active).is_empty() {
        Line::fail(
            CHECK,
            format!("no port of {} is ACTIVE", named(|_| true).join(", ")),
            "check cable, switch and subnet manager (ibstat); until then UCX falls back to TCP",
        )
    } else {
        Line::fail(
            CHECK,
            format!(
                "{} is active, but this container has no file in /dev/infiniband for it",
                named(|d| d.active).join(", ")
            ),
            "ask for the device in the pod's resources (RDMA device plugin), or mount /dev/infiniband",
        )
    };
    line.with("devices", listed)
}

/// Every stage time is a difference of the monotonic clock, read many times per transfer.
fn clocksource_line(source: Option<&str>) -> Line {
    const CHECK: &str = "clock-source";
    let Some(source) = source.map(str::trim) else {
        return Line::skip(CHECK, "this kernel does not tell its clock source");
    };
    let line = if ["hpet", "acpi_pm", "jiffies", "pit"].contains(&source) {
        Line::warn(
            CHECK,
            format!("the clock is {source}: slow to read, coarse"),
            "boot with a stable TSC (BIOS, tsc=reliable)",
        )
    } else {
        Line::ok(CHECK, format!("monotonic clock from {source}"))
    };
    line.with("source", source)
}

#[cfg(test)]
mod tests;
