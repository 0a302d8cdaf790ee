//! Queues that are full, calls that take too long, notifications that nobody takes.

use std::time::Duration;

use bytes::Bytes;
use nixl::{Attention, Closed, Fabric, FabricError};

use crate::library::{DEADLINE, FOR_EVER, Knob, Mock, wait_until};

#[test]
fn a_full_queue_is_busy_and_a_long_post_shows_in_the_lap() {
    let mock = Mock::take();
    let pair = mock.pair();
    let reader = mock.agent("small", |config| config.max_queued = 2);
    let peer = reader.load_peer(pair.source.local_metadata().wait().unwrap()).wait().unwrap();
    let here = reader.register(pair.here.memory().clone()).wait().unwrap();
    let mut read = pair.read();
    read.peer = peer;
    read.local = nixl::LocalDescs::new(&here, read.local.entries().iter().copied()).unwrap();
    mock.set(Knob::StuckPostMs, 300);
    let first = reader.read(read.clone());
    wait_until("the post is under way", || reader.stats().lap.is_some_and(|lap| lap > Duration::from_millis(20)));
    let queued: Vec<_> = (0..2).map(|_| reader.read(read.clone())).collect();
    assert_eq!(reader.read(read).done.wait(), Err(FabricError::Busy));
    assert!(FabricError::Busy.memory_is_quiet());
    mock.set(Knob::StuckPostMs, 0);
    assert!(first.done.wait().is_ok());
    for reading in queued {
        assert!(reading.done.wait().is_ok());
    }
    for agent in [reader, pair.reader, pair.source] {
        assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
    }
    mock.is_clean();
}

#[test]
fn a_notification_waits_for_one_post_not_for_all_of_them() {
    let mock = Mock::take();
    let pair = mock.pair();
    mock.set(Knob::StuckPostMs, 200);
    let mut reads: Vec<_> = (0..15).map(|_| pair.reader.read(pair.read())).collect();
    // The agent has taken all others out of its queue when the first two are over.
    for reading in reads.drain(..2) {
        assert!(reading.done.wait().is_ok());
    }
    let begun = std::time::Instant::now();
    pair.reader.notify(pair.peer.clone(), Bytes::from_static(b"HB:a")).wait().unwrap();
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    mock.set(Knob::StuckPostMs, 0);
    for reading in reads {
        assert!(reading.done.wait().is_ok());
    }
    for agent in [pair.reader, pair.source] {
        assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
    }
    mock.is_clean();
}

#[test]
fn too_many_reads_in_flight_are_busy() {
    let mock = Mock::take();
    let pair = mock.pair();
    let reader = mock.agent("narrow", |config| config.max_in_flight = 1);
    reader.load_peer(pair.source.local_metadata().wait().unwrap()).wait().unwrap();
    let here = reader.register(pair.here.memory().clone()).wait().unwrap();
    let mut read = pair.read();
    read.local = nixl::LocalDescs::new(&here, read.local.entries().iter().copied()).unwrap();
    mock.set(Knob::Polls, FOR_EVER);
    let first = reader.read(read.clone());
    first.posted.wait().unwrap();
    assert_eq!(reader.read(read).done.wait(), Err(FabricError::Busy));
    assert_eq!(reader.close(Duration::ZERO).wait(), Ok(Closed::Destroyed));
    for agent in [pair.reader, pair.source] {
        assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
    }
    mock.is_clean();
}

#[test]
fn notifications_wait_while_their_stream_is_full_and_none_is_lost() {
    let mock = Mock::take();
    let pair = mock.pair();
    let target = mock.agent("target", |config| {
        config.max_notifications = 2;
        config.attention = Some(Attention::Eager);
    });
    let peer = pair.reader.load_peer(target.local_metadata().wait().unwrap()).wait().unwrap();
    for number in 0..10_u8 {
        pair.reader.notify(peer.clone(), Bytes::copy_from_slice(&[number, 0, 255])).wait().unwrap();
    }
    wait_until("the stream is full", || target.stats().notifications_waiting > 0);
    let mut stream = target.take_notifications().unwrap();
    for number in 0..10_u8 {
        let notification = stream.blocking_recv().unwrap();
        assert_eq!(&*notification.message, &[number, 0, 255]);
        assert_eq!(notification.from, *pair.reader.name());
    }
    assert_eq!(target.close(DEADLINE).wait(), Ok(Closed::Quiet));
    assert!(stream.blocking_recv().is_none(), "the stream ends with its agent");
    for agent in [pair.reader, pair.source] {
        assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
    }
    mock.is_clean();
}

#[test]
fn parameters_of_plugins_are_copied_out_of_the_iterator() {
    let mock = Mock::take();
    let agent = mock.agent("curious", |_| {});
    let info = agent.plugin_info("UCX").wait().unwrap();
    let expected = [("key0", "value0"), ("key1", "value1"), ("key2", "value2")];
    assert!(info.params.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected));
    assert!(info.dram && !info.vram);
    assert_eq!(agent.plugins().wait().unwrap(), ["UCX"]);
    drop(agent);
    mock.is_clean();
}
