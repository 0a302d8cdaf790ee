//! Where D finds the virtual engine. A port that somebody else has costs its rank only: the others go on, and it is tried again.

use std::sync::Arc;
use std::time::Duration;

use kv::ids::DpRank;
use side_channel::{Answer, Endpoint, ServeError, Server, SideChannel};
use tokio::time::Instant;

use super::jobs::{self, Event};
use super::{Rank, Wake};
use crate::model::StartError;
use crate::virtual_engine::Desk;

/// Pauses between tries to listen.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// A rank's place for D.
#[derive(Debug)]
pub(crate) struct Door {
    /// Where, or where it shall be.
    pub endpoint: Endpoint,
    /// Who answers there.
    pub desk: Arc<Desk>,
    /// Where to listen; the port is the same.
    listen: Endpoint,
    /// What listens; it ends with the rank.
    server: Result<Server, Refused>,
}

/// Nothing listens.
#[derive(Debug)]
struct Refused {
    /// In words for an operator.
    why: String,
    /// Before the next try.
    pause: Duration,
}

impl Door {
    /// Listens at `listen`; D is told to come to `advertise`, with the same port.
    ///
    /// # Errors
    /// The door all the same, which tries again once its rank runs, and why it is closed.
    pub(crate) async fn open(
        side_channel: &dyn SideChannel,
        listen: Endpoint,
        advertise: &str,
        rank: DpRank,
    ) -> (Self, Option<StartError>) {
        let desk = Arc::new(Desk::new());
        let opened = side_channel.serve(&listen, Arc::clone(&desk) as Arc<dyn Answer>).await;
        let port = opened.as_ref().map_or(listen.port, |server| server.local_endpoint().port);
        let endpoint = Endpoint::new(advertise, port);
        match opened {
            Ok(server) => (Self { endpoint, desk, listen, server: Ok(server) }, None),
            Err(source) => {
                let error = StartError::Listen { endpoint: listen.clone(), rank, source };
                let refused = Refused { why: in_words(&error), pause: FIRST_PAUSE };
                (Self { endpoint, desk, listen, server: Err(refused) }, Some(error))
            }
        }
    }

    /// Why D cannot come in.
    pub(crate) fn closed_because(&self) -> Option<&str> {
        self.server.as_ref().err().map(|refused| refused.why.as_str())
    }
}

impl Rank {
    /// Plans another try if nothing listens.
    pub(super) fn watch_door(&mut self) {
        let Some(Door { server: Err(refused), .. }) = &self.own.door else { return };
        tracing::error!(dp_rank = %self.own.dp_rank, why = %refused.why, "no place for the decode engine to come to: the rank is not ready");
        self.timers.set(&Wake::Door, Some(Instant::now() + refused.pause));
    }

    /// Tries to listen again.
    pub(super) fn open_door(&self) {
        let Some(door) = &self.own.door else { return };
        let (side_channel, listen) = (Arc::clone(&self.shared.side_channel), door.listen.clone());
        let (desk, events) = (Arc::clone(&door.desk), self.events.clone());
        self.shared.tasks.spawn(async move {
            let answer = side_channel.serve(&listen, desk).await;
            jobs::report(&events, Event::Listening { answer }).await;
        });
    }

    pub(super) fn on_listening(&mut self, answer: Result<Server, ServeError>) {
        let rank = self.own.dp_rank;
        let Some(door) = &mut self.own.door else { return };
        match (answer, &mut door.server) {
            (Ok(server), _) => {
                door.endpoint.port = server.local_endpoint().port;
                tracing::info!(dp_rank = %rank, endpoint = %door.endpoint, "the decode engine can come now");
                door.server = Ok(server);
            }
            (Err(source), Err(refused)) => {
                refused.why = in_words(&StartError::Listen { endpoint: door.listen.clone(), rank, source });
                refused.pause = refused.pause.saturating_mul(2).min(LONGEST_PAUSE);
                self.timers.set(&Wake::Door, Some(Instant::now() + refused.pause));
            }
            (Err(_), Ok(_)) => {}
        }
    }
}

/// With its cause, as readiness has no chain of errors.
fn in_words(error: &StartError) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}
