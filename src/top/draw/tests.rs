//! Whole frames on ratatui's test terminal.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::json;

use super::*;
use crate::top::app::Wish;
use crate::top::snapshot::Missing;

fn sidecar() -> Snapshot {
    let transfer = |id: &str, wire: u64| {
        json!({
            "transfer_id": id, "dp_rank": 1, "state": "done", "bytes": 262_144_000, "total_us": wire + 1500,
            "stages_us": { "queued": 500, "post": 1000, "wire": wire }, "source": { "engine_id": "prefill-7" },
            "why": { "text": "wire: 41 ms against 6 ms" },
        })
    };
    Snapshot {
        url: "http://d:7700".to_owned(),
        kind: Kind::Sidecar,
        version: json!({ "version": "0.1.0" }),
        ranks: vec![
            json!({
                "dp_rank": 0, "state": "ready", "reasons": [], "load": { "running": 3, "waiting": 1, "kv_usage": 0.25 },
                "staging": { "capacity_blocks": 64, "used_blocks": 9, "quarantined_blocks": 2 }, "in_flight": 4, "handles": 5,
            }),
            json!({ "dp_rank": 1, "state": "degraded", "reasons": ["layout refused", "no memory"] }),
        ],
        recent: vec![transfer("0-aaaa", 6000), transfer("0-bbbb", 41_000)],
        slowest: vec![transfer("0-bbbb", 41_000), transfer("0-aaaa", 6000)],
        latency: json!({ "groups": [{ "stage": "wire", "count": 12, "p50_us": 6000, "p90_us": 7000, "p99_us": 41_000, "max_us": 41_900 }] }),
        peers: Vec::new(),
        missing: Vec::new(),
    }
}

fn shown(app: &App, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, app)).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(width));
    rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>() + "\n").collect()
}

fn app(snapshot: Snapshot) -> App {
    let mut app = App::new("http://d:7700/");
    app.take(Ok(snapshot));
    app
}

fn assert_shows(text: &str, all: &[&str]) {
    for words in all {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
}

#[test]
fn a_sidecar_s_ranks_stages_and_transfers() {
    let text = shown(&app(sidecar()), 140, 34);
    assert_shows(
        &text,
        &["kvgate sidecar http://d:7700 · 0.1.0 · 1 of 2 ready", "9/64 +2q", "25 %", "layout refused; no memory"],
    );
    assert_shows(
        &text,
        &["stages, last minute", "41.9 ms", "transfers, newest first", "250 MiB", "wire 6.0 ms", "qppp"],
    );
    assert_shows(
        &text,
        &["0-aaaa: queued 500 µs · post 1.0 ms · wire 6.0 ms", "wire: 41 ms against 6 ms", "from prefill-7"],
    );
    assert!(text.find("0-aaaa") < text.find("0-bbbb"));
}

#[test]
fn keys_turn_the_order_and_move_the_selection() {
    let mut app = app(sidecar());
    let mut press = |code| app.key(KeyEvent::new(code, KeyModifiers::NONE));
    assert_eq!([press(KeyCode::Char('s')), press(KeyCode::Down), press(KeyCode::Down)], [Wish::Redraw; 3]);
    assert_eq!(
        [press(KeyCode::Char('p')), press(KeyCode::Char('r')), press(KeyCode::Char('q'))],
        [Wish::Redraw, Wish::Look, Wish::Quit]
    );
    assert_eq!(app.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Wish::Quit);
    assert_eq!(app.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::NONE)), Wish::Nothing);
    let text = shown(&app, 140, 34);
    assert_shows(&text, &["paused", "transfers, slowest first", "0-aaaa: queued"]);
    // The selection follows the transfer, not the place.
    let mut turned = sidecar();
    turned.slowest.reverse();
    app.take(Ok(turned));
    assert_eq!(app.selected, 0);
    // A shorter list leaves it on its last row.
    (app.selected, app.order) = (1, Order::Recent);
    app.take(Ok(Snapshot { recent: Vec::new(), ..sidecar() }));
    assert_eq!(app.selected, 0);
}

#[test]
fn a_router_and_what_it_does_not_answer() {
    let mut snapshot = Snapshot {
        kind: Kind::Router,
        ranks: vec![
            json!({ "target": "decode-0@1", "ready": false, "state": "unknown", "reasons": ["sidecar unreachable"], "in_flight": 2 }),
        ],
        recent: Vec::new(),
        slowest: Vec::new(),
        latency: Value::Null,
        missing: vec![Missing { path: "/v1/requests", why: "not answered here".to_owned() }],
        ..sidecar()
    };
    assert_shows(
        &shown(&app(snapshot.clone()), 120, 24),
        &["kvgate router", "decode-0@1", "sidecar unreachable", "nothing yet", "/v1/requests: not answered"],
    );
    snapshot.recent = vec![json!({
        "id": "request-0123456789", "path": "pd", "outcome": "ok", "total_us": 2_050_000, "ttft_us": 41_000, "code": null,
        "timeline": [{ "leg": "prefill", "took_us": 30_000 }, { "leg": "decode", "took_us": 2_000_000 }],
    })];
    assert_shows(&shown(&app(snapshot), 120, 24), &["…st-0123456789", "pd", "2.05 s", "decode 2.00 s", "PDDD"]);
}

#[test]
fn trouble_keeps_what_was_seen_before() {
    let mut empty = App::new("http://d:7700");
    assert_shows(&shown(&empty, 60, 10), &["asking http://d:7700 …", "q quit"]);
    empty.take(Err("connection refused".to_owned()));
    assert_shows(&shown(&empty, 60, 10), &["connection refused"]);
    let mut app = app(sidecar());
    app.take(Err("connection refused".to_owned()));
    assert_shows(&shown(&app, 160, 34), &["connection refused", "0-aaaa"]);
}

#[test]
fn no_size_of_terminal_is_too_small() {
    for (width, height) in [(1, 1), (8, 3), (40, 12), (80, 24), (300, 100)] {
        shown(&app(sidecar()), width, height);
    }
}
