//! The cgroup of a container: found or made, limited, entered, frozen, killed and removed.
//!
//! ```text
//! find the hierarchies -> write down where (the directory `cgroup`) -> make -> limit -> init is born in it (CLONE_INTO_CGROUP)
//! ```
//!
//! Only the container's own processes are in it: init and those of `exec`. Mounter and spawner stay in the caller's cgroup,
//! so that a limit of one process means one, the out-of-memory killer never takes the spawner, and a frozen container
//! still answers. No running process is moved where the kernel can be asked to make it in the right place: moving takes a
//! lock of the whole machine.
//!
//! A limit is in force, or an error that names its field, or a warning that says which controller is missing and how to
//! get it. No rlimit stands in for a missing controller: RLIMIT_AS counts addresses of one process instead of memory of
//! all of them, and RLIMIT_NPROC counts a user's processes, before Linux 5.14 those of every container.

mod host;
mod legacy;
mod resources;
mod stats;
mod unified;
mod v1;
mod v2;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use host::{Hierarchy, Host};
pub use resources::Resources;
use resources::Setting;

use crate::error::{Context, Error};
use crate::resolve;

/// How long the kernel may take to freeze, to thaw, or to end killed processes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Controllers of every container, where they can be had: what `events` shows, and the record of the out-of-memory killer.
const ALWAYS: [&str; 3] = ["cpu", "memory", "pids"];

/// Deepest nesting that is walked: a container may make cgroups of its own.
const MAX_DEPTH: usize = 64;

/// Where a container's processes are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Cgroup {
    /// The directory in the unified hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unified: Option<PathBuf>,
    /// Directories in hierarchies of cgroup v1, by controller.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) legacy: BTreeMap<String, PathBuf>,
    /// Directories above those that were made with them, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    made: Vec<PathBuf>,
}

/// What a bundle asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// The container's name.
    pub(crate) id: &'a str,
    /// `linux.cgroupsPath`.
    pub(crate) path: Option<&'a str>,
    /// `linux.resources`.
    pub(crate) resources: &'a Resources,
}

/// The way into a cgroup, for a process that is about to be made and for one that is there.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The directory in the unified hierarchy.
    directory: Option<OwnedFd>,
    /// Its `cgroup.procs`, for kernels that cannot make a process there.
    unified: Option<OwnedFd>,
    /// `cgroup.procs` of the v1 hierarchies.
    legacy: Vec<OwnedFd>,
}

/// A cgroup that was made, and what could not be done.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) entry: Option<Entry>,
    pub(crate) warnings: Vec<String>,
}

