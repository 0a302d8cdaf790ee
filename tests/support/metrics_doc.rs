//! `docs/metrics.md` beside what a process really exposes.

use std::collections::{BTreeMap, BTreeSet};

/// The page's metrics must be those of the document's section: by name, type and labels.
pub(crate) fn check(page: &str, section: &str) {
    let listed: Families = listed(section).into_iter().map(|row| (row.name, (row.kind, row.labels))).collect();
    assert_eq!(live(page), listed);
}

/// Whether everything that a section lists is on the page.
pub(crate) fn lists(section: &str, page: &str) -> bool {
    let page = live(page);
    listed(section).into_iter().all(|row| page.get(&row.name) == Some(&(row.kind, row.labels)))
}

type Families = BTreeMap<String, (String, BTreeSet<String>)>;

struct Row {
    name: String,
    kind: String,
    labels: BTreeSet<String>,
}

fn listed(section: &str) -> Vec<Row> {
    let text = include_str!("../../docs/metrics.md");
    let title = format!("{section}\n");
    let section = text.split("\n## ").find(|section| section.starts_with(&title)).expect("the section");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let row = |(name, rest): (&str, &str)| {
        let mut cells = rest.split(" |");
        let kind = cells.next().expect("a type").to_owned();
        let labels = cells.next().expect("labels").split(',').map(|label| label.trim().trim_matches('`').to_owned());
        Row { name: name.to_owned(), kind, labels: labels.filter(|label| !label.is_empty()).collect() }
    };
    rows.map(row).collect()
}

/// The families of an OpenMetrics page under the names that Prometheus stores, with the labels that their samples have.
fn live(page: &str) -> Families {
    let mut families = Families::new();
    let mut current = String::new();
    for line in page.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').expect("a name and a type");
            let ending = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            current = format!("{name}{ending}");
            families.insert(current.clone(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#')
            && let Some((labels, _)) = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}'))
            && let Some((_, known)) = families.get_mut(&current)
        {
            let names = labels.split("\",").filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned());
            known.extend(names.filter(|name| name != "le"));
        }
    }
    families
}
