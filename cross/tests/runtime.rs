//! The runtime's own tests on the board's kernels, with the board's binaries: as root, which gives the ordinary user
//! what it needs, as on any machine: what is delegated to it is delegated by the tests. With 32 bits the libraries' unit tests, too.

use std::io::Result;

use wherry_cross::{Board, Disk, payload};

/// What a test program's own result says of one of its numbers. One that runs itself for one of its tests prints that
/// one's result, too, with the others filtered out.
fn count(output: &str, word: &str) -> usize {
    let results = output
        .lines()
        .filter(|line| line.starts_with("test result:") && line.contains("; 0 filtered out"));
    results
        .flat_map(|line| line.split(';'))
        .filter_map(|part| {
            part.trim()
                .strip_suffix(word)?
                .trim()
                .rsplit(' ')
                .next()?
                .parse::<usize>()
                .ok()
        })
        .sum()
}

/// Runs every test program of the payload; the sum of what passed.
fn suite(board: Board, triple: &str) -> Result<()> {
    let disk = Disk::new(2048)?;
    let mut pi = board.memory(1024).boot(&payload(triple)?, &disk)?;
    let (mut passed, mut failures) = (0, Vec::new());
    let programs = pi.run("cat /payload/tests")?.ok()?;
    assert!(programs.lines().count() > 1, "no test programs in the payload");
    for program in programs.lines() {
        let answer = pi.run(&format!(
            "mkdir -p /home/wherry-test/tmp; chmod 1777 /home/wherry-test/tmp\n\
             export TMPDIR=/home/wherry-test/tmp WHERRY_SKIP_LOG=/run/skipped; {program} --test-threads=2"
        ))?;
        let name = program.rsplit('/').next().unwrap_or(program);
        let (good, bad) = (count(&answer.out, "passed"), count(&answer.out, "failed"));
        println!(
            "{triple} on {}: {name}: {} passed, {} failed",
            pi.release(),
            good,
            bad
        );
        passed += good;
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
    suite(Board::new("6.1"), "aarch64-unknown-linux-musl")
}

#[test]
fn aarch64_on_6_12() -> Result<()> {
    suite(Board::new("6.12"), "aarch64-unknown-linux-musl")
}

#[test]
fn armv7_with_32_bits() -> Result<()> {
    suite(
        Board::new("6.12").with_32_bits(),
        "armv7-unknown-linux-musleabihf",
    )
}
