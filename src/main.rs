//! The kvgate binary: one program, one subcommand per process of a deployment.

mod ask;
mod cli;
mod demo;
mod doctor;
mod files;
mod logging;
mod parent;
mod stop;
mod top;
mod traces;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
