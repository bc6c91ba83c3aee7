//! A directory of Pod files as a source.
//!
//! Files named `*.yaml`, `*.yml` and `*.json` count; hidden ones and editors' temporary ones do not. A file is read
//! when it was closed after writing or renamed into place; one that changed without such an event (a file system
//! without inotify, a queue that overflowed) is read once it has been left alone for a moment, so that half a file is
//! not taken for a whole one. Links are followed inside the directory only.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, inotify};
use rustix::io::Errno;
use wherry_sync::{Pod, manifest};

use super::{Error, Reading, Refusal, Source};

/// Looked at again this often even without an event.
const RESCAN: Duration = Duration::from_secs(60);
/// A file that changed without an event is read when it has not been written to for this long.
const SETTLE: Duration = Duration::from_millis(500);
/// More files than a board could run pods; the ones after them, by name, are refused.
const MAX_FILES: usize = 256;
/// As large as [`manifest::parse`] reads, and one more to notice what is larger.
const MAX_READ: u64 = (1 << 20) + 1;
/// Room for a few dozen events; more of them are read in the next round.
const EVENT_BUFFER: usize = 4096;

/// What tells one content of a file from another without reading it.
type Mark = (u64, u64, i64, (i64, i64), (i64, i64));

/// What a file held when it was last read.
type Content = Result<Vec<Pod>, Refusal>;

/// The watched directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// `None` where inotify is not to be had: then there is only the rescan.
    watch: Option<OwnedFd>,
    /// Whether the watch is set; it is lost with the directory.
    watched: bool,
    known: BTreeMap<String, (Mark, Content)>,
}

impl Directory {
    /// Watches `path`, which may appear later.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok();
        Self {
            path: path.to_owned(),
            watch,
            watched: false,
            known: BTreeMap::new(),
        }
    }

    /// Takes the events: the files that were closed or renamed into place.
    fn events(&mut self) -> BTreeSet<String> {
        let mut complete = BTreeSet::new();
        let Some(watch) = &self.watch else { return complete };
        let mut buffer = [MaybeUninit::uninit(); EVENT_BUFFER];
        let mut reader = inotify::Reader::new(watch, &mut buffer);
        while let Ok(event) = reader.next() {
            use inotify::ReadFlags;
            if event
                .events()
                .intersects(ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF)
            {
                self.watched = false;
            }
            if event
                .events()
                .intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO)
                && let Some(Ok(name)) = event.file_name().map(|name| name.to_str())
            {
                complete.insert(name.to_owned());
            }
        }
        complete
    }

    fn watch(&mut self) {
        use inotify::WatchFlags;
        let Some(watch) = self.watch.as_ref().filter(|_| !self.watched) else {
            return;
        };
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::CREATE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        self.watched = inotify::add_watch(watch, &self.path, flags).is_ok();
    }

    /// The names that count, in order.
    fn names(&self, dir: &OwnedFd) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(dir)? {
            let entry = entry?;
            if let Some(name) = pod_file(OsStr::from_bytes(entry.file_name().to_bytes())) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

impl Source for Directory {
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    fn read(&mut self) -> Result<(Reading, Duration), Error> {
        let complete = self.events();
        // The watch first: what changes after the listing has an event then.
        self.watch();
        let failed = |source: io::Error| Error::Directory {
            path: self.path.clone(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&self.path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let names = self.names(&dir).map_err(failed)?;

        let mut known = BTreeMap::new();
        let mut again = RESCAN;
        for (index, name) in names.into_iter().enumerate() {
            if index >= MAX_FILES {
                let refusal =
                    Refusal::Unreadable(format!("more than {MAX_FILES} files; only the first are read"));
                known.insert(name, (Mark::default(), Err(refusal)));
                continue;
            }
            let before = self.known.remove(&name);
            let (stat, file) = match open(&dir, &name) {
                Ok(opened) => opened,
                // Deleted since it was listed.
                Err(Errno::NOENT)
                    if rustix::fs::statat(&dir, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_err() =>
                {
                    continue;
                }
                Err(error) => {
                    known.insert(name, (Mark::default(), Err(unreadable(error))));
                    continue;
                }
            };
            let mark = mark(&stat);
            let content = match before {
                Some((old, content)) if old == mark => content,
                before if !complete.contains(&name) && !settled(&stat) => {
                    again = again.min(SETTLE);
                    // Not its own mark, so that it counts as changed the next time.
                    known.insert(name, before.unwrap_or((Mark::default(), Err(Refusal::Unsettled))));
                    continue;
                }
                _ => parse(file),
            };
            known.insert(name, (mark, content));
        }
        self.known = known;
        let reading = self
            .known
            .iter()
            .map(|(name, (_, content))| (name.clone(), content.clone()))
            .collect();
        Ok((reading, again))
    }
}

/// The name of a file that counts.
fn pod_file(name: &OsStr) -> Option<&str> {
    let name = name.to_str()?;
    let extension = Path::new(name).extension()?.to_str()?;
    let temporary = name.starts_with('.') || name.starts_with('#') || name.ends_with('~');
    (!temporary && matches!(extension, "yaml" | "yml" | "json")).then_some(name)
}

/// Opens a file without leaving the directory, blocking on a pipe, or becoming a terminal's owner.
fn open(dir: &OwnedFd, name: &str) -> Result<(Stat, File), Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(dir, name, flags, Mode::empty(), beneath) {
        // Before Linux 5.6, or under a seccomp filter that does not know the call: no links at all.
        Err(Errno::NOSYS | Errno::PERM) => {
            rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW, Mode::empty())?
        }
        opened => opened?,
    };
    let stat = rustix::fs::fstat(&file)?;
    Ok((stat, File::from(file)))
}

fn unreadable(error: Errno) -> Refusal {
    Refusal::Unreadable(match error {
        Errno::XDEV | Errno::LOOP => "a link that leads out of the directory is not followed".to_owned(),
        error => format!("cannot be read: {}", io::Error::from(error)),
    })
}

#[allow(clippy::unnecessary_cast, reason = "the types differ between targets")]
fn mark(stat: &Stat) -> Mark {
    let modified = (stat.st_mtime as i64, stat.st_mtime_nsec as i64);
    let changed = (stat.st_ctime as i64, stat.st_ctime_nsec as i64);
    (
        stat.st_dev as u64,
        stat.st_ino as u64,
        stat.st_size as i64,
        modified,
        changed,
    )
}

/// Whether the file has been left alone for a moment. One from the future has, and so has what is no file.
fn settled(stat: &Stat) -> bool {
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return true;
    }
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let written = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds));
    written.is_none_or(|written| {
        SystemTime::now()
            .duration_since(written)
            .map_or(true, |age| age >= SETTLE)
    })
}

