//! Who pulls, and what it takes: its time, and the most memory that all of its processes have at once.

use std::collections::HashSet;
use std::fs;
use std::io::Result;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wherry_tests::flaky::{Counters, Proxy};
use wherry_tests::stage::{Stage, remove_tree};

/// Nobody gets longer: two stalls of 60 s and the transfer.
const LIMIT: Duration = Duration::from_secs(150);
/// How often a pull is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// A client of registries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// Ours.
    Wherry,
    /// Debian's.
    Podman,
    /// Debian's.
    Skopeo,
}

/// How a pull went.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// From its start to its end; of a pull that was killed, that of the second.
    pub(crate) wall: Duration,
    /// The most that its processes had resident at once, in kilobytes.
    pub(crate) resident: u64,
    /// Why it failed.
    pub(crate) failure: Option<String>,
    /// It was killed as it had to be.
    pub(crate) killed: bool,
    /// What went over the link.
    pub(crate) counters: Counters,
}

impl Client {
    /// In the order of the table.
    pub(crate) const ALL: [Client; 3] = [Client::Wherry, Client::Podman, Client::Skopeo];

    /// What the table calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Client::Wherry => "wherry",
            Client::Podman => "podman",
            Client::Skopeo => "skopeo",
        }
    }

    fn command(self, stage: &Stage, directory: &Path, image: &str) -> Command {
        let at = |name: &str| directory.join(name).to_string_lossy().into_owned();
        match self {
            Client::Wherry => stage.wherry(directory, &["pull", "-q", image]),
            Client::Podman => {
                let mut command = stage.command("podman");
                command
                    .args([
                        "--root",
                        &at("root"),
                        "--runroot",
                        &at("run"),
                        "--storage-driver",
                        "vfs",
                    ])
                    .args(["pull", "--quiet", "--tls-verify=false", image]);
                command
            }
            Client::Skopeo => {
                let mut command = stage.command("skopeo");
                command
                    .args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"])
                    .args([format!("docker://{image}"), format!("dir:{}", at("copy"))]);
                command
            }
        }
    }

    /// Pulls; killed when `kill_at` bytes have come over the link.
    pub(crate) fn pull(
        self,
        stage: &Stage,
        directory: &Path,
        image: &str,
        proxy: &Proxy,
        kill_at: Option<u64>,
    ) -> Result<Outcome> {
        let errors = stage.directory().join("errors");
        let mut command = self.command(stage, directory, image);
        command.stdout(Stdio::null()).stderr(fs::File::create(&errors)?);
        let begun = Instant::now();
        let mut child = command.spawn()?;
        let mut outcome = Outcome {
            wall: Duration::ZERO,
            resident: 0,
            failure: None,
            killed: false,
            counters: Counters::default(),
        };
        let status = loop {
            outcome.resident = outcome.resident.max(resident(child.id()));
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if kill_at.is_some_and(|bytes| proxy.counters().down >= bytes) {
                outcome.killed = true;
                kill(&mut child);
                break None;
            }
            if begun.elapsed() > LIMIT {
                outcome.failure = Some(format!("not within {} s", LIMIT.as_secs()));
                kill(&mut child);
                break None;
            }
            std::thread::sleep(LOOK);
        };
        outcome.wall = begun.elapsed();
        if status.is_some_and(|status| !status.success()) {
            let text = fs::read_to_string(&errors).unwrap_or_default();
            let last = text
                .lines()
                .rfind(|line| !line.trim().is_empty())
                .unwrap_or("no word");
            outcome.failure = Some(last.chars().take(120).collect());
        }
        Ok(outcome)
    }

    /// Removes what a pull left; of a client with mapped users, in its own user namespace.
    pub(crate) fn clean(self, stage: &Stage, directory: &Path) {
        if self == Client::Podman {
            let mut unshare = stage.command("podman");
            let _ = unshare.args(["unshare", "rm", "-rf"]).arg(directory).output();
        }
        if self == Client::Wherry {
            let mut unshare = stage.command("unshare");
            let _ = unshare
                .args(["--user", "--map-auto", "--map-root-user", "rm", "-rf"])
                .arg(directory)
                .output();
        }
        remove_tree(directory);
    }
}

/// SIGKILL, to it and to all it has started: a power switch knows no difference.
fn kill(child: &mut Child) {
    for pid in family(child.id()) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let _ = child.wait();
}

/// A process and all its descendants.
fn family(root: u32) -> HashSet<u32> {
    let mut all = HashSet::from([root]);
    let mut new = vec![root];
    while let Some(pid) = new.pop() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children
                .split_ascii_whitespace()
                .filter_map(|word| word.parse().ok())
            {
                if all.insert(child) {
                    new.push(child);
                }
            }
        }
    }
    all
}

/// Kilobytes resident of a process and its descendants together; file pages that they share count once. A child on its way
/// to another program is still its parent's memory, and not counted again.
fn resident(root: u32) -> u64 {
    let (mut private, mut shared) = (0, 0);
    let mut stacks = HashSet::new();
    for pid in family(root) {
        let Some(pid) = i32::try_from(pid).ok() else {
            continue;
        };
        let same = stack(pid).is_some_and(|stack| !stacks.insert(stack));
        if let (false, Some(memory)) = (same, wherry_tests::memory::of(pid)) {
            private += memory.private;
            shared = memory.resident.saturating_sub(memory.private).max(shared);
        }
    }
    private + shared
}

/// Where a process's stack begins: each program has it elsewhere, a child that has not become one where its parent has it.
fn stack(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    let start = fields.split_ascii_whitespace().nth(25)?.parse().ok()?;
    (start > 0).then_some(start)
}
