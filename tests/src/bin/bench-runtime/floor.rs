//! The floor: what the kernel alone takes for a container. One clone3 into the same namespaces, the ids mapped, the
//! same mounts, masks and read-only paths, the same program; no configuration is read, nothing is confined, and no
//! state is kept.

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use std::io::{Error, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use wherry_tests::bundle::{Ids, MASKED, Mapping, READ_ONLY};
use wherry_tests::kernel;

/// Device nodes that runtimes bind.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Runs `program` in `root` and returns its exit code.
pub(crate) fn run(root: &Path, program: &str, ids: &Ids) -> Result<u8> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWNS;
    let Some(pid) = kernel::fork_into(namespaces)? else {
        theirs.read_exact(&mut [0])?;
        enter(root)?;
        return Err(Command::new(program).env_clear().exec());
    };
    map(pid.as_raw_nonzero().get(), ids)?;
    ours.write_all(b"m")?;
    let (status, _) = kernel::wait_measured(pid)?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(255))
}

fn map(pid: i32, ids: &Ids) -> Result<()> {
    if ids.users.len() > 1 {
        let start = |helper: &str, list: &[Mapping]| {
            let numbers = list.iter().flat_map(|(a, b, c)| [a, b, c]).map(u32::to_string);
            Command::new(helper).arg(pid.to_string()).args(numbers).spawn()
        };
        let mut helpers = [start("newuidmap", &ids.users)?, start("newgidmap", &ids.groups)?];
        for helper in &mut helpers {
            let status = helper.wait()?;
            if !status.success() {
                return Err(Error::other(format!("mapping the ids: {status}")));
            }
        }
        return Ok(());
    }
    let line = |list: &[Mapping]| -> String {
        list.iter()
            .map(|(inside, outside, count)| format!("{inside} {outside} {count}\n"))
            .collect()
    };
    let write = |file: &str, text: &str| {
        let mut file = std::fs::File::options()
            .write(true)
            .open(format!("/proc/{pid}/{file}"))?;
        file.write_all(text.as_bytes())
    };
    write("setgroups", "deny")?;
    write("uid_map", &line(&ids.users))?;
    write("gid_map", &line(&ids.groups))
}

fn enter(root: &Path) -> Result<()> {
    use rustix::mount::{mount, mount_bind, mount_bind_recursive, mount_change, mount_remount};
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    rustix::system::sethostname(b"boat")?;
    mount_bind_recursive(root, root)?;
    std::env::set_current_dir(root)?;
    mount("proc", "proc", "proc", safe | MountFlags::NODEV, None)?;
    let strict = MountFlags::NOSUID | MountFlags::STRICTATIME;
    mount("tmpfs", "dev", "tmpfs", strict, Some(c"mode=755,size=65536k"))?;
    for directory in ["dev/pts", "dev/shm", "dev/mqueue"] {
        std::fs::create_dir(directory)?;
    }
    let terminals = c"newinstance,ptmxmode=0666,mode=0620";
    mount("devpts", "dev/pts", "devpts", safe, Some(terminals))?;
    let shared = c"mode=1777,size=65536k";
    mount(
        "tmpfs",
        "dev/shm",
        "tmpfs",
        safe | MountFlags::NODEV,
        Some(shared),
    )?;
    mount("mqueue", "dev/mqueue", "mqueue", safe | MountFlags::NODEV, None)?;
    let fixed = safe | MountFlags::NODEV | MountFlags::RDONLY;
    mount("sysfs", "sys", "sysfs", fixed, None)?;
    for device in DEVICES {
        std::fs::File::create(Path::new("dev").join(device))?;
        mount_bind(Path::new("/dev").join(device), Path::new("dev").join(device))?;
    }
    for path in READ_ONLY {
        let path = path.trim_start_matches('/');
        if Path::new(path).exists() {
            mount_bind_recursive(path, path)?;
            let flags = MountFlags::BIND | MountFlags::RDONLY | safe | MountFlags::NODEV;
            mount_remount(path, flags, "")?;
        }
    }
    for path in MASKED {
        let path = path.trim_start_matches('/');
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, None)?,
            Ok(_) => mount_bind("/dev/null", path)?,
            Err(_) => {}
        }
    }
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}
