//! `wherry doctor`: what this board can do, found out by doing it.
//!
//! What would change this process is done in a child of its own: the same program, asked for one probe.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use argh::{ArgsInfo, FromArgs};
use rustix::mount::{MountFlags, MountPropagationFlags};
use serde_json::json;

use super::ago;
use super::failure::{Failure, print};
use super::place::{Place, find_runtime};
use crate::delegation::{self, Delegation};
use crate::sys;

/// Less free space than this cannot take an image and its update.
const SPACE_MIN: u64 = 256 << 20;
/// The Landlock ABI that scopes signals and abstract sockets.
const LANDLOCK_SCOPES: u32 = 6;
/// The Landlock ABI that confines ports.
const LANDLOCK_PORTS: u32 = 4;
/// No board with this program runs before 2025.
const YEAR_MIN: i32 = 2025;

/// test what this board can do, and say which guarantees it gives
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "doctor",
    example = "wherry doctor",
    example = "wherry doctor --format json | jq '.[] | select(.result != \"ok\")'",
    note = "Exits with 0 if containers can run here, with 1 if not. What is \"lost\" is a guarantee that this board does not give."
)]
pub struct Args {
    /// table, or json
    #[argh(option, arg_name = "format", default = "String::from(\"table\")")]
    pub format: String,
    /// one probe in this process, which it changes
    #[argh(option, hidden_help)]
    pub probe: Option<PathBuf>,
}

/// What a test found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The guarantee holds.
    Ok,
    /// Containers run without this guarantee.
    Lost,
    /// Containers do not run.
    Failed,
}

struct Finding {
    name: &'static str,
    outcome: Outcome,
    told: String,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    if let Some(dir) = &args.probe {
        return match probe(dir) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err((what, error)) => Err(Failure::about(what, &error)),
        };
    }
    let as_json = super::images::is_json(&args.format)?;
    let root = place.root()?;
    let findings = [
        kernel(),
        runtime(),
        state(&root),
        namespaces(&root),
        landlock(),
        seccomp(),
        unpacking(),
        cgroups(),
        ids(),
        network(),
        clock(),
    ];
    let word = |outcome| match outcome {
        Outcome::Ok => "ok",
        Outcome::Lost => "lost",
        Outcome::Failed => "FAILED",
    };
    let usable = findings.iter().all(|finding| finding.outcome != Outcome::Failed);
    let lost: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.outcome == Outcome::Lost)
        .map(|finding| finding.name)
        .collect();
    let text = if as_json {
        let one = |f: &Finding| json!({ "test": f.name, "result": word(f.outcome).to_lowercase(), "found": f.told });
        format!(
            "{:#}\n",
            serde_json::Value::from(findings.iter().map(one).collect::<Vec<_>>())
        )
    } else {
        let mut text = String::new();
        for finding in &findings {
            text.push_str(&format!(
                "{:<7} {:<16} {}\n",
                word(finding.outcome),
                finding.name,
                finding.told
            ));
        }
        text.push_str(&match (usable, lost.as_slice()) {
            (false, _) => "\nContainers cannot run here: see FAILED.\n".into(),
            (true, []) => "\nContainers run here, with every guarantee.\n".into(),
            (true, lost) => format!(
                "\nContainers run here, without these guarantees: {}.\n",
                lost.join(", ")
            ),
        });
        text
    };
    print(&text)?;
    Ok(if usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn finding(name: &'static str, outcome: Outcome, told: impl Into<String>) -> Finding {
    Finding {
        name,
        outcome,
        told: told.into(),
    }
}

fn kernel() -> Finding {
    let names = rustix::system::uname();
    let release = names.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let told = format!(
        "Linux {release} {}, pages of {} bytes",
        names.machine().to_string_lossy(),
        rustix::param::page_size()
    );
    match version >= (4, 9) {
        true => finding("kernel", Outcome::Ok, told),
        false => finding(
            "kernel",
            Outcome::Failed,
            told + "; 4.9 is the oldest that is supported",
        ),
    }
}

fn runtime() -> Finding {
    match find_runtime() {
        Ok(path) => finding("runtime", Outcome::Ok, path.display().to_string()),
        Err(failure) => finding("runtime", Outcome::Failed, failure.line),
    }
}

/// The nearest directory above the state directory that is there.
fn existing(root: &Path) -> &Path {
    root.ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"))
}

fn state(root: &Path) -> Finding {
    let name = "state directory";
    let there = existing(root);
    let scratch = there.join(format!(".wherry-doctor-{}", std::process::id()));
    let made = fs::create_dir(&scratch).and_then(|()| fs::remove_dir(&scratch));
    if let Err(error) = made {
        return finding(
            name,
            Outcome::Failed,
            format!("{}: cannot write in {}: {error}", root.display(), there.display()),
        );
    }
    let told = match rustix::fs::statvfs(there) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let told = format!("{}, {} free", root.display(), ago::size(free));
            if free < SPACE_MIN {
                return finding(
                    name,
                    Outcome::Lost,
                    format!("{told}; an image and its update may not fit"),
                );
            }
            told
        }
        Err(error) => format!("{}, free space unknown: {error}", root.display()),
    };
    finding(name, Outcome::Ok, told)
}

