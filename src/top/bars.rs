//! A transfer's stages, or a request's legs, as a bar of letters: one letter per stage, so that it reads without colours too.

use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use serde_json::Value;

/// Cells of a whole bar.
pub(super) const WIDTH: usize = 24;

/// Stages of a transfer and legs of a request, in their order: the API's word, its letter, its colour.
const PARTS: [(&str, char, Color); 13] = [
    ("queued", 'q', Color::Yellow),
    ("handshake", 'h', Color::Magenta),
    ("post", 'p', Color::Blue),
    ("wire", 'w', Color::Cyan),
    ("verify", 'v', Color::LightBlue),
    ("landed_idle", 'i', Color::DarkGray),
    ("collect", 'c', Color::Green),
    ("queue", 'q', Color::Yellow),
    ("choice", 'o', Color::Magenta),
    ("prefill", 'P', Color::Blue),
    ("transfer", 'T', Color::Cyan),
    ("decode", 'D', Color::Green),
    ("stream", 's', Color::DarkGray),
];

/// How long each part took, in microseconds.
pub(super) fn parts(row: &Value) -> Vec<(&'static str, u64)> {
    let stages = row.get("stages_us");
    let legs = row.get("timeline").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let took = |name: &str| match stages {
        Some(stages) => stages.get(name).and_then(Value::as_u64).unwrap_or(0),
        None => {
            let of_leg = legs.iter().filter(|leg| leg.get("leg").and_then(Value::as_str) == Some(name));
            of_leg.filter_map(|leg| leg.get("took_us")?.as_u64()).sum()
        }
    };
    PARTS.iter().map(|(name, _, _)| (*name, took(name))).filter(|(_, us)| *us > 0).collect()
}

/// Those that the total is made of: what comes after the landing is the decode's time, not the transfer's.
fn of_total(row: &Value) -> Vec<(&'static str, u64)> {
    parts(row).into_iter().filter(|(name, _)| !["landed_idle", "collect"].contains(name)).collect()
}

/// The part of the total that took most.
pub(super) fn longest(row: &Value) -> Option<(&'static str, u64)> {
    of_total(row).into_iter().max_by_key(|(_, us)| *us)
}

/// The bar: each part's share of the cells, at least one for a part that there was.
pub(super) fn bar(row: &Value) -> Line<'static> {
    let parts = of_total(row);
    let total: u64 = parts.iter().map(|(_, us)| us).sum();
    let mut left = WIDTH;
    let mut spans = Vec::new();
    for (name, us) in parts {
        let share = us.saturating_mul(WIDTH as u64).checked_div(total).unwrap_or(0);
        let cells = usize::try_from(share).unwrap_or(WIDTH).clamp(1, left.max(1)).min(left);
        left = left.saturating_sub(cells);
        if let Some((_, letter, colour)) = PARTS.iter().find(|(known, _, _)| *known == name) {
            spans.push(Span::styled(letter.to_string().repeat(cells), Style::new().fg(*colour)));
        }
    }
    Line::from(spans)
}

/// A time as people read it, four figures at most.
pub(super) fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

/// A size as people read it.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => format!("{}.{} GiB", bytes >> 30, (bytes >> 20) % 1024 * 10 / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bar_shows_shares_and_forgets_no_stage() {
        let stages =
            json!({ "queued": 10, "handshake": 0, "post": 300, "wire": 41_000, "verify": 41_001, "collect": 90_000 });
        let row = json!({ "stages_us": stages });
        let text: String = bar(&row).spans.iter().map(|span| span.content.to_string()).collect();
        assert_eq!(text, "qpwwwwwwwwwwwvvvvvvvvvvv");
        assert_eq!(longest(&row), Some(("verify", 41_001)));
        assert_eq!(parts(&row).last(), Some(&("collect", 90_000)));
        assert!(bar(&json!({})).spans.is_empty());
    }

    #[test]
    fn a_request_s_legs_are_added_up() {
        let row = json!({ "timeline": [
            { "leg": "prefill", "took_us": 5 }, { "leg": "prefill", "took_us": 6 }, { "leg": "decode", "took_us": 3 }, { "leg": "new" },
        ] });
        assert_eq!(parts(&row), [("prefill", 11), ("decode", 3)]);
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(
            ["999 µs", "41.2 ms", "2.05 s"],
            [time(999), time(41_234), time(2_051_000)].each_ref().map(String::as_str)
        );
        assert_eq!(
            ["512 B", "32 KiB", "250 MiB", "1.5 GiB"].map(str::to_owned),
            [512, 32 << 10, 250 << 20, 3 << 29].map(size)
        );
    }
}
