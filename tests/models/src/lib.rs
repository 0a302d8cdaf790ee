//! Every order in which threads can meet where they share memory by hand, tried over [loom](https://docs.rs/loom).
//!
//! The very files of `nixl`, `router` and `serving` are built here: what they share memory by they name as `crate::sync`, which is loom's
//! here. Loom tries each interleaving, and each value that the memory model of C++ lets a thread see, so that an order which x86 does not
//! show is tried too. `docs/reliability.md` lists which spots there are, and why the others need no model.
#![forbid(unsafe_code)]
#![cfg(test)]

mod nixl;
mod router;
mod serving;
mod spin;
mod sync;

/// Tries every order in which at most three threads are made to give way before they would by themselves: more changes nothing for
/// a bug of two or three, and takes minutes.
fn every_order(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 20_000;
    builder.check(model);
}
