//! Command lines as operators and `vllm-router`'s users write them.

use clap::{Args as _, FromArgMatches, Parser, Subcommand};

use super::peer::{FLAGS, Verdict};
use super::*;
use crate::config::{Args, RouterConfig};

#[derive(Debug, Parser)]
struct Program {
    #[arg(long, env = "KVGATE_LOG", default_value = "info", global = true)]
    log: String,
    #[command(subcommand)]
    which: Which,
}

#[derive(Debug, Subcommand)]
enum Which {
    Router(Box<Args>),
    Other {
        #[arg(long = "listen", env = "KVGATE_LISTEN")]
        _listen: Option<String>,
    },
}

const PODS: &str = "--prefill http://a:1 --decode http://d:2";

fn line(text: &str) -> Vec<OsString> {
    ["kvgate"].into_iter().chain(text.split_whitespace()).map(OsString::from).collect()
}

fn understood(text: &str) -> Result<Understood, NotUnderstood> {
    use clap::CommandFactory;
    understand(Program::command(), &line(text), std::iter::empty())
}

fn program(text: &str) -> (Program, RouterConfig) {
    let program = Program::from_arg_matches(&understood(text).unwrap().matches).unwrap();
    let Which::Router(args) = &program.which else { panic!("another subcommand") };
    let config = args.check().unwrap();
    (program, config)
}

fn config(text: &str) -> RouterConfig {
    program(&format!("router {text}")).1
}

fn why(text: &str) -> String {
    let error = understood(text).unwrap_err();
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        words.push_str(": ");
        words.push_str(&next.to_string());
        cause = next.source();
    }
    words
}

#[test]
fn another_subcommand_is_left_alone() {
    assert!(matches!(
        Program::from_arg_matches(&understood("other").unwrap().matches).unwrap().which,
        Which::Other { .. }
    ));
    assert!(matches!(understood("nothing").unwrap_err(), NotUnderstood::Flags(_)));
}

#[test]
fn the_command_line_of_the_reference_deployment_is_understood() {
    let config = config(
        "--pd-disaggregation --prefill http://10.2.1.187:8000 --decode http://10.2.1.133:8200 \
         --intra-node-data-parallel-size 8 --host 0.0.0.0 --port 10001",
    );
    assert_eq!(config.targets.prefill[0].engine, "http://10.2.1.187:8000/");
    assert_eq!((config.listen.host.as_str(), config.listen.port), ("0.0.0.0", 10001));
}

#[test]
fn a_command_line_of_the_peer_is_understood() {
    let ports = understood("router --prefill http://a:1 8998 --decode http://d:2").unwrap();
    assert!(ports.notes[0].contains("NIXL needs none"), "{:?}", ports.notes);
    assert!(understood(&format!("router {PODS}")).unwrap().notes.is_empty());
    let (program, config) = program(
        "router --vllm-pd-disaggregation --prefill http://a:1 8998 --prefill http://b:1 none --prefill http://c:1 \
         --decode http://d:2 --decode http://e:2 --max-concurrent-requests 7 --queue-size 0 --queue-timeout-secs 5 \
         --retry-max-retries 3 --max-payload-size 1000 --log-level warning --kv-connector nixl \
         --prometheus-port 29000 --prometheus-host 127.0.0.1 --rate-limit-tokens-per-second 9",
    );
    assert_eq!(config.targets.prefill.len(), 3);
    assert_eq!(config.targets.decode.len(), 2);
    assert_eq!((config.limits.max_in_flight, config.limits.max_queue, config.failure.max_attempts), (7, 0, 3));
    assert_eq!(config.deadlines.queue, std::time::Duration::from_secs(5));
    assert_eq!(config.limits.max_body_bytes, 1000);
    assert_eq!(program.log, "warn");
    assert_eq!(self::config(&format!("{PODS} --disable-retries")).failure.max_attempts, 1);
}

