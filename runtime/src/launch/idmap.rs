//! Id-mapped mounts: the source is taken as a detached tree whose ids the kernel shows through a user namespace. Only the
//! root of the host may do that, so the creator does, and the mounter puts the tree in its place.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use rustix::process::Signal;

use super::mounts::{Idmap, Kind, Mounting};
use super::plan::Mappings;
use crate::error::{Context, Error};
use crate::sys::{self, MountAttributes, Side};
use crate::wire;

/// The trees of a bundle's id-mapped mounts, by the mounts' positions.
///
/// # Errors
///
/// Names the mount whose ids this kernel, its filesystem or this user cannot map.
pub(super) fn prepare(mounts: &[Mounting]) -> Result<Vec<(usize, OwnedFd)>, Error> {
    let mut trees = Vec::new();
    for (index, mounting) in mounts.iter().enumerate() {
        if let Some(idmap) = &mounting.idmap {
            trees.push((index, tree(mounting, idmap)?));
        }
    }
    Ok(trees)
}

fn tree(mounting: &Mounting, idmap: &Idmap) -> Result<OwnedFd, Error> {
    let field = format!("{}.uidMappings", mounting.field);
    let Kind::Bind { source, recursive } = &mounting.kind else {
        return Err(Error::config(field, "ids are mapped on bind mounts only"));
    };
    let refused = |call: &str, error: std::io::Error| {
        let hint = match error.raw_os_error() {
            Some(libc::ENOSYS) => "id-mapped mounts need Linux 5.12",
            Some(libc::EPERM) => "only root of the host can map ids of a mount",
            _ => "this filesystem or kernel cannot map ids of this mount",
        };
        Error::config(&*field, format!("{call}: {error}: {hint}"))
    };
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if *recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(rustix::fs::CWD, source, flags)
        .map_err(|e| refused("open_tree", e.into()))?;
    let users = user_namespace(idmap, &field)?;
    let attributes = MountAttributes {
        set: libc::MOUNT_ATTR_IDMAP,
        users: Some(users.as_fd()),
        ..MountAttributes::default()
    };
    sys::mount_setattr(tree.as_fd(), attributes, idmap.recursive).map_err(|e| refused("mount_setattr", e))?;
    Ok(tree)
}

/// A user namespace that nobody is in, with these ids.
fn user_namespace(idmap: &Idmap, field: &str) -> Result<OwnedFd, Error> {
    let what = || format!("config.json: {field}: new user namespace");
    let (ours, theirs) = wire::pair().context(what)?;
    let pid = match sys::fork(libc::CLONE_NEWUSER).context(what)? {
        Side::Child => {
            drop(ours);
            // Its end comes from outside, also when the creator is killed.
            let _ = wire::receive(&theirs);
            sys::exit_now(0)
        }
        Side::Parent(pid) => pid,
    };
    let mappings = Mappings {
        uids: idmap.uids.clone(),
        gids: idmap.gids.clone(),
        setgroups_denied: false,
    };
    let namespace = super::map_ids(&mappings, pid).and_then(|()| {
        let path = format!("/proc/{}/ns/user", pid.as_raw_nonzero());
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(what)
    });
    let _ = rustix::process::kill_process(pid, Signal::KILL);
    let _ = sys::wait(pid);
    namespace
}
