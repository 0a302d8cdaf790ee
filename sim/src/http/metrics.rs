//! `/metrics` in vLLM's names (`docs/vllm-nixl-protocol.md` §6), labels `engine` (DP rank) and `model_name`.

use std::fmt::Write as _;

use super::Api;
use crate::engine::Engine;
use crate::stats::RankStats;

type Read = fn(&Engine) -> f64;
type Counter = (&'static str, &'static str, fn(&RankStats) -> u64);

const GAUGES: [(&str, &str, Read); 4] = [
    ("vllm:num_requests_running", "Number of requests in model execution batches.", |engine| {
        number(engine.stats.running.get())
    }),
    ("vllm:num_requests_waiting", "Number of requests waiting to be processed.", |engine| {
        number(engine.stats.waiting.get())
    }),
    ("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", |engine| {
        let blocks = u64::from(engine.arena.geometry().num_blocks.saturating_sub(1).max(1));
        number(engine.stats.used_blocks.get()) / number(blocks)
    }),
    ("sim:pinned_requests", "Requests whose blocks are pinned for a reader.", |engine| {
        number(engine.stats.pinned.get())
    }),
];

const COUNTERS: [Counter; 12] = [
    ("vllm:prompt_tokens", "Number of prefill tokens processed.", |s| s.prompt_tokens.get()),
    ("vllm:generation_tokens", "Number of generation tokens processed.", |s| s.generation_tokens.get()),
    ("vllm:request_success", "Count of successfully processed requests.", |s| s.succeeded.get()),
    ("vllm:prefix_cache_queries", "Prefix cache queries, in tokens.", |s| s.prefix_queries.get()),
    ("vllm:prefix_cache_hits", "Prefix cache hits, in tokens.", |s| s.prefix_hits.get()),
    ("vllm:nixl_num_failed_transfers", "Failed NIXL transfers.", |s| s.failed_transfers.get()),
    ("vllm:nixl_num_failed_notifications", "Failed NIXL notifications.", |s| s.failed_notifications.get()),
    ("vllm:nixl_num_kv_expired_reqs", "Requests whose KV expired before it was read.", |s| s.expired.get()),
    ("vllm:nixl_num_notifications_after_expiry", "Done notifications after expiry.", |s| s.late_notifications.get()),
    ("sim:unknown_notifications", "Notifications for unknown requests.", |s| s.unknown_notifications.get()),
    ("sim:quarantined_blocks", "Blocks out of use for ever.", |s| s.quarantined_blocks.get()),
    ("sim:nixl_transfers", "NIXL transfers that ended well.", |s| s.transfers.get()),
];

/// Sums without buckets but the last: name, help, sum of all observations.
const HISTOGRAMS: [(&str, &str, Read); 4] = [
    ("vllm:nixl_xfer_time_seconds", "NIXL transfer time.", |engine| number(engine.stats.transfer_us.get()) / 1e6),
    ("vllm:nixl_post_time_seconds", "NIXL post time.", |engine| number(engine.stats.post_us.get()) / 1e6),
    ("vllm:nixl_bytes_transferred", "Bytes per NIXL transfer.", |engine| number(engine.stats.transfer_bytes.get())),
    ("vllm:nixl_num_descriptors", "Descriptors per NIXL transfer.", |engine| number(engine.stats.transfer_descs.get())),
];

/// The page.
pub(super) fn page(api: &Api) -> String {
    let mut page = Page { api, text: String::new() };
    for (name, help, read) in GAUGES {
        page.family(name, "gauge", help);
        page.each_rank(name, read);
    }
    for (name, help, read) in COUNTERS {
        page.family(name, "counter", help);
        page.each_rank(&format!("{name}_total"), |engine| number(read(&engine.stats)));
    }
    for (name, help, read) in HISTOGRAMS {
        page.family(name, "histogram", help);
        page.each_rank_with(&format!("{name}_bucket"), ",le=\"+Inf\"", |engine| number(engine.stats.transfers.get()));
        page.each_rank(&format!("{name}_count"), |engine| number(engine.stats.transfers.get()));
        page.each_rank(&format!("{name}_sum"), read);
    }
    page.family("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.");
    page.line(format_args!("process_start_time_seconds {:?}\n", number(api.started)));
    page.text
}

struct Page<'a> {
    api: &'a Api,
    text: String,
}

impl Page<'_> {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn each_rank(&mut self, name: &str, read: impl Fn(&Engine) -> f64) {
        self.each_rank_with(name, "", read);
    }

    fn each_rank_with(&mut self, name: &str, label: &str, read: impl Fn(&Engine) -> f64) {
        let api = self.api;
        let model = escape(&api.model);
        for engine in &api.engines {
            let (rank, value) = (engine.rank, read(engine));
            self.line(format_args!("{name}{{engine=\"{rank}\",model_name=\"{model}\"{label}}} {value:?}\n"));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Formatting into a string cannot fail.
        self.text.write_fmt(line).ok();
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Prometheus numbers are floats; counts below 2^53 are exact.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}
