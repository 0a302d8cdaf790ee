//! Seeds whose outcome is known: nothing that kvgate promises is broken, and a seed is the same run every time.

use std::path::Path;

use soak::children;

const SOAK: &str = env!("CARGO_BIN_EXE_soak");

/// Seeds that `make test` has the time for; `make soak` runs 300.
const SEEDS: u64 = 24;

#[test]
fn whatever_goes_wrong_no_text_is_wrong_nothing_hangs_and_nothing_is_lost() {
    let at_a_time = std::thread::available_parallelism().map_or(1, usize::from);
    let table = children::run(Path::new(SOAK), 1..1 + SEEDS, at_a_time);
    println!("{table}");
    assert!(table.is_well(), "see above");
    assert!(table.faults.values().sum::<u64>() > SEEDS, "faults were made: {:?}", table.faults);
    assert!(table.right > table.requests / 3, "most of it works most of the time");
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in [3, 14] {
        let [first, second] = [(); 2].map(|()| children::events(Path::new(SOAK), seed).unwrap());
        assert!(first.lines().count() > 100, "seed {seed} says what happened");
        assert!(first == second, "seed {seed} differs from itself");
    }
}

/// The controls: what must be seen is seen when it is there.
#[test]
fn a_router_without_its_gate_and_a_sidecar_that_spoils_what_lands_are_found_out() {
    let ungated = children::control(Path::new(SOAK), 2, "skip-gate").unwrap();
    assert!(ungated.decodes_without_receipt > 0 && ungated.broken.iter().any(|broken| broken.contains("BROKEN G")));
    let spoilt = children::control(Path::new(SOAK), 2, "corrupt-staging").unwrap();
    assert!(spoilt.wrong > 0 && spoilt.broken.iter().any(|broken| broken.contains("BROKEN text")));
}