/// The namespaces and the overlay are tried in a child, on the file system where the layers lie.
fn namespaces(root: &Path) -> Finding {
    let name = "user namespaces";
    let scratch = existing(root).join(format!(".wherry-doctor-{}", std::process::id()));
    let run = || -> io::Result<std::process::Output> {
        fs::create_dir(&scratch)?;
        let mut child = Command::new("/proc/self/exe");
        child
            .args(["doctor", "--probe"])
            .arg(&scratch)
            .stdin(Stdio::null())
            .output()
    };
    let output = run();
    let _ = crate::container::remove_tree(&scratch);
    match output {
        Ok(output) if output.status.success() => finding(
            name,
            Outcome::Ok,
            "made one, mapped an id, mounted an overlay in it and removed a layer's file",
        ),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said
                .lines()
                .next()
                .unwrap_or("the probe said nothing")
                .trim_start_matches("wherry: ")
                .to_owned();
            finding(name, Outcome::Failed, format!("{said}{}", advice(&said)))
        }
        Err(error) => finding(name, Outcome::Failed, format!("cannot try: {error}")),
    }
}

/// The switches of distributions that forbid it, if one is set.
fn advice(said: &str) -> &'static str {
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    if said.starts_with("overlay") {
        return "; a kernel of 5.11 or newer is needed, and a file system for the state directory that overlay accepts";
    }
    if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        return "; AppArmor forbids it: install wherry's profile, or set kernel.apparmor_restrict_unprivileged_userns=0";
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        return "; set kernel.unprivileged_userns_clone=1";
    }
    if is("/proc/sys/user/max_user_namespaces", "0") {
        return "; set user.max_user_namespaces to 10000";
    }
    ""
}

