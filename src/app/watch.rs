//! Watches the configuration file and the files that it names.
//!
//! They are polled once a second, through symbolic links, since Kubernetes swaps one (`..data`) to change a whole mounted
//! directory. A poll is a few calls of `stat`. inotify would have to follow each link on the way, sees no change on network
//! file systems, and has a limit for all the pods of a machine.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::config::{Config, ConfigErrors};

/// Between one poll and the next. A change counts once two polls agree: a file that is being written, or one of several, has
/// that long to be complete.
const INTERVAL: Duration = Duration::from_secs(1);
/// A configuration that was refused is tried again after this time, changed or not: what was missing may be there.
const RETRY: Duration = Duration::from_secs(10);

/// The configuration file, and the state of its files when it was loaded.
pub struct Watch {
    path: PathBuf,
    loaded: FileStates,
    refused: Option<Instant>,
}

/// The state of each file; `None`: it cannot be read.
type FileStates = BTreeMap<PathBuf, Option<FileState>>;

/// Tells one content of a file from another, without reading it: device, inode, size, and the times of the last
/// modification and change.
type FileState = (u64, u64, u64, [i64; 4]);

impl Watch {
    /// Watches the file at `path`, which has not been loaded yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), loaded: FileStates::from([(path.to_owned(), None)]), refused: None }
    }

    /// The path of the configuration file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Loads the file; `running` is the configuration that is applied, if there is one.
    pub fn load(&mut self, running: Option<&Config>) -> Result<Config, ConfigErrors> {
        loop {
            // Before it is read, so that a change meanwhile is noticed later.
            self.loaded = file_states(self.loaded.keys().cloned().collect());
            let config = Config::load(&self.path, running);
            self.refused = config.is_err().then(Instant::now);
            let config = config?;
            let files = config.dependencies();
            if files.iter().all(|path| self.loaded.contains_key(path)) {
                self.loaded.retain(|path, _| *path == self.path || files.contains(path));
                return Ok(config);
            }
            self.loaded.extend(files.into_iter().map(|path| (path, None)));
        }
    }

    /// Notes that what was loaded last cannot be applied.
    pub fn refuse(&mut self) {
        self.refused = Some(Instant::now());
    }

    /// Waits until it should be loaded anew: files have changed and no longer change, or a refused one is to be tried again.
    pub async fn changed(&mut self) {
        let mut before: Option<FileStates> = None;
        loop {
            sleep(INTERVAL).await;
            if self.refused.is_some_and(|refused| refused.elapsed() >= RETRY) {
                return;
            }
            let files: Vec<PathBuf> = self.loaded.keys().cloned().collect();
            // A network file system may take a while: not on a thread that answers.
            let Ok(now) = tokio::task::spawn_blocking(|| file_states(files)).await else { continue };
            if now != self.loaded && before.as_ref() == Some(&now) {
                return;
            }
            before = Some(now);
        }
    }
}

fn file_states(files: Vec<PathBuf>) -> FileStates {
    let state = |path: PathBuf| {
        let state = std::fs::metadata(&path).ok().map(|file| {
            let times = [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()];
            (file.dev(), file.ino(), file.size(), times)
        });
        (path, state)
    };
    files.into_iter().map(state).collect()
}
