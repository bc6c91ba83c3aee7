//! The CLI and the agent work on the same containers without a daemon between them. Here they race: many processes
//! stop, start and remove the same container at once, a thousand rounds, with an agent running that wants its own
//! container back. Beside them a witness compares what `ps` says with what the kernel says.
//!
//! What must hold at every moment: a container directory has at most one monitor and at most one first process, the
//! pod has at most one container that runs, and `ps` does not call dead what lives or living what is dead.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use wherry_tests::board::{BOX, Board};
use wherry_tests::memory;
use wherry_tests::stage::wait_for;

/// Rounds in all; each starts several processes at once.
const ROUNDS: usize = 1000;
/// How long the record of an end may take to be written.
const CORRECTION: Duration = Duration::from_secs(3);
/// The processes of one round.
const AT_ONCE: usize = 3;

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }
}

/// The monitors of each container directory, as the kernel has them. A monitor's own children (the forwarder) carry
/// its command line, so only those count whose parent is no monitor of the same directory.
fn monitors(board: &Board) -> BTreeMap<String, Vec<i32>> {
    let mut found: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    let lines: Vec<(i32, String)> = board
        .stage
        .processes()
        .into_iter()
        .map(|pid| (pid, memory::command_line(pid)))
        .collect();
    for (pid, line) in &lines {
        let Some((_, directory)) = line.split_once(" monitor --dir ") else {
            continue;
        };
        let parent = memory::parent(*pid).unwrap_or(0);
        if lines
            .iter()
            .any(|(known, known_line)| *known == parent && known_line == line)
        {
            continue;
        }
        found.entry(directory.trim().to_owned()).or_default().push(*pid);
    }
    found
}

/// Whether the process of an `observed` record lives: the same id and the same start.
fn lives(observed: &Value) -> bool {
    let Some(pid) = observed["pid"].as_i64() else {
        return false;
    };
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let zombie = fields.first() == Some(&"Z");
    let start = fields.get(19).and_then(|field| field.parse::<i64>().ok());
    !zombie && start == observed["pidStart"].as_i64()
}

