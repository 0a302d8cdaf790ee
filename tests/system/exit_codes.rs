//! 64 for a command line that cannot work, 1 for what went wrong later, each with words that help.

use std::net::TcpListener;

use crate::process::{Running, finished, kvgate, nixl_is_here, scratch_file};

fn refused(args: &str, code: i32, words: &[&str]) {
    let (got, text) = finished(&mut kvgate(args));
    assert_eq!(got, code, "kvgate {args} said:\n{text}");
    for word in words {
        assert!(text.contains(word), "kvgate {args} does not say {word:?}:\n{text}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [
        "--help",
        "--version",
        "sidecar --help",
        "router --help",
        "sim --help",
        "demo --help",
        "doctor --help",
        "top --help",
        "health --help",
        "completions bash",
        "completions zsh",
        "completions fish",
    ] {
        assert_eq!(finished(&mut kvgate(args)).0, 0, "kvgate {args}");
    }
}

#[test]
fn a_command_line_that_cannot_work_exits_64() {
    refused("", 64, &["Usage"]);
    refused("sidecar --no-such-flag", 64, &["--no-such-flag"]);
    refused("sidecar --role decode --engine ftp://nowhere", 64, &["--engine"]);
    refused("sidecar --role decode --engine http://127.0.0.1:1 --data-parallel-size 0", 64, &["data-parallel-size"]);
    refused("sidecar --role decode --engine http://127.0.0.1:1 --listen 0.0.0.0:0", 64, &["--token-file"]);
    refused("sidecar --role decode --engine http://127.0.0.1:1 --token-file does-not-exist", 64, &["does-not-exist"]);
    refused("router --pd-disaggregation", 64, &["--prefill"]);
    refused("router --prefill nonsense --decode http://127.0.0.1:1", 64, &["nonsense"]);
    refused("demo --fault no-such-fault", 64, &["no-such-fault"]);
}

#[test]
fn a_sidecars_configuration_can_be_checked_without_running_it() {
    let sidecar = "sidecar --role decode --engine http://127.0.0.1:1 --check-config";
    assert_eq!(finished(&mut kvgate(sidecar)).0, 0);
    refused(&format!("{sidecar} --listen 0.0.0.0:7700"), 64, &["--token-file"]);
    refused(&format!("{sidecar} --token-file does-not-exist"), 64, &["does-not-exist"]);
    refused(&format!("{sidecar} --gpus 0"), 64, &["--gpus is for --staging"]);
    assert_eq!(finished(&mut kvgate(&format!("{sidecar} --staging vram"))).0, 0, "the GPU is elsewhere");
}

#[test]
fn the_version_says_what_built_it_and_every_subcommand_has_a_page() {
    let (_, version) = finished(&mut kvgate("--version"));
    assert!(
        version.starts_with("kvgate ") && version.contains("built by rustc 1.") && version.contains("linux"),
        "{version}"
    );
    let (_, short) = finished(&mut kvgate("-V"));
    assert_eq!(short.lines().count(), 1, "{short}");
    let folder = tempfile::tempdir().expect("a folder");
    let (code, said) = finished(kvgate("man").arg(folder.path()));
    assert_eq!(code, 0, "{said}");
    let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    assert!(page("kvgate.1").contains("kvgate"), "{:?}", std::fs::read_dir(folder.path()).expect("the folder").count());
    assert!(page("kvgate-sidecar.1").contains("staging"));
    assert!(page("kvgate-router.1").contains("print\\-config"));
    let (_, script) = finished(&mut kvgate("completions bash"));
    assert!(script.contains("--staging-bytes"));
}

#[test]
fn a_health_check_ends_as_the_page_answers() {
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    refused(&format!("health --url http://{nobody}/livez"), 1, &["refused"]);
    refused("health --url nonsense", 1, &["nonsense"]);
    let router =
        Running::start("router --prefill http://127.0.0.1:1 --decode http://127.0.0.1:2 --host 127.0.0.1 --port 0");
    let health = format!("health --url http://127.0.0.1:{}", router.http);
    assert_eq!(finished(&mut kvgate(&format!("{health}/livez"))).0, 0);
    refused(&format!("{health}/readyz"), 1, &["503"]);
}

#[test]
fn a_collector_that_cannot_be_used_is_refused() {
    let router = "router --prefill http://127.0.0.1:1 --decode http://127.0.0.1:2 --host 127.0.0.1 --port 0";
    refused(&format!("{router} --otlp-endpoint https://collector:4318"), 64, &["--otlp-endpoint", "https"]);
    refused(&format!("{router} --otlp-sample-ratio 2"), 64, &["--otlp-sample-ratio"]);
}

#[test]
fn what_is_logged_is_json_where_nobody_reads_it_on_a_terminal() {
    let router = "router --prefill http://127.0.0.1:1 --decode http://127.0.0.1:1 --otlp-sample-ratio 2";
    let (_, json) = finished(&mut kvgate(router));
    let lines: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    assert!(lines.iter().any(|line| line["level"] == "ERROR" && line["fields"]["error"].is_string()), "{json}");
    let (_, text) = finished(kvgate(router).args(["--log-format", "text"]));
    assert!(text.contains("ERROR") && text.lines().all(|line| !line.starts_with('{')), "{text}");
}

#[test]
fn a_library_that_is_not_nixl_is_named_with_what_to_do() {
    let (_folder, file) = scratch_file("libnixl_capi.so", b"this is no library");
    let path = file.display();
    refused(
        &format!("sidecar --role decode --engine http://127.0.0.1:1 --listen 127.0.0.1:0 --nixl-library {path}"),
        1,
        &[&path.to_string()],
    );
    refused(
        "sim --role both --listen 127.0.0.1:0 --side-channel 127.0.0.1:0 --nixl-library does/not/exist.so",
        1,
        &["does/not/exist.so"],
    );
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("its address").port();
    refused(
        &format!("router --prefill http://127.0.0.1:1 --decode http://127.0.0.1:2 --host 127.0.0.1 --port {port}"),
        1,
        &[&port.to_string()],
    );
    if nixl_is_here() {
        refused(
            &format!("sidecar --role decode --engine http://127.0.0.1:1 --listen 127.0.0.1:{port}"),
            1,
            &[&port.to_string()],
        );
    }
}
