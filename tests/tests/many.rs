//! Many containers, and runtimes that are killed in the middle: nothing is left behind.
//!
//! The runtime is asked through its command line, as an ordinary user. What is left is looked for where it would be:
//! processes by their command lines and mounts, files in the state directory, mounts of the host, cgroups.

use rustix::process::Pid;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use wherry_tests::bundle::{self, Ids};
use wherry_tests::stage::{Stage, wait_for};

/// Containers started and deleted, and how many at a time.
const CONTAINERS: usize = 1000;
const AT_ONCE: usize = 50;
/// Programs that end at once.
const SHORT_RUNS: usize = 300;
/// Runtimes that are killed.
const KILLS: usize = 100;
/// Longer than any call takes on a busy machine.
const HANG: Duration = Duration::from_secs(60);

/// A stage with bundles for one runtime.
struct Harbour {
    stage: Stage,
    directory: PathBuf,
    state: PathBuf,
}

impl Harbour {
    fn new() -> Result<Self> {
        let stage = Stage::with(&["wherry-runtime"])?;
        let directory = stage.private_directory("bundles")?;
        let state = stage.private_directory("state")?;
        bundle::make_root(&stage.directory().join("root"))?;
        Ok(Self {
            stage,
            directory,
            state,
        })
    }

    /// A bundle that runs `args`.
    fn bundle(&self, name: &str, args: &[&str]) -> Result<PathBuf> {
        let path = self.directory.join(name);
        std::fs::create_dir(&path)?;
        self.stage.give(&path)?;
        let passwd = std::fs::metadata(&self.directory)?;
        let ids = Ids::single(
            std::os::unix::fs::MetadataExt::uid(&passwd),
            std::os::unix::fs::MetadataExt::gid(&passwd),
        );
        let config = bundle::config(&self.stage.directory().join("root"), args, &ids);
        self.stage.write(&path.join("config.json"), &config.to_string())?;
        Ok(path)
    }

    fn command(&self, bundle: &Path, words: &[&str]) -> Result<Command> {
        let mut command = self.stage.command(self.stage.program("wherry-runtime"));
        command
            .arg("--root")
            .arg(&self.state)
            .args(words)
            .current_dir(bundle)
            .stdout(Stdio::null())
            .stderr(File::create(self.errors(words))?);
        Ok(command)
    }

    fn errors(&self, words: &[&str]) -> PathBuf {
        let name: String = words
            .iter()
            .flat_map(|word| word.chars().filter(char::is_ascii_alphanumeric).chain(['-']))
            .collect();
        self.stage.directory().join(format!("{name}.errors"))
    }

    /// A call that must succeed.
    fn must(&self, bundle: &Path, words: &[&str]) -> Result<()> {
        let status = finish(self.command(bundle, words)?.spawn()?, words)?;
        if status.success() {
            return Ok(());
        }
        let text = std::fs::read_to_string(self.errors(words)).unwrap_or_default();
        Err(Error::other(format!(
            "{}: {status}: {}",
            words.join(" "),
            text.trim_end()
        )))
    }

    /// The containers that are still known.
    fn known(&self) -> Result<Vec<String>> {
        let names = std::fs::read_dir(&self.state)?.map(|entry| Ok(entry?.file_name()));
        let names: Result<Vec<_>> = names.collect();
        Ok(names?
            .iter()
            .map(|name| name.to_string_lossy().into_owned())
            .collect())
    }

    /// Fails if anything is left but what this test put here. Processes may take a moment to be gone.
    fn is_clean(&self, before: &Host) -> Result<()> {
        let known = self.known()?;
        if !known.is_empty() {
            return Err(Error::other(format!("left in the state directory: {known:?}")));
        }
        let gone = wait_for("the containers' processes end", HANG, || {
            self.stage.processes().is_empty().then_some(())
        });
        if let Err(error) = gone {
            return Err(Error::other(format!("{error}: {:?}", self.described())));
        }
        let after = Host::now()?;
        if after != *before {
            let new =
                |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
            return Err(Error::other(format!(
                "left on the host: mounts {:?}, cgroups {:?}",
                new(&after.mounts, &before.mounts),
                new(&after.cgroups, &before.cgroups)
            )));
        }
        Ok(())
    }

    fn described(&self) -> Vec<String> {
        let describe = |pid: &i32| {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            format!(
                "{} {}",
                wherry_tests::memory::command_line(*pid),
                state.trim_end()
            )
        };
        self.stage.processes().iter().map(describe).collect()
    }
}

/// What a runtime could leave on the host.
#[derive(PartialEq, Eq)]
struct Host {
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
}

impl Host {
    fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/self/mountinfo")?;
        // Other tests mount and unmount elsewhere; what is ours names the stage.
        let mounts = text.lines().filter(|line| line.contains("wherry-stage-"));
        let mut cgroups = BTreeSet::new();
        collect(Path::new("/sys/fs/cgroup"), 4, &mut cgroups);
        Ok(Self {
            mounts: mounts.map(str::to_owned).collect(),
            cgroups,
        })
    }
}

