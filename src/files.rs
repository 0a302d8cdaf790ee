//! Open files: a connection is one, and the usual soft limit of 1024 is a shell's, not a server's.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the process's soft limit to its hard one.
pub(crate) fn allow_many() {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    if before != limit.maximum
        && let Err(refused) = setrlimit(Resource::Nofile, limit)
    {
        tracing::warn!(limit = before, %refused, "open files are limited");
    }
}
