//! Where old files come from.

use core::fmt;

use embedded_io::{Error, Read, Seek};

/// The longest path a patch may name, in bytes. The same limit as the reference implementation's and as `PATH_MAX`.
pub const MAX_PATH: usize = 4096;

/// The files of the old image. A patch names them by their path in the image's root file system.
pub trait Source {
    /// What opening, reading and seeking may fail with.
    type Error: Error;
    /// An open old file.
    type File: Read<Error = Self::Error> + Seek<Error = Self::Error>;

    /// Opens the regular file at `path`, its position at the first byte.
    ///
    /// `path` has passed [`check_path`]: relative, normalised, no `..`. It is still foreign: an implementation over a real
    /// file system must resolve it beneath its root and follow no symbolic link.
    ///
    /// # Errors
    /// There is no such regular file, or it cannot be opened.
    fn open(&mut self, path: &[u8]) -> Result<Self::File, Self::Error>;
}

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathFault {
    /// No bytes.
    Empty,
    /// More than [`MAX_PATH`] bytes.
    TooLong(u64),
    /// Begins with a slash.
    Absolute,
    /// Has a component `..`.
    Parent,
    /// Has an empty component or a component `.`.
    NotNormal,
    /// Has a NUL byte.
    Nul,
}

impl fmt::Display for PathFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "is empty"),
            Self::TooLong(length) => write!(f, "is {length} bytes long, expected at most {MAX_PATH}"),
            Self::Absolute => write!(f, "is absolute"),
            Self::Parent => write!(f, "has a component .."),
            Self::NotNormal => write!(f, "is not normalised"),
            Self::Nul => write!(f, "has a NUL byte"),
        }
    }
}

/// Checks that `path` is what encoders write: relative, normalised, without `..`.
///
/// # Errors
/// The first fault found.
pub fn check_path(path: &[u8]) -> Result<(), PathFault> {
    if path.is_empty() {
        return Err(PathFault::Empty);
    }
    if path.len() > MAX_PATH {
        return Err(PathFault::TooLong(path.len() as u64));
    }
    if path.contains(&0) {
        return Err(PathFault::Nul);
    }
    if path[0] == b'/' {
        return Err(PathFault::Absolute);
    }
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b".." => return Err(PathFault::Parent),
            b"" | b"." => return Err(PathFault::NotNormal),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let long = [b'a'; MAX_PATH + 1];
        for (path, expected) in [
            (&b"a"[..], Ok(())),
            (b"usr/lib/libc.so.6", Ok(())),
            (b"..a/b..", Ok(())),
            (b"\xff", Ok(())),
            (&long[1..], Ok(())),
            (b"", Err(PathFault::Empty)),
            (b"/etc/passwd", Err(PathFault::Absolute)),
            (b"..", Err(PathFault::Parent)),
            (b"a/../../b", Err(PathFault::Parent)),
            (b"a//b", Err(PathFault::NotNormal)),
            (b"./a", Err(PathFault::NotNormal)),
            (b"a/", Err(PathFault::NotNormal)),
            (b"a\0b", Err(PathFault::Nul)),
            (&long, Err(PathFault::TooLong(MAX_PATH as u64 + 1))),
        ] {
            assert_eq!(
                check_path(path),
                expected,
                "{:?}",
                path.escape_ascii().to_string()
            );
        }
    }
}