/// What a container's start does, in this process, which ends afterwards.
fn probe(dir: &Path) -> Result<(), (&'static str, io::Error)> {
    let at = |what: &'static str| move |error: io::Error| (what, error);
    let errno = |what: &'static str| move |error: rustix::io::Errno| (what, io::Error::from(error));
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    sys::enter_own_namespaces().map_err(at("a user namespace is refused"))?;
    fs::write("/proc/self/setgroups", "deny").map_err(at("setgroups cannot be denied"))?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).map_err(at("the user id cannot be mapped"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).map_err(at("the group id cannot be mapped"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(errno("mounts cannot be made private"))?;
    let made = |name: &str| {
        let path = dir.join(name);
        fs::create_dir(&path).map(|()| path)
    };
    let directories = || -> io::Result<[PathBuf; 4]> {
        Ok([made("lower")?, made("upper")?, made("work")?, made("merged")?])
    };
    let [lower, upper, work, merged] = directories().map_err(at("overlay: cannot make its directories"))?;
    fs::write(lower.join("file"), "lower").map_err(at("overlay: cannot write a layer"))?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={},userxattr",
        lower.display(),
        upper.display(),
        work.display()
    );
    let options = std::ffi::CString::new(options).map_err(|error| ("overlay", error.into()))?;
    rustix::mount::mount(
        "overlay",
        &merged,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .map_err(errno("overlay cannot be mounted in a user namespace"))?;
    fs::write(merged.join("new"), "x").map_err(at("overlay: a file cannot be written"))?;
    fs::remove_file(merged.join("file")).map_err(at("overlay: a layer's file cannot be removed"))?;
    match merged.join("file").exists() || !lower.join("file").exists() {
        true => Err(("overlay", io::Error::other("a removed file is still there"))),
        false => Ok(()),
    }
}

/// What keeps the parsers of foreign layers away from everything else.
fn unpacking() -> Finding {
    match wherry_images::cage::missing().as_slice() {
        [] => finding(
            "unpacking",
            Outcome::Ok,
            "foreign layers are parsed under landlock and seccomp",
        ),
        missing => finding(
            "unpacking",
            Outcome::Lost,
            format!("foreign layers are parsed without {}", missing.join(" and ")),
        ),
    }
}

fn landlock() -> Finding {
    let name = "landlock";
    match sys::landlock_abi() {
        Ok(abi) if abi >= LANDLOCK_SCOPES => finding(
            name,
            Outcome::Ok,
            format!("ABI {abi}: files, ports, signals and abstract sockets are confined"),
        ),
        Ok(abi) if abi >= LANDLOCK_PORTS => finding(
            name,
            Outcome::Lost,
            format!("ABI {abi} confines files and ports; with the host's network abstract sockets are open"),
        ),
        Ok(abi) => finding(
            name,
            Outcome::Lost,
            format!("ABI {abi} confines files; with the host's network ports are open"),
        ),
        Err(error) => finding(
            name,
            Outcome::Lost,
            format!("{error}; add landlock to the kernel's lsm= parameter, or use a kernel of 5.13 or newer"),
        ),
    }
}

fn seccomp() -> Finding {
    match sys::seccomp_filters() {
        Ok(()) => finding("seccomp", Outcome::Ok, "filters can refuse system calls"),
        Err(error) => finding(
            "seccomp",
            Outcome::Failed,
            format!("{error}; a kernel with CONFIG_SECCOMP_FILTER is needed"),
        ),
    }
}

/// Where this process stands in the v2 hierarchy, where its containers would be, and with which controllers.
fn cgroups() -> Finding {
    let name = "resource limits";
    let lost = |why: String| finding(name, Outcome::Lost, format!("not enforced: {why}"));
    let Some(delegation) = Delegation::find() else {
        return lost(
            "no cgroup v2 hierarchy is mounted; boot with systemd.unified_cgroup_hierarchy=1".into(),
        );
    };
    let own = delegation.own();
    let Some(containers) = delegation.containers() else {
        return lost(format!(
            "{} is not yours; start wherry in a unit with Delegate=yes and DelegateSubgroup=agent, or with systemd-run --user \
             --scope -p Delegate=yes",
            own.display()
        ));
    };
    let controllers = delegation::controllers(containers);
    let missing: Vec<&str> = ["memory", "cpu", "pids"]
        .into_iter()
        .filter(|name| !controllers.iter().any(|have| have == name))
        .collect();
    if !missing.is_empty() {
        let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let hint = if missing.contains(&"memory") && !cmdline.contains("cgroup_enable=memory") {
            "; a Pi wants cgroup_enable=memory in cmdline.txt"
        } else {
            "; a user's own units get what a drop-in for user@.service delegates: Delegate=cpu cpuset io memory pids"
        };
        return lost(format!(
            "no {} controller in {}{hint}",
            missing.join(", "),
            containers.display()
        ));
    }
    let found = format!(
        "{} is yours, with {}",
        containers.display(),
        controllers.join(" ")
    );
    if containers == own {
        return lost(format!(
            "{found}, but with processes in it, it cannot give these to containers (the agent moves beneath it by itself; \
             for wherry run start a shell in a group beneath it)"
        ));
    }
    finding(name, Outcome::Ok, found)
}

/// With a single id the container's user is the user who runs wherry.
fn ids() -> Finding {
    let name = "id range";
    let caveat = "a single id is mapped: what escapes a container is you, so run wherry as a user of its own";
    let uid = rustix::process::geteuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let user = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| user.to_owned())
    });
    let number = uid.to_string();
    let subuid = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let range = subuid.lines().find(|line| {
        line.split(':')
            .next()
            .is_some_and(|owner| Some(owner) == user.as_deref() || owner == number)
    });
    let path = std::env::var_os("PATH").unwrap_or_default();
    let helper = std::env::split_paths(&path)
        .map(|dir| dir.join("newuidmap"))
        .find(|path| path.is_file());
    let found = match (&range, &helper) {
        (Some(range), Some(helper)) => format!("{} and {range} are there but not used yet", helper.display()),
        (Some(_), None) => "newuidmap is not installed".into(),
        (None, _) => "no range in /etc/subuid".into(),
    };
    finding(name, Outcome::Lost, format!("{caveat} ({found})"))
}

fn network() -> Finding {
    finding(
        "outbound network",
        Outcome::Lost,
        "private networks reach nothing outside yet; use --network host for what must",
    )
}

fn clock() -> Finding {
    let name = "clock";
    let now = time::OffsetDateTime::now_utc();
    let told = format!("{} UTC", now.date());
    match sys::clock_is_kept() {
        _ if now.year() < YEAR_MIN => finding(
            name,
            Outcome::Lost,
            format!("{told}: the clock is not set, certificates cannot be checked"),
        ),
        Ok(true) => finding(name, Outcome::Ok, format!("{told}, kept by a time service")),
        Ok(false) => finding(
            name,
            Outcome::Lost,
            format!("{told}, kept by nothing; start a time service"),
        ),
        Err(error) => finding(
            name,
            Outcome::Lost,
            format!("{told}, unknown whether it is kept: {error}"),
        ),
    }
}
