//! Seeds whose outcome is known: nothing that kvgate promises is broken, and a seed is the same run every time.

use std::path::Path;

use soak::children;

const SOAK: &str = env!("CARGO_BIN_EXE_soak");

/// Seeds that `make test` has the time for: 45 s on two cores. CI runs 300 beside it (`make soak`), which take three times as long.
const SEEDS: u64 = 80;

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

/// The controls: what must be seen is seen when it is there. Histories that each oracle must find are in `src/evidence/tests.rs`.
#[test]
fn a_router_without_its_gate_a_sidecar_that_spoils_what_lands_and_a_panic_are_found_out() {
    let broken = |control: &str| {
        let outcome = children::control(Path::new(SOAK), 2, control).unwrap();
        assert!(!outcome.log.is_empty(), "a run that fails says what happened");
        let has = |which: &str| outcome.broken.iter().any(|broken| broken.starts_with(&format!("BROKEN {which}: ")));
        (["G", "I", "S", "text"].map(has), outcome)
    };
    let ([without_receipt, ..], ungated) = broken("skip-gate");
    assert!(without_receipt && ungated.decodes_without_receipt > 0);
    let ([_, foreign, _, text], spoilt) = broken("corrupt-staging");
    assert!(foreign && text && spoilt.wrong > 0, "{:?}", spoilt.broken);
    let ([_, _, panics, _], panicked) = broken("panic");
    assert!(panics && panicked.right == 0, "{:?}", panicked.broken);
}
