//! The version of the state directory: who may touch it, and what becomes of an older one.
//!
//! `STATE/version` is one line, `wherry-state N`. It is the first file to be made and the first to be read. A newer N is
//! refused before anything in the directory is touched, its permissions included.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::durable::{self, Want, lock};
use super::{Error, LOST_AND_FOUND};

/// The format that this version reads and writes.
pub const FORMAT: u32 = 1;
/// The file that names it.
const VERSION_FILE: &str = "version";
/// What stands before the number.
const PREFIX: &str = "wherry-state ";
/// The line is short; a longer file is something else.
const MAX_VERSION_LEN: u64 = 64;

/// One step of a migration: it takes a directory of the format at its place in [`MIGRATIONS`] to the next one, must bear being cut
/// off at any point and started again, and leaves `version` alone.
type Migration = fn(&Path) -> Result<(), Error>;

/// `MIGRATIONS[n - 1]` leads from format n to n + 1. Format 1 is the first there ever was.
const MIGRATIONS: [Migration; FORMAT as usize - 1] = [];

/// Makes sure that `root` is a state directory of [`FORMAT`], making or migrating it when that is needed.
pub(super) fn prepare(root: &Path) -> Result<(), Error> {
    let not_state = |reason: String| Error::NotState {
        path: root.to_owned(),
        reason,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .map_err(|e| Error::io("create", root, e))?;
    // Most opens end here: nothing to change, no lock to wait for.
    if read(root)? == Some(FORMAT) {
        return own(root);
    }
    let Some(_lock) = lock(root, Want::Wait, |path| File::open(path))? else {
        return Err(not_state("it cannot be locked".into()));
    };
    let from = match read(root)? {
        Some(found) => found,
        None => {
            // An empty directory becomes a state directory; one with anything else in it is somebody's.
            let temporary = format!(".{VERSION_FILE}.tmp");
            let foreign = durable::names(root)?
                .into_iter()
                .find(|(n, _)| *n != temporary && n != LOST_AND_FOUND);
            if let Some((name, _)) = foreign {
                return Err(not_state(format!(
                    "it holds {name:?} and no file {VERSION_FILE:?}"
                )));
            }
            FORMAT
        }
    };
    own(root)?;
    for migration in MIGRATIONS.iter().skip(from.saturating_sub(1) as usize) {
        migration(root)?;
    }
    durable::replace(root, VERSION_FILE, format!("{PREFIX}{FORMAT}\n").as_bytes())?;
    // The directory's own name, where this user may sync what is above it.
    if let Some(above) = root.parent() {
        let _ = durable::sync_dir(above);
    }
    Ok(())
}

/// The format of the directory, `None` where there is no version file, an error where it is not a known one.
fn read(root: &Path) -> Result<Option<u32>, Error> {
    let path = root.join(VERSION_FILE);
    let Some(bytes) = durable::read_bounded(&path, MAX_VERSION_LEN)? else {
        return Ok(None);
    };
    let line = std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| text.strip_suffix('\n'));
    let found = line
        .and_then(|line| line.strip_prefix(PREFIX))
        .and_then(|number| number.parse().ok());
    match found {
        Some(found @ 1..=FORMAT) => Ok(Some(found)),
        Some(found) if found > FORMAT => Err(Error::Newer {
            path: root.to_owned(),
            found,
            known: FORMAT,
        }),
        _ => Err(Error::NotState {
            path: root.to_owned(),
            reason: format!("its file {VERSION_FILE:?} is unreadable"),
        }),
    }
}

/// Makes sure that the directory is this user's and nobody else's: layers hold set-uid programs that belong to this user.
fn own(root: &Path) -> Result<(), Error> {
    let meta = fs::metadata(root).map_err(|e| Error::io("stat", root, e))?;
    let user = rustix::process::geteuid().as_raw();
    if meta.uid() != user {
        let reason = format!("it belongs to user {} and this is user {user}", meta.uid());
        return Err(Error::NotState {
            path: root.to_owned(),
            reason,
        });
    }
    if meta.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(root, fs::Permissions::from_mode(0o700))
            .map_err(|e| Error::io("restrict", root, e))?;
    }
    Ok(())
}
