//! A patch of our own codec and unpacked layers as one stream: the new layer's tar. Runs inside the cage.
//!
//! Neither the patch nor the trees are trusted: paths are opened component by component, no symbolic link is followed, only regular files
//! are read, and a list of files is as long as the patch declares at most.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, open, openat, readlinkat, statat};
use rustix::io::Errno;
use wherry_delta::adapt::{Std, Zstd};
use wherry_delta::wherry::{Decoder, Header, Kind, Layers, Limits, Listing, SourceId};

use super::Error;
use super::source::{named, open_beneath};
use crate::digest::DiffId;

/// How much of the patch is read at once.
const BUFFER: usize = 32 << 10;

/// The most memory that a patch may declare: with it the whole process stays below 24 MB.
pub const MEMORY: u64 = 18 << 20;

/// The layers' trees in the order in which a patch names them.
struct Trees(Vec<OwnedFd>);

impl Layers for Trees {
    type Error = io::Error;
    type File = Std<File>;

    fn open(&mut self, layer: usize, path: &[u8]) -> io::Result<Std<File>> {
        let tree = self.0.get(layer).ok_or(io::ErrorKind::NotFound)?;
        match open_beneath(tree, path) {
            Ok(Some(file)) => Ok(Std(file)),
            Ok(None) => Err(named(path, io::Error::other("is not a regular file"))),
            Err(error) => Err(named(path, error.into())),
        }
    }

    fn list(&mut self, layer: usize, listing: &mut Listing<'_>) -> io::Result<()> {
        let tree = self.0.get(layer).ok_or(io::ErrorKind::NotFound)?;
        // Paths, not descriptors: a deep tree would need one for each level.
        let mut directories = vec![Vec::new()];
        while let Some(directory) = directories.pop() {
            let more = list_one(tree, &directory, &mut directories, listing);
            if !more.map_err(|error| named(&directory, error.into()))? {
                break;
            }
        }
        Ok(())
    }
}

/// Adds what one directory holds; false when no more is wanted.
fn list_one(
    tree: &OwnedFd,
    directory: &[u8],
    directories: &mut Vec<Vec<u8>>,
    listing: &mut Listing<'_>,
) -> Result<bool, Errno> {
    let fd = open_directory(tree, directory)?;
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let separator: &[u8] = if directory.is_empty() { b"" } else { b"/" };
        let path = [directory, separator, name.to_bytes()].concat();
        let (kind, link) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => (Kind::File, Vec::new()),
            FileType::Directory => (Kind::Directory, Vec::new()),
            FileType::Symlink => (Kind::Link, readlinkat(&fd, name, Vec::new())?.into_bytes()),
            _ => continue,
        };
        // 32 bits on some boards.
        let (size, mtime) = (u64::try_from(stat.st_size).unwrap_or(0), stat.st_mtime as _);
        if !listing.add(&path, kind, size, mtime, &link) {
            return Ok(false);
        }
        if kind == Kind::Directory {
            directories.push(path);
        }
    }
    Ok(true)
}

/// Opens a directory of a tree component by component. Does without openat2, as [`open_beneath`] does.
fn open_directory(tree: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let mut fd = openat(tree, c".", flags | OFlags::RDONLY, Mode::empty())?;
    for component in path
        .split(|&byte| byte == b'/')
        .filter(|component| !component.is_empty())
    {
        fd = openat(fd.as_fd(), component, flags | OFlags::RDONLY, Mode::empty())?;
    }
    Ok(fd)
}

/// The tar that `patch` makes over layers whose trees are `sources`, named by `diff_ids`.
///
/// Memory is bounded by [`MEMORY`]. The stream's bytes are verified against the patch's own hashes before they come out; that these are the
/// right ones only the diffID can tell.
///
/// # Errors
/// `patch` is not one, declares too much memory, or is over a layer that is not among the sources. What goes wrong later comes as an error
/// of the stream.
pub fn wherry_stream<R: Read>(
    patch: R,
    sources: &[PathBuf],
    diff_ids: &[DiffId],
) -> Result<impl Read + use<R>, Error> {
    let mut patch = Std(BufReader::with_capacity(BUFFER, patch));
    let broken = |error: &dyn std::fmt::Display| Error::Patch(error.to_string());
    let header = Header::read::<_, io::Error>(&mut patch).map_err(|error| broken(&error))?;
    let tree = |id: &SourceId| {
        let here = diff_ids
            .iter()
            .zip(sources)
            .find(|(diff_id, _)| diff_id.bytes() == id);
        let (_, tree) = here.ok_or_else(|| {
            let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            Error::Patch(format!(
                "delta: it is over layer sha256:{id}, which is not a layer of the source image"
            ))
        })?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(tree, flags, Mode::empty())
            .map_err(|error| Error::Patch(format!("delta: cannot open the source image: {error}")))
    };
    let trees = header.sources.iter().map(tree).collect::<Result<Vec<_>, _>>()?;
    let limits = Limits {
        memory: MEMORY,
        output: u64::MAX,
    };
    let decoder = Decoder::new(header, patch, Trees(trees), Zstd::default(), &limits)
        .map_err(|fault| Error::Patch(format!("delta: {fault}")))?;
    Ok(TarStream(decoder))
}

/// A decoder as a `std::io` stream.
struct TarStream<R: Read>(Decoder<Std<R>, Trees, Zstd>);

impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0
            .read(buf)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn old_files_are_those_of_the_layer_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        fs::create_dir_all(layer.join("a/b")).unwrap();
        fs::write(dir.path().join("outside"), "outside").unwrap();
        fs::write(layer.join("a/b/file"), "inside").unwrap();
        symlink("../../outside", layer.join("a/link")).unwrap();
        symlink("..", layer.join("up")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, layer.join("fifo"), Mode::RUSR).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut trees = Trees(vec![open(&layer, flags, Mode::empty()).unwrap()]);
        for (path, expected) in [
            ("a/b/file", Ok("inside")),
            ("a/link", Err("a/link: ")),
            ("up/outside", Err("up/outside: ")),
            ("up/layer/a/b/file", Err("up/layer/a/b/file: ")),
            ("fifo", Err("fifo: is not a regular file")),
            ("a/b", Err("a/b: ")),
            ("none", Err("none: ")),
        ] {
            let found = Layers::open(&mut trees, 0, path.as_bytes());
            let found = found.map(|mut file| io::read_to_string(&mut file.0).unwrap());
            match expected {
                Ok(text) => assert_eq!(found.unwrap(), text, "{path}"),
                Err(part) => assert!(found.unwrap_err().to_string().contains(part), "{path}"),
            }
        }
        assert!(Layers::open(&mut trees, 1, b"a/b/file").is_err());
    }

    #[test]
    fn what_cannot_be_applied_is_refused_at_the_start() {
        let head = |body: &[u8]| {
            let magic = &wherry_delta::wherry::MAGIC[..];
            [magic, &(body.len() as u32).to_le_bytes(), body].concat()
        };
        let foreign = [&[1, 0, 0, 1][..], &[0xab; 32], &[0]].concat();
        for (patch, expected) in [
            (b"tardf1\n\0\0\0\0\0".to_vec(), "expected a wherry delta"),
            (head(&[1, 0x80, 0x80, 0x80, 0x7f, 0, 0, 0]), "bytes of memory"),
            (head(&foreign), "over layer sha256:abab"),
            (vec![], "ends too early"),
        ] {
            let error = wherry_stream(&patch[..], &[], &[])
                .map(drop)
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
