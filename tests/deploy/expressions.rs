//! Which metrics and labels a PromQL expression uses, beside the tables of `docs/metrics.md`.

use std::collections::{BTreeMap, BTreeSet};

/// Labels that Prometheus adds, and the metric that it makes of alerts.
const ADDED: [&str; 3] = ["instance", "job", "le"];

/// The documented metrics with their labels.
#[derive(Debug)]
pub(crate) struct Families(BTreeMap<String, (String, BTreeSet<String>)>);

impl Families {
    /// Those of `docs/metrics.md`.
    pub(crate) fn documented() -> Self {
        let rows = include_str!("../../docs/metrics.md").lines().filter(|line| line.starts_with("| `"));
        let row = |line: &str| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, name, kind, labels, ..] = cells.as_slice() else { return None };
            let word = |cell: &str| cell.trim().trim_matches('`').to_owned();
            let labels = labels.split(',').map(word).filter(|label| !label.is_empty()).collect();
            Some((word(name), ((*kind).to_owned(), labels)))
        };
        Self(rows.filter_map(row).collect())
    }

    /// Their names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// The labels of a series by its name: histograms have three series each.
    fn labels(&self, name: &str) -> Option<&BTreeSet<String>> {
        if let Some((kind, labels)) = self.0.get(name) {
            return (kind != "histogram").then_some(labels);
        }
        let of = ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending))?;
        self.0.get(of).filter(|(kind, _)| kind == "histogram").map(|(_, labels)| labels)
    }
}

/// What an expression uses that is not documented.
pub(crate) fn complaints(families: &Families, expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut all: BTreeSet<&str> = ADDED.into_iter().collect();
    let mut grouped = Vec::new();
    for (word, rest) in words(expression) {
        let known = families.labels(word);
        if let Some(labels) = known {
            all.extend(labels.iter().map(String::as_str));
            for label in selected(rest) {
                if !labels.contains(label) && !ADDED.contains(&label) {
                    found.push(format!("label {label} of {word} in: {expression}"));
                }
            }
        } else if ["kv_", "router_", "kvgate_", "build_", "vllm_router_"].iter().any(|start| word.starts_with(start)) {
            found.push(format!("{word} in: {expression}"));
        } else if matches!(word, "by" | "without" | "on" | "ignoring") {
            grouped.extend(listed(rest));
        }
    }
    found.extend(
        grouped.into_iter().filter(|label| !all.contains(label)).map(|label| format!("label {label} in: {expression}")),
    );
    found
}

/// Identifiers outside of selectors and quotes, each with what follows it.
fn words(expression: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    let mut depth = 0_u32;
    let mut start = None;
    for (at, byte) in expression.bytes().chain([b' ']).enumerate() {
        match (byte.is_ascii_alphanumeric() || byte == b'_', start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                if depth == 0
                    && let (Some(word), Some(rest)) = (expression.get(from..at), expression.get(at..))
                {
                    found.push((word, rest));
                }
                start = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    found
}

/// The labels of the selector that follows a name.
fn selected(rest: &str) -> Vec<&str> {
    let Some((inside, _)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { return Vec::new() };
    // Values hold no commas here.
    inside
        .split(',')
        .map(|one| one.split(['=', '!']).next().unwrap_or_default().trim())
        .filter(|name| !name.is_empty())
        .collect()
}

/// The labels of a grouping.
fn listed(rest: &str) -> Vec<&str> {
    let Some((inside, _)) = rest.trim_start().strip_prefix('(').and_then(|rest| rest.split_once(')')) else {
        return Vec::new();
    };
    inside.split(',').map(str::trim).collect()
}

#[test]
fn what_is_not_documented_is_found() {
    let families = Families::documented();
    let good = r#"sum by (stage, le) (rate(kv_transfer_duration_seconds_bucket{dp_rank="1", instance=~"a"}[5m])) > 0"#;
    assert_eq!(complaints(&families, good), Vec::<String>::new());
    for bad in [
        "kv_transfer_duration_seconds",
        "rate(kv_nothing_total[5m])",
        r#"kv_rank_state{shape="ready"}"#,
        "sum by (peer) (kv_rank_state)",
        "router_ttft_seconds_total",
    ] {
        assert_eq!(complaints(&families, bad).len(), 1, "{bad}");
    }
}
