//! Whether a process that dies leaves its memory behind.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tempfile::TempDir;

use crate::process::wait_for;

/// Starts a router that may leave a core file in a folder of its own, lets it die, and says how it did.
fn killed(flag: &str) -> ExitStatus {
    let folder = TempDir::new().expect("a temporary folder");
    let ports = folder.path().join("ports.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvgate"));
    command
        .args("router --prefill http://127.0.0.1:1 --decode http://127.0.0.1:2 --port 0".split_whitespace())
        .args((!flag.is_empty()).then_some(flag))
        .arg("--ports-file")
        .arg(&ports)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().expect("the binary starts");
    wait_for("its ports file", || ports.exists().then_some(()));
    kill_process(Pid::from_child(&child), Signal::ABORT).expect("it runs");
    child.wait().expect("its end")
}

#[test]
fn no_core_file_is_written_where_none_is_wanted() {
    let limit = getrlimit(Resource::Core);
    // Children have what this process has.
    let raised = setrlimit(Resource::Core, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let usual = killed("");
    assert_eq!(usual.signal(), Some(Signal::ABORT.as_raw()), "{usual:?}");
    if raised.is_err() || !usual.core_dumped() {
        println!("SKIPPED: this machine lets no process write a core file");
        return;
    }
    let protected = killed("--no-core-dump");
    assert_eq!(protected.signal(), Some(Signal::ABORT.as_raw()), "{protected:?}");
    assert!(!protected.core_dumped(), "{protected:?}");
}
