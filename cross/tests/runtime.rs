//! The runtime's own tests on the board's kernels, with the board's binaries: as root, which gives the ordinary user
//! what it needs, as on any machine.

use std::io::Result;

use wherry_cross::{Board, Disk, payload};

/// Runs every test program of the payload; the sum of what passed.
fn suite(kernel: &'static str, triple: &str) -> Result<()> {
    let disk = Disk::new(2048)?;
    let mut pi = Board::new(kernel).memory(1024).boot(&payload(triple)?, &disk)?;
    let (mut passed, mut failures) = (0, Vec::new());
    let programs = pi.run("cat /payload/tests")?.ok()?;
    assert!(programs.lines().count() > 1, "no test programs in the payload");
    for program in programs.lines() {
        let answer = pi.run(&format!(
            "echo $$ >/sys/fs/cgroup/user/session/cgroup.procs; mkdir -p /home/wherry-test/tmp; chmod 1777 /home/wherry-test/tmp\n\
             export TMPDIR=/home/wherry-test/tmp WHERRY_SKIP_LOG=/run/skipped; {program} --test-threads=2"
        ))?;
        let name = program.rsplit('/').next().unwrap_or(program);
        let count = |word: &str| -> usize {
            // A program that runs itself for one of its tests prints that one's result, too.
            let results = answer
                .out
                .lines()
                .filter(|l| l.starts_with("test result:") && l.contains("; 0 filtered out"));
            let number = |line: &str| {
                line.split_once(word)?
                    .0
                    .trim_end()
                    .rsplit(' ')
                    .next()?
                    .parse()
                    .ok()
            };
            results.filter_map(number).sum()
        };
        println!(
            "{triple} on {}: {name}: {} passed, {} failed",
            pi.release(),
            count(" passed"),
            count(" failed")
        );
        passed += count(" passed");
        if answer.code != 0 {
            failures.push(format!(
                "{name}: exit code {}\n{}{}",
                answer.code, answer.out, answer.err
            ));
        }
    }
    let skipped = pi.run("cat /run/skipped 2>/dev/null || true")?.ok()?;
    for line in skipped.lines() {
        println!("SKIPPED: {triple} on {}: {line}", pi.release());
    }
    println!(
        "{triple} on {}: {passed} passed, up after {:.1} s",
        pi.release(),
        pi.boot_time().as_secs_f64()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    pi.off()
}

#[test]
fn aarch64_on_6_1() -> Result<()> {
    suite("6.1", "aarch64-unknown-linux-musl")
}

#[test]
fn aarch64_on_6_12() -> Result<()> {
    suite("6.12", "aarch64-unknown-linux-musl")
}

#[test]
fn armv7_on_6_12() -> Result<()> {
    suite("6.12", "armv7-unknown-linux-musleabihf")
}
