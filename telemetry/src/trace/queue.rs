//! From whoever ends spans to the exporter: a bounded queue that nobody waits at.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Context, Counts, Lost, Span};

/// Sets of spans (one request's, one transfer's) that wait for the exporter.
const WAITING: usize = 2048;

/// A process's way to its exporter. Off by default. Clones are handles.
#[derive(Clone, Debug, Default)]
pub struct Spans {
    on: Option<On>,
    counts: Arc<Counts>,
}

#[derive(Clone, Debug)]
struct On {
    queue: mpsc::Sender<Vec<Span>>,
    /// The share of traces begun here that are recorded.
    share: f64,
}

/// A request that is traced: its span, and what that is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The span that answers for it here.
    pub context: Context,
    /// The caller's span.
    pub parent: Option<u64>,
}

/// The two ends of a queue: for whoever makes spans, and for the exporter. `share` of the traces begun here are recorded.
pub fn channel(share: f64) -> (Spans, mpsc::Receiver<Vec<Span>>) {
    let (queue, receiver) = mpsc::channel(WAITING);
    (Spans { on: Some(On { queue, share }), counts: Arc::default() }, receiver)
}

impl Spans {
    /// Whether anything is recorded at all.
    pub fn are_on(&self) -> bool {
        self.on.is_some()
    }

    /// What became of them.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// A request comes in that may begin a trace. `None` when traces are off, or the caller has one that it does not want recorded:
    /// what it sent is passed on as it is then. What comes of a request without a trace may not be recorded either
    /// ([`Context::sampled`]), so that everybody further on knows.
    pub fn receive(&self, traceparent: Option<&str>) -> Option<Received> {
        let on = self.on.as_ref()?;
        match traceparent.and_then(Context::parse) {
            Some(caller) if caller.sampled => Some(Received { context: caller.child(), parent: Some(caller.span_id) }),
            Some(_) => None,
            None => Some(Received { context: Context::root(fastrand::f64() < on.share), parent: None }),
        }
    }

    /// A request comes in that is part of somebody's trace, or of none.
    pub fn continued(&self, traceparent: Option<&str>) -> Option<Received> {
        self.on.as_ref()?;
        let caller = traceparent.and_then(Context::parse).filter(|caller| caller.sampled)?;
        Some(Received { context: caller.child(), parent: Some(caller.span_id) })
    }

    /// Hands ended spans over. Never waits: what does not fit is counted and gone.
    pub fn send(&self, spans: Vec<Span>) {
        let Some(on) = &self.on else { return };
        let count = spans.len();
        if count > 0 && on.queue.try_send(spans).is_err() {
            let why = if on.queue.is_closed() { Lost::Shutdown } else { Lost::QueueFull };
            self.counts.lose(why, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_caller_decides_and_without_one_the_share_does() {
        let off = Spans::default();
        assert!(off.receive(Some(SAMPLED)).is_none() && off.continued(Some(SAMPLED)).is_none() && !off.are_on());
        let (all, _all) = channel(1.0);
        let (none, _none) = channel(0.0);
        for spans in [&all, &none] {
            let received = spans.receive(Some(SAMPLED)).unwrap();
            assert_eq!(received.context.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
            assert_eq!(received.parent, Some(0x00f0_67aa_0ba9_02b7));
            assert!(received.context.sampled);
            assert_eq!(spans.receive(Some(&SAMPLED.replace("-01", "-00"))), None);
        }
        let begun = |spans: &Spans| spans.receive(Some("nonsense")).unwrap();
        assert!(begun(&all).context.sampled && begun(&all).parent.is_none());
        assert!(!begun(&none).context.sampled);
        assert!(all.continued(None).is_none(), "a part of nothing");
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_and_nobody_waits() {
        let (spans, mut queue) = channel(1.0);
        let (context, now) = (Context::root(true), Instant::now());
        let one = || vec![Span::new(context, None, "request", now, now), Span::new(context, None, "decode", now, now)];
        for _ in 0..WAITING + 3 {
            spans.send(one());
        }
        assert_eq!(spans.counts().dropped(Lost::QueueFull), 6);
        queue.close();
        spans.send(one());
        assert_eq!(spans.counts().dropped(Lost::Shutdown), 2);
        assert_eq!(queue.len(), WAITING);
    }
}