/// Cgroups that a container's name could be in.
fn collect(path: &Path, depth: usize, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains("many-") {
            found.insert(entry.path().to_string_lossy().into_owned());
        }
        if depth > 0 {
            collect(&entry.path(), depth - 1, found);
        }
    }
}

/// Waits for a child; one that hangs is killed and is an error.
fn finish(mut child: Child, words: &[&str]) -> Result<ExitStatus> {
    let pid = Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec {
        tv_sec: HANG.as_secs() as i64,
        tv_nsec: 0,
    };
    if rustix::event::poll(&mut fds, Some(&limit))? == 0 {
        child.kill()?;
        child.wait()?;
        return Err(Error::other(format!("{} hangs", words.join(" "))));
    }
    child.wait()
}

#[test]
fn a_thousand_containers_leave_nothing() -> Result<()> {
    let harbour = Harbour::new()?;
    let sleeper = harbour.bundle("sleeper", &["/bin/sleep", "1000"])?;
    let before = Host::now()?;
    let mut deepest = 0;
    for round in 0..CONTAINERS / AT_ONCE {
        let names: Vec<String> = (0..AT_ONCE)
            .map(|index| format!("many-{round}-{index}"))
            .collect();
        let all = |verb: &[&str]| -> Result<()> {
            let calls: Vec<Vec<&str>> = names
                .iter()
                .map(|name| verb.iter().copied().chain([name.as_str()]).collect())
                .collect();
            let children: Result<Vec<Child>> = calls
                .iter()
                .map(|words| harbour.command(&sleeper, words)?.spawn())
                .collect();
            let mut failed = Ok(());
            for (child, words) in children?.into_iter().zip(&calls) {
                let status = finish(child, words)?;
                if !status.success() {
                    let text = std::fs::read_to_string(harbour.errors(words)).unwrap_or_default();
                    failed = Err(Error::other(format!("{words:?}: {status}: {}", text.trim_end())));
                }
            }
            failed
        };
        all(&["create"])?;
        all(&["start"])?;
        deepest = deepest.max(harbour.known()?.len());
        all(&["delete", "--force"])?;
        for name in &names {
            for verb in ["create", "start", "delete---force"] {
                let _ =
                    std::fs::remove_file(harbour.stage.directory().join(format!("{verb}-{name}-.errors")));
            }
        }
    }
    assert_eq!(deepest, AT_ONCE);
    harbour.is_clean(&before)
}

#[test]
fn a_program_that_ends_at_once_never_hangs_run() -> Result<()> {
    let harbour = Harbour::new()?;
    let short = harbour.bundle("short", &["/bin/true"])?;
    let before = Host::now()?;
    let start = Instant::now();
    for _ in 0..SHORT_RUNS {
        harbour.must(&short, &["run", "many-short"])?;
    }
    println!("{SHORT_RUNS} runs in {:?}", start.elapsed());
    harbour.is_clean(&before)
}

/// Numbers that are the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn a_runtime_killed_anywhere_leaves_what_delete_force_cleans() -> Result<()> {
    let harbour = Harbour::new()?;
    let sleeper = harbour.bundle("sleeper", &["/bin/sleep", "1000"])?;
    let before = Host::now()?;
    let seed = match std::env::var("WHERRY_SEED") {
        Ok(seed) => seed
            .parse()
            .map_err(|_| Error::other("WHERRY_SEED: expected a number"))?,
        Err(_) => {
            u64::from(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs())
                ^ std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs())
        }
    };
    println!("WHERRY_SEED={seed} repeats the points, as far as time does");
    let mut random = Random(seed);
    let mut longest = [Duration::from_millis(3); 4];
    let mut killed = 0;
    for round in 0..KILLS {
        let verb = round % 4;
        let words: &[&str] = match verb {
            0 => &["create", "many-killed"],
            1 => &["start", "many-killed"],
            2 => &["delete", "--force", "many-killed"],
            _ => &["exec", "many-killed", "/bin/true"],
        };
        if verb > 0 {
            harbour.must(&sleeper, &["create", "many-killed"])?;
        }
        if verb > 1 {
            harbour.must(&sleeper, &["start", "many-killed"])?;
        }
        // Somewhere within what the call takes, measured here: the machine may be busy.
        let bound = longest.get(verb).copied().unwrap_or_default();
        let after = Duration::from_micros(random.below(u64::try_from(bound.as_micros()).unwrap_or(1).max(1)));
        let start = Instant::now();
        let mut child = harbour.command(&sleeper, words)?.spawn()?;
        while start.elapsed() < after {
            std::hint::spin_loop();
        }
        let early = child.try_wait()?.is_none();
        child.kill()?;
        child.wait()?;
        if early {
            killed += 1;
        } else if let Some(longest) = longest.get_mut(verb) {
            // It had ended before: aim earlier.
            *longest = (*longest).mul_f64(0.8);
        }
        harbour
            .must(&sleeper, &["delete", "--force", "many-killed"])
            .and_then(|()| harbour.is_clean(&before))
            .map_err(|error| Error::other(format!("{} killed after {after:?}: {error}", words.join(" "))))?;
    }
    println!("{killed} of {KILLS} were killed before their end");
    assert!(
        killed >= KILLS / 2,
        "{killed} of {KILLS} were killed before their end"
    );
    Ok(())
}
