//! A patch and the source image's unpacked layers as one stream: the new layer's tar. Runs inside the cage.
//!
//! Neither the patch nor the trees are trusted (a container may have written what is in a tree's image): paths are opened component
//! by component, no symbolic link is followed, and only regular files are read.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, fstat, open, openat};
use rustix::io::Errno;
use wherry_delta::adapt::Std;
use wherry_delta::tardiff::{Decoder, Limits, WINDOW_LOG_MAX, read_magic};

use super::Error;

/// How much of the patch is read at once. Operations are a few bytes each.
const BUFFER: usize = 64 << 10;

/// The source image's files: the layers' trees, the lowest first.
///
/// A path means the file of the highest layer that has a regular file at exactly this path. That is what encoders see: they
/// use no file that a whiteout hides or that lies behind a symbolic link.
struct Trees(Vec<OwnedFd>);

impl Trees {
    fn open(trees: &[PathBuf]) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        trees
            .iter()
            .map(|tree| Ok(open(tree, flags, Mode::empty())?))
            .collect::<io::Result<_>>()
            .map(Self)
    }
}

impl wherry_delta::Source for Trees {
    type Error = io::Error;
    type File = Std<File>;

    fn open(&mut self, path: &[u8]) -> io::Result<Std<File>> {
        for tree in self.0.iter().rev() {
            match open_beneath(tree, path) {
                Ok(Some(file)) => return Ok(Std(file)),
                // Nothing of that name, a link, or a whiteout (a character device without a driver): a lower layer may have it.
                Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::NODEV) => {}
                Err(error) => return Err(named(path, error.into())),
            }
        }
        Err(named(path, Errno::NOENT.into()))
    }
}

/// The path is foreign and up to 4096 bytes long: as much of it as tells which it is, or the cage's report has no room for the error.
pub(super) fn named(path: &[u8], error: io::Error) -> io::Error {
    let shown = path.get(..200).unwrap_or(path).escape_ascii();
    let more = if path.len() > 200 { "..." } else { "" };
    io::Error::new(error.kind(), format!("{shown}{more}: {error}"))
}

/// Opens the regular file at `path`, which `wherry_delta::check_path` has passed. Does without openat2, which boards' kernels older
/// than 5.6 do not have.
pub(super) fn open_beneath(tree: &OwnedFd, path: &[u8]) -> Result<Option<File>, Errno> {
    let mut directory = None::<OwnedFd>;
    let mut components = path.split(|&byte| byte == b'/').peekable();
    while let Some(component) = components.next() {
        let at = directory.as_ref().unwrap_or(tree).as_fd();
        let through = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if components.peek().is_some() {
            directory = Some(openat(
                at,
                component,
                through | OFlags::PATH | OFlags::DIRECTORY,
                Mode::empty(),
            )?);
            continue;
        }
        // Without NONBLOCK a FIFO would hold the decoder up for ever.
        let file = openat(
            at,
            component,
            through | OFlags::RDONLY | OFlags::NONBLOCK,
            Mode::empty(),
        )?;
        let regular = FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile;
        return Ok(regular.then(|| file.into()));
    }
    Ok(None)
}

/// The tar that the tar-diff `patch` makes over the source image whose layers' trees are `sources`, the lowest first.
///
/// Memory is bounded: zstd's window of at most 8 MiB and the decoder's own [`wherry_delta::tardiff::DECODER_MEMORY`]. What the
/// patch may make is for the reader of the stream to bound, and to hash: nothing in it is verified here.
///
/// # Errors
/// When a tree cannot be opened or `patch` is not a tar-diff. What goes wrong later comes as an error of the stream.
pub fn tar_stream<R: Read>(patch: R, sources: &[PathBuf]) -> Result<impl Read + use<R>, Error> {
    let trees = Trees::open(sources)
        .map_err(|error| Error::Patch(format!("delta: cannot open the source image: {error}")))?;
    let mut patch = Std(BufReader::with_capacity(BUFFER, patch));
    read_magic::<_, io::Error>(&mut patch).map_err(|error| Error::Patch(error.to_string()))?;
    let broken = |error: io::Error| Error::Patch(format!("delta: {error}"));
    let mut operations = zstd::stream::read::Decoder::with_buffer(patch.0).map_err(broken)?;
    operations.window_log_max(WINDOW_LOG_MAX).map_err(broken)?;
    let operations = Std(BufReader::with_capacity(BUFFER, operations));
    Ok(TarStream(Decoder::new(
        operations,
        trees,
        Limits { output: u64::MAX },
    )))
}

