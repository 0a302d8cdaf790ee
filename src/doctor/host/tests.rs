//! Made-up machines.

use super::*;
use crate::doctor::line::Status;
use crate::doctor::machine::machine;

#[test]
fn memory_for_sharing_and_locking() {
    assert_eq!(shm_line(None).status, Status::Fail);
    assert_eq!(shm_line(Some(64 * MIB)).status, Status::Warn);
    assert_eq!(shm_line(Some(1 << 30)).status, Status::Ok);
    assert_eq!(memlock_line(None, true).status, Status::Ok);
    assert_eq!(memlock_line(Some(8 * MIB), false).status, Status::Ok);
    let locked = memlock_line(Some(8 * MIB), true);
    assert_eq!((locked.status, locked.facts["bytes"].as_u64()), (Status::Fail, Some(8 * MIB)));
}

#[test]
fn huge_pages_are_read_from_the_kernel_s_brackets() {
    let line = huge_pages_line(Some("always [madvise] never\n"), "HugePages_Total:      12\n");
    assert_eq!((line.status, line.facts["transparent"].as_str()), (Status::Ok, Some("madvise")));
    assert_eq!(line.facts["reserved"], 12);
    assert_eq!(huge_pages_line(Some("always madvise [never]"), "").status, Status::Warn);
    assert_eq!(huge_pages_line(None, "").status, Status::Warn);
}

#[test]
fn rdma_needs_a_live_port_and_a_file_to_open() {
    let line = |files: &[(&str, &str)]| rdma_line(&rdma_devices(machine(files).path()));
    assert_eq!(line(&[("proc/x", "")]).status, Status::Warn);
    let down = ("sys/class/infiniband/mlx5_0/ports/1/state", "1: DOWN\n");
    let up = ("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n");
    let verbs = ("sys/class/infiniband/mlx5_0/device/infiniband_verbs/uverbs0/dev", "231:192\n");
    let file = ("dev/infiniband/uverbs0", "");
    assert!(line(&[down, verbs, file]).says.contains("ACTIVE"));
    assert!(line(&[up, verbs]).says.contains("/dev/infiniband"));
    let good = line(&[up, verbs, file]);
    assert_eq!((good.status, good.facts["devices"][0]["name"].as_str()), (Status::Ok, Some("mlx5_0")));
}

#[test]
fn clocks_and_yama() {
    assert_eq!(clocksource_line(Some("tsc\n")).status, Status::Ok);
    assert_eq!(clocksource_line(Some("hpet\n")).status, Status::Warn);
    assert_eq!(clocksource_line(None).status, Status::Skip);
    assert_eq!(ptrace_scope(machine(&[(YAMA, "1\n")]).path()), Some(1));
    assert_eq!(ptrace_scope(machine(&[("proc/x", "")]).path()), None);
}
