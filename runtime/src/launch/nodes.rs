//! Device nodes for a container in a user namespace of its own, whose root cannot make any: the creator, as root of the
//! host, makes them with owner and permissions as asked, in a filesystem that is mounted nowhere; the mounter puts it into
//! the container for a moment and binds them from there.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::{Gid, Uid};
use rustix::thread::UnshareFlags;

use super::devices;
use super::plan::Plan;
use crate::config::{Device, IdMapping};
use crate::error::{Context, Error};

/// The name of a bundle's device in that filesystem.
pub(super) fn name(index: usize) -> String {
    format!("{index}")
}

/// The filesystem with the bundle's nodes. `None`: there are none to make here, or this kernel (before 5.2) cannot.
///
/// # Errors
///
/// Names the device that cannot be made, or whose owner the container does not have.
pub(super) fn prepare(plan: &Plan) -> Result<Option<OwnedFd>, Error> {
    let wanted: Vec<(usize, &Device)> = plan
        .devices
        .iter()
        .enumerate()
        .filter(|(_, device)| device.kind != "p" && !devices::is_default(device))
        .collect();
    if wanted.is_empty() || !plan.host_root || !plan.new.contains(UnshareFlags::NEWUSER) {
        return Ok(None);
    }
    let filesystem = match detached() {
        Ok(filesystem) => filesystem,
        Err(Errno::NOSYS | Errno::PERM) => return Ok(None),
        Err(e) => return Err(e).context(|| "a filesystem for device nodes"),
    };
    for (index, device) in wanted {
        let field = format!("linux.devices[{index}]");
        let (uids, gids) = plan
            .mappings
            .as_ref()
            .map_or((&[][..], &[][..]), |m| (&m.uids[..], &m.gids[..]));
        let owner = (
            host_id(uids, device.uid.unwrap_or(0)),
            host_id(gids, device.gid.unwrap_or(0)),
        );
        let (Some(uid), Some(gid)) = owner else {
            return Err(Error::config(
                format!("{field}.uid"),
                "the owner is not mapped in the user namespace",
            ));
        };
        make(&filesystem, &name(index), device, uid, gid)
            .context(|| format!("config.json: {field}: {}", device.path))?;
    }
    Ok(Some(filesystem))
}

fn detached() -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "mode", "0700")?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn make(filesystem: &OwnedFd, name: &str, device: &Device, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let kind = devices::node_type(device);
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    rustix::fs::mknodat(filesystem, name, kind, mode, devices::number(device)?)?;
    // Whatever the caller's umask says.
    rustix::fs::chmodat(filesystem, name, mode, AtFlags::empty())?;
    let owner = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(
        filesystem,
        name,
        Some(owner.0),
        Some(owner.1),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

/// The host's id of one of the container's.
fn host_id(list: &[IdMapping], id: u32) -> Option<u32> {
    list.iter().find_map(|m| {
        let offset = id.checked_sub(m.container_id).filter(|offset| *offset < m.size)?;
        m.host_id.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_translated() {
        let range = |container_id, host_id, size| IdMapping {
            container_id,
            host_id,
            size,
        };
        let list = [range(0, 1000, 1), range(1, 100_000, 10)];
        for (id, expected) in [
            (0, Some(1000)),
            (1, Some(100_000)),
            (10, Some(100_009)),
            (11, None),
        ] {
            assert_eq!(host_id(&list, id), expected, "{id}");
        }
    }
}
