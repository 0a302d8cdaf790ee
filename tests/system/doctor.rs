//! `kvgate doctor --json` against facts read here independently, and against five set-ups broken on purpose.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::process::{Running, finished, free_ports, kvgate, nixl_is_here, wait_for};

/// A doctor whose surroundings say nothing about this machine's own deployment.
fn doctor(args: &str) -> Command {
    let mut command = kvgate("doctor --json --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0");
    for name in ["UCX_TLS", "UCX_NET_DEVICES", "NIXL_PLUGIN_DIR", "KVGATE_ENGINE", "KVGATE_ROLE", "KVGATE_LISTEN"] {
        command.env_remove(name);
    }
    command.args(args.split_whitespace());
    command
}

/// Its exit code and report.
fn report(command: &mut Command) -> (i32, Value) {
    let (code, text) = finished(command);
    let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("no JSON ({error}) but:\n{text}"));
    (code, report)
}

/// All lines of one check.
fn lines<'a>(report: &'a Value, check: &str) -> Vec<&'a Value> {
    let lines = report["lines"].as_array().expect("lines");
    lines.iter().filter(|line| line["check"] == check).collect()
}

fn line<'a>(report: &'a Value, check: &str) -> &'a Value {
    lines(report, check).first().unwrap_or_else(|| panic!("no {check} in {report:#}"))
}

fn assert_status(report: &Value, check: &str, status: &str) {
    assert_eq!(line(report, check)["status"], status, "{check} in {report:#}");
}

/// It fails, says so by its exit code, and every failure and warning has a fix.
fn fails(command: &mut Command, checks: &[(&str, &str)]) -> Value {
    let (code, report) = report(command);
    assert_eq!((code, &report["worst"]), (2, &Value::from("fail")), "{report:#}");
    for (check, words) in checks {
        assert_status(&report, check, "fail");
        let line = line(&report, check).to_string();
        assert!(line.contains(words), "{check} does not say {words:?}: {line}");
    }
    for line in report["lines"].as_array().expect("lines") {
        let needs_fix = line["status"] == "fail" || line["status"] == "warn";
        assert!(!needs_fix || line["fix"].is_string(), "no fix in {line}");
    }
    report
}