/// Makes a container's cgroup and sets its limits. `journal` is told of every directory before it is made.
///
/// # Errors
///
/// Names a field whose limit the kernel refuses, or a path that other processes are in.
pub(crate) fn create(
    asked: Asked<'_>,
    journal: &mut dyn FnMut(&Cgroup) -> Result<(), Error>,
) -> Result<Created, Error> {
    let host = Host::find();
    let new = v2::translate(asked.resources)?;
    let old = v1::translate(asked.resources)?;
    let mut cgroup = Cgroup::default();
    let mut warnings = Vec::new();

    let mut why = "no cgroup hierarchy is mounted on /sys/fs/cgroup".to_owned();
    let mut refused = BTreeMap::new();
    let mut controllers = BTreeSet::new();
    if let Some(hierarchy) = &host.unified {
        match cgroup.make(hierarchy, "unified", asked, journal)? {
            Ok(directory) => {
                let wanted: BTreeSet<&str> = ALWAYS
                    .into_iter()
                    .chain(new.settings.iter().map(Setting::controller))
                    .collect();
                controllers = unified::enable(&hierarchy.mount, &directory, &wanted);
            }
            Err(reason) => why = reason,
        }
    }
    let mut limit = || -> Result<(), Error> {
        let is_new = |controller: &str| controllers.contains(controller) || controller == "cgroup";
        if let Some(directory) = &cgroup.unified {
            for setting in new.settings.iter().filter(|s| is_new(s.controller())) {
                warnings.extend(write_setting(directory, setting)?);
            }
        }
        // What the unified hierarchy does not control may be controlled by one of the old ones.
        let mut is_old = BTreeSet::new();
        let mut needed: BTreeSet<&str> = old.settings.iter().map(Setting::controller).collect();
        if cgroup.unified.is_none() {
            needed.insert("freezer");
        }
        for controller in needed.into_iter().filter(|controller| !is_new(controller)) {
            let name = if controller == "io" { "blkio" } else { controller };
            let Some(hierarchy) = host.legacy_of(name) else {
                continue;
            };
            match cgroup.make(hierarchy, name, asked, journal)? {
                Ok(_) => drop(is_old.insert(controller)),
                Err(reason) => drop(refused.insert(controller, reason)),
            }
        }
        legacy::write_all(&cgroup.legacy, &old.settings, &is_old, &mut warnings)?;
        for (controller, line) in &new.lost {
            if !is_old.contains(controller.as_str()) {
                warnings.push(line.clone());
            }
        }
        for (_, line) in old.lost.iter().filter(|(name, _)| is_old.contains(name.as_str())) {
            warnings.push(line.clone());
        }
        let missing: BTreeSet<&str> = new
            .settings
            .iter()
            .map(Setting::controller)
            .filter(|name| !is_new(name) && !is_old.contains(name))
            .collect();
        for controller in missing {
            let fields: BTreeSet<&str> = new
                .settings
                .iter()
                .filter(|setting| setting.controller() == controller)
                .map(|setting| setting.field.as_str())
                .collect();
            let reason = match (refused.get(controller), &cgroup.unified, &host.unified) {
                (Some(reason), _, _) => reason.clone(),
                (None, Some(directory), Some(hierarchy)) => {
                    unified::missing(&hierarchy.mount, directory, controller)
                }
                _ => why.clone(),
            };
            let fields: Vec<&str> = fields.into_iter().collect();
            warnings.push(format!(
                "linux.resources.{}: {} limit not enforced: {reason}",
                fields.join(", "),
                kind(controller)
            ));
        }
        Ok(())
    };
    if let Err(error) = limit() {
        // The first error is the one to tell.
        let _ = cgroup.remove();
        return Err(error);
    }
    match asked.path.filter(|path| !path.is_empty()) {
        Some(_) if cgroup == Cgroup::default() => {
            warnings.push(format!("linux.cgroupsPath: not used: {why}"));
        }
        Some(path) if path.contains(':') => warnings.push(format!(
            "linux.cgroupsPath: {path:?}: systemd is not asked for a scope, the cgroup is beside the caller's"
        )),
        _ => {}
    }
    if asked
        .resources
        .devices
        .as_ref()
        .is_some_and(|rules| !rules.is_empty())
    {
        warnings.push(
            "linux.resources.devices: no device filter: the container's /dev holds the devices it was given and no others, and its mounts decide which those are".into(),
        );
    }
    let cgroup = Some(cgroup).filter(|cgroup| *cgroup != Cgroup::default());
    let entry = cgroup.as_ref().map(Cgroup::entry).transpose()?;
    Ok(Created {
        cgroup,
        entry,
        warnings,
    })
}

/// What a controller limits, in words.
fn kind(controller: &str) -> &str {
    match controller {
        "pids" => "process",
        "io" => "block device",
        "cpuset" => "processor set",
        other => other,
    }
}

/// Writes one value; a line if this kernel does not have the file.
fn write_setting(directory: &Path, setting: &Setting) -> Result<Option<String>, Error> {
    for (file, value) in &setting.writes {
        match write(&directory.join(file), value) {
            Ok(()) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                return Err(Error::config(
                    format!("linux.resources.{}", setting.field),
                    format!("write {value:?} to {}: {e}", directory.join(file).display()),
                ));
            }
        }
    }
    let names: Vec<&str> = setting.writes.iter().map(|(file, _)| file.as_str()).collect();
    let line = format!("this kernel has no {}", names.join(" and no "));
    if setting.field.starts_with("unified.") {
        // The specification wants an error for a file named as such.
        return Err(Error::config(format!("linux.resources.{}", setting.field), line));
    }
    Ok(Some(format!(
        "linux.resources.{}: not enforced: {line}",
        setting.field
    )))
}

