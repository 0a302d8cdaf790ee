//! The terminal: raw, on its alternate screen, and put back however the program ends. A panic is covered by ratatui's own hook, a signal by
//! the token that ends the loop.

use std::io;
use std::time::Duration;

use anyhow::{Context, Result};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event as TerminalEvent, KeyEvent};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::app::App;
use super::draw::draw;

/// How soon the reading thread notices that it should end.
const LOOK_UP: Duration = Duration::from_millis(100);
/// Keys that may wait; a person types no faster than they are read.
const QUEUE: usize = 64;

/// What came from the terminal.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Key(KeyEvent),
    Resized,
}

/// An open screen. Dropping it puts the terminal back.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    events: mpsc::Receiver<Event>,
    ended: CancellationToken,
}

impl Screen {
    pub(super) fn open() -> Result<Self> {
        let terminal = ratatui::try_init().context("take over the terminal")?;
        let (sender, events) = mpsc::channel(QUEUE);
        let ended = CancellationToken::new();
        let screen = Self { terminal, events, ended: ended.clone() };
        let read = move || read_events(&sender, &ended);
        // Ends within a moment of the screen's end.
        let _detached =
            std::thread::Builder::new().name("top-keys".to_owned()).spawn(read).context("read the keyboard")?;
        Ok(screen)
    }

    pub(super) fn draw(&mut self, app: &App) -> Result<()> {
        self.terminal.draw(|frame| draw(frame, app)).context("draw")?;
        Ok(())
    }

    /// The next key; none once the terminal is gone.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(super) async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Puts the terminal back, and says when that failed.
    pub(super) fn close(self) -> Result<()> {
        self.ended.cancel();
        ratatui::try_restore().context("put the terminal back")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if !self.ended.is_cancelled() {
            self.ended.cancel();
            // There is no other place left to say so.
            drop(ratatui::try_restore());
        }
    }
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Screen")
    }
}

fn read_events(sender: &mpsc::Sender<Event>, ended: &CancellationToken) {
    while !ended.is_cancelled() {
        let event = match next_event() {
            Ok(Some(TerminalEvent::Key(key))) => Event::Key(key),
            Ok(Some(TerminalEvent::Resize(..))) => Event::Resized,
            Ok(_) => continue,
            Err(_) => return,
        };
        if sender.blocking_send(event).is_err() {
            return;
        }
    }
}

fn next_event() -> io::Result<Option<TerminalEvent>> {
    if event::poll(LOOK_UP)? { event::read().map(Some) } else { Ok(None) }
}
