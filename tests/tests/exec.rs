//! `exec` behaves as under docker although Landlock, seccomp and a private pid namespace are on.

use std::io::Result;
use std::time::Duration;
use wherry_tests::board::{BOX, Board};
use wherry_tests::stage::wait_for;

fn waiting(board: &Board, name: &str) -> Result<()> {
    board.must(&["run", "-d", "--name", name, BOX])?;
    wait_for("the first process waits", Duration::from_secs(10), || {
        board
            .must(&["logs", name])
            .ok()
            .filter(|text| text.contains("waiting"))
    })?;
    Ok(())
}

#[test]
fn it_reads_traces_and_ends_the_first_process() -> Result<()> {
    let board = Board::with_box()?;
    waiting(&board, "first")?;
    assert_eq!(board.must(&["exec", "first", "/tracer", "exe", "1"])?, "/tracer");
    assert_eq!(board.must(&["exec", "first", "/tracer", "trace", "1"])?, "traced");
    assert_eq!(board.must(&["exec", "first", "/tracer", "term", "1"])?, "sent");
    wait_for("the first process has ended", Duration::from_secs(10), || {
        board
            .inspect("first")
            .ok()
            .filter(|container| container["observed"]["status"] == "exited")
    })?;
    let container = board.inspect("first")?;
    assert_eq!(container["observed"]["exitCode"], 43, "{container}");
    assert!(board.must(&["logs", "first"])?.ends_with("terminated"));
    Ok(())
}

#[test]
fn it_is_as_confined_as_the_first_process() -> Result<()> {
    let board = Board::with_box()?;
    waiting(&board, "confined")?;
    for process in ["1", "self"] {
        let status = board.must(&["exec", "confined", "cat", &format!("/proc/{process}/status")])?;
        let field = |name: &str| {
            let line = status
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_default();
            line.split_whitespace().nth(1).unwrap_or_default().to_owned()
        };
        assert_eq!(field("NoNewPrivs:"), "1", "{process}: {status}");
        assert_eq!(field("Seccomp:"), "2", "{process}: {status}");
        // Docker's default set of 14 capabilities, and nothing beyond it.
        let bounding = u64::from_str_radix(&field("CapBnd:"), 16).unwrap_or(u64::MAX);
        assert_eq!(bounding & !0x0000_0000_a804_25fb, 0, "{process}: {bounding:x}");
    }
    // The pid namespace shows the container alone.
    let listed = board.must(&["exec", "confined", "ls", "/proc"])?;
    let pids = listed
        .split_whitespace()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .count();
    assert!((1..=4).contains(&pids), "{listed}");
    Ok(())
}

#[test]
fn exit_codes_are_dockers() -> Result<()> {
    let board = Board::with_box()?;
    waiting(&board, "codes")?;
    for (command, code) in [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["sh", "-c", "kill -9 $$"][..], 137),
        (&["/etc/passwd"][..], 126),
        (&["/nowhere"][..], 127),
        (&["true"][..], 0),
    ] {
        let mut args = vec!["exec", "codes"];
        args.extend_from_slice(command);
        assert_eq!(
            board.stage.run(&board.root, &args)?.status.code(),
            Some(code),
            "exec {command:?}"
        );
        // The first process of a pid namespace cannot kill itself, under docker neither.
        if command.contains(&"kill -9 $$") {
            continue;
        }
        let mut args = vec!["run", "--rm", BOX];
        args.extend_from_slice(command);
        assert_eq!(
            board.stage.run(&board.root, &args)?.status.code(),
            Some(code),
            "run {command:?}"
        );
    }
    assert_eq!(board.refused(&["exec", "nobody", "true"])?.0, 1);
    assert_eq!(board.refused(&["run", "--rm", "localhost/none:1"])?.0, 125);
    Ok(())
}
