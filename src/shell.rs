//! `kvgate completions` and `kvgate man`: what packages install beside the binary, written by the parser itself.

use std::io::{Write as _, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;

/// `kvgate completions`' arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell, as in `kvgate completions bash > /etc/bash_completion.d/kvgate`
    shell: Shell,
}

/// `kvgate man`'s arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// The folder that kvgate.1, kvgate-sidecar.1 and the others are written to
    folder: PathBuf,
}

/// Writes a shell's completions to standard output.
///
/// # Errors
/// When nobody reads it.
pub(crate) fn completions(args: &Completions, mut command: Command) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "kvgate", &mut script);
    stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes one page for the program and one for each subcommand.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn man(args: &Man, command: Command) -> Result<ExitCode> {
    std::fs::create_dir_all(&args.folder).with_context(|| format!("create {}", args.folder.display()))?;
    clap_mangen::generate_to(command, &args.folder)
        .with_context(|| format!("write pages to {}", args.folder.display()))?;
    Ok(ExitCode::SUCCESS)
}
