//! Containers: one directory each, changed by any process of their user, told true by their monitor.
//!
//! ```text
//! STATE/containers/.lock                 held while a container is made: names stay unique
//! STATE/containers/.pod-<digest>         held while that pod's container is started: it runs once
//! STATE/containers/<id>/desired          the owner's record, written once
//! STATE/containers/<id>/lock             held by whoever changes this container
//! STATE/containers/<id>/observed         the monitor's record
//! STATE/containers/<id>/monitor.lock     held by the monitor for its life
//! STATE/containers/<id>/monitor.json     what the monitor is told at each start
//! STATE/containers/<id>/bundle/ etc/ upper/ work/ rootfs/ volumes/ log attach.sock
//! ```
//!
//! There is no daemon. The CLI and the agent are equal clients of these files, and every operation here may race with
//! any other of any process; the order in which the locks are granted is the order in which things happened. A record
//! is believed only under the truth rule of [`Observed`]; whoever finds a container without its monitor cleans up.

mod directory;
mod in_use;
mod launch;
mod limits;
mod names;
mod observed;
mod process;
mod spec;
mod tree;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wherry_images::{Class, Digest, Image, Store};

use directory::{Desired, Directory, Problem};
use observed::{Truth, VERSION};
use process::Exit;

pub(crate) use directory::{Lock, make_directory, read_bounded, sync_directory, write_durably};
pub use in_use::{User, in_use, is_supervised, users};
pub use launch::Attach;
pub(crate) use launch::started_root;
pub use limits::{Flags as LimitFlags, Limits, Ulimit};
pub use observed::{Observed, Status, Timestamp};
pub use spec::{Id, Invalid, Mount, Network, Owner, Port, Signal, Source, Spec, check_hostname, check_name};
pub(crate) use tree::remove as remove_tree;

/// The permissions of a container's root directory.
const ROOT_MODE: u32 = 0o755;
/// How often another name is tried for a container that was not given one.
const NAME_ATTEMPTS: u32 = 20;
/// How long `SIGKILL` may take to be recorded by the monitor: processes in uninterruptible sleep take their time.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// How long the monitor may take to record an end that made the runtime refuse a signal.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(3);
/// How long a monitor may take to put everything away after its container's end.
const SETTLE_PATIENCE: Duration = Duration::from_secs(30);

