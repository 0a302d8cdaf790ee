//! `docs/metrics.md` beside what a process really exposes.

use std::collections::BTreeSet;

/// The page's metrics must be those of the document's section, by name and type.
pub(crate) fn check(page: &str, section: &str) {
    let live: BTreeSet<(String, String)> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(named).collect();
    let text = include_str!("../../docs/metrics.md");
    let title = format!("{section}\n");
    let section = text.split("\n## ").find(|section| section.starts_with(&title)).expect("the section");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let kind = |rest: &str| rest.split(" |").next().expect("a type").to_owned();
    let listed: BTreeSet<(String, String)> = rows.map(|(name, rest)| (name.to_owned(), kind(rest))).collect();
    assert_eq!(live, listed);
}

/// A metric's name as Prometheus stores it, and its type.
fn named(line: &str) -> (String, String) {
    let (name, kind) = line.split_once(' ').expect("a name and a type");
    let ending = match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    };
    (format!("{name}{ending}"), kind.to_owned())
}
