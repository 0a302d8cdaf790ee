//! The file of keys, looked at while the router runs: what it says holds soon after it has changed.
//!
//! It is looked at and not watched: a secret that Kubernetes mounts changes by a link somewhere above the file. A file that cannot be
//! used changes nothing: keys that were good go on being good, and the log says why.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{Keys, KeysError};

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// What differs between a file and a changed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: SystemTime,
}

impl Stamp {
    /// `None` while there is no such file.
    fn of(path: &Path) -> Option<Self> {
        let about = std::fs::metadata(path).ok()?;
        Some(Self { inode: about.ino(), bytes: about.len(), modified: about.modified().ok()? })
    }
}

/// What is known of the file.
#[derive(Debug)]
struct Looked {
    path: PathBuf,
    /// Of what the keys were read from, or of what could not be used.
    taken: Option<Stamp>,
    last: Option<Stamp>,
}

impl Looked {
    /// The keys, if the file has changed and has been left alone since the last look: whoever writes it may not be through.
    fn again(&mut self) -> Option<Result<Keys, KeysError>> {
        let now = Stamp::of(&self.path);
        let settled = now.is_some() && now == std::mem::replace(&mut self.last, now);
        if !settled || now == self.taken {
            return None;
        }
        self.taken = now;
        Some(std::fs::read_to_string(&self.path).map_err(KeysError::from).and_then(|text| text.parse()))
    }
}

/// Keeps the keys as the file has them, until `stop`.
pub(crate) async fn follow(keys: Arc<Keys>, path: PathBuf, stop: CancellationToken) {
    // What was read at the start is read once more: it may have changed since.
    let mut looked = Looked { path, taken: None, last: None };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(EVERY) => {}
        }
        let looking = tokio::task::spawn_blocking(move || (looked.again(), looked));
        let Ok((read, back)) = looking.await else { return };
        looked = back;
        match read {
            None => {}
            Some(Ok(read)) => {
                keys.become_those(read);
                info!(path = %looked.path.display(), keys = keys.len(), "API keys are as the file has them");
            }
            Some(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                error!(path = %looked.path.display(), error, "the file of API keys cannot be used: they stay as they are");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(digit: char, rest: &str) -> String {
        format!("sha256:{} {rest}\n", digit.to_string().repeat(64))
    }

    #[test]
    fn a_file_is_read_when_it_has_changed_and_then_been_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let mut looked = Looked { path: path.clone(), taken: None, last: None };
        assert!(looked.again().is_none(), "there is none");
        std::fs::write(&path, line('a', "")).unwrap();
        assert!(looked.again().is_none(), "it has only just come");
        assert_eq!(looked.again().unwrap().unwrap().len(), 1);
        assert!(looked.again().is_none() && looked.again().is_none(), "nothing has changed");
        std::fs::write(&path, "half a li").unwrap();
        assert!(looked.again().is_none());
        assert!(looked.again().unwrap().is_err());
        assert!(looked.again().is_none(), "that is said once");
        let beside = folder.path().join("beside");
        std::fs::write(&beside, line('a', "") + &line('b', "")).unwrap();
        std::fs::rename(&beside, &path).unwrap();
        assert!(looked.again().is_none());
        assert_eq!(looked.again().unwrap().unwrap().len(), 2);
        std::fs::remove_file(&path).unwrap();
        assert!(looked.again().is_none() && looked.again().is_none(), "a file that is away changes nothing");
    }
}
