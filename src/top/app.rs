//! What the screen is showing, and what keys do to it. Pure: no terminal, no network.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::Value;

use super::snapshot::Snapshot;

/// Which order the lower table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Recent,
    Slowest,
}

/// The screen's state.
#[derive(Clone, Debug)]
pub(super) struct App {
    pub(super) url: String,
    pub(super) snapshot: Option<Snapshot>,
    /// Why the last look failed; the snapshot before it stays.
    pub(super) trouble: Option<String>,
    pub(super) order: Order,
    pub(super) selected: usize,
    pub(super) paused: bool,
}

/// What a key asks of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Nothing,
    Redraw,
    Look,
    Quit,
}

impl App {
    pub(super) fn new(url: &str) -> Self {
        let url = url.trim_end_matches('/').to_owned();
        Self { url, snapshot: None, trouble: None, order: Order::Recent, selected: 0, paused: false }
    }

    /// The rows of the lower table.
    pub(super) fn rows(&self) -> &[Value] {
        match (&self.snapshot, self.order) {
            (Some(snapshot), Order::Recent) => &snapshot.recent,
            (Some(snapshot), Order::Slowest) => &snapshot.slowest,
            (None, _) => &[],
        }
    }

    /// Takes what a look has brought. The selection stays on the same transfer when that is still listed.
    pub(super) fn take(&mut self, looked: Result<Snapshot, String>) {
        match looked {
            Ok(snapshot) => {
                let before = self.rows().get(self.selected).and_then(id).map(str::to_owned);
                self.snapshot = Some(snapshot);
                self.trouble = None;
                let again = before.and_then(|before| self.rows().iter().position(|row| id(row) == Some(&before)));
                self.selected = again.unwrap_or(self.selected).min(self.rows().len().saturating_sub(1));
            }
            Err(trouble) => self.trouble = Some(trouble),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever other keys there are mean nothing here")]
    pub(super) fn key(&mut self, key: KeyEvent) -> Wish {
        if key.kind == KeyEventKind::Release {
            return Wish::Nothing;
        }
        let last = self.rows().len().saturating_sub(1);
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Wish::Quit,
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
            KeyCode::Char('r') => return Wish::Look,
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Char('s') => {
                self.order = if self.order == Order::Recent { Order::Slowest } else { Order::Recent };
                self.selected = 0;
            }
            KeyCode::Down | KeyCode::Char('j') => self.selected = self.selected.saturating_add(1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            KeyCode::Home => self.selected = 0,
            KeyCode::End => self.selected = last,
            _ => return Wish::Nothing,
        }
        Wish::Redraw
    }
}

/// A transfer's or a request's id.
pub(super) fn id(row: &Value) -> Option<&str> {
    row.get("transfer_id").or_else(|| row.get("id")).and_then(Value::as_str)
}
