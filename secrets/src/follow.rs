//! Files that are looked at while the process runs.
//!
//! They are looked at and not watched: a secret that Kubernetes mounts changes by a link somewhere above the file. Files that cannot be
//! used change nothing: what was good goes on being good, and the log says why.

use std::error::Error;
use std::fmt::Debug;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// The longest that a change takes to be in force, on a machine that lets this process run: a look that sees it, and one that sees that it has
/// settled.
pub const IN_FORCE: Duration = Duration::from_secs(3);

/// What is read of files, and read again.
pub trait Followed: Debug + Send + Sync + 'static {
    /// Why the files cannot be used.
    type Error: Error + Send + Sync + 'static;

    /// What they hold, for the log.
    const WHAT: &'static str;

    /// The files. They are read as one: when one has changed, all have been left alone.
    fn paths(&self) -> Vec<PathBuf>;

    /// Reads the files and goes by what they say from now on.
    ///
    /// # Errors
    /// When they cannot be used; nothing has changed then.
    fn read_again(&self) -> Result<(), Self::Error>;
}

/// What differs between a file and a changed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: SystemTime,
}

impl Stamp {
    /// `None` while there is no such file.
    fn of(path: &Path) -> Option<Self> {
        let about = std::fs::metadata(path).ok()?;
        Some(Self { device: about.dev(), inode: about.ino(), bytes: about.len(), modified: about.modified().ok()? })
    }
}

/// What is known of the files.
#[derive(Debug)]
struct Looked {
    paths: Vec<PathBuf>,
    /// Of what was read last, whether it could be used or not.
    taken: Option<Vec<Stamp>>,
    last: Option<Vec<Stamp>>,
}

impl Looked {
    fn new(paths: Vec<PathBuf>) -> Self {
        // What was read at the start is read once more: it may have changed since.
        Self { paths, taken: None, last: None }
    }

    /// Whether the files have changed and have been left alone since the last look: whoever writes them may not be through.
    fn have_settled_anew(&mut self) -> bool {
        let now: Option<Vec<Stamp>> = self.paths.iter().map(|path| Stamp::of(path)).collect();
        let settled = now.is_some() && now == self.last;
        self.last.clone_from(&now);
        if !settled || now == self.taken {
            return false;
        }
        self.taken = now;
        true
    }
}

/// Reads files again whenever they have changed, until `stop`.
pub async fn follow<F: Followed>(followed: Arc<F>, stop: CancellationToken) {
    let mut looked = Looked::new(followed.paths());
    if looked.paths.is_empty() {
        return;
    }
    let mut first = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(EVERY) => {}
        }
        let again = Arc::clone(&followed);
        let looking =
            tokio::task::spawn_blocking(move || (looked.have_settled_anew().then(|| again.read_again()), looked));
        // A file system that hangs keeps one thread, and what was read before.
        let answer = tokio::select! {
            () = stop.cancelled() => return,
            answer = looking => answer,
        };
        let Ok((read, back)) = answer else { return };
        looked = back;
        match read {
            None => continue,
            Some(Ok(())) if first => {}
            Some(Ok(())) => info!(what = F::WHAT, files = ?looked.paths, "changed files are in force"),
            Some(Err(error)) => {
                let error = &error as &dyn Error;
                error!(what = F::WHAT, files = ?looked.paths, error, "changed files cannot be used: what was read before stays in force");
            }
        }
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_when_it_has_changed_and_then_been_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let mut looked = Looked::new(vec![path.clone()]);
        assert!(!looked.have_settled_anew(), "there is none");
        std::fs::write(&path, "one").unwrap();
        assert!(!looked.have_settled_anew(), "it has only just come");
        assert!(looked.have_settled_anew());
        assert!(!looked.have_settled_anew() && !looked.have_settled_anew(), "nothing has changed");
        std::fs::write(&path, "another").unwrap();
        assert!(!looked.have_settled_anew());
        assert!(looked.have_settled_anew());
        let beside = folder.path().join("beside");
        std::fs::write(&beside, "a third").unwrap();
        std::fs::rename(&beside, &path).unwrap();
        assert!(!looked.have_settled_anew());
        assert!(looked.have_settled_anew());
        std::fs::remove_file(&path).unwrap();
        assert!(!looked.have_settled_anew() && !looked.have_settled_anew(), "a file that is away changes nothing");
    }

    #[test]
    fn files_that_belong_together_are_read_when_all_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let [certificate, key] = ["certificate", "key"].map(|name| folder.path().join(name));
        std::fs::write(&certificate, "1").unwrap();
        let mut looked = Looked::new(vec![certificate.clone(), key.clone()]);
        assert!(!looked.have_settled_anew() && !looked.have_settled_anew(), "one is missing");
        std::fs::write(&key, "1").unwrap();
        assert!(!looked.have_settled_anew());
        assert!(looked.have_settled_anew());
        std::fs::write(&certificate, "22").unwrap();
        assert!(!looked.have_settled_anew());
        std::fs::write(&key, "22").unwrap();
        assert!(!looked.have_settled_anew(), "the other has just changed");
        assert!(looked.have_settled_anew());
    }
}