fn text(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[test]
fn this_machine_is_described_as_it_is() {
    let (code, report) = report(&mut doctor(""));
    assert_eq!(code == 2, report["worst"] == "fail", "{report:#}");

    let rdma = std::fs::read_dir("/sys/class/infiniband").map_or(0, Iterator::count);
    assert_eq!(line(&report, "rdma")["facts"]["devices"].as_array().map_or(0, Vec::len), rdma);
    if rdma == 0 {
        assert_status(&report, "rdma", "warn");
        assert_status(&report, "memlock", "ok");
    }
    let gpu = Path::new("/dev/nvidia0").exists();
    assert_status(&report, "gpu-devices", if gpu { "ok" } else { "skip" });
    if !gpu {
        for check in ["cuda-ipc", "gpu-modules", "gpu-staging", "gpudirect"] {
            assert_status(&report, check, "skip");
        }
    }
    let limits = text("/proc/self/limits").expect("limits");
    let memlock = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")).expect("a memlock limit");
    let memlock = memlock.split_whitespace().next().and_then(|soft| soft.parse::<u64>().ok());
    assert_eq!(line(&report, "memlock")["facts"]["bytes"].as_u64(), memlock);

    let df = Command::new("df").args(["--output=size", "-B1", "/dev/shm"]).output().expect("df runs");
    let df = String::from_utf8(df.stdout).expect("text");
    let shm = df.lines().nth(1).and_then(|size| size.trim().parse::<u64>().ok());
    assert_eq!(line(&report, "shm")["facts"]["bytes"].as_u64(), shm);

    let huge = text("/sys/kernel/mm/transparent_hugepage/enabled");
    let on = huge.is_some_and(|text| text.contains("[madvise]") || text.contains("[always]"));
    assert_status(&report, "huge-pages", if on { "ok" } else { "warn" });

    let scope = text("/proc/sys/kernel/yama/ptrace_scope").and_then(|text| text.trim().parse::<u64>().ok());
    let cma = line(&report, "cma");
    assert_eq!(cma["facts"]["ptrace_scope"].as_u64(), scope);
    // Below scope 2 a process of the same user that allows it can be read, unless a seccomp profile forbids the call.
    let seccomp = text("/proc/self/status").is_some_and(|status| status.contains("Seccomp:\t2"));
    if scope.is_none_or(|scope| scope < 2) && !seccomp {
        assert_eq!(cma["facts"]["allowed"], true, "{cma}");
    }
    let source = text("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    assert_eq!(line(&report, "clock-source")["facts"]["source"].as_str(), source.as_deref().map(str::trim));

    if nixl_is_here() {
        for check in ["nixl", "nixl-plugins", "nixl-backend", "ucx", "ucx-tls"] {
            assert_status(&report, check, "ok");
        }
        let transports = line(&report, "ucx")["facts"]["transports"].as_array().expect("transports");
        let has = |name: &str| transports.iter().any(|transport| transport["name"] == name);
        assert!(has("tcp") && has("self"), "{transports:?}");
        assert_eq!(has("cuda_ipc"), gpu, "{transports:?}");
    }
}

#[test]
fn no_nixl_names_every_place() {
    let report =
        fails(doctor("").env("NIXL_CAPI_LIBRARY", "/no/such/libnixl_capi.so"), &[("nixl", "/no/such/libnixl_capi.so")]);
    assert_status(&report, "nixl-backend", "skip");
    fails(&mut doctor("--nixl-library /no/such/file.so"), &[("nixl", "/no/such/file.so")]);
}

#[test]
fn a_wrong_plugin_folder_is_named() {
    if !nixl_is_here() {
        return;
    }
    let report = fails(
        doctor("").env("NIXL_PLUGIN_DIR", "/no/such/plugins"),
        &[("nixl-plugins", "/no/such/plugins"), ("nixl-backend", "UCX")],
    );
    assert!(
        line(&report, "nixl-plugins")["fix"].as_str().is_some_and(|fix| fix.contains("unset NIXL_PLUGIN_DIR")),
        "{report:#}"
    );
}

#[test]
fn shared_memory_alone_reaches_no_pod() {
    let report = fails(doctor("").env("UCX_TLS", "shm"), &[("ucx-tls", "UCX_TLS=shm")]);
    assert!(line(&report, "ucx-tls")["fix"].as_str().is_some_and(|fix| fix.contains("tcp")), "{report:#}");
    if nixl_is_here() {
        assert_status(&report, "nixl-backend", "fail");
    }
    let (_, with_tcp) = self::report(doctor("").env("UCX_TLS", "tcp,cma"));
    assert_status(&with_tcp, "ucx-tls", "ok");
}

#[test]
fn an_engine_that_is_down_is_said_to_be() {
    let port = free_ports(1);
    fails(
        &mut doctor(&format!("--role prefill --engine http://127.0.0.1:{port} --engine-side-channel 127.0.0.1:{port}")),
        &[("engine", "refused"), ("engine-side-channel", "rank 0")],
    );
}

#[test]
fn a_taken_port_names_who_has_it() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("its address").port();
    let holder = format!("pid {}", std::process::id());
    fails(kvgate(&format!("doctor --json --listen 127.0.0.1:{port}")).env_remove("UCX_TLS"), &[("port-http", &holder)]);
    let side_channel = format!("doctor --json --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:{port}");
    fails(kvgate(&side_channel).env_remove("UCX_TLS"), &[("ports-side-channel", &holder)]);
}

#[test]
fn a_healthy_pair_is_well_and_a_mixed_one_is_not() {
    if !nixl_is_here() {
        return;
    }
    let start = |role: &str, more: &str| {
        let base = free_ports(2);
        let engine = Running::start(&format!(
            "sim --role {role} --listen 127.0.0.1:0 --side-channel 127.0.0.1:{base} --data-parallel-size 2 --num-blocks 8 {more}"
        ));
        let own = format!(
            "--role {role} --engine http://127.0.0.1:{} --engine-side-channel 127.0.0.1:{base} --data-parallel-size 2",
            engine.http
        );
        let sidecar = Running::start(&format!(
            "sidecar {own} --listen 127.0.0.1:0 --side-channel-listen 127.0.0.1:0 --staging-bytes 16MiB"
        ));
        wait_for("two ready ranks", || {
            let (_, body) = sidecar.request("GET", "/v1/ranks", "");
            let ranks = body["ranks"].as_array()?;
            (ranks.iter().filter(|rank| rank["state"] == "ready").count() == 2).then_some(())
        });
        (engine, sidecar, own)
    };
    let (_p_engine, p, _) = start("prefill", "");
    let (_d_engine, d, d_own) = start("decode", "");
    let url = |sidecar: &Running| format!("http://127.0.0.1:{}", sidecar.http);
    let side_channel = d.side_channel.first().copied().expect("its first port");
    let both = format!("--sidecar {} --sidecar {}", url(&p), url(&d));
    let here = format!(
        "doctor --json {d_own} --listen 127.0.0.1:{} --side-channel-listen 127.0.0.1:{side_channel} {both}",
        d.http
    );
    let (code, well) = report(kvgate(&here).env_remove("UCX_TLS"));
    assert_eq!(code, 0, "{well:#}");
    let checks = [
        "engine",
        "engine-version",
        "engine-side-channel",
        "side-channel-host",
        "port-http",
        "builds",
        "engine-versions",
        "compatibility",
        "geometry",
        "clock",
        "clock-monotonic",
    ];
    for check in checks {
        assert_status(&well, check, "ok");
    }
    assert_eq!(lines(&well, "sidecar").len(), 2);
    assert!(
        line(&well, "port-http")["says"].as_str().is_some_and(|says| says.contains("a kvgate sidecar listens")),
        "{well:#}"
    );

    // P's sidecar runs no agent of its own; both open one for the test, and take it back.
    for sidecar in [&p, &d] {
        let (code, measured) = report(&mut doctor(&format!("--peer {}", url(sidecar))));
        let line = line(&measured, "peer-transfer");
        assert!(code == 0 && line["facts"]["measured"]["right"] == true, "{measured:#}");
        assert!(line["facts"]["measured"]["gigabytes_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{line}");
        println!("{}", line["says"]);
        wait_for("the end of its probe", || {
            let (status, _) = sidecar.request("POST", "/v1/probe", r#"{"bytes":1048576,"keep_ms":1}"#);
            (status == 201).then_some(())
        });
    }
    fails(&mut doctor(&format!("--peer http://127.0.0.1:{}", free_ports(1))), &[("peer-transfer", "refused")]);
    // Without a way to the peer there is an error, not a wait.
    fails(doctor(&format!("--peer {}", url(&p))).env("UCX_TLS", "shm"), &[("peer-transfer", "no test transfer")]);

    let (_other_engine, other, _) = start("decode", "--block-size 32");
    fails(&mut doctor(&format!("--sidecar {} --sidecar {}", url(&p), url(&other))), &[("geometry", "differs")]);
    fails(&mut doctor(&format!("--sidecar http://127.0.0.1:{}", free_ports(1))), &[("sidecar", "refused")]);
}
