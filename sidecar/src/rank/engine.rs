//! Following the rank's engine: asked once per start, a session per engine id.

use std::sync::Arc;
use std::time::Duration;

use kv::readiness::{Facts, MetadataFact};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::jobs::{self, Event};
use super::{CLOSE_WITHIN, Rank, Stage, Wake};
use crate::digest::reader::Digester;
use crate::model::TransferError;
use crate::model::counters::add;
use crate::session::{Identity, IdentityError, Session, SessionError, Teller};
use crate::watcher::EngineView;

/// Pauses between questions that were not answered, or sessions that could not be built.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// What is known of the engine.
#[derive(Debug, Default)]
pub(crate) struct Engine {
    /// The pages.
    pub(super) view: Arc<EngineView>,
    /// The last incarnation that has been asked (or is being asked).
    asked: u64,
    /// A question or the building of a session is under way.
    busy: bool,
    /// Failures in a row.
    failures: u32,
    /// Who it is, once a session (or a teller) stands on it.
    pub(super) identity: Option<Arc<Identity>>,
    /// Why there is none.
    metadata: MetadataFact,
    blocked_by: Option<String>,
}

impl Engine {
    /// What readiness is derived from.
    pub(super) fn facts(&self, draining: bool) -> Facts {
        Facts {
            healthy: self.view.healthy,
            failures: self.view.failures,
            version: self.view.version.clone(),
            metadata: self.metadata.clone(),
            blocked_by: self.blocked_by.clone(),
            draining,
        }
    }

    fn pause(&mut self) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1).min(8);
        pause.min(LONGEST_PAUSE)
    }
}

impl Rank {
    pub(super) fn on_view(&mut self, view: Arc<EngineView>) {
        self.engine.view = view;
        self.ask_engine();
    }

    /// Asks the side channel if the engine has (re)started since the last time, or the last question failed and its pause is over.
    pub(super) fn ask_engine(&mut self) {
        let engine = &mut self.engine;
        let Some(version) = engine.view.spoken else { return };
        if engine.busy || engine.view.healthy != Some(true) || engine.view.incarnation == engine.asked {
            return;
        }
        engine.busy = true;
        engine.asked = engine.view.incarnation;
        let incarnation = engine.asked;
        let (side_channel, endpoint) = (Arc::clone(&self.shared.side_channel), self.own.engine_endpoint.clone());
        let (tp_size, events) = (self.shared.config.tp_size, self.events.clone());
        self.shared.tasks.spawn(async move {
            let answer = Identity::ask(&*side_channel, &endpoint, tp_size, version).await;
            jobs::report(&events, Event::Identity { incarnation, answer }).await;
        });
    }

    pub(super) fn on_identity(&mut self, incarnation: u64, answer: Result<Identity, IdentityError>) {
        self.engine.busy = false;
        match answer {
            Err(error @ IdentityError::Ask { .. }) => {
                self.engine.metadata = MetadataFact::Failed(error.to_string());
                self.ask_again(incarnation);
            }
            Err(error) => self.engine.metadata = MetadataFact::Unusable(error.to_string()),
            Ok(identity) => {
                if self.engine.identity.as_ref().is_some_and(|known| known.engine == identity.engine) {
                    self.engine.failures = 0;
                    self.engine.metadata = MetadataFact::Known;
                } else {
                    self.adopt(Arc::new(identity));
                }
            }
        }
        // The pages may have changed meanwhile.
        self.ask_engine();
    }

    fn ask_again(&mut self, incarnation: u64) {
        let pause = self.engine.pause();
        tracing::info!(dp_rank = %self.own.dp_rank, ?pause, "engine's side channel will be asked again");
        self.engine.asked = incarnation.saturating_sub(1);
        // Until the pause is over, the question counts as being asked.
        self.engine.busy = true;
        self.timers.set(&Wake::Engine, Some(Instant::now() + pause));
    }

    /// The pause before another question is over.
    pub(super) fn engine_pause_over(&mut self) {
        self.engine.busy = false;
        self.ask_engine();
    }

