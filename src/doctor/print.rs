//! The report as text and as JSON.

use std::io::{IsTerminal, Write, stdout};

use serde_json::json;

use super::line::{Line, Status, worst};

/// Columns that a check's name takes.
const NAME: usize = 24;

/// Writes the report. A closed pipe is its reader's business.
pub(super) fn report(lines: &[Line], as_json: bool) {
    let mut out = stdout().lock();
    let text = if as_json { json_text(lines) } else { plain_text(lines, out.is_terminal()) };
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

fn json_text(lines: &[Line]) -> String {
    let report = json!({ "worst": worst(lines), "lines": lines });
    format!("{report:#}\n")
}

fn plain_text(lines: &[Line], colour: bool) -> String {
    let mut text = String::new();
    for line in lines {
        let status = line.status.as_str();
        let painted = match (colour, line.status) {
            (false, _) => format!("{status:<5}"),
            (true, Status::Ok) => format!("\x1b[32m{status:<5}\x1b[0m"),
            (true, Status::Skip) => format!("\x1b[2m{status:<5}\x1b[0m"),
            (true, Status::Warn) => format!("\x1b[33m{status:<5}\x1b[0m"),
            (true, Status::Fail) => format!("\x1b[1;31m{status:<5}\x1b[0m"),
        };
        text.push_str(&format!("{painted} {:<NAME$} ", line.check));
        let indent = format!("\n{:1$}", "", NAME + 7);
        text.push_str(&line.says.lines().collect::<Vec<_>>().join(&indent));
        if let Some(fix) = &line.fix {
            text.push_str(&format!("{indent}→ {fix}"));
        }
        text.push('\n');
    }
    let count = |status| lines.iter().filter(|line| line.status == status).count();
    text.push_str(&format!(
        "doctor: {} ok, {} warn, {} fail, {} skipped\n",
        count(Status::Ok),
        count(Status::Warn),
        count(Status::Fail),
        count(Status::Skip)
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        let lines = [Line::ok("shm", "enough"), Line::fail("nixl", "none\ntried: /x", "install it").with("n", 1)];
        let text = plain_text(&lines, false);
        assert!(
            text.contains("FAIL  nixl                     none\n                               tried: /x\n"),
            "{text}"
        );
        assert!(text.contains("→ install it\n"));
        assert!(text.ends_with("doctor: 1 ok, 0 warn, 1 fail, 0 skipped\n"));
        let parsed: serde_json::Value = serde_json::from_str(&json_text(&lines)).unwrap();
        assert_eq!(parsed["worst"], "fail");
        assert_eq!(parsed["lines"][1]["facts"]["n"], 1);
        assert!(plain_text(&lines, true).contains("\x1b[1;31mFAIL "));
    }
}
