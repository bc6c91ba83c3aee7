//! `create`: a bundle becomes an init that waits.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::WaitOptions;

use super::Create;
use crate::cgroup::Manager;
use crate::config::{self, Config};
use crate::error::{Context, Error};
use crate::launch::{self, HookState, Inherited, Launched};
use crate::state::{Directory, ProcessId, Record, Root};
use crate::{cgroup, seal};

/// Most descriptors that a container is given.
const MAX_PRESERVED: u32 = 4096;

/// Carries out `create`.
///
/// # Errors
///
/// Those of the bundle, by field, and of the launch. Nothing is left of a container that could not be created.
pub fn run(root: &Root, options: &Create, manager: Manager) -> Result<(), Error> {
    let console = options
        .console_socket
        .as_deref()
        .map(super::console_socket)
        .transpose()?;
    let bundle = launch::absolute(&options.bundle)?;
    let loaded = load(&bundle, options.config.as_deref())?;
    let (directory, _, launched) = create(root, options, manager, bundle, loaded, console, false)?;
    launched.commit().inspect_err(|_| {
        // The first error is the one to tell.
        let _ = directory.remove();
    })
}

/// Creates and records the container of a bundle as loaded; `console` receives the terminal if the bundle asks for
/// one. It ends again unless what was launched is committed. With `early` it is to start as soon as it can: it is recorded
/// while the mounts are made, and init need not wait for its creator once more.
pub(super) fn create(
    root: &Root,
    options: &Create,
    manager: Manager,
    bundle: PathBuf,
    (mut config, warnings): (Config, Vec<String>),
    console: Option<OwnedFd>,
    early: bool,
) -> Result<(Directory, Record, Launched), Error> {
    if options.no_pivot {
        return Err(Error::Usage(
            "--no-pivot is not supported: leave it out, or copy the root off the ramfs".into(),
        ));
    }
    let preserved = preserve(options.preserve_fds, &mut config)?;
    match (config.process.terminal, &console) {
        (true, None) => return Err(Error::Usage("process.terminal needs --console-socket".into())),
        (false, Some(_)) => return Err(Error::Usage("--console-socket needs process.terminal".into())),
        _ => {}
    }
    let annotations = config.annotations.clone();
    let oci_version = config.oci_version.clone();
    let plan = launch::plan(config, warnings, &bundle)?;
    if !plan.policy.enforced() {
        seal::seal_own_binary()?;
    }

    let directory = root.make(&options.id)?;
    let state = HookState {
        oci_version: oci_version.clone(),
        id: options.id.clone(),
        bundle: bundle.clone(),
        annotations: annotations.clone(),
    };
    let mut cgroup = None;
    let attempt = || -> Result<(Record, Launched), Error> {
        let asked = cgroup::Asked {
            manager,
            id: &options.id,
            path: plan.cgroups_path.as_deref(),
            resources: &plan.resources,
        };
        let created = cgroup::create(asked, &mut |cgroup| directory.write_cgroup(cgroup))?;
        cgroup.clone_from(&created.cgroup);
        let mut record = Record {
            version: Record::VERSION,
            oci_version,
            bundle,
            init: ProcessId { pid: 0, start: 0 },
            spawner: ProcessId { pid: 0, start: 0 },
            annotations,
            warnings: created.warnings,
            hooks: plan.hooks.clone(),
            cgroup: created.cgroup.clone(),
            listener: plan.listener.clone(),
        };
        record.warnings.extend(plan.warnings.iter().cloned());
        let inherit = |setup| {
            Ok(Inherited {
                setup,
                listener: directory.listen()?,
                console,
                null: rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                    .context(|| "/dev/null")?,
                preserved,
                cgroup: created.entry.map(|entry| entry.at_birth(plan.born_in_cgroup())),
                legacy: created
                    .cgroup
                    .as_ref()
                    .map(|cgroup| cgroup.legacy.clone())
                    .unwrap_or_default(),
                state,
                trees: Vec::new(),
                nodes: None,
            })
        };
        // A pid file is there before its process does anything; and with hooks of the creator the mounter, which reads the
        // same socket as the spawner, has something to wait for.
        let hooked = !plan.hooks.prestart.is_empty() || !plan.hooks.create_runtime.is_empty();
        let early = early && options.pid_file.is_none() && !hooked;
        let launched = launch::launch(&plan, inherit, &mut |spawner, init| {
            (record.spawner, record.init) = (spawner, init);
            if early {
                directory.write(&record)?;
            }
            Ok(early)
        })?;
        if early && launched.warnings.is_empty() {
            directory.unlock()?;
            return Ok((record, launched));
        }
        record.warnings.extend(launched.warnings.iter().cloned());
        write_record(&directory, options, record, launched)
    };
    match attempt() {
        Ok((record, launched)) => Ok((directory, record, launched)),
        Err(error) => {
            // The first error is the one to tell.
            if let Some(cgroup) = cgroup {
                let _ = cgroup.remove();
            }
            let _ = directory.remove();
            Err(error)
        }
    }
}

