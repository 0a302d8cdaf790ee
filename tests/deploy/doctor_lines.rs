//! `docs/deploy.md` and `docs/gpu.md` send their readers to lines of `kvgate doctor`: those lines exist, and can say what the pages say of them.

use std::collections::BTreeSet;
use std::path::Path;

use crate::text;

/// The sources of `kvgate doctor`, as one text.
fn sources(folder: &Path) -> String {
    let mut found = String::new();
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.push_str(&sources(&path));
        } else {
            found.push_str(&std::fs::read_to_string(&path).expect("a source"));
        }
    }
    found
}

/// `` `fail memlock` `` and the like: (status, check).
fn named(page: &str) -> BTreeSet<(String, String)> {
    let words = page.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(' '));
    let lines = words.filter(|(status, check)| ["ok", "skip", "warn", "fail"].contains(status) && !check.contains(' '));
    lines.map(|(status, check)| (status.to_owned(), check.to_owned())).collect()
}

#[test]
fn every_line_of_doctor_that_a_page_names_exists() {
    let (deploy, gpu) = (named(&text("docs/deploy.md")), named(&text("docs/gpu.md")));
    assert!(deploy.len() > 15 && gpu.len() > 6, "{deploy:?} {gpu:?}");
    let named: BTreeSet<_> = deploy.union(&gpu).cloned().collect();
    let sources = sources(&crate::file("src/doctor"));
    let missing: Vec<_> = named.iter().filter(|(_, check)| !sources.contains(&format!("\"{check}\""))).collect();
    assert!(missing.is_empty(), "no such line of doctor: {missing:?}");
}

#[test]
fn every_symptom_of_the_page_has_a_line_or_says_that_there_is_none() {
    let page = text("docs/deploy.md");
    let table = page.split("| symptom | doctor's line | what to do |").nth(1).expect("the table");
    let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 15, "{}", rows.len());
    for row in rows {
        let cell = row.split(" | ").nth(1).unwrap_or_default();
        assert!(cell.starts_with("none") || !named(cell).is_empty(), "no line of doctor: {row}");
    }
}
