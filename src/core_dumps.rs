//! Core files hold what a process holds: tokens, keys, KV. With `--no-core-dump` the kernel writes none, and lets no process of the same user
//! read this one's memory.

use clap::builder::BoolishValueParser;
use rustix::io;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// The flag, the same for every subcommand.
#[derive(Debug, clap::Args)]
#[group(id = "core-dumps")]
pub(crate) struct Args {
    /// Let the kernel write no core file of this process; who reads its memory (UCX's CMA from the engine, debuggers) then needs SYS_PTRACE
    #[arg(
        long,
        env = "KVGATE_NO_CORE_DUMP",
        global = true,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_default_value = true,
        value_parser = BoolishValueParser::new()
    )]
    no_core_dump: bool,
}

/// Does as the flag says. A kernel that refuses is an error: nobody should believe in a protection that is not there.
pub(crate) fn forbid(args: &Args) -> io::Result<()> {
    if args.no_core_dump { set_dumpable_behavior(DumpableBehavior::NotDumpable) } else { Ok(()) }
}
