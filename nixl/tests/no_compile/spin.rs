//! A progress thread without a delay, which burns a core.
use std::time::Duration;

use nixl::{Progress, ProgressInterval};

fn main() {
    let _progress = Progress::Every(ProgressInterval(Duration::ZERO));
}
