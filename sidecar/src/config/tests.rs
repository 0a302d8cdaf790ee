//! Tests of the command line: what is accepted, what is refused and how.

use super::*;

use std::io::Write as _;

use clap::Parser;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

const LEAST: &[&str] = &["sidecar", "--role", "decode", "--engine", "http://127.0.0.1:8200"];

fn args(more: &[&str]) -> Args {
    Cli::try_parse_from(LEAST.iter().chain(more)).unwrap().args
}

fn refusal(more: &[&str]) -> String {
    args(more).settings().unwrap_err().to_string()
}

#[test]
fn the_defaults_are_those_of_the_design() {
    let settings = args(&[]).settings().unwrap();
    assert_eq!(settings.listen, "127.0.0.1:7700".parse().unwrap());
    let pod = settings.pod;
    assert_eq!((pod.role, pod.dp_size, pod.tp_size, pod.rank_offset), (Role::Decode, 1, 1, 0));
    assert_eq!(pod.side_channel_listen.to_string(), "127.0.0.1:7800");
    assert_eq!(pod.engine_side_channel.to_string(), "127.0.0.1:5600");
    assert_eq!(pod.staging_bytes, 2 << 30);
    assert_eq!(pod.staging_wait, Duration::from_secs(2));
    assert_eq!(pod.kv_lease, Duration::from_secs(30));
    assert!(!pod.zero_on_release && pod.faults == crate::model::Faults::default());
}

#[test]
fn an_open_address_needs_a_token_or_a_word() {
    assert!(refusal(&["--listen", "0.0.0.0:7700"]).contains("--token-file"));
    assert!(refusal(&["--listen", "[::]:7700"]).contains("--insecure"));
    assert!(args(&["--listen", "0.0.0.0:7700", "--insecure"]).settings().is_ok());
    assert!(args(&["--listen", "[::1]:7700"]).settings().is_ok());

    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"secret\n").unwrap();
    let path = file.path().to_str().unwrap();
    let settings = args(&["--listen", "0.0.0.0:7700", "--token-file", path]).settings().unwrap();
    assert!(settings.token.is_some());
    assert!(!format!("{settings:?}").contains("secret"));
}

#[test]
fn combinations_that_cannot_run_are_refused_by_the_name_of_the_flag() {
    for (more, word) in [
        (&["--data-parallel-size", "0"][..], "--data-parallel-size"),
        (&["--tensor-parallel-size", "0"], "--tensor-parallel-size"),
        (&["--max-connections", "0"], "--max-connections"),
        (&["--staging-bytes", "0"], "--staging-bytes"),
        (&["--rank-offset", "65530", "--data-parallel-size", "8"], "--rank-offset"),
        (&["--side-channel-listen", "127.0.0.1:65530", "--data-parallel-size", "8"], "--side-channel-listen"),
        (&["--engine-side-channel", "127.0.0.1:65530", "--rank-offset", "8"], "--engine-side-channel"),
        (&["--gpus", "0"], "--gpus is for --staging"),
        (&["--staging", "vram", "--data-parallel-size", "4", "--gpus", "0,1"], "give one for all, or 4"),
        (&["--kv-lease", "10ms"], "--kv-lease"),
        (&["--staging-wait-ms", "600001"], "--staging-wait-ms"),
        (&["--advertise-host", "a b"], "--advertise-host"),
        (&["--advertise-host", "0.0.0.0"], "every address and none"),
        (&["--advertise-host", "::"], "every address and none"),
        (&["--token-file", "no/such/file"], "--token-file"),
    ] {
        let refusal = refusal(more);
        assert!(refusal.contains(word), "{more:?}: {refusal}");
    }
}

#[test]
fn values_that_cannot_be_read_are_usage_errors() {
    for more in [
        &["--kv-lease", "30"][..],
        &["--staging-bytes", "2GB"],
        &["--engine", "https://pod:1"],
        &["--listen", "7700"],
        &["--fault", "nothing"],
        &["--verify", "nonsense"],
        &["--verify", "sample:1"],
        &["--role", "both"],
        &["--data-parallel-size", "70000"],
        &["--no-such-flag"],
    ] {
        assert!(Cli::try_parse_from(LEAST.iter().chain(more)).is_err(), "{more:?}");
    }
    assert!(Cli::try_parse_from(["sidecar"]).is_err(), "role and engine are required");
}

#[test]
fn staging_and_its_gpus_reach_the_pod() {
    let pod = |more: &[&str]| args(more).settings().unwrap().pod;
    assert_eq!((pod(&[]).staging, pod(&[]).gpus), (StagingKind::Dram, vec![]));
    let vram =
        pod(&["--staging", "vram", "--data-parallel-size", "2", "--tensor-parallel-size", "2", "--gpus", "3,2,1,0"]);
    assert_eq!((vram.staging, vram.gpus), (StagingKind::Vram, vec![3, 2, 1, 0]));
    let pinned = pod(&["--staging", "pinned", "--data-parallel-size", "8", "--gpus", "5"]);
    assert_eq!((pinned.staging, pinned.gpus), (StagingKind::Pinned, vec![5]));
}

#[test]
fn verification_reaches_the_pod() {
    assert_eq!(args(&[]).settings().unwrap().pod.verify, Verify::Off);
    assert_eq!(args(&["--verify", "sample:4"]).settings().unwrap().pod.verify, Verify::Sample(4));
    assert_eq!(args(&["--verify", "full"]).settings().unwrap().pod.verify, Verify::Full);
}

#[test]
fn faults_reach_the_pod() {
    let settings = args(&["--fault", "hold-pull=5", "--fault", "no-heartbeat"]).settings().unwrap();
    assert_eq!(settings.pod.faults.hold_pull, Some(Duration::from_millis(5)));
    assert!(settings.pod.faults.no_heartbeat && settings.pod.faults.spoil.is_none());
    assert_eq!(settings.faults.len(), 2);
}

#[test]
fn every_flag_has_its_variable() {
    use clap::CommandFactory as _;
    for arg in Cli::command().get_arguments() {
        let Some(long) = arg.get_long() else { continue };
        // Whoever checks a configuration says so on the command line.
        if matches!(long, "help" | "version" | "check-config") {
            continue;
        }
        let want = format!("KVGATE_{}", long.to_uppercase().replace('-', "_"));
        assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(want.as_str()));
    }
}

#[test]
fn peers_are_those_of_the_list_or_the_usual_ones() {
    let peers = |more: &[&str]| args(more).settings().unwrap().pod.peers;
    assert_eq!(peers(&[]), PeerAllow::Usual { loopback: true });
    assert_eq!(peers(&["--listen", "0.0.0.0:7700", "--insecure"]), PeerAllow::Usual { loopback: false });
    let listed = peers(&["--peer-allow", "10.0.0.0/8:5600-5700,prefill.default.svc"]);
    assert!(matches!(&listed, PeerAllow::Only(list) if list.len() == 2), "{listed:?}");
}