/// The records of all containers, read as files: what the monitors say.
fn records(board: &Board) -> BTreeMap<String, Value> {
    let mut records = BTreeMap::new();
    for entry in std::fs::read_dir(board.root.join("containers"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.len() == 64
            && let Ok(bytes) = std::fs::read(entry.path().join("observed"))
            && let Ok(record) = serde_json::from_slice(&bytes)
        {
            records.insert(name, record);
        }
    }
    records
}

/// Whether what `ps` said stays untrue. Between the end of a process and the monitor's record of it lies a moment, and
/// on a busy machine a longer one; a lie is what nobody corrects.
fn lie_stands(board: &Board, id: &str, record: &Value, running: bool) -> bool {
    let end = Instant::now() + CORRECTION;
    while Instant::now() < end {
        if records(board).get(id) != Some(record) || running == lives(record) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// One look at everything. A record that changes while `ps` runs is left out: nobody knows which one `ps` saw.
fn witness(board: &Board, listings: &AtomicUsize) -> Result<()> {
    let before = records(board);
    let output = board
        .stage
        .run(&board.root, &["ps", "-a", "--no-trunc", "--format", "json"])?;
    let after = records(board);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(Error::other(format!(
            "ps failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    listings.fetch_add(1, Ordering::SeqCst);
    let mut pods = 0;
    for line in text.lines() {
        let shown: Value = serde_json::from_str(line)?;
        let id = shown["ID"].as_str().unwrap_or_default();
        let (Some(first), Some(second)) = (before.get(id), after.get(id)) else {
            continue;
        };
        // A record that did not change while `ps` ran is what `ps` has seen.
        if first != second {
            continue;
        }
        // A created container has its first process already: it waits to be started.
        let running = shown["State"] != "exited";
        if running != lives(first) && lie_stands(board, id, first, running) {
            return Err(Error::other(format!(
                "ps says {line}, the kernel says otherwise; record {first}"
            )));
        }
        let owner = shown["Names"].as_str().unwrap_or_default();
        pods += usize::from(running && owner != "race");
    }
    if pods > 1 {
        return Err(Error::other(format!("{pods} containers of one pod run:\n{text}")));
    }
    // A monitor that has given up its lock may take a moment to be gone; two that stay are two owners.
    let doubled = || monitors(board).into_iter().find(|(_, pids)| pids.len() > 1);
    if doubled().is_some() {
        let end = Instant::now() + CORRECTION;
        while let Some((directory, pids)) = doubled() {
            if Instant::now() > end {
                return Err(Error::other(format!("{directory} has the monitors {pids:?}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

fn pod(grace: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: raced\nspec:\n  terminationGracePeriodSeconds: {grace}\n  \
         containers:\n  - name: main\n    image: {BOX}\n"
    )
}

fn start(board: &Board, args: &[&str]) -> Result<Child> {
    board
        .stage
        .wherry(&board.root, args)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
}

#[test]
fn a_thousand_races_leave_one_container_one_owner_and_a_truthful_ps() -> Result<()> {
    let board = Board::with_box()?;
    board.stage.write(&board.pods.join("pod.yaml"), &pod(1))?;
    let mut agent = board.agent("agent", &[])?;
    let podded = wait_for("the pod runs", Duration::from_secs(20), || {
        board
            .must(&["ps", "--format", "json"])
            .ok()
            .filter(|text| !text.is_empty())
    })?;
    let podded: Value = serde_json::from_str(&podded)?;
    let pod_name = podded["Names"].as_str().unwrap_or_default().to_owned();
    board.must(&["run", "-d", "--name", "race", BOX])?;

    let begin = Instant::now();
    let done = AtomicBool::new(false);
    let listings = AtomicUsize::new(0);
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let watched: Result<()> = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                witness(&board, &listings)?;
            }
            Ok(())
        });
        let mut raced = || -> Result<()> {
            let mut random = Random(20_261);
            for round in 0..ROUNDS {
                // Every fourth round is about the pod's container, which the agent wants back.
                let name = if round % 4 == 3 { pod_name.as_str() } else { "race" };
                let mut racing = Vec::new();
                for _ in 0..AT_ONCE {
                    let args: &[&str] = match random.below(8) {
                        0..3 => &["stop", "-t", "1", name],
                        3..6 => &["start", name],
                        6 => &["rm", "-f", name],
                        _ => &["rm", name],
                    };
                    racing.push((args[0], start(&board, args)?));
                }
                for (verb, child) in racing {
                    let output = child.wait_with_output()?;
                    let text = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
                    if output.status.code().is_none() || text.lines().count() > 1 || text.contains("panicked")
                    {
                        return Err(Error::other(format!(
                            "round {round}: {verb}: {}: {text}",
                            output.status
                        )));
                    }
                    *outcomes
                        .entry(format!("{verb} {}", output.status.code().unwrap_or(-1)))
                        .or_default() += 1;
                }
                // A name that is taken is refused: there is one container of that name, or this makes it.
                let again = board
                    .stage
                    .run(&board.root, &["run", "-d", "--name", "race", BOX])?;
                let text = String::from_utf8_lossy(&again.stderr).trim_end().to_owned();
                if !again.status.success() && !text.contains("in use") {
                    return Err(Error::other(format!(
                        "round {round}: run: {}: {text}",
                        again.status
                    )));
                }
                if watcher.is_finished() {
                    return Ok(());
                }
            }
            Ok(())
        };
        let raced = raced();
        done.store(true, Ordering::SeqCst);
        watcher
            .join()
            .map_err(|_| Error::other("the witness panicked"))?
            .and(raced)
    });
    println!(
        "{ROUNDS} rounds of {AT_ONCE} in {:.1} s, {} listings witnessed, {outcomes:?}",
        begin.elapsed().as_secs_f64(),
        listings.load(Ordering::SeqCst)
    );
    watched.map_err(|error| {
        let log = agent.log();
        let lines: Vec<&str> = log.lines().collect();
        Error::other(format!(
            "{error}\n{}",
            lines[lines.len().saturating_sub(20)..].join("\n")
        ))
    })?;
    assert!(agent.ended().is_none(), "the agent ended: {}", agent.log());

    // When all is quiet there is one container of each name. A changed pod is due at once, whatever its backoff was.
    board.stage.write(&board.pods.join("pod.yaml"), &pod(2))?;
    let old = pod_name
        .trim_end_matches(|digit: char| digit.is_ascii_digit())
        .to_owned();
    wait_for("the changed pod runs, alone", Duration::from_secs(30), || {
        let text = board.must(&["ps", "--format", "json"]).ok()?;
        let rows: Vec<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let names: Vec<&str> = rows
            .iter()
            .filter_map(|row| row["Names"].as_str())
            .filter(|name| *name != "race")
            .collect();
        matches!(names[..], [name] if !name.starts_with(&old)).then_some(())
    })?;
    board.must(&["rm", "-f", "race"])?;
    wait_for(
        "one container runs, with one monitor",
        Duration::from_secs(10),
        || {
            let running = board.must(&["ps", "-q"]).ok()?.lines().count();
            (running == 1 && monitors(&board).len() == 1).then_some(())
        },
    )?;
    // Nothing runs on unowned: each first process is the child of a monitor, and one of them is of this board.
    let owners: Vec<String> = parents(board.stage.uid())
        .into_iter()
        .map(memory::command_line)
        .collect();
    let here = board.root.to_string_lossy().into_owned();
    assert!(
        owners.iter().all(|owner| owner.contains(" monitor --dir ")),
        "{owners:?}"
    );
    assert_eq!(
        owners.iter().filter(|owner| owner.contains(&here)).count(),
        1,
        "{owners:?}"
    );
    Ok(())
}

/// The parents of the user's processes that run the test image's command.
fn parents(uid: u32) -> Vec<i32> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let line = status
            .lines()
            .find(|line| line.starts_with("Uid:"))
            .unwrap_or_default();
        let own = line
            .split_whitespace()
            .nth(1)
            .and_then(|word| word.parse::<u32>().ok())
            == Some(uid);
        if own && memory::command_line(pid) == "/tracer wait" {
            parents.extend(memory::parent(pid));
        }
    }
    parents
}