/// Writes to a file that must be there.
fn write(path: &Path, value: &str) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    std::fs::File::from(file).write_all(value.as_bytes())
}

fn read(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path)
}

fn is_missing(error: &io::Error) -> bool {
    // A file of a cgroup that is being removed answers with the latter.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// The processes of a cgroup and of those beneath it, as this process sees them.
fn processes(directory: &Path, depth: usize, found: &mut Vec<i32>) -> io::Result<()> {
    match read(&directory.join("cgroup.procs")) {
        Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        Err(e) if is_missing(&e) => return Ok(()),
        // Of threads: their processes are in the cgroup above.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(e) => return Err(e),
    }
    for child in children(directory)? {
        if depth < MAX_DEPTH {
            processes(&child, depth + 1, found)?;
        }
    }
    Ok(())
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut children = Vec::new();
    match std::fs::read_dir(directory) {
        Ok(entries) => {
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    children.push(entry.path());
                }
            }
        }
        Err(e) if is_missing(&e) => {}
        Err(e) => return Err(e),
    }
    Ok(children)
}

/// Removes a directory and those beneath it; an error of kind `ResourceBusy` while there are processes.
fn remove_tree(directory: &Path, depth: usize) -> io::Result<()> {
    match std::fs::remove_dir(directory) {
        Ok(()) => Ok(()),
        Err(e) if is_missing(&e) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy && depth < MAX_DEPTH => {
            for child in children(directory)? {
                remove_tree(&child, depth + 1)?;
            }
            match std::fs::remove_dir(directory) {
                Err(e) if is_missing(&e) => Ok(()),
                result => result,
            }
        }
        Err(e) => Err(e),
    }
}