fn parse(file: File) -> Content {
    match file.metadata() {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(Refusal::Unreadable("not a regular file".to_owned())),
        Err(error) => return Err(Refusal::Unreadable(format!("cannot be read: {error}"))),
    }
    let mut bytes = Vec::new();
    if let Err(error) = file.take(MAX_READ).read_to_end(&mut bytes) {
        return Err(Refusal::Unreadable(format!("cannot be read: {error}")));
    }
    match manifest::parse(&bytes) {
        Ok(pods) if pods.is_empty() => Err(Refusal::Empty),
        Ok(pods) => Ok(pods),
        Err(problems) => Err(Refusal::Problems(problems)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn pod(name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: i:1}}]}}\n"
        )
    }

    /// A file that nobody is writing to any more.
    fn write_old(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(60))
            .unwrap();
    }

    fn shown(reading: &Reading) -> Vec<String> {
        reading
            .iter()
            .map(|(origin, content)| match content {
                Ok(pods) => format!(
                    "{origin}: {}",
                    pods.iter().map(Pod::key).collect::<Vec<_>>().join(" ")
                ),
                Err(refusal) => format!("{origin}: {refusal}"),
            })
            .collect()
    }

    fn read(source: &mut Directory) -> Vec<String> {
        shown(&source.read().unwrap().0)
    }

    fn readable(source: &Directory) -> bool {
        let fd = source.readiness().unwrap();
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let second = rustix::event::Timespec {
            tv_sec: 5,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut fds, Some(&second)).unwrap() == 1
    }

    #[test]
    fn which_files_count() {
        for (name, counts) in [
            ("a.yaml", true),
            ("a.yml", true),
            ("a.json", true),
            (".a.yaml", false),
            ("a.yaml~", false),
            ("#a.yaml", false),
            (".a.yaml.swp", false),
            ("a.yaml.tmp", false),
            ("4913", false),
            ("yaml", false),
        ] {
            assert_eq!(pod_file(OsStr::new(name)).is_some(), counts, "{name}");
        }
    }

    #[test]
    fn changes_are_seen_and_bad_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods");
        let mut source = Directory::new(&path);
        assert!(
            matches!(source.read(), Err(Error::Directory { .. })),
            "a missing directory says nothing"
        );
        fs::create_dir(&path).unwrap();
        assert_eq!(read(&mut source), [""; 0]);
        fs::write(path.join("a.yaml"), pod("a")).unwrap();
        assert!(readable(&source));
        assert_eq!(read(&mut source), ["a.yaml: default/a"]);
        fs::write(path.join("b.yaml"), pod("b").replace("image", "imge")).unwrap();
        fs::write(path.join("c.yaml"), "").unwrap();
        fs::write(path.join("d.json"), pod("d")).unwrap();
        fs::write(path.join("ignored.txt"), "x").unwrap();
        assert!(readable(&source));
        assert_eq!(
            read(&mut source),
            [
                "a.yaml: default/a",
                "b.yaml: spec.containers[0].image: missing, line 4; spec.containers[0].imge: unknown field, line 4",
                "c.yaml: holds no Pod; remove the file to remove its pods",
                "d.json: default/d",
            ]
        );
        fs::rename(path.join("d.json"), path.join("e.json")).unwrap();
        fs::remove_file(path.join("a.yaml")).unwrap();
        assert!(readable(&source));
        assert_eq!(read(&mut source)[2..], ["e.json: default/d"]);
    }

    #[test]
    fn a_file_that_is_still_being_written_waits() {
        use std::io::Write as _;
        let dir = tempfile::tempdir().unwrap();
        let mut source = Directory::new(dir.path());
        read(&mut source);
        let mut file = File::create(dir.path().join("a.yaml")).unwrap();
        file.write_all(pod("a").as_bytes()).unwrap();
        assert!(readable(&source));
        let (reading, again) = source.read().unwrap();
        assert_eq!(shown(&reading), ["a.yaml: is being written"]);
        assert_eq!(again, SETTLE);
        drop(file);
        assert!(readable(&source));
        assert_eq!(read(&mut source), ["a.yaml: default/a"]);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(dir.path().join("a.yaml"))
            .unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!(
            read(&mut source),
            ["a.yaml: default/a"],
            "what it held before stays"
        );
        drop(file);
        assert!(read(&mut source)[0].contains("expected a mapping"));
    }

    #[test]
    fn nothing_outside_the_directory_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods");
        fs::create_dir(&path).unwrap();
        write_old(&dir.path().join("secret.yaml"), &pod("secret"));
        write_old(&path.join("a.yaml"), &pod("a"));
        symlink("../secret.yaml", path.join("b.yaml")).unwrap();
        symlink(dir.path().join("secret.yaml"), path.join("c.yaml")).unwrap();
        symlink("a.yaml", path.join("d.yaml")).unwrap();
        symlink("nowhere", path.join("e.yaml")).unwrap();
        fs::create_dir(path.join("f.yaml")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path.join("g.yaml"), Mode::RUSR).unwrap();
        write_old(&path.join("h.yaml"), &" ".repeat(2 << 20));
        let mut source = Directory::new(&path);
        assert_eq!(
            read(&mut source),
            [
                "a.yaml: default/a",
                "b.yaml: a link that leads out of the directory is not followed",
                "c.yaml: a link that leads out of the directory is not followed",
                "d.yaml: default/a",
                "e.yaml: cannot be read: No such file or directory (os error 2)",
                "f.yaml: not a regular file",
                "g.yaml: not a regular file",
                "h.yaml: 1048577 bytes are more than the 1048576 that are read",
            ]
        );
    }

    #[test]
    fn the_number_of_files_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..MAX_FILES + 2 {
            write_old(&dir.path().join(format!("{n:04}.yaml")), &pod(&format!("p{n}")));
        }
        let reading = Directory::new(dir.path()).read().unwrap().0;
        assert_eq!(
            reading.values().filter(|content| content.is_ok()).count(),
            MAX_FILES
        );
        assert_eq!(reading.values().filter(|content| content.is_err()).count(), 2);
    }
}
