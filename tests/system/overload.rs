//! More than there is room for, on real processes.

use crate::deployed::{Deployment, Ended, Plan, prompt};
use crate::process::{nixl_is_here, wait_for};

const TOKENS: u64 = 20;

#[test]
fn ten_times_of_what_fits_gets_right_texts_or_429_and_everything_is_served_again_afterwards() {
    if !nixl_is_here() {
        return;
    }
    let plan =
        Plan { tpot_ms: 50, router: "--max-in-flight 8 --max-queue 8 --queue-deadline-ms 60000", ..Plan::default() };
    let deployment = Deployment::start(&plan);
    let asks: Vec<_> = (0..160).map(|number| prompt(number, 30)).collect();
    let known: Vec<_> = asks.iter().map(|prompt| deployment.expected(prompt, TOKENS)).collect();
    let streams: Vec<_> = asks.iter().map(|prompt| deployment.stream(prompt, TOKENS)).collect();
    wait_for("the first stream to begin", || streams.iter().any(|stream| stream.has_begun()).then_some(()));
    let inside = deployment.router.request("GET", "/readyz", "").1["inside"].as_u64().expect("a count");
    assert!(inside <= 16, "{inside} requests are inside");
    let mut right = 0;
    for (text, stream) in known.iter().zip(streams) {
        match stream.end() {
            Ended { error: Some(code), text, .. } if code == "queue_full" => assert_eq!(text, ""),
            ended => {
                assert_eq!(ended, Ended { text: text.clone(), whole: true, error: None });
                right += 1;
            }
        }
    }
    assert!((8..160).contains(&right), "{right} of 160 were served");
    let (status, answer) = deployment.ask(&asks[0], TOKENS);
    assert_eq!((status, answer["choices"][0]["text"].as_str()), (200, Some(known[0].as_str())), "{answer}");
    deployment.wait_until_nothing_is_held();
}
