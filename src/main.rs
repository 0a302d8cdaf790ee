//! The kvgate binary: one program, one subcommand per process of a deployment.
#![forbid(unsafe_code)]

mod ask;
mod cli;
mod core_dumps;
mod demo;
mod doctor;
mod files;
mod gpu;
mod health;
mod logging;
mod parent;
mod shell;
mod stop;
mod top;
mod traces;

use std::process::ExitCode;

/// The router's tasks allocate and free on any thread; glibc's arenas make them wait for each other.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
