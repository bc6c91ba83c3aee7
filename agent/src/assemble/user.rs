//! Who runs in a container: looked up in the image's own `/etc/passwd` and `/etc/group`, which are foreign bytes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Error;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// No more of a list is read; a list of users is much smaller.
const LIST_MAX: u64 = 1 << 20;
/// Kernels leave the last id out.
const ID_MAX: u32 = u32::MAX - 1;

/// The one user of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its number in the container.
    pub uid: u32,
    /// Its group's number in the container.
    pub gid: u32,
    /// Its home directory, `/` when the image does not say.
    pub home: String,
}

/// Finds a user in the image as the container sees it: its own changes in `upper` above its `layers`, lowest first.
pub fn find_user(wanted: &str, upper: &Path, layers: &[PathBuf]) -> Result<User, Error> {
    let trees: Vec<&Path> = std::iter::once(upper)
        .chain(layers.iter().rev().map(PathBuf::as_path))
        .collect();
    let read =
        |file: &'static str| read_list(&trees, file).map_err(|source| Error::UserFile { file, source });
    let named_group = wanted
        .split_once(':')
        .is_some_and(|(_, group)| group.parse::<u32>().is_err());
    let group = if named_group { read(GROUP)? } else { Vec::new() };
    resolve(wanted, &read(PASSWD)?, &group)
}

/// Docker's rule: `user`, `uid`, `user:group`, with a number that is not in the list taken as it is.
pub(super) fn resolve(wanted: &str, passwd: &[u8], group: &[u8]) -> Result<User, Error> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, (!group.is_empty()).then_some(group)),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let unknown = |user: &str, file| Error::UnknownUser {
        user: user.into(),
        file,
    };
    let number = user.parse::<u32>().ok().filter(|uid| *uid <= ID_MAX);
    let found = lines(passwd).find_map(|line| {
        let field = |n: usize| line.split(':').nth(n);
        let uid = field(2)?.parse::<u32>().ok()?;
        let gid = field(3)?.parse::<u32>().ok()?;
        let fits = field(0)? == user || number == Some(uid);
        fits.then(|| User {
            uid,
            gid,
            home: field(5)
                .filter(|home| home.starts_with('/'))
                .unwrap_or("/")
                .into(),
        })
    });
    let mut user = match (found, number) {
        (Some(found), _) => found,
        (None, Some(uid)) => User {
            uid,
            gid: 0,
            home: "/".into(),
        },
        (None, None) => return Err(unknown(user, PASSWD)),
    };
    if let Some(wanted) = wanted_group {
        let named = lines(group).find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == wanted).then(|| fields.nth(1)?.parse::<u32>().ok())?
        });
        let number = wanted.parse::<u32>().ok().filter(|gid| *gid <= ID_MAX);
        user.gid = named.or(number).ok_or_else(|| unknown(wanted, GROUP))?;
    }
    Ok(user)
}

fn lines(list: &[u8]) -> impl Iterator<Item = &str> {
    list.split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
}

/// The file of the topmost tree that has it. A tree's own links are followed beneath it, and nowhere else.
fn read_list(trees: &[&Path], file: &str) -> io::Result<Vec<u8>> {
    let relative = Path::new(file.trim_start_matches('/'));
    for tree in trees {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(*tree, flags, Mode::empty())?;
        match open_beneath(&root, relative) {
            Ok(file) => {
                let stat = rustix::fs::fstat(&file)?;
                return match FileType::from_raw_mode(stat.st_mode) {
                    FileType::RegularFile => {
                        let mut list = Vec::new();
                        File::from(file).take(LIST_MAX).read_to_end(&mut list)?;
                        Ok(list)
                    }
                    // How overlay says that the file was removed.
                    FileType::CharacterDevice if stat.st_rdev == 0 => Ok(Vec::new()),
                    _ => Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "it is not a regular file",
                    )),
                };
            }
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Vec::new())
}

/// Opens a file beneath a directory that a container has written. Kernels before 5.6 get each step without links.
fn open_beneath(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    use rustix::fs::ResolveFlags;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), within) {
            // A rename raced with the lookup of "..".
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => break opened,
        }
    };
    match opened {
        // A whiteout cannot be opened, only looked at.
        Err(Errno::NXIO | Errno::ACCESS) => {
            rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), within)
        }
        Err(Errno::NOSYS) => {
            let mut at = rustix::io::dup(root)?;
            for part in path.parent().into_iter().flatten() {
                let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                at = rustix::fs::openat(&at, part, step, Mode::empty())?;
            }
            rustix::fs::openat(
                &at,
                path.file_name().unwrap_or_default(),
                flags | OFlags::NOFOLLOW,
                Mode::empty(),
            )
        }
        opened => opened,
    }
}
