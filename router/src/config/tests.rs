//! The command line as operators write it.

use clap::Parser;

use std::time::Duration;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn parse(line: &str) -> Result<Args, clap::Error> {
    Line::try_parse_from(line.split_whitespace()).map(|line| line.args)
}

const SEED: &str = "router --pd-disaggregation --prefill http://10.2.1.187:8000 --decode http://10.2.1.133:8200 \
                    --intra-node-data-parallel-size 8 --host 0.0.0.0 --port 10001";

#[test]
fn the_command_line_of_the_reference_deployment_is_understood() {
    let config = parse(SEED).unwrap().check().unwrap();
    assert_eq!(config.targets.prefill[0].engine, "http://10.2.1.187:8000/");
    assert_eq!(config.targets.prefill[0].sidecar, "http://10.2.1.187:7700/");
    assert_eq!(config.targets.decode[0].sidecar, "http://10.2.1.133:7700/");
    assert_eq!((config.targets.prefill_ranks, config.targets.decode_ranks), (8, 8));
    assert!(matches!(config.choice.gate, Gate::Stage));
    assert_eq!(config.choice.pairing, Pairing::Same);
    assert_eq!(config.deadlines.kv_lease, Duration::from_secs(30));
}

#[test]
fn several_pods_with_their_sidecars() {
    let line = "router --prefill http://a:1,sidecar=http://b:2 --prefill http://[::1]:3 --decode http://d:4 \
                --fault delay-decode=250 --fault skip-gate --kv-lease 500ms";
    let config = parse(line).unwrap().check().unwrap();
    assert_eq!(config.targets.prefill[0].sidecar, "http://b:2/");
    assert_eq!(config.targets.prefill[1].sidecar, "http://[::1]:7700/");
    assert_eq!(config.failure.faults.delay_decode(), Some(Duration::from_millis(250)));
    assert!(config.failure.faults.skip_gate().is_some());
    assert_eq!(config.deadlines.kv_lease, Duration::from_millis(500));
}

#[test]
fn a_pod_url_that_would_be_misread_is_refused_in_words() {
    for (text, word) in [
        ("10.0.0.1:8000", "URL like"),
        ("ftp://a:1", "neither http nor https"),
        ("http://a:1/v1", "path"),
        ("http://a:1@3", "rank"),
        ("http://a:1,peer=http://b:2", "sidecar=URL"),
        ("", "URL like"),
    ] {
        let error = text.parse::<PodUrl>().unwrap_err().to_string();
        assert!(error.contains(word), "{text:?}: {error}");
    }
}

#[test]
fn what_clap_cannot_see_is_refused_by_check() {
    for (extra, flag) in [
        ("--intra-node-data-parallel-size 0", "--intra-node-data-parallel-size"),
        ("--max-in-flight 0", "--max-in-flight"),
        ("--max-attempts 0", "--max-attempts"),
        ("--transfer-deadline-ms 0", "--transfer-deadline-ms"),
        ("--decode http://d:4", "named twice"),
        ("--max-body-bytes 134217729", "--max-body-bytes"),
        ("--token-file /nonexistent/token", "/nonexistent/token"),
    ] {
        let line = format!("router --prefill http://a:1 --decode http://d:4 {extra}");
        let error = parse(&line).unwrap().check().unwrap_err().to_string();
        assert!(error.contains(flag), "{extra}: {error}");
    }
}

#[test]
fn one_sidecar_for_two_pods_is_noticed() {
    for (line, expected) in [
        ("router --prefill http://a:1 --decode http://a:4", Some("http://a:7700/")),
        ("router --prefill http://a:1 --decode http://a:4 --gate direct --max-body-bytes 134217728", None),
        ("router --prefill http://a:1 --decode http://a:4,sidecar=http://a:7701", None),
    ] {
        let config = parse(line).unwrap().check().unwrap();
        assert_eq!(config.shared_sidecar().map(ToString::to_string).as_deref(), expected, "{line}");
    }
}

