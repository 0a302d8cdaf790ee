//! Who gets in, and when.

use super::*;

fn door(in_flight: u32, queue: u32) -> Arc<Admission> {
    let limits =
        Limits { in_flight, queue, queue_deadline: Duration::from_secs(30), body_bytes: 10 * UNIT, rate: None };
    Arc::new(Admission::new(limits))
}

#[test]
fn bodies_share_a_budget() {
    let door = door(1, 1);
    let first = door.reserve(6 * UNIT - 1).unwrap();
    assert_eq!(door.reserve(4 * UNIT + 1).unwrap_err(), Refused::NoMemory);
    let second = door.reserve(4 * UNIT).unwrap();
    drop((first, second));
    assert!(door.reserve(10 * UNIT).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once_and_a_slow_one_in_time() {
    let door = door(1, 1);
    let first = door.start(door.enter(&Caller::default()).unwrap()).await.unwrap();
    let second = door.enter(&Caller::default()).unwrap();
    assert_eq!(door.enter(&Caller::default()).unwrap_err(), Refused::Full);
    assert_eq!(door.start(second).await.unwrap_err(), Refused::Late);
    assert_eq!(door.inside(), 1);
    drop(first);
    assert_eq!(door.inside(), 0);
}

#[tokio::test(start_paused = true)]
async fn draining_lets_nobody_in_and_ends_with_the_last_request() {
    let door = door(2, 0);
    let running = door.start(door.enter(&Caller::default()).unwrap()).await.unwrap();
    door.drain();
    assert_eq!(door.enter(&Caller::default()).unwrap_err(), Refused::Draining);
    {
        let mut empty = std::pin::pin!(door.empty());
        assert!(timeout(Duration::from_secs(60), &mut empty).await.is_err());
        assert_eq!(door.inside(), 1, "also while somebody waits for the last one");
        drop(running);
        empty.await;
    }
    assert_eq!(door.inside(), 0);
}

fn urgent(priority: u8) -> Caller {
    Caller { key: None, priority }
}

/// Waits in the background; sends its name when it is let in.
fn wait(
    door: &Arc<Admission>,
    place: Place,
    name: u32,
    order: &tokio::sync::mpsc::Sender<u32>,
) -> tokio::task::JoinHandle<()> {
    let (door, order) = (Arc::clone(door), order.clone());
    TaskTracker::new().spawn(async move {
        let running = door.start(place).await;
        if running.is_ok() {
            order.send(name).await.unwrap();
        }
    })
}

#[tokio::test(start_paused = true)]
async fn the_urgent_overtake_and_nobody_is_overtaken_for_ever() {
    let door = door(1, 8);
    let (tx, mut order) = tokio::sync::mpsc::channel(8);
    let first = door.start(door.enter(&urgent(0)).unwrap()).await.unwrap();
    for (name, priority, later) in [(1, 0, 0), (2, 5, 10), (3, 9, 10), (4, 0, 0), (5, 9, 10_000)] {
        tokio::time::advance(Duration::from_millis(later)).await;
        wait(&door, door.enter(&urgent(priority)).unwrap(), name, &tx);
        tokio::task::yield_now().await;
    }
    drop(first);
    let mut went = Vec::new();
    for _ in 0..5 {
        went.push(order.recv().await.unwrap());
    }
    assert_eq!(went, [3, 2, 1, 4, 5], "a late urgent one does not overtake who has waited long");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_makes_room_for_the_more_urgent_only() {
    let door = door(1, 1);
    let _first = door.start(door.enter(&urgent(0)).unwrap()).await.unwrap();
    let (tx, _order) = tokio::sync::mpsc::channel(8);
    let waiting = wait(&door, door.enter(&urgent(1)).unwrap(), 1, &tx);
    tokio::task::yield_now().await;
    assert_eq!(door.enter(&urgent(1)).unwrap_err(), Refused::Full);
    let place = door.enter(&urgent(2)).unwrap();
    waiting.await.unwrap();
    assert_eq!(door.inside(), 2);
    drop(place);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_given_up_goes_to_the_next() {
    let door = door(1, 3);
    let (tx, mut order) = tokio::sync::mpsc::channel(8);
    let first = door.start(door.enter(&urgent(0)).unwrap()).await.unwrap();
    let gone = wait(&door, door.enter(&urgent(0)).unwrap(), 1, &tx);
    let next = wait(&door, door.enter(&urgent(0)).unwrap(), 2, &tx);
    tokio::task::yield_now().await;
    // The grant is on its way to the one that leaves at this moment.
    drop(first);
    gone.abort();
    next.await.unwrap();
    assert_eq!(order.recv().await, Some(2));
    let again = door.start(door.enter(&urgent(0)).unwrap()).await;
    assert!(again.is_ok(), "no right is lost");
}

#[tokio::test(start_paused = true)]
async fn a_rate_bounds_all_keys_together() {
    let one = std::num::NonZeroU32::MIN;
    let rate = Some(Rate { per_second: one, burst: one });
    let limits = Limits { in_flight: 9, queue: 0, queue_deadline: Duration::from_secs(1), body_bytes: 0, rate };
    let door = Arc::new(Admission::new(limits));
    drop(door.enter(&urgent(0)).unwrap());
    assert_eq!(door.enter(&urgent(9)).unwrap_err(), Refused::TooFast(1));
    assert_eq!(door.inside(), 0);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(door.enter(&urgent(0)).is_ok());
}
