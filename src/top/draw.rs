//! One frame: a heading, ranks, percentiles where there are any, transfers or requests, and the selected one in words.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table, TableState, Wrap};
use serde_json::Value;

use super::app::{App, Order, id};
use super::bars::{WIDTH, bar, longest, parts, size, time};
use super::snapshot::{Kind, Snapshot};

const KEYS: &str = "q quit · s slowest/recent · ↑↓ select · p pause · r now";

pub(super) fn draw(frame: &mut Frame<'_>, app: &App) {
    let Some(snapshot) = &app.snapshot else {
        let text = app.trouble.clone().unwrap_or_else(|| format!("asking {} …", app.url));
        let block = Block::new().borders(Borders::ALL).title("kvgate top").title_bottom(KEYS);
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }).block(block), frame.area());
        return;
    };
    let rank_rows = u16::try_from(snapshot.ranks.len()).unwrap_or(u16::MAX).saturating_add(3);
    let latency = latency_rows(snapshot);
    let latency_height =
        if latency.is_empty() { 0 } else { u16::try_from(latency.len()).unwrap_or(9).min(9).saturating_add(3) };
    let [head, ranks, middle, list, detail, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Max(rank_rows.min(frame.area().height / 3).max(4)),
        Constraint::Max(latency_height),
        Constraint::Min(5),
        Constraint::Length(6),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    heading(frame, head, app, snapshot);
    rank_table(frame, ranks, snapshot);
    if !latency.is_empty() {
        latency_table(frame, middle, latency);
    }
    list_table(frame, list, app, snapshot);
    selected(frame, detail, app, snapshot);
    frame.render_widget(Paragraph::new(KEYS).style(Style::new().add_modifier(Modifier::DIM)), foot);
}

fn heading(frame: &mut Frame<'_>, area: Rect, app: &App, snapshot: &Snapshot) {
    let kind = if snapshot.kind == Kind::Sidecar { "sidecar" } else { "router" };
    let ready = snapshot.ranks.iter().filter(|rank| is_ready(rank)).count();
    let mut spans = vec![
        Span::styled(format!("kvgate {kind} {}", snapshot.url), Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!(" · {} · {ready} of {} ready", text(&snapshot.version, "version"), snapshot.ranks.len())),
    ];
    if app.paused {
        spans.push(Span::styled(" · paused", Style::new().fg(Color::Yellow)));
    }
    if let Some(trouble) = &app.trouble {
        spans.push(Span::styled(format!(" · {trouble}"), Style::new().fg(Color::Red)));
    }
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
}

/// A sidecar says it by the state, a router by a flag.
fn is_ready(rank: &Value) -> bool {
    rank.get("ready").and_then(Value::as_bool).unwrap_or_else(|| text(rank, "state") == "ready")
}

fn rank_table(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let sidecar = snapshot.kind == Kind::Sidecar;
    let rows = snapshot.ranks.iter().map(|rank| {
        let name = if sidecar { number(rank, "/dp_rank").to_string() } else { first_text(rank, &["id", "target"]) };
        // A router's figures stand in `load` on one page and beside it on the other.
        let figure = |name: &str| {
            let found = rank.pointer(&format!("/load/{name}")).or_else(|| rank.get(name)).and_then(Value::as_u64);
            found.map_or_else(|| "-".to_owned(), |figure| figure.to_string())
        };
        let usage = rank.pointer("/load/kv_usage").and_then(Value::as_f64);
        let usage = usage.map_or_else(|| "-".to_owned(), |usage| format!("{:.0} %", usage * 100.0));
        let state = text(rank, "state").to_owned();
        let colour = if is_ready(rank) { Color::Green } else { Color::Red };
        let cells = vec![
            name,
            state,
            figure("running"),
            figure("waiting"),
            usage,
            staging(rank),
            figure("in_flight"),
            figure("handles"),
            reasons(rank),
        ];
        Row::new(cells).style(Style::new().fg(colour))
    });
    let name = if sidecar { 5 } else { 22 };
    let widths = [
        Constraint::Length(name),
        Constraint::Length(12),
        Constraint::Length(4),
        Constraint::Length(5),
        Constraint::Length(6),
        Constraint::Length(15),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Fill(1),
    ];
    let heads = ["rank", "state", "run", "wait", "kv", "staging", "flight", "handles", "why not"];
    table(frame, area, "ranks", &heads, rows.collect(), &widths);
}

/// Blocks of staging: used, held back, all.
fn staging(rank: &Value) -> String {
    if let Some(used) = rank.pointer("/load/staging_used").and_then(Value::as_f64) {
        return format!("{:.0} %", used * 100.0);
    }
    let capacity = number(rank, "/staging/capacity_blocks");
    if capacity == 0 {
        return "-".to_owned();
    }
    let used = format!("{}/{capacity}", number(rank, "/staging/used_blocks"));
    match number(rank, "/staging/quarantined_blocks") {
        0 => used,
        held => format!("{used} +{held}q"),
    }
}

fn reasons(rank: &Value) -> String {
    let list = rank.get("reasons").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
}

fn latency_rows(snapshot: &Snapshot) -> Vec<Row<'static>> {
    let groups = snapshot.latency.get("groups").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let row = |group: &Value| {
        let us = |name: &str| time(group.get(name).and_then(Value::as_u64).unwrap_or(0));
        let stage = text(group, "stage").to_owned();
        Row::new(vec![
            stage,
            number(group, "/count").to_string(),
            us("p50_us"),
            us("p90_us"),
            us("p99_us"),
            us("max_us"),
        ])
    };
    groups.iter().map(row).collect()
}

