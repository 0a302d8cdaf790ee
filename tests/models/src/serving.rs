//! What is noted of a connection.

use std::sync::Arc;
use std::time::Duration;

use http::Version;
use loom::thread;
use tokio::time::Instant;

use crate::every_order;

#[allow(dead_code, reason = "the file is the crate's")]
#[path = "../../../serving/src/connection/seen.rs"]
mod seen;

use seen::{Phase, Seen};

#[test]
fn a_connection_whose_answer_ends_on_another_thread_is_idle_from_then_on() {
    every_order(|| {
        let opened = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        let seen = Arc::new(Seen::new(opened));
        let under_way = seen.begin(Version::HTTP_2);
        let answer = thread::spawn(move || drop(under_way));
        match seen.phase() {
            (Phase::Answering, _) => {}
            (Phase::Idle, since) => assert!(since >= opened + Duration::from_secs(1), "idle for as long as it is open"),
            (Phase::Head, _) => panic!("it owes no request"),
        }
        answer.join().unwrap();
        assert_eq!(seen.phase().0, Phase::Idle);
    });
}