    /// Another engine is there: the old one's session ends, a new one is built.
    fn adopt(&mut self, identity: Arc<Identity>) {
        if let Some(old) = self.engine.identity.take() {
            tracing::warn!(dp_rank = %self.own.dp_rank, old = %old.engine, new = %identity.engine, "engine restarted");
            add(&self.shared.counters.engine_restarts, 1);
        }
        let gone = self.retire();
        self.engine.busy = true;
        self.engine.metadata = MetadataFact::Unknown;
        let (builder, events) = (self.own.builder.clone(), self.events.clone());
        if self.decodes() {
            self.shared.tasks.spawn(async move {
                // What was the old one's is given back first: both together are more memory than was granted.
                if let Some(gone) = gone {
                    drop(gone.await);
                }
                let answer = builder.build(Arc::clone(&identity)).await.map(Box::new);
                jobs::report(&events, Event::Session { identity, answer }).await;
            });
        } else {
            self.shared.tasks.spawn(async move {
                let answer = builder.teller(&identity, None).await;
                jobs::report(&events, Event::Teller { identity, answer }).await;
            });
        }
    }

    pub(super) fn on_session(&mut self, identity: &Arc<Identity>, answer: Result<Box<Session>, SessionError>) {
        let Some(session) = self.built(identity, answer) else { return };
        let mut session = *session;
        if let Some(door) = &self.own.door {
            door.desk.set(Some(Arc::clone(&session.virtual_engine)));
        }
        for (shard, mut stream) in session.notifications.drain(..) {
            let (events, stop) = (self.events.clone(), self.shared.stop.clone());
            let session = session.virtual_engine.id.clone();
            // Ends with its agent: the stream closes.
            self.shared.tasks.spawn(async move {
                loop {
                    let notification = tokio::select! {
                        () = stop.cancelled() => return,
                        notification = stream.recv() => notification,
                    };
                    let Some(notification) = notification else { return };
                    let session = session.clone();
                    jobs::report(&events, Event::Notified { session, shard, notification }).await;
                }
            });
        }
        tracing::info!(
            dp_rank = %self.own.dp_rank,
            engine = %identity.engine,
            virtual_engine = %session.virtual_engine.id,
            slots = session.slots,
            "staging is ready"
        );
        let tokens = identity.shards.first().map_or(0, |shard| shard.layout.block_tokens());
        let fits = tokens.saturating_mul(u64::from(session.slots));
        if let Some(max_model_len) = self.engine.view.max_model_len.filter(|longest| *longest > fits) {
            tracing::warn!(
                dp_rank = %self.own.dp_rank,
                max_model_len,
                staging_tokens = fits,
                "staging is smaller than the longest request: such requests will be refused, --staging-bytes can be raised"
            );
        }
        let stage = Stage::new(session);
        self.stage = Some(stage);
    }

    pub(super) fn on_teller(&mut self, identity: &Arc<Identity>, answer: Result<Teller, SessionError>) {
        let Some(teller) = self.built(identity, answer) else { return };
        self.handles.adopt(teller, Digester::new(self.own.builder.clone(), Arc::clone(identity)));
    }

    /// Takes note of what building on an identity came to.
    fn built<T>(&mut self, identity: &Arc<Identity>, answer: Result<T, SessionError>) -> Option<T> {
        self.engine.busy = false;
        match answer {
            Ok(built) => {
                self.engine.identity = Some(Arc::clone(identity));
                self.engine.metadata = MetadataFact::Known;
                self.engine.blocked_by = None;
                self.engine.failures = 0;
                self.ask_engine();
                Some(built)
            }
            Err(error) => {
                tracing::error!(dp_rank = %self.own.dp_rank, %error, "session not built");
                self.engine.blocked_by = Some(error.to_string());
                let asked = self.engine.asked;
                self.ask_again(asked);
                None
            }
        }
    }

    /// Ends the session: transfers fail, landed slots are gone with their engine, the agents are closed beside the loop, by the task that is
    /// given back. It takes no longer than [`CLOSE_WITHIN`]; what cannot be closed by then keeps its memory, which is logged.
    fn retire(&mut self) -> Option<JoinHandle<()>> {
        self.cancel_all(&TransferError::EngineRestarted { rank: self.own.dp_rank });
        if let Some(door) = &self.own.door {
            door.desk.set(None);
        }
        let (mut closing, agents) = (self.handles.take_agents(), self.own.builder.agents.clone());
        if let Some(digester) = self.handles.take_digester() {
            let watched = agents.clone();
            self.shared.tasks.spawn(async move {
                let reader = digester.end().await.into_iter().collect();
                let _: nixl::Closed = watched.close(reader, CLOSE_WITHIN).await;
            });
        }
        if let Some(stage) = self.stage.take() {
            closing.extend(stage.agents());
        }
        let is_empty = closing.is_empty();
        // The agents keep the arenas until no hardware can write them; it is logged when that cannot be shown.
        let close = async move {
            let _: nixl::Closed = agents.close(closing, CLOSE_WITHIN).await;
        };
        (!is_empty).then(|| self.shared.tasks.spawn(close))
    }
}
