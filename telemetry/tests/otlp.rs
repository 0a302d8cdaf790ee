//! The exporter against a collector over real HTTP, one that hangs, and none at all.

#![cfg(feature = "otlp")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/otlp_receiver.rs"]
mod otlp_receiver;

use std::net::TcpListener;
use std::time::Duration;

use http::HeaderMap;
use otlp_receiver::{Collector, Sent};
use telemetry::otlp::{Exporter, Service, Settings};
use telemetry::trace::{Context, Kind, Lost, Span, Spans};
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(20);

fn start(address: std::net::SocketAddr, timeout_ms: u64) -> (Spans, Exporter) {
    let service = Service { name: "kvgate-test".to_owned(), version: "1".to_owned(), instance: "i".to_owned() };
    let timeout = Duration::from_millis(timeout_ms);
    let endpoint = format!("http://{address}/v1/traces").parse().unwrap();
    Exporter::start(Settings { endpoint, headers: HeaderMap::new(), service, share: 1.0, timeout })
}

fn request(spans: &Spans) -> (Context, Vec<Span>) {
    let (context, end) = (spans.receive(None).unwrap().context, Instant::now());
    let start = end - Duration::from_millis(250);
    let whole = Span::new(context, None, "request", start, end)
        .kind(Kind::Server)
        .text("outcome", "failed")
        .number("attempts", 2_u32);
    let leg = Span::new(context.child(), Some(context.span_id), "decode", start, end);
    (context, vec![whole.failed(Some("decode_failed")), leg])
}

fn soon<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_arrive_whole_and_the_rest_is_sent_at_the_end() {
    let collector = Collector::start("200 OK");
    let (spans, exporter) = start(collector.address, 5000);
    let (context, made) = request(&spans);
    spans.send(made);
    let got: Vec<Sent> = collector.next(PATIENCE).expect("a post");
    let [whole, leg] = got.as_slice() else { unreachable!("{got:?}") };
    assert_eq!((whole.service.as_str(), whole.name.as_str(), leg.name.as_str()), ("kvgate-test", "request", "decode"));
    assert_eq!(
        (&whole.trace, &whole.id),
        (&context.trace_id.to_be_bytes().to_vec(), &context.span_id.to_be_bytes().to_vec())
    );
    assert_eq!((&leg.trace, &leg.parent, whole.parent.is_empty()), (&whole.trace, &whole.id, true));
    assert_eq!((whole.said("outcome"), whole.said("attempts"), whole.failed, leg.failed), ("failed", "2", true, false));
    assert_eq!((whole.end - whole.start) / 1_000_000, 250);
    #[expect(clippy::disallowed_methods, reason = "spans have wall-clock times")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(now.as_secs() - whole.end / 1_000_000_000 < 30);

    spans.send(request(&spans).1);
    exporter.finish().await;
    assert_eq!(collector.next(PATIENCE).map(|spans| spans.len()), Some(2), "sent before the end");
    soon(|| (spans.counts().exported() == 4).then_some(()));
    spans.send(request(&spans).1);
    assert_eq!(spans.counts().dropped(Lost::Shutdown), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_collector_spans_are_dropped_and_counted_and_nobody_waits() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (spans, exporter) = start(nobody, 5000);
    let before = Instant::now();
    for _ in 0..10_000 {
        spans.send(request(&spans).1);
    }
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    soon(|| (spans.counts().dropped(Lost::Unreachable) > 0).then_some(()));
    exporter.finish().await;
    let lost: u64 =
        [Lost::Unreachable, Lost::QueueFull, Lost::Shutdown].map(|why| spans.counts().dropped(why)).iter().sum();
    assert_eq!((lost, spans.counts().exported()), (20_000, 0), "{:?}", spans.counts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_or_refuses_holds_nothing_up() {
    // The system takes connections in; nobody answers them.
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let (spans, exporter) = start(hanging.local_addr().unwrap(), 60_000);
    spans.send(request(&spans).1);
    // Once it is on its way the end of the process still does not wait for it.
    drop(soon(|| hanging.accept().ok()));
    let before = Instant::now();
    exporter.finish().await;
    assert!(before.elapsed() < Duration::from_secs(8), "{:?}", before.elapsed());
    let counts = spans.counts();
    assert_eq!(counts.dropped(Lost::Shutdown) + counts.dropped(Lost::Unreachable), 2, "{counts:?}");

    let collector = Collector::start("400 Bad Request");
    let (spans, exporter) = start(collector.address, 5000);
    spans.send(request(&spans).1);
    exporter.finish().await;
    assert_eq!((spans.counts().dropped(Lost::Refused), spans.counts().exported()), (2, 0));
    assert!(
        collector.next(PATIENCE).is_some() && collector.next(Duration::from_millis(1)).is_none(),
        "not tried again"
    );
}
