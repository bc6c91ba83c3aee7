//! How long the runtime takes beside its peers, all of them measured in one run: every round calls each subject once, in
//! an order of its own, so that what else the machine does hits all alike; what is compared are the ratios within a
//! round. Run as root it goes on as the ordinary user of the tests.
//!
//! ```text
//! make bench-runtime              100 rounds
//! make bench-runtime ROUNDS=400
//! ```
//!
//! The exit code is 1 when a wanted figure is missed. On a machine that does something else as well, look at the spread.

mod floor;
mod subject;

use rustix::mount::MountFlags;
use serde_json::{Value, json};
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use subject::{Call, Subject, write};
use wherry_tests::bundle::{self, Ids};
use wherry_tests::kernel;
use wherry_tests::stage::Stage;

/// Rounds that are not counted: caches fill.
const WARM_UP: usize = 5;

/// The most that a peak resident set may be, in kilobytes, and that the binary may have, in bytes.
const RESIDENT: u64 = 3 * 1024;
const BINARY: u64 = if cfg!(target_arch = "x86_64") {
    3_500_000
} else {
    3_000_000
};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["floor", root, kind] => ids(*kind == "range")
            .and_then(|ids| floor::run(Path::new(root), "/bin/true", &ids))
            .map(ExitCode::from),
        ["measure", directory, rounds] => rounds
            .parse()
            .map_err(|_| Error::other("rounds: expected a number"))
            .and_then(|rounds| Bench::new(Path::new(directory), rounds)?.measure()),
        [rounds] => stage(rounds),
        [] => stage("100"),
        _ => Err(Error::other("usage: bench-runtime [ROUNDS]")),
    };
    result.unwrap_or_else(|error| {
        eprintln!("bench-runtime: {error}");
        ExitCode::from(2)
    })
}

fn ids(range: bool) -> Result<Ids> {
    let (uid, gid) = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if range {
        Ids::range(uid, gid)
    } else {
        Ok(Ids::single(uid, gid))
    }
}

/// Goes on as the ordinary user, with binaries that it can read and not write: as a package installs them.
fn stage(rounds: &str) -> Result<ExitCode> {
    let stage = Stage::with(&["wherry-runtime", "bench-runtime"])?;
    let directory = stage.private_directory("bench")?;
    if Path::new("/sys/fs/cgroup/unified").exists() && rustix::process::getuid().is_root() {
        // Debian's crun refuses to start anything where both versions are in use.
        println!("cgroups: version 2 alone, in a mount namespace of this run");
        kernel::own_mounts()?;
        rustix::mount::mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None)?;
    }
    let mut command = stage.command(stage.program("bench-runtime"));
    command.arg("measure").arg(&directory).arg(rounds);
    let status = command.status()?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(2)
        .into())
}

struct Bench {
    directory: PathBuf,
    rounds: usize,
    crun: PathBuf,
    runc: Option<PathBuf>,
    missed: bool,
}