impl Cgroup {
    /// Makes the directory in one hierarchy; the inner error says why it cannot be made.
    fn make(
        &mut self,
        hierarchy: &Hierarchy,
        name: &str,
        asked: Asked<'_>,
        journal: &mut dyn FnMut(&Cgroup) -> Result<(), Error>,
    ) -> Result<Result<PathBuf, String>, Error> {
        let mut why = String::new();
        for place in hierarchy.places(asked.path, asked.id) {
            // A name of our own choice that is taken is another container's of this id, in another root directory.
            let ours = asked
                .path
                .is_none_or(|path| resolve::clean(path).as_os_str().is_empty());
            let mut present = Vec::new();
            if ours && place.exists() {
                why = format!("{} is taken", place.display());
                continue;
            }
            if !ours && processes(&place, 0, &mut present).is_ok() && !present.is_empty() {
                return Err(Error::config(
                    "linux.cgroupsPath",
                    format!("{} has processes of somebody else", place.display()),
                ));
            }
            let before = self.clone();
            let missing: Vec<&Path> = place
                .ancestors()
                .skip(1)
                .take_while(|above| *above != hierarchy.mount && !above.is_dir())
                .collect();
            self.made
                .extend(missing.iter().rev().map(|path| (*path).to_owned()));
            match name {
                "unified" => self.unified = Some(place.clone()),
                name => drop(self.legacy.insert(name.to_owned(), place.clone())),
            }
            journal(self)?;
            let made = missing
                .iter()
                .rev()
                .copied()
                .chain([place.as_path()])
                .try_for_each(|path| match std::fs::create_dir(path) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists && !(ours && path == place) => Ok(()),
                    Ok(()) if name == "cpuset" => legacy::inherit_cpuset(path),
                    result => result,
                });
            // A directory of somebody else's making may be there and yet not for us; and in the unified hierarchy
            // processes come only from where the directory above both belongs to us.
            let common = place.ancestors().find(|above| hierarchy.own.starts_with(above));
            let common = common.filter(|_| name == "unified");
            let enter = || -> io::Result<()> {
                for directory in common.into_iter().chain([place.as_path()]) {
                    rustix::fs::access(directory.join("cgroup.procs"), rustix::fs::Access::WRITE_OK)?;
                }
                Ok(())
            };
            match made.and_then(|()| enter()) {
                Ok(()) => return Ok(Ok(place)),
                Err(e) => {
                    // What was there already is not ours to remove.
                    if e.kind() != io::ErrorKind::AlreadyExists {
                        let _ = std::fs::remove_dir(&place);
                    }
                    for path in &missing {
                        let _ = std::fs::remove_dir(path);
                    }
                    why = refusal(&place, &e);
                    *self = before;
                }
            }
        }
        Ok(Err(why))
    }

    /// Opens the way in.
    pub(crate) fn entry(&self) -> Result<Entry, Error> {
        let open = |path: &Path, flags: OFlags| {
            rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
                .context(|| path.display().to_string())
        };
        let procs = |path: &PathBuf| open(&path.join("cgroup.procs"), OFlags::WRONLY);
        let distinct: BTreeSet<&PathBuf> = self.legacy.values().collect();
        Ok(Entry {
            directory: self
                .unified
                .as_ref()
                .map(|path| open(path, OFlags::PATH | OFlags::DIRECTORY))
                .transpose()?,
            unified: self.unified.as_ref().map(procs).transpose()?,
            legacy: distinct.into_iter().map(procs).collect::<Result<_, _>>()?,
        })
    }

    /// The directory that freezes: the unified one, or v1's freezer.
    fn freezer(&self) -> Option<(&Path, bool)> {
        let unified = self.unified.as_deref().map(|path| (path, true));
        unified.or_else(|| self.legacy.get("freezer").map(|path| (path.as_path(), false)))
    }

    /// The directory by which the processes are counted.
    fn any(&self) -> Option<&Path> {
        self.unified
            .as_deref()
            .or_else(|| self.legacy.get("freezer").map(PathBuf::as_path))
            .or_else(|| self.legacy.values().next().map(PathBuf::as_path))
    }

    /// Whether the container is paused.
    pub(crate) fn is_frozen(&self) -> bool {
        match self.freezer() {
            Some((path, true)) => read(&path.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1"),
            Some((path, false)) => legacy::is_frozen(path),
            None => false,
        }
    }

    /// Freezes or thaws all processes and waits until it is so.
    ///
    /// # Errors
    ///
    /// If there is no freezer, or a process does not freeze in time: then all of them go on.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let Some((path, is_unified)) = self.freezer() else {
            return Err(Error::Usage("this container's cgroup has no freezer".into()));
        };
        let done = if is_unified {
            unified::freeze(path, frozen, PATIENCE)
        } else {
            legacy::freeze(path, frozen, PATIENCE)
        };
        let what = || {
            let verb = if frozen { "freeze" } else { "thaw" };
            format!("{verb} {}", path.display())
        };
        if done.context(what)? {
            return Ok(());
        }
        if frozen {
            let _ = if is_unified {
                unified::freeze(path, false, PATIENCE)
            } else {
                legacy::freeze(path, false, PATIENCE)
            };
        }
        Err(Error::Launch {
            code: 1,
            line: format!("{}: not done after {} s", what(), PATIENCE.as_secs()),
        })
    }

    /// Changes limits.
    ///
    /// # Errors
    ///
    /// Names a limit that cannot be enforced, or a value that the kernel refuses.
    pub(crate) fn update(&self, mut resources: Resources) -> Result<(), Error> {
        let unified = self.unified.as_deref();
        if let (Some(path), Some(memory)) = (unified, &mut resources.memory) {
            let number = |file: &str| {
                read(&path.join(file))
                    .ok()
                    .and_then(|text| text.trim().parse().ok())
            };
            if memory.limit.is_none() && memory.swap.is_some_and(|swap| swap > 0) {
                memory.limit = number("memory.max");
            }
            let used: Option<i64> = number("memory.current").filter(|_| memory.check_before_update);
            if let (Some(limit), Some(used)) = (memory.limit.filter(|limit| *limit > 0), used)
                && used > limit
            {
                return Err(Error::config(
                    "linux.resources.memory.limit",
                    format!("{limit}: the container uses {used} bytes (checkBeforeUpdate)"),
                ));
            }
        }
        let (new, old) = (v2::translate(&resources)?, v1::translate(&resources)?);
        let mount = Host::find().unified.map(|hierarchy| hierarchy.mount);
        let mut controllers = BTreeSet::new();
        if let (Some(directory), Some(mount)) = (unified, &mount) {
            let wanted = new.settings.iter().map(Setting::controller).collect();
            controllers = unified::enable(mount, directory, &wanted);
        }
        let is_new = |controller: &str| controllers.contains(controller) || controller == "cgroup";
        let legacy_name = |controller| if controller == "io" { "blkio" } else { controller };
        let old_controllers: BTreeSet<&str> = old.settings.iter().map(Setting::controller).collect();
        let is_old: BTreeSet<&str> = old_controllers
            .into_iter()
            .filter(|name| !is_new(name) && self.legacy.contains_key(legacy_name(name)))
            .collect();
        // Before anything is changed.
        for setting in &new.settings {
            let controller = setting.controller();
            if is_new(controller) || is_old.contains(controller) {
                continue;
            }
            let reason = match (unified, &mount) {
                (Some(directory), Some(mount)) => unified::missing(mount, directory, controller),
                _ => format!("the container has no cgroup of the {controller} controller"),
            };
            return Err(Error::Usage(format!(
                "linux.resources.{}: {} limit not enforced: {reason}",
                setting.field,
                kind(controller)
            )));
        }
        let lost = new
            .lost
            .iter()
            .filter(|(name, _)| !is_old.contains(name.as_str()));
        let lost = lost.chain(old.lost.iter().filter(|(name, _)| is_old.contains(name.as_str())));
        if let Some((_, line)) = lost.into_iter().next() {
            return Err(Error::Usage(line.clone()));
        }
        let mut warnings = Vec::new();
        if let Some(directory) = unified {
            for setting in new.settings.iter().filter(|s| is_new(s.controller())) {
                warnings.extend(write_setting(directory, setting)?);
            }
        }
        legacy::write_all(&self.legacy, &old.settings, &is_old, &mut warnings)?;
        match warnings.into_iter().next() {
            Some(line) => Err(Error::Usage(line)),
            None => Ok(()),
        }
    }

    /// The processes in it, as this process sees them.
    pub(crate) fn processes(&self) -> Result<Vec<i32>, Error> {
        let mut found = Vec::new();
        if let Some(path) = self.any() {
            processes(path, 0, &mut found).context(|| path.display().to_string())?;
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Kills every process in it, those that are being made as well. False if this kernel cannot do that in one step.
    pub(crate) fn kill(&self) -> Result<bool, Error> {
        let Some(path) = &self.unified else {
            return Ok(false);
        };
        match write(&path.join("cgroup.kill"), "1") {
            Ok(()) => Ok(true),
            Err(e) if is_missing(&e) => Ok(false),
            Err(e) => Err(e).context(|| format!("kill {}", path.display())),
        }
    }

    /// Ends what is left in it and removes it, with the directories that were made for it.
    ///
    /// # Errors
    ///
    /// If a process does not end in time.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        let directories: BTreeSet<&PathBuf> = self.unified.iter().chain(self.legacy.values()).collect();
        for path in directories {
            loop {
                match remove_tree(path, 0) {
                    Ok(()) => break,
                    Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                        self.end_processes()?;
                        if Some(path) == self.unified.as_ref() {
                            let left = deadline.saturating_duration_since(Instant::now());
                            let empty = unified::await_event(path, "populated", false, left);
                            empty.context(|| path.display().to_string())?;
                        } else {
                            // cgroup v1 tells nobody.
                            std::thread::sleep(legacy::LOOK);
                        }
                    }
                    Err(e) => return Err(e).context(|| format!("remove cgroup {}", path.display())),
                }
            }
        }
        for path in self.made.iter().rev() {
            // Others may use them by now.
            let _ = std::fs::remove_dir(path);
        }
        Ok(())
    }

    fn end_processes(&self) -> Result<(), Error> {
        if !self.kill()? {
            for pid in self.processes()? {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            if self.unified.is_none() && self.is_frozen() {
                self.freeze(false)?;
            }
        }
        Ok(())
    }
}