#[test]
fn a_token_file_becomes_a_bearer_header_and_an_empty_one_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let line = format!("router --prefill http://a:1 --decode http://d:4 --token-file {}", file.path().display());
    assert!(matches!(parse(&line).unwrap().check().unwrap_err(), ConfigError::Token { .. }));
    std::fs::write(file.path(), "s3cret\n").unwrap();
    let tokens = parse(&line).unwrap().check().unwrap().targets.sidecar_tokens.unwrap();
    assert_eq!(tokens.header().to_str().unwrap(), "Bearer s3cret");
}

#[test]
fn https_without_anybody_to_trust_is_refused_wherever_it_comes_from() {
    let found =
        "router --service-discovery --kubernetes-api http://127.0.0.1:1 --prefill-selector a=b --decode-selector a=c";
    let allowed = "router --pod-local --prefill-allow 10.0.0.0/8";
    let named = "router --prefill http://a:1 --decode http://d:4";
    let authority = "https: give --upstream-ca";
    for (line, flag, says) in [
        (found, "--engine-discovery-scheme https", authority),
        (found, "--sidecar-scheme https", authority),
        (allowed, "--engine-discovery-scheme https", authority),
        (allowed, "--sidecar-scheme https --decode http://127.0.0.1:1,sidecar=http://127.0.0.1:2", authority),
        (named, "--sidecar-scheme https", authority),
        (named, "--prefill https://b:1", authority),
        // It would be without effect.
        (named, "--engine-discovery-scheme https", "--engine-discovery-scheme must be given with"),
    ] {
        let error = parse(&format!("{line} {flag}")).unwrap().check().unwrap_err().to_string();
        assert!(error.contains(says), "{line} {flag}: {error}");
    }
    let plain = format!("{named},sidecar=http://e:1 --prefill http://b:1,sidecar=http://f:1");
    assert!(parse(&plain).unwrap().check().is_ok());
}

#[test]
fn a_kubernetes_api_that_nobody_vouches_for_is_refused() {
    // In a pod there is an authority.
    if std::path::Path::new("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt").exists() {
        return;
    }
    let line =
        "router --service-discovery --kubernetes-api https://10.96.0.1 --prefill-selector a=b --decode-selector a=c";
    let error = parse(line).unwrap().check().unwrap_err().to_string();
    assert!(error.contains("--kubernetes-api must be http://"), "{error}");
}

#[test]
fn an_unknown_fault_or_gate_is_a_usage_error() {
    for extra in ["--fault burn", "--fault delay-decode", "--gate none", "--kv-lease soon"] {
        assert!(parse(&format!("router --prefill http://a:1 --decode http://d:4 {extra}")).is_err(), "{extra}");
    }
}

#[test]
fn in_a_decode_pod_decode_is_the_pod_and_prefill_whom_the_operator_allows() {
    let config = parse("router --pod-local --prefill-allow 10.2.0.0/16").unwrap().check().unwrap();
    assert_eq!((config.listen.port, config.targets.prefill.len()), (8000, 0));
    assert_eq!(config.targets.decode[0].engine, "http://127.0.0.1:8200/");
    assert_eq!(config.targets.decode[0].sidecar, "http://127.0.0.1:7700/");
    assert_eq!(config.pod_local.unwrap().allow.len(), 1);
    let line = "router --pod-local --port 9 --decode http://127.0.0.1:1 --prefill http://p:2 --dns-discovery 5s";
    let config = parse(line).unwrap().check().unwrap();
    assert_eq!((config.listen.port, config.targets.decode[0].engine.to_string().as_str()), (9, "http://127.0.0.1:1/"));
    for (line, flag) in [
        ("router --pod-local", "--prefill-allow"),
        ("router --pod-local --prefill-allow 10.0.0.0/8 --decode http://a:1 --decode http://a:2", "--decode"),
        ("router --prefill http://a:1 --decode http://b:1 --prefill-allow 10.0.0.0/8", "--prefill-allow"),
        ("router --pod-local --service-discovery --prefill-selector a=b --decode-selector a=c", "--decode-selector"),
    ] {
        let error = parse(line).unwrap().check().unwrap_err();
        assert!(matches!(error, ConfigError::Range { flag: named, .. } if named == flag), "{line}: {error}");
    }
    assert!(parse("router --pod-local --prefill-allow 10.0.0.1/8").is_err());
}