/// The rows of one table: a name, and one call for each round.
type Rows = Vec<(&'static str, Vec<Call>)>;

impl Bench {
    fn new(directory: &Path, rounds: usize) -> Result<Self> {
        let root = directory.join("root");
        bundle::make_root(&root)?;
        let find = |name: &str| {
            ["/usr/bin", "/usr/sbin", "/usr/local/bin"]
                .iter()
                .map(|place| Path::new(place).join(name))
                .find(|path| path.exists())
        };
        Ok(Self {
            directory: directory.to_owned(),
            rounds,
            crun: find("crun").ok_or_else(|| Error::other("crun is missing: apt-get install crun"))?,
            runc: find("runc"),
            missed: false,
        })
    }

    /// A bundle by name; the same directory is never written twice.
    fn bundle(
        &self,
        name: &str,
        args: &[&str],
        range: bool,
        change: impl FnOnce(&mut Value),
    ) -> Result<PathBuf> {
        let path = self.directory.join(name);
        let mut config = bundle::config(&self.directory.join("root"), args, &ids(range)?);
        change(&mut config);
        write(&path, &config)?;
        Ok(path)
    }

    /// A runtime with a state directory of its own, in the cgroup mode that all of them have: none.
    fn subject(
        &self,
        name: &'static str,
        program: &Path,
        options: &[&str],
        bundle: PathBuf,
    ) -> Result<Subject> {
        let state = bundle.join("state");
        std::fs::create_dir_all(&state)?;
        std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let mut words = vec![program.to_string_lossy().into_owned(), "--root".into()];
        words.push(state.to_string_lossy().into_owned());
        words.extend(options.iter().map(|&word| word.to_owned()));
        Ok(Subject {
            name,
            program: words,
            bundle,
            floor: false,
        })
    }

    fn floor(&self, range: bool) -> Result<Subject> {
        let own = std::env::current_exe()?;
        let bundle = self.directory.join("floor");
        std::fs::create_dir_all(&bundle)?;
        Ok(Subject {
            name: "floor",
            program: vec![
                own.to_string_lossy().into_owned(),
                "floor".into(),
                self.directory.join("root").to_string_lossy().into_owned(),
                if range { "range" } else { "single" }.into(),
            ],
            bundle,
            floor: true,
        })
    }

    fn runtime() -> Result<PathBuf> {
        Ok(std::env::current_exe()?.with_file_name("wherry-runtime"))
    }

    /// Ours and the peers with one kind of bundle each.
    fn peers(&self, label: &str, args: &[&str], range: bool, profile: bool) -> Result<Vec<Subject>> {
        let change = |config: &mut Value| -> Result<()> {
            if profile {
                config["linux"]["seccomp"] = bundle::default_seccomp()?;
            }
            Ok(())
        };
        let mut subjects = Vec::new();
        let peers: [(&str, Option<&Path>, &[&str]); 3] = [
            ("wherry", Some(&Self::runtime()?), &["--cgroup-manager=disabled"]),
            ("crun", Some(&self.crun), &["--cgroup-manager=disabled"]),
            // It has no such option: as an ordinary user without a delegated hierarchy it makes none.
            ("runc", self.runc.as_deref(), &[]),
        ];
        for (name, program, options) in peers {
            let Some(program) = program else { continue };
            let mut failed = Ok(());
            let bundle = self.bundle(&format!("{label}-{name}"), args, range, |config| {
                failed = change(config)
            })?;
            failed?;
            subjects.push(self.subject(name, program, options, bundle)?);
        }
        Ok(subjects)
    }

    /// Ours with guarantees taken off, to see what each costs.
    fn variants(&self, range: bool) -> Result<Vec<Subject>> {
        let runtime = Self::runtime()?;
        let variants: [(&str, &[(&str, &str)]); 3] = [
            ("wherry, no seccomp", &[("dev.wherry.seccomp", "unconfined")]),
            ("wherry, no Landlock", &[("dev.wherry.landlock", "off")]),
            (
                "wherry, neither",
                &[
                    ("dev.wherry.seccomp", "unconfined"),
                    ("dev.wherry.landlock", "off"),
                ],
            ),
        ];
        let mut subjects = Vec::new();
        for (index, (name, annotations)) in variants.into_iter().enumerate() {
            let label = format!("variant-{range}-{index}");
            let bundle = self.bundle(&label, &["/bin/true"], range, |config| {
                config["annotations"] = annotations
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), json!(v)))
                    .collect();
            })?;
            subjects.push(self.subject(name, &runtime, &[], bundle)?);
        }
        Ok(subjects)
    }

    fn measure(mut self) -> Result<ExitCode> {
        println!(
            "{} rounds; times in milliseconds; ratios are medians of the rounds' own",
            self.rounds
        );
        for (range, profile, wanted) in [
            (false, false, 0.40),
            (false, true, 0.25),
            (true, false, 0.50),
            (true, true, 0.50),
        ] {
            let ids = if range { "a range of ids" } else { "a single id" };
            let seccomp = if profile {
                "the default seccomp profile on all sides"
            } else {
                "no seccomp for the peers; ours with Landlock and its own filter"
            };
            let label = format!("{range}-{profile}");
            let mut subjects = self.peers(&label, &["/bin/true"], range, profile)?;
            subjects.push(self.floor(range)?);
            if !profile {
                subjects.extend(self.variants(range)?);
            }
            let title = format!("{ids}, {seccomp}");
            let rows = self.rounds(&subjects, Subject::run)?;
            self.table(&format!("run: {title}"), &rows, Some(wanted));

            subjects.retain(|subject| ["wherry", "crun", "runc"].contains(&subject.name));
            let [create, start, delete] = self.steps(&subjects)?;
            let all = sum(&sum(&create, &start), &delete);
            for (verb, rows) in [("create", &create), ("start", &start), ("delete", &delete)] {
                self.table(&format!("{verb}: {title}"), rows, None);
            }
            self.table(&format!("create + start + delete: {title}"), &all, Some(wanted));
        }
        for profile in [false, true] {
            let subjects = self.peers(
                &format!("exec-{profile}"),
                &["/bin/sleep", "1000"],
                false,
                profile,
            )?;
            for subject in &subjects {
                subject.sleep()?;
            }
            let rows = self.rounds(&subjects, Subject::exec);
            for subject in &subjects {
                subject.wake()?;
            }
            let seccomp = if profile { "with" } else { "without" };
            self.table(
                &format!("exec: a single id, {seccomp} the default seccomp profile"),
                &rows?,
                Some(0.5),
            );
        }
        self.bare_start()?;
        self.size()?;
        Ok(ExitCode::from(u8::from(self.missed)))
    }

    /// Each subject once in each round, in an order of the round's own.
    fn rounds(&self, subjects: &[Subject], mut call: impl FnMut(&Subject) -> Result<Call>) -> Result<Rows> {
        let mut rows: Rows = subjects
            .iter()
            .map(|subject| (subject.name, Vec::new()))
            .collect();
        for round in 0..self.rounds + WARM_UP {
            for index in order(subjects.len(), round) {
                let (Some(subject), Some(row)) = (subjects.get(index), rows.get_mut(index)) else {
                    continue;
                };
                let measured = call(subject)?;
                if round >= WARM_UP {
                    row.1.push(measured);
                }
            }
        }
        Ok(rows)
    }

    fn steps(&self, subjects: &[Subject]) -> Result<[Rows; 3]> {
        let mut parts: [Rows; 3] = Default::default();
        let mut each: Vec<(&'static str, [Call; 3])> = Vec::new();
        self.rounds(subjects, |subject| {
            each.push((subject.name, subject.steps()?));
            Ok(Call::default())
        })?;
        for subject in subjects {
            for (index, part) in parts.iter_mut().enumerate() {
                let calls = each.iter().filter(|(name, _)| *name == subject.name);
                let calls = calls
                    .skip(WARM_UP)
                    .filter_map(|(_, calls)| calls.get(index))
                    .copied();
                part.push((subject.name, calls.collect()));
            }
        }
        Ok(parts)
    }

    fn table(&mut self, title: &str, rows: &Rows, wanted: Option<f64>) {
        println!("\n{title}");
        println!(
            "  {:<20} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7}",
            "", "median", "p10", "p90", "x crun", "- floor", "RSS MB"
        );
        let calls = |name: &str| rows.iter().find(|row| row.0 == name).map(|row| row.1.as_slice());
        let floor = calls("floor").map(|calls| quantile(calls.iter().map(|call| millis(*call)), 0.5));
        for (name, own) in rows {
            let wall = |q| quantile(own.iter().map(|call| millis(*call)), q);
            let ratio = calls("crun").map(|crun| {
                let pairs = own.iter().zip(crun);
                quantile(pairs.map(|(a, b)| millis(*a) / millis(*b)), 0.5)
            });
            let resident = own.iter().map(|call| call.resident).max().unwrap_or(0);
            let text =
                |value: Option<f64>, digits| value.map_or_else(String::new, |v| format!("{v:.digits$}"));
            println!(
                "  {name:<20} {:>8.2} {:>8.2} {:>8.2} {:>8} {:>8} {:>7.1}",
                wall(0.5),
                wall(0.1),
                wall(0.9),
                text(ratio, 3),
                text(floor.map(|floor| wall(0.5) - floor), 2),
                resident as f64 / 1024.0,
            );
            if *name == "wherry" {
                if let (Some(wanted), Some(ratio)) = (wanted, ratio) {
                    self.verdict(
                        ratio <= wanted,
                        &format!("{ratio:.3}x crun, wanted at most {wanted:.2}x"),
                    );
                }
                self.verdict(resident <= RESIDENT, "peak RSS, wanted at most 3 MB");
            }
        }
    }

    /// What a program that does nothing takes: it is part of every figure above, the floor's too.
    fn bare_start(&mut self) -> Result<()> {
        let bundle = self.bundle("bare", &["/bin/true"], false, |_| ())?;
        let subject = self.subject("wherry", &Self::runtime()?, &["--version"], bundle)?;
        let rows = self.rounds(&[subject], |subject| subject.call(&[]))?;
        self.table("the program alone (--version)", &rows, None);
        Ok(())
    }

    fn size(&mut self) -> Result<()> {
        let size = std::fs::metadata(Self::runtime()?)?.len();
        println!("\nbinary: {:.2} MB", size as f64 / 1e6);
        self.verdict(
            size <= BINARY,
            &format!("wanted at most {:.1} MB", BINARY as f64 / 1e6),
        );
        Ok(())
    }

    /// Says of a wanted figure that it is missed; one that is met needs few words.
    fn verdict(&mut self, met: bool, what: &str) {
        self.missed |= !met;
        if !met {
            println!("  MISSED: {what}");
        } else if what.contains('x') {
            println!("  met: {what}");
        }
    }
}

fn sum(a: &Rows, b: &Rows) -> Rows {
    let both = a.iter().zip(b);
    both.map(|((name, a), (_, b))| (*name, a.iter().zip(b).map(|(a, b)| a.and(*b)).collect()))
        .collect()
}

fn millis(call: Call) -> f64 {
    call.wall.as_secs_f64() * 1e3
}

/// The value below which that part of all lies.
fn quantile(values: impl Iterator<Item = f64>, part: f64) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let index = (values.len().saturating_sub(1) as f64 * part).round() as usize;
    values.get(index).copied().unwrap_or(f64::NAN)
}

/// The numbers below `count`, rotated and turned round by the round's number: every order comes up.
fn order(count: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).map(|index| (index + round) % count.max(1)).collect();
    if (round / count.max(1)) % 2 == 1 {
        order.reverse();
    }
    order
}