fn latency_table(frame: &mut Frame<'_>, area: Rect, rows: Vec<Row<'static>>) {
    let widths = [
        Constraint::Length(12),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Fill(1),
    ];
    table(frame, area, "stages, last minute", &["stage", "count", "p50", "p90", "p99", "max"], rows, &widths);
}

fn list_table(frame: &mut Frame<'_>, area: Rect, app: &App, snapshot: &Snapshot) {
    let sidecar = snapshot.kind == Kind::Sidecar;
    let rows: Vec<Row<'static>> = app.rows().iter().map(|row| list_row(row, sidecar)).collect();
    let what = if sidecar { "transfers" } else { "requests" };
    let order = if app.order == Order::Recent { "newest" } else { "slowest" };
    let title = format!("{what}, {order} first");
    let heads: &[&str] = if sidecar {
        &["transfer", "rank", "state", "size", "total", "stages"]
    } else {
        &["request", "path", "outcome", "ttft", "total", "legs"]
    };
    let heads: Vec<&str> = heads.iter().copied().chain(["longest"]).collect();
    let widths = [
        Constraint::Length(14),
        Constraint::Length(5),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(u16::try_from(WIDTH).unwrap_or(24)),
        Constraint::Fill(1),
    ];
    let legend = if sidecar {
        "q queued · h handshake · p post · w wire · v verify"
    } else {
        "q queue · o choice · P prefill · T transfer · D decode · s stream"
    };
    let style = Style::new().add_modifier(Modifier::REVERSED);
    let title = format!("{title} ({legend})");
    let drawn = framed(&title, &heads, rows, &widths).row_highlight_style(style);
    let mut state = TableState::new().with_selected((!app.rows().is_empty()).then_some(app.selected));
    frame.render_stateful_widget(drawn, area, &mut state);
}

fn list_row(row: &Value, sidecar: bool) -> Row<'static> {
    let total = row.get("total_us").and_then(Value::as_u64).map_or_else(|| "-".to_owned(), time);
    let longest = longest(row).map_or_else(String::new, |(name, us)| format!("{name} {}", time(us)));
    let tail = tail(id(row).unwrap_or_default());
    let cells: [String; 5] = if sidecar {
        let state = row.pointer("/failure/code").and_then(Value::as_str).unwrap_or_else(|| text(row, "state"));
        [tail, number(row, "/dp_rank").to_string(), state.to_owned(), size(number(row, "/bytes")), total]
    } else {
        let ttft = row.get("ttft_us").and_then(Value::as_u64).map_or_else(|| "-".to_owned(), time);
        [tail, text(row, "path").to_owned(), first_text(row, &["code", "outcome"]), ttft, total]
    };
    Row::new(cells.into_iter().map(Line::from).chain([bar(row), Line::from(longest)]))
}

/// The end of an id: that is where ids of one process differ.
fn tail(id: &str) -> String {
    const SHOWN: usize = 13;
    let count = id.chars().count();
    if count <= SHOWN { id.to_owned() } else { format!("…{}", id.chars().skip(count - SHOWN).collect::<String>()) }
}

/// The selected one: all its times, why it was slow, why it failed; else which pages are missing.
fn selected(frame: &mut Frame<'_>, area: Rect, app: &App, snapshot: &Snapshot) {
    let mut lines = Vec::new();
    if let Some(row) = app.rows().get(app.selected) {
        let times: Vec<String> = parts(row).iter().map(|(name, us)| format!("{name} {}", time(*us))).collect();
        lines.push(Line::from(format!("{}: {}", id(row).unwrap_or("?"), times.join(" · "))));
        let why = row.pointer("/why/text").or_else(|| row.pointer("/failure/detail")).and_then(Value::as_str);
        lines.extend(why.map(|why| Line::from(why.to_owned()).style(Style::new().fg(Color::Yellow))));
        let source = row.get("address").or_else(|| row.pointer("/source/engine_id")).and_then(Value::as_str);
        lines.extend(source.map(|source| Line::from(format!("from {source}"))));
    } else {
        lines.push(Line::from("nothing yet"));
    }
    for missing in &snapshot.missing {
        lines.push(
            Line::from(format!("{}: {}", missing.path, missing.why)).style(Style::new().add_modifier(Modifier::DIM)),
        );
    }
    let block = Block::new().borders(Borders::ALL).title("selected");
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block), area);
}

fn table(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    heads: &[&str],
    rows: Vec<Row<'static>>,
    widths: &[Constraint],
) {
    frame.render_widget(framed(title, heads, rows, widths), area);
}

fn framed(title: &str, heads: &[&str], rows: Vec<Row<'static>>, widths: &[Constraint]) -> Table<'static> {
    let heads = Row::new(heads.iter().map(|head| (*head).to_owned())).style(Style::new().add_modifier(Modifier::BOLD));
    Table::new(rows, widths.iter().copied())
        .header(heads)
        .block(Block::new().borders(Borders::ALL).title(title.to_owned()))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or("?")
}

/// The first of these that there is.
fn first_text(value: &Value, names: &[&str]) -> String {
    names.iter().find_map(|name| value.get(name)?.as_str()).unwrap_or("?").to_owned()
}

fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

#[cfg(test)]
mod tests;
