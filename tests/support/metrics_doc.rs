//! `docs/metrics.md` beside what a process really exposes.

use std::collections::{BTreeMap, BTreeSet};

/// The page's metrics must be those of the document's section: by name, type and labels.
pub(crate) fn check(page: &str, section: &str) {
    assert_eq!(live(page), listed(section));
}

/// Name to type and labels.
pub(crate) type Families = BTreeMap<String, (String, BTreeSet<String>)>;

/// What a section of the document says.
pub(crate) fn listed(section: &str) -> Families {
    let text = include_str!("../../docs/metrics.md");
    let title = format!("{section}\n");
    let section = text.split("\n## ").find(|section| section.starts_with(&title)).expect("the section");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let row = |(name, rest): (&str, &str)| {
        let mut cells = rest.split(" |");
        let kind = cells.next().expect("a type").to_owned();
        let labels = cells.next().expect("labels").split(',').map(|label| label.trim().trim_matches('`').to_owned());
        (name.to_owned(), (kind, labels.filter(|label| !label.is_empty()).collect()))
    };
    rows.map(row).collect()
}

/// The families of an OpenMetrics page under the names that Prometheus stores, with the labels that their samples have.
pub(crate) fn live(page: &str) -> Families {
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