#[test]
fn a_flag_of_the_peer_that_kvgate_lacks_is_refused_in_words() {
    for (extra, word) in [
        ("--worker-urls http://a:1 http://b:2", "--prefill and --decode"),
        ("--mini-lb", "production"),
        ("--cors-allowed-origins http://a http://b", "proxy"),
        ("--kv-connector mooncake", "only connector"),
        ("--log-level loud", "critical"),
        ("--selector a=b", "--decode-selector"),
    ] {
        let words = why(&format!("router {PODS} {extra}"));
        assert!(words.contains(word) && words.contains("vllm-router"), "{extra}: {words}");
    }
}

/// The fixture is a fact about the peer; the table must know each of its flags and no others, and the document shows the table.
#[test]
fn every_flag_of_the_peer_is_in_the_table_and_in_the_document() {
    let fixture = include_str!("../../../tests/peer/vllm-router-0.1.17.flags");
    let facts: Vec<(&str, &str)> =
        fixture.lines().filter_map(|line| line.strip_prefix("--")?.split_once(' ')).collect();
    assert_eq!(facts.len(), 71);
    let document = include_str!("../../../../docs/from-vllm-router.md");
    let command = add_flags(Args::augment_args(Command::new("router").arg(Arg::new("log").long("log"))));
    for (flag, values) in &facts {
        let line = FLAGS.iter().find(|line| line.flag == *flag).unwrap_or_else(|| panic!("--{flag} is missing"));
        let ours = if matches!(line.verdict, Verdict::Same) { Some(line.flag) } else { line.verdict.ours() };
        if let Some(ours) = ours {
            assert!(
                command.get_arguments().any(|arg| arg.get_long() == Some(ours)),
                "--{flag}: no flag --{ours} of ours"
            );
        }
        let refused = matches!(line.verdict, Verdict::Refused);
        let declared =
            command.get_arguments().find(|arg| arg.get_long() == Some(flag)).is_some_and(|arg| !peer::is_foreign(arg));
        assert!(!(refused && declared), "--{flag} is a flag of ours: the table must not say that it is refused");
        let takes_none = matches!(line.verdict, Verdict::Sets { .. });
        assert!(!takes_none || *values == "none", "--{flag} takes a value there");
        let row = row(line);
        assert!(document.contains(&row), "the document lacks:\n{row}\nwanted in whole:\n{}", rows());
    }
    for line in FLAGS {
        assert!(facts.iter().any(|(flag, _)| *flag == line.flag), "--{} is no flag of the peer", line.flag);
    }
}

fn rows() -> String {
    FLAGS.iter().map(row).collect::<Vec<_>>().join("\n")
}

