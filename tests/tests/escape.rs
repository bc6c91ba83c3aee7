//! Nothing that `escape` tries inside a container works: as its first process and by `exec`, in a network of its own and in
//! the host's, and with a runtime whose program the container's user could write.

use std::io::{Error, Result};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use wherry_tests::board::Board;
use wherry_tests::sample::{Layout, escape_box};
use wherry_tests::stage::{free_port, skip};

const IMAGE: &str = "localhost/escape:1";
/// More attempts than this must have been refused: fewer would mean that they were not made.
const AT_LEAST: usize = 50;

/// A board with the image, and what of the host a container shall not reach.
struct Host {
    board: Board,
    mark: PathBuf,
    socket: String,
    _listener: UnixListener,
}

impl Host {
    fn new() -> Result<Self> {
        let board = Board::new()?;
        let layout = board.stage.directory().join("escape");
        escape_box(
            &mut Layout::create(&layout)?,
            "escape",
            &board.stage.program("escape"),
        )?;
        board.import(&layout, "escape", IMAGE)?;
        let mark = board.stage.directory().join("mark-of-the-host");
        board.stage.write(&mark, "outside")?;
        let stage = board.stage.directory().file_name().unwrap_or_default();
        let socket = format!("wherry-escape-{}", stage.to_string_lossy());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(socket.as_bytes())?)?;
        Ok(Self {
            board,
            mark,
            socket,
            _listener: listener,
        })
    }

    fn environment(&self) -> Vec<String> {
        [
            format!("HOST_MARK={}", self.mark.display()),
            format!("HOST_PID={}", std::process::id()),
            format!("HOST_SOCKET={}", self.socket),
        ]
        .iter()
        .flat_map(|line| ["-e".to_owned(), line.clone()])
        .collect()
    }

    /// `wherry WORDS... /escape`: every attempt refused.
    fn refuses(&self, what: &str, words: &[&str]) -> Result<()> {
        let output = self.board.stage.run(&self.board.root, words)?;
        let told = String::from_utf8_lossy(&output.stdout);
        let escaped: Vec<&str> = told
            .lines()
            .filter(|line| line.starts_with("ESCAPED") || line.starts_with("BROKEN"))
            .collect();
        let refused = told.lines().filter(|line| line.starts_with("refused")).count();
        if output.status.success() && escaped.is_empty() && refused > AT_LEAST {
            println!("{what}: {refused} attempts refused");
            return Ok(());
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(Error::other(format!(
            "{what}: {}, {refused} refused: {escaped:#?}\n{errors}",
            output.status
        )))
    }
}

#[test]
fn as_the_first_process_and_by_exec() -> Result<()> {
    let host = Host::new()?;
    let environment = host.environment();
    let with = |words: &[&'static str]| -> Vec<String> {
        let (verb, rest) = words.split_first().unwrap_or((&"", &[]));
        let mut all = vec![(*verb).to_owned()];
        all.extend(environment.iter().cloned());
        all.extend(rest.iter().map(|word| (*word).to_owned()));
        all
    };
    let strings = |words: &[String]| -> Result<()> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        host.refuses(words.first().copied().unwrap_or_default(), &words)
    };
    strings(&with(&["run", "--rm", IMAGE, "/escape"]))?;
    strings(&with(&["run", "--rm", "-t", IMAGE, "/escape"]))?;
    host.board
        .must(&["run", "-d", "--name", "steady", IMAGE, "sleep", "1000"])?;
    strings(&with(&["exec", "steady", "/escape"]))
}

#[test]
fn on_the_hosts_network() -> Result<()> {
    if landlock_abi() < 6 {
        skip(
            "escape::on_the_hosts_network",
            "needs Landlock ABI 6: abstract sockets of the host are reachable without it",
        );
        return Ok(());
    }
    let host = Host::new()?;
    let (declared, undeclared) = (free_port()?, free_port()?);
    let mut words = vec!["run".to_owned(), "--rm".into(), "--network".into(), "host".into()];
    words.extend(["-p".into(), format!("{declared}:{declared}")]);
    words.extend(host.environment());
    words.extend([
        "-e".into(),
        "HOST_NETWORK=1".into(),
        "-e".into(),
        format!("PORT={undeclared}"),
    ]);
    words.extend([IMAGE.into(), "/escape".into()]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    host.refuses("on the host's network", &words)
}

/// CVE-2019-5736, with a runtime that belongs to the user: the container runs `/proc/self/exe`, and looks for it by exec.
#[test]
fn the_runtimes_own_program_stays_as_it_was() -> Result<()> {
    let host = Host::new()?;
    let runtime = host.board.stage.program("wherry-runtime");
    host.board.stage.give(&runtime)?;
    let before = std::fs::read(&runtime)?;
    let environment = host.environment();
    let mut words = vec!["run", "-d", "--name", "steady"];
    words.extend(environment.iter().map(String::as_str));
    words.extend([IMAGE, "/escape-loop"]);
    host.board.must(&words)?;
    for _ in 0..20 {
        // Whatever these do, they are not the runtime, and what watches them inside cannot write it.
        let _ = host.board.stage.run(
            &host.board.root,
            &["exec", "steady", "/proc/self/exe", "--version"],
        )?;
        let _ = host.board.stage.run(
            &host.board.root,
            &["run", "--rm", IMAGE, "/proc/self/exe", "--version"],
        )?;
    }
    let log = host.board.must(&["logs", "steady"])?;
    assert!(!log.contains("ESCAPED"), "{log}");
    assert!(log.contains("watching"), "the watcher did not run: {log}");
    assert!(
        std::fs::read(&runtime)? == before,
        "the runtime's program was changed"
    );
    Ok(())
}

fn landlock_abi() -> u32 {
    wherry_tests::kernel::landlock_abi()
}
