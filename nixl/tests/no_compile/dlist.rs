//! Cases `dlist` and `backend`: a handle made of a raw pointer, or without the agent that it belongs to.
use nixl::agent::raw::{Prepared, RawAgent};

fn main() {}