/// Bytes as people write them: `1024`, `64k`, `512M`, `1g`, `2GiB`; `-1` is unlimited.
pub(crate) fn parse_bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.to_ascii_lowercase();
    let shift = match unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(&unit)
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(1 << shift)
}

/// Why a directory cannot be made, with what to do about it.
fn refusal(place: &Path, error: &io::Error) -> String {
    let above = place.parent().unwrap_or(place).display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{above} is not delegated to this user (in a systemd unit: Delegate=yes; at a prompt: systemd-run --user --scope -p Delegate=yes COMMAND)"
        ),
        io::ErrorKind::ReadOnlyFilesystem => format!("{above} is mounted read-only"),
        _ => format!("{}: {error}", place.display()),
    }
}

impl Entry {
    /// Says whether processes may be made in it, or have to enter by themselves.
    pub(crate) fn at_birth(mut self, born: bool) -> Self {
        self.directory = self.directory.filter(|_| born);
        self
    }

    /// The directory in which a process can be made, where the kernel can do that.
    pub(crate) fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.directory.as_ref().map(AsFd::as_fd)
    }

    /// Everything that is open, to be kept.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let all = self.directory.iter().chain(&self.unified).chain(&self.legacy);
        all.map(AsFd::as_fd)
    }

    /// Moves this process in; `born` says that the unified hierarchy has it already.
    pub(crate) fn enter(&self, born: bool) -> Result<(), Error> {
        let unified = self.unified.iter().filter(|_| !born);
        for procs in unified.chain(&self.legacy) {
            rustix::io::write(procs, b"0").context(|| "enter the cgroup")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_as_people_write_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("64k", Some(64 << 10)),
            ("512M", Some(512 << 20)),
            ("2GiB", Some(2 << 30)),
            ("3gb", Some(3 << 30)),
            ("7b", Some(7)),
            ("-1", Some(-1)),
            ("-2", None),
            ("", None),
            ("m", None),
            ("1x", None),
            ("1 m", None),
            ("9223372036854775807k", None),
        ] {
            assert_eq!(parse_bytes(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_cgroup_is_recorded_and_read_back() {
        let cgroup = Cgroup {
            unified: Some("/sys/fs/cgroup/a".into()),
            legacy: [("memory".to_owned(), PathBuf::from("/m"))].into(),
            made: vec!["/sys/fs/cgroup".into()],
        };
        let text = serde_json::to_string(&cgroup).unwrap();
        assert_eq!(
            text,
            r#"{"unified":"/sys/fs/cgroup/a","legacy":{"memory":"/m"},"made":["/sys/fs/cgroup"]}"#
        );
        assert_eq!(serde_json::from_str::<Cgroup>(&text).unwrap(), cgroup);
    }

    #[test]
    fn a_file_that_is_not_there_is_told_and_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let setting = Setting::new("pids.limit", "pids.max", 5);
        let line = write_setting(directory.path(), &setting).unwrap().unwrap();
        assert_eq!(
            line,
            "linux.resources.pids.limit: not enforced: this kernel has no pids.max"
        );
        assert!(!directory.path().join("pids.max").exists());
        let setting = Setting::new("unified.pids.max", "pids.max", 5);
        assert!(write_setting(directory.path(), &setting).is_err());
    }
}