fn row(line: &peer::PeerFlag) -> String {
    let verdict = match line.verdict {
        Verdict::Same => "same".to_owned(),
        Verdict::Renamed { ours } | Verdict::Scaled { ours, .. } | Verdict::Worded { ours, .. } => {
            format!("taken as `--{ours}`")
        }
        Verdict::Sets { ours, value } => format!("taken as `--{ours} {value}`"),
        Verdict::Only { value } => format!("taken with `{value}`"),
        Verdict::Refused => "refused".to_owned(),
    };
    format!("| `--{}` | {verdict} | {} |", line.flag, line.words)
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn a_file_stands_for_flags_and_flags_go_before_it() {
    let file = file(
        "prefill = [\"http://a:1\", \"http://b:1,sidecar=http://c:7\"]\ndecode = \"http://d:2\"\nmax_in_flight = 5\n\
         max-queue = 6\nallow_rank_headers = true\nlog = \"debug\"\ndrain_timeout = \"7s\"\n",
    );
    let given = format!("router --config {}", file.path().display());
    let (program, config) = program(&given);
    assert_eq!((config.targets.prefill.len(), config.limits.max_in_flight, config.limits.max_queue), (2, 5, 6));
    assert!(config.choice.allow_rank_headers);
    assert_eq!(program.log, "debug");
    let (program, config) = self::program(&format!(
        "--log warn {given} --queue-size 1 --allow-rank-headers=false --prefill http://e:1 --log-level error"
    ));
    assert_eq!((config.targets.prefill.len(), config.limits.max_in_flight, config.limits.max_queue), (1, 5, 1));
    assert!(!config.choice.allow_rank_headers);
    assert_eq!(program.log, "error");
}

#[test]
fn a_file_that_cannot_be_used_is_refused_in_words() {
    for (text, word) in [
        ("max_in_flihgt = 5", "no key \"max_in_flihgt\"; the nearest is \"max_in_flight\""),
        ("zzz = 5", "no key \"zzz\""),
        ("[limits]\nmax_in_flight = 5", "no key \"limits\""),
        ("gate = { kind = \"stage\" }", "gate must be"),
        ("gate =", "not TOML"),
        ("gate = \"open\"", "--gate"),
        ("config = \"other.toml\"", "no key \"config\""),
    ] {
        let file = file(text);
        let words = why(&format!("router {PODS} --config {}", file.path().display()));
        assert!(words.contains(word), "{text}: {words}");
    }
    assert!(why("router --config /nonexistent/kvgate.toml").contains("/nonexistent/kvgate.toml"));
}

#[test]
fn the_printed_configuration_reads_back_as_itself_and_holds_no_secret() {
    let token = file("s3cret");
    let text = format!(
        "router {PODS} --prefill http://b:1,sidecar=http://c:7 --kv-lease 500ms --gate direct --max-queue 3 \
         --allow-rank-headers --retry-jitter-factor 0.5 --token-file {} --api-key s3cret --fault delay-decode=5",
        token.path().display()
    );
    let printed = understood(&format!("{text} --print-config")).unwrap().print.unwrap();
    assert!(!printed.contains("s3cret") && printed.contains("api_key is set"), "{printed}");
    assert!(
        printed.contains("max_queue = 3\n")
            && printed.contains("allow_rank_headers = true\n")
            && printed.contains("jitter_factor = 0.5\n"),
        "{printed}"
    );
    let file = file(&printed);
    let again = format!("router --config {}", file.path().display());
    let printed_again = understood(&format!("{again} --api-key s3cret --print-config")).unwrap().print.unwrap();
    assert_eq!(printed, printed_again);
    let (first, second) = (program(&text).1, program(&format!("{again} --api-key s3cret")).1);
    assert_eq!(format!("{first:?}"), format!("{second:?}"));
}

#[test]
fn a_misspelt_variable_is_told_and_those_of_kubernetes_are_not() {
    use clap::CommandFactory;
    let names = ["KVGATE_MAX_IN_FLIHGT", "KVGATE_PORT", "KVGATE_SERVICE_HOST", "KVGATE_PORT_10001_TCP_ADDR", "HOME"];
    let names = names.into_iter().map(OsString::from);
    let notes = understand(Program::command(), &line(&format!("router {PODS}")), names).unwrap().notes;
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("KVGATE_MAX_IN_FLIGHT"), "{notes:?}");
}

#[test]
fn a_variable_of_another_subcommand_is_not_told_and_each_subcommand_tells_its_own() {
    use clap::CommandFactory;
    let notes = |text: &str, names: &[&str]| {
        let names = names.iter().map(OsString::from);
        understand(Program::command(), &line(text), names).unwrap().notes
    };
    // One environment for all containers of a pod, as a ConfigMap gives it.
    let router = format!("router {PODS}");
    let shared = ["KVGATE_LISTEN", "KVGATE_LISTEN_PORT", "KVGATE_MAX_IN_FLIGHT", "KVGATE_CONFIG", "KVGATE_LOG"];
    for text in [router.as_str(), "other"] {
        assert_eq!(notes(text, &shared), Vec::<String>::new(), "{text}");
    }
    // Those of the tree's own scripts, tests and builds.
    let ours = ["KVGATE_BIN", "KVGATE_IMAGE", "KVGATE_TEST_OPEN", "KVGATE_TEST_NIXL_BUILD", "KVGATE_HOST_CUDA"];
    assert_eq!(notes(&router, &ours), Vec::<String>::new());
    let said = notes("other", &["KVGATE_LISTNE", "KVGATE_MAX_IN_FLIHGT"]);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("KVGATE_LISTNE") && said[0].ends_with("KVGATE_LISTEN"), "{said:?}");
}
