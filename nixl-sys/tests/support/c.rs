//! Runs the C compiler of the test machine.

use std::path::Path;
use std::process::Command;

/// A command for the compiler that `cc` finds, or `None` with `SKIPPED` printed.
pub(crate) fn compiler() -> Option<Command> {
    let machine = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let found = cc::Build::new().cargo_metadata(false).host(&machine).target(&machine).opt_level(0).try_get_compiler();
    let there = |program: &Path| Command::new(program).arg("--version").output().is_ok_and(|run| run.status.success());
    match found {
        Ok(compiler) if there(compiler.path()) => {
            let mut command = Command::new(compiler.path());
            command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]);
            command.arg("-I").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("include"));
            Some(command)
        }
        _ => {
            println!("SKIPPED: no C compiler");
            None
        }
    }
}

/// Runs the command and shows the compiler's words if it fails.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}