/// Why an operation on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No container has that name or id.
    #[error("no such container: {0}; see wherry ps -a")]
    NotFound(String),
    /// The prefix fits more than one id.
    #[error("container id {0} is ambiguous; give more digits")]
    Ambiguous(String),
    /// It was removed in the meantime.
    #[error("container {container} was removed meanwhile")]
    Gone {
        /// Its short id.
        container: String,
    },
    /// Another process changes it at the moment.
    #[error("container {container} is being changed by another process")]
    Busy {
        /// Its short id.
        container: String,
    },
    /// The name belongs to another container.
    #[error("container name {name} is in use by container {id}; remove or rename that one first")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: Id,
    },
    /// A value of the spec is refused.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Another container stands for the same container of the same pod.
    #[error("container {name} stays as it is: {other} runs in its place in pod {pod}")]
    Sibling {
        /// Its name.
        name: String,
        /// The one that runs.
        other: String,
        /// Namespace and name of the pod.
        pod: String,
    },
    /// The operation needs a container that is stopped.
    #[error("container {name} is running; stop it first or use --force")]
    Running {
        /// Its name.
        name: String,
    },
    /// The operation needs a container that runs.
    #[error("container {name} is not running; see wherry ps -a")]
    NotRunning {
        /// Its name.
        name: String,
    },
    /// It did not end although it was killed.
    #[error("container {name} did not end within {seconds} s of SIGKILL")]
    Unkillable {
        /// Its name.
        name: String,
        /// How long was waited.
        seconds: u64,
    },
    /// Its monitor does not come to an end.
    #[error(
        "container {name} does not run, and its monitor has not ended within {seconds} s; see what the runtime waits for"
    )]
    Unsettled {
        /// Its name.
        name: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The runtime or the monitor refused.
    #[error("{message}")]
    Runtime {
        /// Its exit code: 126 and 127 are those of a shell.
        code: i32,
        /// Its own line.
        message: String,
    },
    /// The runtime did not come to an end.
    #[error(
        "wherry-runtime {verb} did not end within {seconds} s and was killed; see whether a disk or a mount hangs"
    )]
    Hung {
        /// What it was to do.
        verb: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A record was written by a newer version.
    #[error("{path}: version {version} is newer than this program; upgrade wherry")]
    Newer {
        /// The record.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A record cannot be read.
    #[error("{path}: damaged record: {reason}")]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The image is not there, or not whole.
    #[error(transparent)]
    Store(#[from] wherry_images::store::Error),
    /// A layer of the image is not in the store any more.
    #[error("image {image}: layer {layer} is not unpacked in the store; pull the image again")]
    LayerMissing {
        /// The image as it was asked for.
        image: String,
        /// The layer's diffID.
        layer: String,
    },
    /// What should be mounted is not there.
    #[error("volume {0}: no such file or directory; make it first")]
    NoVolume(PathBuf),
    /// The bundle cannot be assembled.
    #[error(transparent)]
    Assemble(#[from] crate::assemble::Error),
    /// A device cannot be given.
    #[error(transparent)]
    Device(#[from] crate::devices::Error),
    /// A file operation failed.
    #[error("cannot {verb} {path}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// What the failure means for whoever may try again.
    pub fn class(&self) -> Class {
        match self {
            Self::Busy { .. }
            | Self::Unkillable { .. }
            | Self::Unsettled { .. }
            | Self::Hung { .. }
            | Self::Runtime { .. }
            | Self::Io { .. } => Class::Transient,
            Self::Damaged { .. } => Class::Corrupt,
            Self::Store(error) => error.class(),
            _ => Class::Permanent,
        }
    }

    pub(crate) fn io(verb: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            verb,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    fn record(path: &Path, problem: Problem) -> Self {
        let path = path.to_owned();
        match problem {
            Problem::Newer(version) => Self::Newer { path, version },
            Problem::Damaged(reason) => Self::Damaged { path, reason },
        }
    }
}

/// A container as it is at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: Id,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it is meant to be.
    pub spec: Spec,
    /// What it does, by the truth rule.
    pub observed: Observed,
    directory: PathBuf,
}

impl Container {
    /// Its directory, where the log and the attach socket are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether its process runs.
    pub fn is_running(&self) -> bool {
        self.observed.status == Status::Running
    }
}

/// All containers, and those whose records cannot be read.
#[derive(Debug, Default)]
pub struct Listing {
    /// In the order of their making.
    pub containers: Vec<Container>,
    /// Left as they are until a person or a newer version looks at them.
    pub damaged: Vec<(Id, Error)>,
}

/// What [`Containers::start`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// It runs now, or with [`Attach::Wait`] as soon as someone attaches.
    Now,
    /// It ran already.
    Already,
}

/// The containers of one state directory.
#[derive(Debug)]
pub struct Containers {
    root: PathBuf,
    store: Store,
    runtime: PathBuf,
    boot_id: String,
}

impl Containers {
    /// Opens, and makes if need be, the containers beside the images of `store`. `runtime` is the `wherry-runtime`
    /// that containers are started with.
    pub fn open(store: Store, runtime: &Path) -> Result<Self, Error> {
        let root = store.root().join("containers");
        directory::make_directory(&root)?;
        let boot_id = process::boot_id()?;
        Ok(Self {
            root,
            store,
            runtime: runtime.to_owned(),
            boot_id,
        })
    }

    /// The images that containers are made of.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The runtime that containers are started with.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// Makes a container that does not run yet. A spec without a name gets one, a port without a host port a free one.
    pub fn create(&self, spec: &Spec) -> Result<Container, Error> {
        let mut spec = spec.clone();
        let _lease = self.hold_image(&spec.image)?;
        launch::choose_ports(&mut spec.ports)?;
        if !spec.hostname.is_empty() {
            check_hostname(&spec.hostname)?;
        }
        let names_lock = directory::lock_file(&self.root.join(".lock"))?;
        // What cannot be removed is in nobody's way.
        let _ = self.sweep_locked(&names_lock);
        let listing = self.read_all()?;
        let holder = |name: &str| listing.containers.iter().find(|other| other.spec.name == name);
        if spec.name.is_empty() {
            for attempt in 0..NAME_ATTEMPTS {
                spec.name = names::suggest(process::random()?, attempt);
                if holder(&spec.name).is_none() {
                    break;
                }
            }
        }
        check_name(&spec.name)?;
        if let Some(other) = holder(&spec.name) {
            return Err(Error::NameTaken {
                name: spec.name,
                id: other.id,
            });
        }
        let id = Id::from_bytes(process::random()?);
        let desired = Desired {
            version: VERSION,
            id,
            created_at: Timestamp::now(),
            spec,
        };
        let making = self.root.join(format!(".making-{id}"));
        let path = self.root.join(id.hex());
        let made = self.fill(&making, &desired).and_then(|()| {
            std::fs::rename(&making, &path).map_err(|error| Error::io("make", &path, error))?;
            directory::sync_directory(&self.root)
        });
        if let Err(error) = made {
            let _ = tree::remove(&making);
            return Err(error);
        }
        let observed = Observed::never_started(desired.created_at);
        Ok(Container {
            id,
            created_at: desired.created_at,
            spec: desired.spec,
            observed,
            directory: path,
        })
    }

    fn fill(&self, path: &Path, desired: &Desired) -> Result<(), Error> {
        directory::make_directory(path)?;
        for name in ["bundle", "etc", "upper", "work", "rootfs", "volumes"] {
            directory::make_directory(&path.join(name))?;
        }
        // The container sees this directory's mode as that of its root.
        let upper = path.join("upper");
        rustix::fs::chmod(&upper, ROOT_MODE.into()).map_err(|error| Error::io("prepare", &upper, error))?;
        let _lock = directory::lock_file(&path.join("lock"))?;
        let record = serde_json::to_vec_pretty(desired)
            .map_err(|error| Error::io("write", &path.join("desired"), error))?;
        directory::write_durably(&path.join("desired"), &record)
    }

    /// Starts a container that does not run.
    pub fn start(&self, id: &Id, attach: Attach) -> Result<Started, Error> {
        let dir = self.directory(id);
        // Taken before the container's own lock, by starts alone, so nobody waits for it while holding another.
        let _turn = match dir.desired()?.spec.owner.place() {
            // One for each pod: a start that hangs holds up nobody else's.
            Some(place) => Some(directory::lock_file(&self.root.join(pod_lock(place)))?),
            None => None,
        };
        let lock = dir.lock()?;
        let container = self.settled(&dir, &lock)?;
        if container.observed.claims_life() {
            return Ok(Started::Already);
        }
        self.alone_in_pod(&container)?;
        let image = self.image(&container.spec)?;
        launch::start(self, &container, &image, attach)?;
        Ok(Started::Now)
    }

    /// A pod has one process for each of its containers, whichever attempt that is and whoever started it. A person may
    /// start an attempt that has ended while the agent is about to start the next.
    fn alone_in_pod(&self, container: &Container) -> Result<(), Error> {
        let Some(place) = container.spec.owner.place() else {
            return Ok(());
        };
        let in_place = |other: &&Container| {
            other.id != container.id
                && other.observed.claims_life()
                && other.spec.owner.place() == Some(place)
        };
        match self.read_all()?.containers.iter().find(in_place) {
            None => Ok(()),
            Some(other) => Err(Error::Sibling {
                name: container.spec.name.clone(),
                other: other.spec.name.clone(),
                pod: format!("{}/{}", place.0, place.1),
            }),
        }
    }

    /// Keeps what is here of an image from collection until the record that names it is there. Whether it is whole is told when
    /// the container is started.
    fn hold_image(&self, image: &Digest) -> Result<Store, Error> {
        let store = self.store.leased()?;
        if let Ok(image) = store.image(image) {
            store.missing_layers(&image);
        }
        Ok(store)
    }

    fn image(&self, spec: &Spec) -> Result<Image, Error> {
        Ok(self.store.image(&spec.image)?)
    }

    /// The limits of a container that was started which this board does not enforce, one line each with the reason.
    pub fn lost_limits(&self, container: &Container) -> Result<Vec<String>, Error> {
        launch::lost_limits(self, container)
    }

    /// Sends a signal to the first process.
    pub fn kill(&self, id: &Id, signal: Signal) -> Result<(), Error> {
        let dir = self.directory(id);
        let lock = dir.lock()?;
        let container = self.load_locked(&dir, &lock)?;
        if !container.observed.claims_life() {
            return Err(Error::NotRunning {
                name: container.spec.name,
            });
        }
        let exit = Exit::of_monitor(&dir, &container.observed)?;
        match launch::kill(self, &container, signal) {
            // It ended by itself just before, and its monitor is about to say so.
            Err(Error::Runtime { .. }) if exit.wait(Instant::now().checked_add(REFUSAL_PATIENCE))? => {
                Err(Error::NotRunning {
                    name: container.spec.name,
                })
            }
            sent => sent,
        }
    }

    /// Ends a container: its stop signal, and `SIGKILL` after `grace`. One that does not run is left as it is.
    ///
    /// The lock is not held during the grace, so a second `stop`, a `kill` or a `rm --force` need not wait for it.
    /// Only the run that was found is ended: one that another process starts meanwhile is not touched.
    pub fn stop(&self, id: &Id, grace: Duration) -> Result<(), Error> {
        let dir = self.directory(id);
        let deadline = Instant::now().checked_add(grace);
        let lock = dir.lock()?;
        let container = self.settled(&dir, &lock)?;
        if !container.observed.claims_life() {
            return Ok(());
        }
        let exit = Exit::of_monitor(&dir, &container.observed)?;
        // A process that ends by itself at this moment makes the runtime refuse: the exit below is the answer.
        let asked = launch::kill(self, &container, container.spec.stop_signal);
        drop(lock);
        if exit.wait(if asked.is_ok() {
            deadline
        } else {
            Some(Instant::now())
        })? {
            return Ok(());
        }
        match dir.lock() {
            Ok(lock) => {
                let now = self.load_locked(&dir, &lock)?;
                if !same_run(&now.observed, &container.observed) {
                    return Ok(());
                }
                self.end_now(&now, &exit)
            }
            Err(Error::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Kills and waits until the monitor has recorded it. The container's lock is held.
    fn end_now(&self, container: &Container, exit: &Exit) -> Result<(), Error> {
        let killed = launch::kill(self, container, Signal::KILL);
        let patience = if killed.is_ok() {
            KILL_PATIENCE
        } else {
            REFUSAL_PATIENCE
        };
        if exit.wait(Instant::now().checked_add(patience))? {
            return Ok(());
        }
        killed?;
        Err(Error::Unkillable {
            name: container.spec.name.clone(),
            seconds: KILL_PATIENCE.as_secs(),
        })
    }

    /// Removes a container and everything it wrote. One that runs is refused, or killed with `force`.
    pub fn remove(&self, id: &Id, force: bool) -> Result<(), Error> {
        let dir = self.directory(id);
        let lock = dir.lock()?;
        self.remove_locked(&dir, &lock, force)
    }

    fn remove_locked(&self, dir: &Directory, lock: &Lock, force: bool) -> Result<(), Error> {
        loop {
            let container = self.settled(dir, lock)?;
            if container.observed.claims_life() {
                if !force {
                    return Err(Error::Running {
                        name: container.spec.name,
                    });
                }
                self.end_now(&container, &Exit::of_monitor(dir, &container.observed)?)?;
            } else if let Some(_alone) = dir.keep_monitors_out()? {
                // What a monitor that was killed on its way up or down has left with the runtime.
                launch::delete_state(self, dir)?;
                return self.discard(&container.id, dir, lock);
            }
        }
    }

    /// The container once it lives, or has no monitor: one may be on its way up (whoever started it was killed) or
    /// putting everything away. The container's lock is held.
    fn settled(&self, dir: &Directory, lock: &Lock) -> Result<Container, Error> {
        let deadline = Instant::now().checked_add(SETTLE_PATIENCE);
        loop {
            let container = self.load_locked(dir, lock)?;
            if container.observed.claims_life() || !dir.supervised()? {
                return Ok(container);
            }
            if !Exit::of_monitor(dir, &container.observed)?.wait(deadline)? {
                return Err(Error::Unsettled {
                    name: container.spec.name,
                    seconds: SETTLE_PATIENCE.as_secs(),
                });
            }
        }
    }

    /// Renames away what does not run, so that it is gone at once for everyone, and then deletes it.
    fn discard(&self, id: &Id, dir: &Directory, _lock: &Lock) -> Result<(), Error> {
        let removing = self.root.join(format!(".removing-{id}"));
        std::fs::rename(dir.path(), &removing).map_err(|error| Error::io("remove", dir.path(), error))?;
        directory::sync_directory(&self.root)?;
        tree::remove(&removing)
    }

    /// All containers. What has lost its monitor is cleaned up on the way; what exited and was made to go away goes.
    pub fn list(&self) -> Result<Listing, Error> {
        let mut listing = self.read_all()?;
        listing.containers.retain(|container| {
            if !container.spec.auto_remove || container.observed.status != Status::Exited {
                return true;
            }
            // Whoever has the lock, and a monitor that puts everything away, are not waited for: the next one removes it.
            let dir = self.directory(&container.id);
            let removed = match (dir.supervised(), dir.try_lock()) {
                (Ok(false), Ok(Some(lock))) => self.remove_locked(&dir, &lock, false),
                (_, Err(error)) => Err(error),
                _ => return true,
            };
            !matches!(removed, Ok(()) | Err(Error::Gone { .. }))
        });
        Ok(listing)
    }

    /// The container of that name, id, or unambiguous beginning of an id.
    pub fn find(&self, name: &str) -> Result<Container, Error> {
        if let Some(id) = Id::parse(name) {
            return match self.load(&id) {
                Err(Error::Gone { .. }) => Err(Error::NotFound(name.into())),
                loaded => loaded,
            };
        }
        let mut listing = self.read_all()?;
        if let Some(at) = listing
            .containers
            .iter()
            .position(|container| container.spec.name == name)
        {
            return Ok(listing.containers.swap_remove(at));
        }
        let prefix = !name.is_empty() && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        listing
            .containers
            .retain(|container| prefix && container.id.hex().starts_with(name));
        match listing.containers.pop() {
            None => Err(Error::NotFound(name.into())),
            Some(container) if listing.containers.is_empty() => Ok(container),
            Some(_) => Err(Error::Ambiguous(name.into())),
        }
    }

    /// Finishes what a dead process began: half-made and half-removed directories. Cheap when there are none.
    pub fn sweep(&self) -> Result<(), Error> {
        let names = directory::lock_file(&self.root.join(".lock"))?;
        self.sweep_locked(&names)
    }

    /// Whoever makes a container holds the lock on names, so what is half-made while we hold it was left behind. What is
    /// being removed may as well be removed by two.
    fn sweep_locked(&self, _names: &Lock) -> Result<(), Error> {
        for name in self.entries()? {
            if name.starts_with(".making-") || name.starts_with(".removing-") {
                tree::remove(&self.root.join(name))?;
            }
        }
        Ok(())
    }

    fn directory(&self, id: &Id) -> Directory {
        Directory::new(self.root.join(id.hex()))
    }

    fn entries(&self) -> Result<Vec<String>, Error> {
        let failed = |error| Error::io("list", &self.root, error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root).map_err(failed)? {
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn read_all(&self) -> Result<Listing, Error> {
        let mut listing = Listing::default();
        for id in self.entries()?.iter().filter_map(|name| Id::parse(name)) {
            match self.load(&id) {
                Ok(container) => listing.containers.push(container),
                Err(Error::Gone { .. }) => {}
                Err(error) => listing.damaged.push((id, error)),
            }
        }
        listing
            .containers
            .sort_by_key(|container| (container.created_at, container.id));
        Ok(listing)
    }

    /// A container without holding its lock: true for the moment of the call.
    pub fn load(&self, id: &Id) -> Result<Container, Error> {
        let dir = self.directory(id);
        let desired = dir.desired()?;
        loop {
            let observed = dir.observed()?;
            let Some(claim) = observed.clone() else {
                return Ok(self.container(&dir, desired, None));
            };
            match self.truth(&dir, claim)? {
                Truth::Sound(observed) => return Ok(self.container(&dir, desired, Some(observed))),
                Truth::Lost(lost) => {
                    // The monitor may have written its last word between the two looks.
                    if dir.observed()? != observed {
                        continue;
                    }
                    // Whoever holds the lock is about to find the same.
                    if let Some(lock) = dir.try_lock()? {
                        return self.load_locked(&dir, &lock);
                    }
                    return Ok(self.container(&dir, desired, Some(lost)));
                }
            }
        }
    }

    fn load_locked(&self, dir: &Directory, _lock: &Lock) -> Result<Container, Error> {
        let desired = dir.desired()?;
        let Some(mut claim) = dir.observed()? else {
            return Ok(self.container(dir, desired, None));
        };
        let observed = loop {
            match self.truth(dir, claim.clone())? {
                Truth::Sound(observed) => break observed,
                Truth::Lost(mut lost) => match dir.observed()? {
                    Some(now) if now != claim => claim = now,
                    _ => {
                        if launch::clean_up(self, dir, &claim)? {
                            lost.finished_at = Some(Timestamp::now());
                        }
                        let path = dir.join("observed");
                        let record =
                            serde_json::to_vec(&lost).map_err(|error| Error::io("write", &path, error))?;
                        directory::write_durably(&path, &record)?;
                        break lost;
                    }
                },
            }
        };
        Ok(self.container(dir, desired, Some(observed)))
    }

    fn truth(&self, dir: &Directory, claim: Observed) -> Result<Truth, Error> {
        let supervised = claim.claims_life() && dir.supervised()?;
        Ok(claim.truth(supervised, &self.boot_id, dir.last_sign()))
    }

    fn container(&self, dir: &Directory, desired: Desired, observed: Option<Observed>) -> Container {
        let observed = observed.unwrap_or_else(|| Observed::never_started(desired.created_at));
        Container {
            id: desired.id,
            created_at: desired.created_at,
            spec: desired.spec,
            observed,
            directory: dir.path().to_owned(),
        }
    }
}

/// The file that is locked while a pod's container is started.
fn pod_lock(place: (&str, &str, &str)) -> String {
    let (namespace, name, container) = place;
    let digest = Digest::of(format!("{namespace}/{name}/{container}").as_bytes());
    format!(".pod-{}", digest.short())
}

/// Whether both records tell of the same run of a container.
fn same_run(left: &Observed, right: &Observed) -> bool {
    left.claims_life() && (left.monitor_pid, left.created_at) == (right.monitor_pid, right.created_at)
}