/// How many descriptors after the standard streams the container gets: those that are asked for, which need not all be
/// open, and the sockets of an activation by systemd, of which its environment then tells.
fn preserve(asked: u32, config: &mut Config) -> Result<u32, Error> {
    let mut preserved = asked;
    if let Some(count) = std::env::var("LISTEN_FDS").ok().filter(|count| !count.is_empty()) {
        let number: u32 = count
            .parse()
            .map_err(|_| Error::Usage(format!("LISTEN_FDS={count:?}: expected a number")))?;
        preserved = preserved.max(number);
        let env = &mut config.process.env;
        env.retain(|variable| !variable.starts_with("LISTEN_"));
        env.push(format!("LISTEN_FDS={number}"));
        if let Ok(names) = std::env::var("LISTEN_FDNAMES") {
            env.push(format!("LISTEN_FDNAMES={names}"));
        }
    }
    if preserved > MAX_PRESERVED {
        return Err(Error::Usage(format!(
            "--preserve-fds {preserved}: expected at most {MAX_PRESERVED}"
        )));
    }
    Ok(preserved)
}

fn write_record(
    directory: &Directory,
    options: &Create,
    record: Record,
    launched: Launched,
) -> Result<(Record, Launched), Error> {
    let write = || -> Result<(), Error> {
        directory.write(&record)?;
        if let Some(path) = &options.pid_file {
            super::write_pid(path, record.init.pid)?;
        }
        Ok(())
    };
    match write() {
        Ok(()) => {
            directory.unlock()?;
            Ok((record, launched))
        }
        Err(error) => {
            // Not committed: the spawner ends init and itself when our end of the socket closes; one that was started goes on.
            let _ = record.init.signal(libc::SIGKILL);
            drop(launched);
            while !matches!(
                rustix::process::wait(WaitOptions::empty()),
                Err(rustix::io::Errno::CHILD)
            ) {}
            Err(error)
        }
    }
}

/// Reads a bundle's `config.json`, or another file in its place, by its path from the current directory.
pub(super) fn load(bundle: &Path, other: Option<&Path>) -> Result<(Config, Vec<String>), Error> {
    let path = other.map_or_else(|| bundle.join("config.json"), Path::to_owned);
    let what = || path.display().to_string();
    let file = std::fs::File::open(&path).context(what)?;
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let mut text = Vec::with_capacity(length.min(config::MAX_BYTES) as usize + 1);
    file.take(config::MAX_BYTES + 1)
        .read_to_end(&mut text)
        .context(what)?;
    if text.len() as u64 > config::MAX_BYTES {
        return Err(Error::config(
            "syntax",
            format!("longer than {} bytes", config::MAX_BYTES),
        ));
    }
    config::parse(&text)
}
