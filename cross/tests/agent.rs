//! The agent on a board: up again with no network at a clock that says 1970, in 512 MB, and after power cuts.

mod parts;

use std::io::Result;

use parts::{AARCH64, ARMV7, BOX, desire, pod, start_agent, until, user, user_all, with_box};
use wherry_cross::{Board, Disk, Pi, payload};

const PODS: usize = 3;
/// Long-running, and told by its arguments.
const COMMAND: &str = "[sh, -c, \"while true; do sleep 3600; done\"]";

/// What is in use of the board's memory, in MB, at most since it was switched on, of the user's processes and files.
fn peak(pi: &mut Pi) -> Result<u64> {
    // Before 5.19 there is no peak.
    let text = pi
        .run("cat /sys/fs/cgroup/user/memory.peak || cat /sys/fs/cgroup/user/memory.current")?
        .ok()?;
    Ok(text.trim().parse::<u64>().unwrap_or(0) >> 20)
}

fn running(pi: &mut Pi, wanted: usize) -> Result<()> {
    until(
        pi,
        &format!("[ \"$(wherry ps -q | wc -l)\" = {wanted} ]"),
        "wherry ps -a; cat agent.log",
    )
}

/// Three pods on a day with a clock; then a boot without network, clock or the directory of pod files.
fn offline_in_1970(board: &Board, triple: &str) -> Result<()> {
    let disk = Disk::new(1024)?;
    let mut pi = with_box(board, triple, &disk)?;
    for number in 0..PODS {
        desire(
            &mut pi,
            &format!("pod{number}"),
            &pod(&format!("pod{number}"), COMMAND, ""),
        )?;
    }
    start_agent(&mut pi)?;
    running(&mut pi, PODS)?;
    let used = peak(&mut pi)?;
    let system = pi
        .run("awk '/MemTotal/ {t=$2} /MemAvailable/ {a=$2} END {print int((t-a)/1024)}' /proc/meminfo")?
        .ok()?;
    println!(
        "{triple} on {}: {PODS} pods and the agent: {used} MB at most (with the page cache), {} MB of the whole board in use",
        pi.release(),
        system.trim()
    );
    assert!(used > 0 && used < 256, "{used} MB");
    let before = user(&mut pi, "wherry ps -q --no-trunc | sort")?;
    pi.off()?;

    let mut pi = board
        .clone()
        .offline()
        .clock("1970-01-01T00:00:00")
        .boot(&payload(triple)?, &disk)?;
    assert_eq!(pi.run("date -u +%Y")?.ok()?.trim(), "1970");
    user(&mut pi, "mv pods unplugged")?;
    start_agent(&mut pi)?;
    running(&mut pi, PODS)?;
    let ids = user(&mut pi, "wherry ps -q --no-trunc")?;
    for id in ids.lines() {
        assert_eq!(user(&mut pi, &format!("wherry exec {id} echo here"))?, "here\n");
    }
    // The clock leaps: nothing is started again for it.
    pi.run("date -u -s '2026-11-21 09:00:00'")?.ok()?;
    let mut now = user(&mut pi, "usleep 500000; wherry ps -q --no-trunc | sort")?;
    let mut after: Vec<&str> = ids.lines().collect();
    after.sort_unstable();
    assert_eq!(
        now.lines().collect::<Vec<_>>(),
        after,
        "before the reboot: {before}"
    );
    user(&mut pi, "mv unplugged pods")?;
    running(&mut pi, PODS)?;
    now = user_all(&mut pi, "wherry ps")?;
    assert!(
        !now.contains("Up 56 years"),
        "the clock's leap counts as time that passed: {now}"
    );
    println!(
        "{triple} on {}: offline, in 1970, up after {:.1} s:\n{now}",
        pi.release(),
        pi.boot_time().as_secs_f64()
    );
    pi.off()
}

#[test]
fn offline_in_1970_on_6_12() -> Result<()> {
    offline_in_1970(&Board::new("6.12"), AARCH64)
}

#[test]
fn offline_in_1970_with_32_bits() -> Result<()> {
    offline_in_1970(&Board::new("6.12").with_32_bits(), ARMV7)
}

/// What eats more memory than its limit is killed, and that is what is reported.
fn oom_killed(board: &Board, triple: &str) -> Result<()> {
    let disk = Disk::new(512)?;
    let mut pi = with_box(board, triple, &disk)?;
    let limit = "    resources:\n      limits:\n        memory: 24Mi\n  restartPolicy: Never\n";
    desire(&mut pi, "eater", &pod("eater", "[tail, /dev/zero]", limit))?;
    desire(&mut pi, "steady", &pod("steady", COMMAND, ""))?;
    start_agent(&mut pi)?;
    until(
        &mut pi,
        "wherry inspect $(wherry ps -aq) 2>/dev/null | grep -q '\"oomKilled\": true'",
        "wherry ps -a; wherry inspect $(wherry ps -aq); cat agent.log",
    )?;
    running(&mut pi, 1)?;
    let said = user(&mut pi, "wherry ps -a; wherry inspect $(wherry ps -aq)")?;
    assert!(said.contains("137"), "{said}");
    println!(
        "{triple} on {}: killed at its limit of memory, the other pod runs on",
        pi.release()
    );
    pi.off()
}

#[test]
fn oom_killed_on_6_1() -> Result<()> {
    oom_killed(&Board::new("6.1"), AARCH64)
}

#[test]
fn oom_killed_on_6_12() -> Result<()> {
    oom_killed(&Board::new("6.12"), AARCH64)
}

#[test]
fn oom_killed_with_32_bits() -> Result<()> {
    oom_killed(&Board::new("6.12").with_32_bits(), ARMV7)
}

