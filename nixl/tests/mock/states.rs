//! Each way that a transfer can go, and what becomes of its memory and its handles.

use std::time::Duration;

use bytes::Bytes;
use nixl::{Closed, Fabric, FabricError, HugePages, Memory, agent::PreparedRead};

use crate::library::{BLOCK, DEADLINE, FOR_EVER, Knob, Mock, wait_until};

#[test]
fn a_read_ends_inside_its_post_or_many_polls_later_and_leaves_no_handle() {
    let mock = Mock::take();
    let pair = mock.pair();
    let idle = mock.live();
    for polls in [0, 1, 3, 100] {
        mock.set(Knob::Polls, polls);
        pair.here.fill(0..4 * BLOCK, 0).unwrap();
        let reading = pair.reader.read(pair.read());
        assert_eq!(reading.posted.wait(), Ok(()));
        assert_eq!(reading.done.wait().unwrap().bytes, 2 * BLOCK);
        assert_eq!(pair.landed(), [0, 0, 7, 7]);
        assert_eq!(mock.live(), idle, "the request and its lists are gone");
    }
    assert_eq!(pair.reader.close(DEADLINE).wait(), Ok(Closed::Quiet));
    assert_eq!(pair.source.close(DEADLINE).wait(), Ok(Closed::Quiet));
    mock.is_clean();
}

#[test]
fn a_failed_read_keeps_its_memory_until_the_close_and_late_bytes_hit_nothing_else() {
    let mock = Mock::take();
    let pair = mock.pair();
    mock.set(Knob::Polls, 3);
    mock.set(Knob::EndStatus, -2);
    mock.set(Knob::LateMs, 50);
    let error = pair.reader.read(pair.read()).done.wait().unwrap_err();
    assert!(matches!(error, FabricError::Transfer(cause) if cause.code == -2 && cause.call.contains("status")));
    assert!(!error.memory_is_quiet());
    wait_until("it is counted", || pair.reader.stats().buried == 1);
    assert_eq!(pair.reader.stats().buried_bytes, 2 * BLOCK);
    // The caller lets go of the memory, and gets new memory of the same size.
    let base = pair.here.base();
    let (reader, source) = (pair.reader, pair.source);
    drop(pair.here);
    let fresh: Vec<_> = (0..64).map(|_| Memory::host(4 * BLOCK, HugePages::Off).unwrap()).collect();
    assert!(fresh.iter().all(|memory| memory.base() != base), "the old memory is still mapped");
    std::thread::sleep(Duration::from_millis(200));
    let mut bytes = vec![0; 256 << 10];
    for memory in &fresh {
        memory.read_at(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "what landed late landed in the old memory");
    }
    drop(pair.there);
    assert_eq!(reader.close(DEADLINE).wait(), Ok(Closed::Destroyed));
    assert_eq!(source.close(DEADLINE).wait(), Ok(Closed::Quiet));
    mock.is_clean();
}

#[test]
fn a_refused_post_is_buried_too() {
    let mock = Mock::take();
    let pair = mock.pair();
    mock.set(Knob::PostStatus, -1);
    let reading = pair.reader.read(pair.read());
    assert!(matches!(reading.posted.wait(), Err(FabricError::Transfer(cause)) if cause.code == -1));
    assert!(!reading.done.wait().unwrap_err().memory_is_quiet());
    mock.set(Knob::PostStatus, 0);
    assert!(pair.reader.read(pair.read()).done.wait().is_ok(), "others go on");
    assert_eq!(pair.reader.close(DEADLINE).wait(), Ok(Closed::Destroyed));
    assert_eq!(pair.reader.stats().buried, 1);
    assert_eq!(pair.source.close(DEADLINE).wait(), Ok(Closed::Quiet));
    mock.is_clean();
}

#[test]
fn an_unknown_status_is_a_value() {
    let mock = Mock::take();
    let pair = mock.pair();
    mock.set(Knob::EndStatus, -77);
    let error = pair.reader.read(pair.read()).done.wait().unwrap_err();
    assert!(matches!(error, FabricError::Transfer(cause) if cause.code == -77), "{error:?}");
    assert_eq!(pair.reader.close(DEADLINE).wait(), Ok(Closed::Destroyed));
    assert_eq!(pair.source.close(DEADLINE).wait(), Ok(Closed::Quiet));
    mock.is_clean();
}

#[test]
fn a_terminal_status_that_is_no_success_never_lands() {
    let mock = Mock::take();
    let pair = mock.pair();
    // The C API's own numbers, some that the C++ API has for cancelled and disconnected, and nonsense; 0 is success, 1 "in progress".
    let codes = (-20..0).chain([2, 3, 77, -77, i64::from(i32::MIN), i64::from(i32::MAX)]);
    let mut buried = 0;
    for code in codes {
        for knob in [Knob::EndStatus, Knob::PostStatus] {
            mock.set(Knob::Polls, 2);
            mock.set(knob, code);
            let error = pair.reader.read(pair.read()).done.wait().unwrap_err();
            let told = matches!(error, FabricError::Transfer(cause) if i64::from(cause.code) == code);
            assert!(told && !error.memory_is_quiet(), "{knob:?} {code}: {error:?}");
            mock.set(knob, 0);
            buried += 1;
        }
    }
    assert!(pair.reader.read(pair.read()).done.wait().is_ok(), "others go on");
    wait_until("they are counted", || pair.reader.stats().buried == buried);
    assert_eq!(pair.reader.close(DEADLINE).wait(), Ok(Closed::Destroyed));
    assert_eq!(pair.source.close(DEADLINE).wait(), Ok(Closed::Quiet));
    mock.is_clean();
}

