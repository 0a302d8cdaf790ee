//! What a sidecar costs while nothing happens. The figure is printed; the assertion is loose, since this machine is shared.

use std::time::Duration;

use crate::process::{Running, free_ports, nixl_is_here, wait_for};

/// CPU time that a process has used, in clock ticks (1/100 s on Linux).
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    // The command name may hold spaces; user and system time are fields 14 and 15, counted from before it.
    let after_name = stat.rsplit_once(')').expect("a stat line").1;
    after_name.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
}

#[test]
fn a_sidecar_with_eight_ranks_idles_below_a_twentieth_of_a_core() {
    if !nixl_is_here() {
        return;
    }
    let base = free_ports(8);
    let engine = Running::start(&format!(
        "sim --role decode --listen 127.0.0.1:0 --side-channel 127.0.0.1:{base} --data-parallel-size 8 --num-blocks 8"
    ));
    let sidecar = Running::start(&format!(
        "sidecar --role decode --engine http://127.0.0.1:{} --engine-side-channel 127.0.0.1:{base} --data-parallel-size 8 \
         --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 --staging-bytes 16MiB",
        engine.http
    ));
    wait_for("eight ready ranks", || {
        let (_, body) = sidecar.request("GET", "/v1/ranks", "");
        let ranks = body["ranks"].as_array()?;
        let ready = ranks.iter().filter(|rank| rank["state"] == "ready").count();
        (ready == 8).then_some(())
    });
    let before = ticks(sidecar.pid());
    // A measurement, not a wait for an outcome.
    std::thread::sleep(Duration::from_secs(4));
    let used = ticks(sidecar.pid()) - before;
    println!(
        "idle sidecar, DP=8, 16 agents: {:.3} of one core (target 0.050)",
        f64::from(u32::try_from(used).unwrap()) / 400.0
    );
    assert!(used < 4 * 25, "an idle sidecar used {used} ticks in 4 s: something spins");
    assert_eq!(sidecar.terminate(), 0);
    assert_eq!(engine.terminate(), 0);
}
