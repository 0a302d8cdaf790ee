//! The kvgate binary.
fn main() {}
