//! Watches the configuration's file and the files that it names.
//!
//! They are looked at once a second, through their links, as Kubernetes swaps one (`..data`) to change a whole mounted
//! directory. A look is a few calls of `stat`; a watcher of the kernel's (inotify) would have to follow each link on the
//! way, sees no change on network file systems, and there are only so many of them for all the pods of a machine.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::config::{Config, ConfigErrors};

/// Between one look and the next. What has changed must look the same twice: so a file that is being written, or one of
/// several, gets that long to be whole.
const LOOK: Duration = Duration::from_secs(1);
/// A configuration that was refused is tried again after this time, changed or not: what it lacks may have come.
const RETRY: Duration = Duration::from_secs(10);

/// The file of a configuration, and what it looked like when it was loaded.
pub struct Watch {
    path: PathBuf,
    loaded: Looks,
    refused: Option<Instant>,
}

/// What each file looks like; `None`: it cannot be seen.
type Looks = BTreeMap<PathBuf, Option<Look>>;

/// What tells one content of a file from another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Look {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

impl Watch {
    /// Of the file at `path`, which has not been loaded yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), loaded: Looks::from([(path.to_owned(), None)]), refused: None }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Loads the file; `running` is what is in force, if anything is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load(&mut self, running: Option<&Config>) -> Result<Config, ConfigErrors> {
        loop {
            // Looked at before it is read: what changes meanwhile has changed since.
            self.loaded = look(self.loaded.keys().cloned().collect());
            let config = match running {
                Some(running) => Config::reload(&self.path, running),
                None => Config::load(&self.path),
            };
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

    /// What was loaded last will not do.
    pub fn refuse(&mut self) {
        self.refused = Some(Instant::now());
    }

    /// Waits until it should be loaded anew: files have changed and stand still, or what was refused may be tried again.
    pub async fn changed(&mut self) {
        let mut before: Option<Looks> = None;
        loop {
            sleep(LOOK).await;
            if self.refused.is_some_and(|refused| refused.elapsed() >= RETRY) {
                return;
            }
            let files: Vec<PathBuf> = self.loaded.keys().cloned().collect();
            // Apart from the answers: a network's file system may take its time.
            let Ok(now) = tokio::task::spawn_blocking(|| look(files)).await else { continue };
            if now != self.loaded && before.as_ref() == Some(&now) {
                return;
            }
            before = Some(now);
        }
    }
}

fn look(files: Vec<PathBuf>) -> Looks {
    let look = |path: PathBuf| {
        let look = std::fs::metadata(&path).ok().map(|file| Look::of(&file));
        (path, look)
    };
    files.into_iter().map(look).collect()
}