#[test]
fn a_dropped_read_goes_on_and_pins_its_memory_to_its_end() {
    let mock = Mock::take();
    let pair = mock.pair();
    mock.set(Knob::Polls, 2000);
    let registered = mock.live();
    drop(pair.reader.read(pair.read()));
    wait_until("it is in flight", || pair.reader.stats().in_flight == 1);
    let reader = pair.reader;
    drop((pair.here, pair.source.clone()));
    assert_eq!(reader.stats().in_flight_bytes, 2 * BLOCK);
    wait_until("it ends", || reader.stats().in_flight == 0);
    wait_until("its memory is deregistered", || mock.live() == registered - 1);
    assert_eq!(reader.close(DEADLINE).wait(), Ok(Closed::Quiet));
    assert_eq!(pair.source.close(DEADLINE).wait(), Ok(Closed::Quiet));
    drop(pair.there);
    mock.is_clean();
}

#[test]
fn closing_waits_for_its_deadline_and_then_nothing_lands_any_more() {
    let mock = Mock::take();
    let pair = mock.pair();
    mock.set(Knob::Polls, FOR_EVER);
    mock.set(Knob::LateMs, 5000);
    let reading = pair.reader.read(pair.read());
    reading.posted.wait().unwrap();
    assert_eq!(pair.reader.close(Duration::from_millis(50)).wait(), Ok(Closed::Destroyed));
    assert_eq!(reading.done.wait(), Err(FabricError::Abandoned));
    assert_eq!(pair.landed(), [0; 4]);
    assert_eq!(pair.reader.read(pair.read()).done.wait(), Err(FabricError::Closed));
    assert_eq!(pair.source.close(DEADLINE).wait(), Ok(Closed::Quiet));
    mock.is_clean();
}

#[test]
fn what_nixl_does_not_take_back_stays_until_the_agent_goes() {
    let mock = Mock::take();
    let pair = mock.pair();
    mock.set(Knob::RefusedReleases, 1);
    assert!(pair.reader.read(pair.read()).done.wait().is_ok(), "the bytes are there all the same");
    wait_until("it is counted", || pair.reader.stats().failed_cleanups == 1);
    // The peer's metadata is in use by that request, and so it stays: the answer comes with the end.
    let forgotten = pair.reader.forget_peer(pair.peer.clone());
    assert_eq!(pair.reader.close(DEADLINE).wait(), Ok(Closed::Destroyed));
    assert_eq!(forgotten.wait(), Err(FabricError::Lost));
    assert_eq!(pair.source.close(DEADLINE).wait(), Ok(Closed::Quiet));
    mock.is_clean();
}

#[test]
fn an_agent_that_cannot_be_destroyed_is_stuck_and_its_memory_stays() {
    let mock = Mock::take();
    let pair = mock.pair();
    mock.set(Knob::DestroyStatus, -2);
    assert_eq!(pair.reader.close(DEADLINE).wait(), Ok(Closed::Stuck));
    assert!(!pair.reader.stats().alive);
    let base = pair.here.base();
    drop(pair.here);
    let fresh: Vec<_> = (0..64).map(|_| Memory::host(4 * BLOCK, HugePages::Off).unwrap()).collect();
    assert!(fresh.iter().all(|memory| memory.base() != base), "still mapped");
    assert_eq!(pair.source.close(DEADLINE).wait(), Ok(Closed::Stuck));
    assert_eq!(mock.misuses(), 0);
}

#[test]
fn a_peer_is_forgotten_once_nothing_reads_from_it() {
    let mock = Mock::take();
    let pair = mock.pair();
    let read = pair.read();
    let local = pair.reader.prepare_local(read.local.clone()).wait().unwrap();
    let remote = pair.reader.prepare_remote(pair.peer.clone(), read.remote.clone()).wait().unwrap();
    mock.set(Knob::Polls, 1000);
    let prepared = PreparedRead { local, remote, pairs: vec![(0, 1), (1, 0)], notify: Some(Bytes::from_static(b"n")) };
    let reading = pair.reader.read_prepared(prepared.clone());
    reading.posted.wait().unwrap();
    let forgotten = pair.reader.forget_peer(pair.peer.clone());
    assert_eq!(pair.reader.read(read).done.wait(), Err(FabricError::UnknownPeer(pair.peer.clone())));
    assert!(reading.done.wait().is_ok());
    assert_eq!(forgotten.wait(), Ok(()));
    assert_eq!(pair.reader.read_prepared(prepared).done.wait(), Err(FabricError::UnknownPeer(pair.peer)));
    assert_eq!(pair.reader.close(DEADLINE).wait(), Ok(Closed::Quiet));
    assert_eq!(pair.source.close(DEADLINE).wait(), Ok(Closed::Quiet));
    mock.is_clean();
}
