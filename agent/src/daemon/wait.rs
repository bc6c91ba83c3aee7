//! What the agent sleeps on: nothing is polled.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;

use super::Error;

/// Watches the containers' directories: each one's `observed`, and their coming and going.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: OwnedFd,
    root: PathBuf,
    watched: BTreeMap<String, i32>,
}

impl Watch {
    pub(super) fn new(root: &Path) -> Result<Self, Error> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).map_err(|error| Error::system("watch for changes", error))?;
        let flags =
            inotify::WatchFlags::MOVED_FROM | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::ONLYDIR;
        inotify::add_watch(&inotify, root, flags)
            .map_err(|error| Error::system("watch the containers", error))?;
        Ok(Self {
            inotify,
            root: root.to_owned(),
            watched: BTreeMap::new(),
        })
    }

    /// Watches these containers and no others. Answers whether there is a new one among them, which then has to be
    /// looked at once more: what happened before the watch had no event.
    pub(super) fn set(&mut self, ids: impl Iterator<Item = String>) -> bool {
        let mut before = std::mem::take(&mut self.watched);
        let mut new = false;
        for id in ids {
            let watch = match before.remove(&id) {
                Some(watch) => watch,
                None => {
                    let flags = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::ONLYDIR;
                    let Ok(watch) = inotify::add_watch(&self.inotify, self.root.join(&id), flags) else {
                        continue;
                    };
                    new = true;
                    watch
                }
            };
            self.watched.insert(id, watch);
        }
        for watch in before.into_values() {
            // Gone with its directory already, as a rule.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
        new
    }

    fn drain(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while reader.next().is_ok() {}
    }
}

/// Sleeps until one of `others` or the watch is readable, or `timeout` is over. Whoever owns one of `others` empties it.
pub(super) fn wait<'a>(
    watch: &'a Watch,
    others: impl Iterator<Item = BorrowedFd<'a>>,
    timeout: Option<Duration>,
) -> Result<(), Error> {
    let fds: Vec<BorrowedFd<'a>> = std::iter::once(watch.inotify.as_fd()).chain(others).collect();
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    match rustix::event::poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(Error::system("wait", error)),
    }
    watch.drain();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_to_a_container_wakes() {
        let root = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(root.path()).unwrap();
        let long = Some(Duration::from_secs(5));
        let woken = |watch: &Watch| {
            let began = std::time::Instant::now();
            wait(watch, std::iter::empty(), long).unwrap();
            began.elapsed() < Duration::from_secs(4)
        };
        std::fs::create_dir(root.path().join(".making-a")).unwrap();
        std::fs::rename(root.path().join(".making-a"), root.path().join("a")).unwrap();
        assert!(woken(&watch), "a new container");
        assert!(watch.set(["a".to_owned()].into_iter()));
        assert!(!watch.set(["a".to_owned()].into_iter()), "watched already");
        std::fs::write(root.path().join("a/.observed.1"), "x").unwrap();
        std::fs::rename(root.path().join("a/.observed.1"), root.path().join("a/observed")).unwrap();
        assert!(woken(&watch), "a new record");
        assert!(!watch.set(std::iter::empty()));
        let (read, write) = rustix::pipe::pipe().unwrap();
        drop(write);
        let began = std::time::Instant::now();
        wait(&watch, [read.as_fd()].into_iter(), long).unwrap();
        assert!(began.elapsed() < Duration::from_secs(4), "another descriptor");
    }
}
