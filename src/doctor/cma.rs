//! Cross-memory attach: may one process read another's memory? By really trying, between two processes that are not parent and child, as
//! an engine and its sidecar are not.

use std::path::Path;
use std::time::Duration;

use super::child;
use super::host::ptrace_scope;
use super::line::Line;
use super::probe::{ReadSays, Where};

const CHECK: &str = "cma";
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn line(root: &Path) -> Line {
    let scope = ptrace_scope(root);
    let line = match attempt().await {
        Ok(read) => judge(&read, scope),
        Err(why) => Line::skip(CHECK, format!("the trial itself failed: {why}")),
    };
    match scope {
        Some(scope) => line.with("ptrace_scope", scope),
        None => line,
    }
}

async fn attempt() -> Result<ReadSays, String> {
    let words = |part: &str| vec!["--probe".to_owned(), part.to_owned()];
    let command = child::command(&words("target")).map_err(|error| error.to_string())?;
    let (target, told) = child::start::<Where>(command, PATIENCE).await?;
    let mut args = words("reader");
    args.extend(["--probe-of".to_owned(), format!("{}:{}", told.pid, told.address)]);
    let command = child::command(&args).map_err(|error| error.to_string())?;
    let reader = child::finish::<ReadSays>(command, &[], PATIENCE).await;
    // It waits for its standard input, which ends here; should it not, dropping it kills it.
    drop(target);
    reader.told.ok_or_else(|| format!("the reader {}", reader.trouble.unwrap_or_else(|| "told nothing".to_owned())))
}

fn judge(read: &ReadSays, scope: Option<u8>) -> Line {
    let fix = match scope {
        Some(scope @ 1..) => format!(
            "on the node: sysctl kernel.yama.ptrace_scope=0 (it is {scope}), or give both containers the capability SYS_PTRACE"
        ),
        _ => {
            "give both containers the capability SYS_PTRACE, and a seccomp profile that has process_vm_readv".to_owned()
        }
    };
    let line = match read {
        ReadSays { right: true, .. } => Line::ok(
            CHECK,
            "one process can read another's memory here; between the containers of a pod that also takes shareProcessNamespace",
        ),
        ReadSays { error: Some(error), .. } => Line::warn(
            CHECK,
            format!(
                "one process cannot read another's memory ({error}): transfers inside the pod take TCP, at a third of the speed"
            ),
            fix,
        ),
        ReadSays { error: None, .. } => Line::fail(
            CHECK,
            "process_vm_readv copied the wrong bytes",
            "this kernel or its sandbox is broken: use another node",
        ),
    };
    line.with("allowed", read.right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::line::Status;

    #[test]
    fn the_fix_depends_on_yama() {
        let refused = ReadSays { right: false, error: Some("Operation not permitted".to_owned()) };
        let line = judge(&refused, Some(2));
        assert_eq!(line.status, Status::Warn);
        assert!(line.fix.unwrap().contains("ptrace_scope=0 (it is 2)"));
        assert!(judge(&refused, Some(0)).fix.unwrap().contains("SYS_PTRACE, and"));
        assert!(judge(&refused, None).fix.unwrap().contains("seccomp"));
        assert_eq!(judge(&ReadSays { right: true, error: None }, Some(1)).status, Status::Ok);
        assert_eq!(judge(&ReadSays { right: false, error: None }, None).status, Status::Fail);
    }
}