/// A decoder as a `std::io` stream.
struct TarStream<R: Read>(Decoder<Std<R>, Trees>);

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

    /// A tar-diff of uncompressed operations.
    fn patch(operations: &[(u8, u64, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(code, mut size, payload) in operations {
            bytes.push(code);
            while size >= 0x80 {
                bytes.push(size as u8 | 0x80);
                size >>= 7;
            }
            bytes.push(size as u8);
            bytes.extend_from_slice(payload);
        }
        [
            &wherry_delta::tardiff::MAGIC_V1[..],
            &zstd::encode_all(&bytes[..], 3).unwrap(),
        ]
        .concat()
    }

    fn taken(path: &str, size: u64, sources: &[PathBuf]) -> Result<String, String> {
        let patch = patch(&[(1, path.len() as u64, path.as_bytes()), (2, size, b"")]);
        let mut text = String::new();
        let mut stream = tar_stream(&patch[..], sources).map_err(|error| error.to_string())?;
        stream
            .read_to_string(&mut text)
            .map_err(|error| error.to_string())?;
        Ok(text)
    }

    #[test]
    fn files_come_from_the_highest_layer_that_has_them_and_from_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let [lower, upper] = ["lower", "upper"].map(|name| dir.path().join(name));
        fs::create_dir_all(lower.join("etc/dir")).unwrap();
        fs::create_dir_all(upper.join("etc")).unwrap();
        fs::write(dir.path().join("outside"), "outside").unwrap();
        fs::write(lower.join("etc/both"), "lower").unwrap();
        fs::write(upper.join("etc/both"), "upper").unwrap();
        fs::write(lower.join("etc/low"), "low").unwrap();
        fs::write(lower.join("etc/covered"), "covered").unwrap();
        fs::create_dir(upper.join("etc/covered")).unwrap();
        symlink("../../outside", upper.join("etc/link")).unwrap();
        symlink("..", upper.join("up")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, upper.join("etc/fifo"), Mode::RUSR).unwrap();
        let sources = [lower, upper];
        for (path, expected) in [
            ("etc/both", Ok("upper")),
            ("etc/low", Ok("low")),
            ("etc/covered", Ok("covered")),
            ("etc/link", Err("etc/link: ")),
            ("up/outside", Err("up/outside: ")),
            ("etc/fifo", Err("etc/fifo: ")),
            ("etc/dir", Err("etc/dir: ")),
            ("etc/none", Err("etc/none: ")),
            ("../outside", Err("has a component ..")),
            ("/etc/passwd", Err("is absolute")),
        ] {
            let found = taken(path, expected.map_or(1, |text: &str| text.len() as u64), &sources);
            match expected {
                Ok(text) => assert_eq!(found.as_deref(), Ok(text), "{path}"),
                Err(part) => assert!(
                    found.as_ref().is_err_and(|error| error.contains(part)),
                    "{path}: {found:?}"
                ),
            }
        }
    }

    #[test]
    fn foreign_bytes_are_errors() {
        let valid = patch(&[(0, 3, b"abc")]);
        let mut tail = valid.clone();
        tail.truncate(valid.len() - 1);
        for (what, bytes, expected) in [
            (
                "not a tar-diff",
                b"\x1f\x8b\x08\0\0\0\0\0\0".to_vec(),
                "expected a tar-diff header",
            ),
            ("empty", vec![], "ends inside"),
            ("not zstd", [&valid[..8], b"garbage garbage"].concat(), "delta: "),
            ("cut", tail, "delta: "),
        ] {
            let mut out = Vec::new();
            let error = match tar_stream(&bytes[..], &[]) {
                Err(error) => error.to_string(),
                Ok(mut stream) => stream.read_to_end(&mut out).unwrap_err().to_string(),
            };
            assert!(error.contains(expected), "{what}: {error}");
        }
    }

    #[test]
    fn a_window_beyond_the_limit_is_refused() {
        // A frame header that declares 16 MiB, and one empty raw block.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, (24 - 10) << 3, 1, 0, 0];
        let bytes = [&wherry_delta::tardiff::MAGIC_V1[..], &frame].concat();
        let error = tar_stream(&bytes[..], &[])
            .unwrap()
            .read(&mut [0])
            .unwrap_err()
            .to_string();
        assert!(error.contains("delta: "), "{error}");
    }
}