/// On the far side of 2038, where 32 bits of seconds end: our 32-bit binaries. Debian's 32-bit busybox does not get that far, so
/// the board's own has 64.
#[test]
fn after_2038_with_32_bits() -> Result<()> {
    let disk = Disk::new(512)?;
    let board = Board::new("6.12").clock("2040-06-01T00:00:00");
    let mut pi = with_box(&board, ARMV7, &disk)?;
    desire(&mut pi, "steady", &pod("steady", COMMAND, ""))?;
    start_agent(&mut pi)?;
    running(&mut pi, 1)?;
    let log = user(&mut pi, "cat agent.log")?;
    assert!(log.contains("2040-06-01T00:"), "{log}");
    let told = user(
        &mut pi,
        "wherry inspect $(wherry ps -q); wherry logs $(wherry ps -q)",
    )?;
    assert!(told.contains("\"startedAt\": \"2040-06-01T00:"), "{told}");
    println!(
        "{ARMV7} on {}: {}",
        pi.release(),
        log.lines().next_back().unwrap_or_default()
    );
    pi.off()
}

/// What the board said it had done: tags and containers that must be there, containers that must be gone.
#[derive(Debug, Default)]
struct Acknowledged {
    tags: Vec<String>,
    containers: Vec<String>,
    removed: Vec<String>,
}

impl Acknowledged {
    fn read(&mut self, console: &str) {
        let whole = console.rfind('\n').map_or("", |end| &console[..end]);
        for line in whole.lines() {
            let words: Vec<&str> = line.trim().split(' ').collect();
            match words[..] {
                ["done", "tag", name] => self.tags.push(name.into()),
                ["done", "run", name] => self.containers.push(name.into()),
                ["done", "rm", name] => {
                    self.containers.retain(|known| known != name);
                    self.removed.push(name.into());
                }
                _ => {}
            }
        }
    }

    /// Every line that the board's store and containers do not bear out.
    fn broken(&self, pi: &mut Pi) -> Result<Vec<String>> {
        let images = user(pi, "wherry images")?;
        let containers = user(pi, "wherry ps -a")?;
        let has = |text: &str, word: &str| text.split_whitespace().any(|found| found == word);
        let mut broken = Vec::new();
        broken.extend(
            self.tags
                .iter()
                .filter(|tag| !has(&images, tag))
                .map(|tag| format!("tag {tag} is lost")),
        );
        let lost = self.containers.iter().filter(|name| !has(&containers, name));
        broken.extend(lost.map(|name| format!("container {name} is lost")));
        let back = self.removed.iter().filter(|name| has(&containers, name));
        broken.extend(back.map(|name| format!("container {name} is back")));
        Ok(broken)
    }
}

/// Has the board work and say what it has done, cuts its power in the middle, and looks after what it said. As many
/// times as `WHERRY_PI_CUTS` says.
fn power_cuts(board: &Board, triple: &str) -> Result<()> {
    let cuts: usize = std::env::var("WHERRY_PI_CUTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(4);
    let disk = Disk::new(1024)?;
    let mut pi = with_box(board, triple, &disk)?;
    desire(&mut pi, "steady", &pod("steady", COMMAND, ""))?;
    start_agent(&mut pi)?;
    running(&mut pi, 1)?;
    let mut acknowledged = Acknowledged::default();
    for cut in 0..cuts {
        let work = format!(
            "export PATH=/opt/wherry:$PATH; n={}\nwhile true; do n=$((n + 1))\n\
             wherry tag {BOX} localhost/box:n$n && echo done tag n$n\n\
             wherry run -d --name c$n {BOX} sleep 1000 >/dev/null && echo done run c$n\n\
             wherry rm -f c$((n - 1)) >/dev/null 2>&1 && echo done rm c$((n - 1))\n\
             done",
            (cut + 1) * 1000
        );
        pi.ask(&format!(
            "cat >/run/work <<'END'\n{work}\nEND\necho $$ >/sys/fs/cgroup/user/session/cgroup.procs\n\
             cd /home/wherry-test && HOME=/home/wherry-test su wherry-test -s /bin/sh /run/work 2>/dev/null | while read -r line; do echo \"$line\" >/dev/console; done"
        ))?;
        pi.console_shows("done ", 1 + cut * 5 % 9)?;
        // Somewhere in the middle of the next step.
        std::thread::sleep(std::time::Duration::from_millis((cut as u64 * 89) % 300));
        let console = pi.cut_and_read();
        acknowledged.read(&console);
        disk.check()?;
        pi = board.boot(&payload(triple)?, &disk)?;
        let broken = acknowledged.broken(&mut pi)?;
        assert!(broken.is_empty(), "after cut {}: {broken:?}", cut + 1);
        assert_eq!(
            user(&mut pi, &format!("wherry run --rm {BOX} echo fine"))?,
            "fine\n"
        );
        start_agent(&mut pi)?;
        until(
            &mut pi,
            "wherry ps | grep -q steady",
            "wherry ps -a; cat agent.log",
        )?;
        // What was stopped by the cut is taken away by name, so that the disk does not fill.
        user_all(
            &mut pi,
            "for name in $(wherry ps -a | grep -o ' c[0-9]*$'); do wherry rm -f $name; done",
        )?;
        acknowledged.removed.append(&mut acknowledged.containers);
    }
    println!(
        "{triple} on {}: {cuts} power cuts: {} tags, {} containers acknowledged, none lost",
        pi.release(),
        acknowledged.tags.len(),
        acknowledged.removed.len()
    );
    assert!(!acknowledged.tags.is_empty());
    pi.off()
}

#[test]
fn power_cuts_on_6_12() -> Result<()> {
    power_cuts(&Board::new("6.12"), AARCH64)
}
