//! Every flag of `vllm-router` 0.1.17 and what kvgate makes of it. `docs/from-vllm-router.md` shows this table.

use super::PeerFlag;

/// What becomes of a flag.
#[derive(Clone, Copy, Debug)]
pub(in crate::config::command_line) enum Verdict {
    /// Taken; ours has the same name.
    Same,
    /// Taken as another name of ours.
    Renamed { ours: &'static str },
    /// Taken; the value times so much is ours.
    Scaled { ours: &'static str, by: u64 },
    /// Taken; each value has a word of ours.
    Worded { ours: &'static str, words: &'static [(&'static str, &'static str)] },
    /// A switch that stands for a value of ours.
    Sets { ours: &'static str, value: &'static str },
    /// Taken with this value, which is how kvgate works anyway; refused with others.
    Only { value: &'static str },
    /// Refused: the words say why, and what serves instead.
    Refused,
}

impl Verdict {
    /// The flag of ours that it is taken as, where that has another name.
    pub(in crate::config::command_line) fn ours(self) -> Option<&'static str> {
        match self {
            Self::Renamed { ours }
            | Self::Scaled { ours, .. }
            | Self::Worded { ours, .. }
            | Self::Sets { ours, .. } => Some(ours),
            Self::Same | Self::Only { .. } | Self::Refused => None,
        }
    }
}

const fn same(flag: &'static str, words: &'static str) -> PeerFlag {
    PeerFlag { flag, verdict: Verdict::Same, words }
}

const fn renamed(flag: &'static str, ours: &'static str, words: &'static str) -> PeerFlag {
    PeerFlag { flag, verdict: Verdict::Renamed { ours }, words }
}

const fn seconds(flag: &'static str, ours: &'static str, words: &'static str) -> PeerFlag {
    PeerFlag { flag, verdict: Verdict::Scaled { ours, by: 1000 }, words }
}

const fn refused(flag: &'static str, words: &'static str) -> PeerFlag {
    PeerFlag { flag, verdict: Verdict::Refused, words }
}

const LEVELS: &[(&str, &str)] =
    &[("debug", "debug"), ("info", "info"), ("warning", "warn"), ("error", "error"), ("critical", "error")];

const KV_AWARE: &str = "kv_aware is taken as kv-events, which knows one tier of cache and weighs load by --balance-abs-threshold and --balance-rel-threshold";
const KV_SOURCES: &str = "for kv-events the publishers are found at --kv-events-port and --kv-events-replay-port of each engine's host; block sizes come with the events";
const POLICY: &str =
    "the same names but for sticky_least_loaded; kv_aware is kv-events; the default is least-loaded, not cache_aware";
const EVENTS: &str =
    "the sidecars say within a second when a rank is lost, so there is no threshold or interval to set";
const WASM: &str = "no code runs inside the router; put a proxy before it";
const PROGRAMS: &str = "there is no program-level scheduling";
const STARTUP: &str = "the router starts at once and lists in /readyz what it waits for";

/// The table, in the order of `vllm-router --help`.
pub(in crate::config::command_line) const FLAGS: &[PeerFlag] = &[
    same("host", "the same default, 127.0.0.1"),
    same("port", "the default is 10001, not 30000"),
    refused("worker-urls", "kvgate always splits prefill and decode: name the engines with --prefill and --decode"),
    refused("enable-program-scheduling", PROGRAMS),
    refused("program-scheduling-config-json", PROGRAMS),
    same("policy", POLICY),
    same("prefill-policy", "if it is another than --policy; under --rank-pairing same it leads"),
    same(
        "decode-policy",
        "if it is another than --policy; under --rank-pairing same it chooses among the pods of the rank",
    ),
    refused("router-temperature", KV_AWARE),
    refused("kv-penalty-host", KV_AWARE),
    refused("kv-penalty-external", KV_AWARE),
    refused("kv-penalty-disk", KV_AWARE),
    refused("kv-aware-session-affinity-ttl-secs", KV_AWARE),
    refused("kv-event-source", KV_SOURCES),
    refused("kv-event-replay-source", KV_SOURCES),
    refused("kv-event-block-size", KV_SOURCES),
    refused("kv-event-model", KV_SOURCES),
    refused("pd-kv-events", KV_SOURCES),
    refused("mini-lb", "there is one router, and it is the one for production"),
    renamed("vllm-pd-disaggregation", "pd-disaggregation", "the only mode there is"),
    same(
        "prefill",
        "a bootstrap port after the URL is taken and has no effect: NIXL needs none; a sidecar is named as URL,sidecar=URL",
    ),
    same("decode", "a sidecar is named as URL,sidecar=URL"),
    refused("worker-startup-timeout-secs", STARTUP),
    refused("worker-startup-check-interval", STARTUP),
    same("cache-threshold", "the same default, 0.3"),
    same("balance-abs-threshold", "the same default, 64; the preferred rank is compared with the least loaded one"),
    same("balance-rel-threshold", "the same default, 1.5"),
    refused("eviction-interval-secs", "old prompts are forgotten as new ones come: --max-tree-size"),
    same("max-tree-size", "in bytes, for all ranks of a side together; the default is 64 MiB, not 2^25 for each"),
    renamed("max-payload-size", "max-body-bytes", "the default is 16 MiB, not 512 MiB; larger bodies are answered 413"),
    refused("wasm-middleware", WASM),
    refused("wasm-middleware-sha256", WASM),
    refused("wasm-middleware-route", WASM),
    same(
        "intra-node-data-parallel-size",
        "--prefill-data-parallel-size and --decode-data-parallel-size where the sides differ",
    ),
    refused("enable-igw", "one router serves one model; run one for each"),
    same("api-key", "sent to the engines instead of the client's; --engine-api-key-file keeps it off the command line"),
    refused("log-dir", "logs go to standard error only; let the container runtime keep them"),
    PeerFlag {
        flag: "log-level",
        verdict: Verdict::Worded { ours: "log", words: LEVELS },
        words: "warning is warn and critical is error there; --log also takes filters such as info,router=debug",
    },
    same("service-discovery", "pods come and go without a restart; the account needs get, list and watch on pods"),
    refused("selector", "name each side's pods: --prefill-selector and --decode-selector"),
    same("service-discovery-port", "8000 unless given; --decode-discovery-port where decode pods have another"),
    same("service-discovery-namespace", "the router's own unless given; all namespaces at once is not possible"),
    same("prefill-selector", "all labels must fit"),
    same("decode-selector", "all labels must fit"),
    refused("vllm-discovery-address", "engines do not register with kvgate: name them with --prefill and --decode"),
    PeerFlag { flag: "kv-connector", verdict: Verdict::Only { value: "nixl" }, words: "nixl is the only connector" },
    renamed("prometheus-port", "admin-port", "no such listener unless given; the client port has /metrics too"),
    renamed("prometheus-host", "admin-host", "the same default, 127.0.0.1"),
    refused("request-id-headers", "X-Request-Id is read and answered; there is no list"),
    seconds(
        "request-timeout-secs",
        "request-deadline-ms",
        "seconds become milliseconds; it ends with the first byte of the answer, and a stream may go on as long as D is not silent for --idle-deadline-ms",
    ),
    renamed("retry-max-retries", "max-attempts", "both count the first try; the default is 4, not 5"),
    same("retry-initial-backoff-ms", "the same default, 50 ms"),
    same("retry-max-backoff-ms", "the default is 2 s, not 30 s"),
    same("retry-backoff-multiplier", "the same default, 1.5"),
    same("retry-jitter-factor", "the same default, 0.2"),
    PeerFlag {
        flag: "disable-retries",
        verdict: Verdict::Sets { ours: "max-attempts", value: "1" },
        words: "one attempt",
    },
    same(
        "cb-failure-threshold",
        "the default is 5, not 10; a pod that cannot be reached is left alone the second time",
    ),
    same("cb-success-threshold", "the default is 1, not 3"),
    same("cb-timeout-duration-secs", "the longest time, after a first one of a second; the default is 30, not 60"),
    same("cb-window-duration-secs", "the default is 60, not 120"),
    same("disable-circuit-breaker", "ranks that fail stay among those to choose from"),
    refused("health-failure-threshold", EVENTS),
    refused("health-success-threshold", EVENTS),
    refused("health-check-timeout-secs", EVENTS),
    refused("health-check-interval-secs", EVENTS),
    refused("health-check-endpoint", EVENTS),
    renamed("max-concurrent-requests", "max-in-flight", "the default is 1024, not 32768"),
    renamed("queue-size", "max-queue", "the default is 1024, not 100"),
    seconds("queue-timeout-secs", "queue-deadline-ms", "seconds become milliseconds; the default is 30 s, not 60 s"),
    renamed(
        "rate-limit-tokens-per-second",
        "rate-limit-requests-per-second",
        "a token there is a request; no limit unless given, and --rate-limit-burst is the bucket's size",
    ),
    refused("cors-allowed-origins", "browsers are not served directly; put a proxy before it"),
];
