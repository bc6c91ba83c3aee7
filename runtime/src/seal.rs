//! Keeps containers away from this binary where Landlock cannot: the first processes of a container run from a sealed
//! copy in memory, so that `/proc/PID/exe` names nothing that could be written (the class of CVE-2019-5736).
//!
//! It is not needed when a Landlock domain denies everything outside of the root, nor when the binary is somebody
//! else's and not writable; so on most boards nothing is copied.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Access, MemfdFlags, SealFlags};

use crate::error::{Context, Error};
use crate::sys;

/// Continues in a sealed copy of this program, unless it is one already or cannot be written by this user.
///
/// # Errors
///
/// If the copy cannot be made.
pub(crate) fn seal_own_binary() -> Result<(), Error> {
    let what = || "copy this program into memory";
    let mut own = std::fs::File::open("/proc/self/exe").context(what)?;
    if rustix::fs::fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SealFlags::WRITE)) {
        return Ok(());
    }
    let owner = own.metadata().context(what)?.uid();
    let writable = rustix::fs::access("/proc/self/exe", Access::WRITE_OK);
    // A running program is busy for writing, which says nothing of later.
    let protected = matches!(writable, Err(rustix::io::Errno::ACCESS | rustix::io::Errno::ROFS));
    if owner != rustix::process::geteuid().as_raw() && protected {
        return Ok(());
    }
    let copy = rustix::fs::memfd_create("wherry-runtime", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .context(what)?;
    let mut copy = std::fs::File::from(copy);
    std::io::copy(&mut own, &mut copy).context(what)?;
    rustix::fs::fcntl_add_seals(
        &copy,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )
    .context(what)?;
    let strings = |list: Vec<Vec<u8>>| -> Result<Vec<CString>, Error> {
        list.into_iter()
            .map(|text| CString::new(text).map_err(|_| Error::Usage("a zero byte in an argument".into())))
            .collect()
    };
    let argv = strings(std::env::args_os().map(OsStringExt::into_vec).collect())?;
    let envp = strings(
        std::env::vars_os()
            .map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                name.into_vec()
            })
            .collect(),
    )?;
    let path = CString::new(format!("/proc/self/fd/{}", copy.as_fd().as_raw_fd()))
        .map_err(|_| Error::Usage("a zero byte in a path".into()))?;
    Err(sys::execve(&path, &argv, &envp)).context(what)
}
